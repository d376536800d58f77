//! What groups cost: a hit on a value with three tags against one on a plain value; invalidating a tag that many values carry
//! against a DEL of one key, at the caller; and how soon a tag deleted directly in Redis kills a copy, against a plain key.
//! All in turn, so that what the machine does meanwhile meets both.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::load::{bulk, get, key, percentile, set, timed, value};
use crate::server::{Kind, Servers};
use crate::table::median;

/// Values that carry the tag which is invalidated.
const CARRIERS: usize = 100_000;
/// Requests of a batch of hits, and batches of a round.
const PIPELINE: usize = 64;
const BATCHES: usize = 200;
/// Invalidations, and pushes, of a round.
const WRITES: usize = 200;
/// By the names that the sidecar of a benchmark has.
const GENERATION: &str = "caddy:default.local:g:t:one";

/// Measures, and says what was seen.
pub(crate) fn measure(servers: &Servers, rounds: usize) -> Result<String> {
    let sidecar = servers.iter().find(|one| one.kind() == Kind::Sidecar).context("a sidecar is always measured")?;
    let mut bench = Groups { app: sidecar.connect()?, data: sidecar.connect_to_data()? };
    bench.fill()?;
    let (mut hits, mut invalidations, mut pushes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        hits.push(bench.hits()?);
        invalidations.push(bench.invalidations()?);
        pushes.push(bench.pushes()?);
    }
    let middle = |values| median(values).unwrap_or(f64::NAN);
    Ok(format!(
        "A hit with three tags, in pipelines of {PIPELINE}: × {:.2} of a plain one. Invalidating a tag of {CARRIERS} values: \
         p50 × {:.2} of a DEL. A tag's DEL kills a copy: p50 × {:.2} of a plain key's write.",
        middle(hits),
        middle(invalidations),
        middle(pushes)
    ))
}

struct Groups {
    app: UnixStream,
    data: UnixStream,
}

fn tagged(name: &str, tags: &[&str]) -> Vec<u8> {
    let (value, count) = (value(100), tags.len().to_string());
    let mut words: Vec<&[u8]> = vec![b"CACHE.SET", name.as_bytes(), &value, b"TAGS", count.as_bytes()];
    words.extend(tags.iter().map(|tag| tag.as_bytes()));
    request(&words)
}

fn request(words: &[&[u8]]) -> Vec<u8> {
    let head = format!("*{}\r\n", words.len()).into_bytes();
    words.iter().fold(head, |request, word| [request, bulk(word)].concat())
}

impl Groups {
    fn fill(&mut self) -> Result<()> {
        let all: Vec<_> = (0..CARRIERS).map(|number| tagged(&key("carrier", number), &["many"])).collect();
        timed(std::slice::from_mut(&mut self.app), &all, 1000, b"+OK\r\n").map(drop)
    }

    fn ask(&mut self, request: &[u8], reply: &[u8]) -> Result<Duration> {
        let sent = Instant::now();
        self.app.write_all(request)?;
        expect(&mut self.app, reply)?;
        Ok(sent.elapsed())
    }

    fn hits(&mut self) -> Result<f64> {
        let (plain, with) = (key("plain", 1), key("tagged", 1));
        self.ask(&set(&plain, &value(100)), b"+OK\r\n")?;
        self.ask(&tagged(&with, &["one", "two", "three"]), b"+OK\r\n")?;
        let (mut of_plain, mut of_tagged) = (Vec::new(), Vec::new());
        for _ in 0..BATCHES {
            for (name, times) in [(&plain, &mut of_plain), (&with, &mut of_tagged)] {
                let requests = vec![get(name); PIPELINE];
                times.extend(timed(std::slice::from_mut(&mut self.app), &requests, PIPELINE, &bulk(&value(100)))?);
            }
        }
        Ok(ratio(&mut of_tagged, &mut of_plain))
    }

    fn invalidations(&mut self) -> Result<f64> {
        let (mut of_one, mut of_many) = (Vec::new(), Vec::new());
        let name = key("single", 1);
        for _ in 0..WRITES {
            self.ask(&set(&name, b"v"), b"+OK\r\n")?;
            of_one.push(self.ask(&request(&[b"DEL", name.as_bytes()]), b":1\r\n")?);
            // One more carrier makes the tag again.
            self.ask(&tagged(&key("carrier", 0), &["many"]), b"+OK\r\n")?;
            of_many.push(self.ask(&request(&[b"CACHE.INVALIDATE", b"TAG", b"many"]), b":1\r\n")?);
        }
        Ok(ratio(&mut of_many, &mut of_one))
    }

    fn pushes(&mut self) -> Result<f64> {
        let (plain, with) = (key("plain", 2), key("tagged", 2));
        let (old, gone) = (bulk(&value(100)), b"$-1\r\n".to_vec());
        let (mut of_plain, mut of_tagged) = (Vec::new(), Vec::new());
        for _ in 0..WRITES {
            let turns = [
                (&plain, set(&plain, &value(100)), plain.clone(), &mut of_plain),
                (&with, tagged(&with, &["one"]), GENERATION.to_owned(), &mut of_tagged),
            ];
            for (name, write, deleted, times) in turns {
                self.ask(&write, b"+OK\r\n")?;
                for _ in 0..3 {
                    self.ask(&get(name), &old)?;
                }
                let sent = Instant::now();
                self.data.write_all(&request(&[b"DEL", deleted.as_bytes()]))?;
                times.push(loop {
                    let asked = sent.elapsed();
                    if self.read(&get(name), &old, &gone)? {
                        break asked;
                    }
                    ensure!(asked < Duration::from_secs(5), "a copy of {name} is still served after 5 s");
                });
                expect(&mut self.data, b":1\r\n")?;
            }
        }
        Ok(ratio(&mut of_tagged, &mut of_plain))
    }

    /// Whether the answer is that there is nothing.
    fn read(&mut self, request: &[u8], old: &[u8], gone: &[u8]) -> Result<bool> {
        self.app.write_all(request)?;
        let mut got = vec![0; gone.len()];
        self.app.read_exact(&mut got)?;
        if got == gone {
            return Ok(true);
        }
        let mut rest = vec![0; old.len() - gone.len()];
        self.app.read_exact(&mut rest)?;
        Ok(false)
    }
}

fn ratio(ours: &mut [Duration], others: &mut [Duration]) -> f64 {
    percentile(ours, 50).as_secs_f64() / percentile(others, 50).as_secs_f64()
}

fn expect(stream: &mut UnixStream, wanted: &[u8]) -> Result<()> {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got)?;
    ensure!(got == wanted, "a wrong reply: {}", got.escape_ascii());
    Ok(())
}
