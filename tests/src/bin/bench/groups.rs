//! What groups cost: a hit on a value with three tags against one on a plain value; invalidating a tag that `--entries`
//! values carry against a DEL of one key, at the caller; and how soon a tag deleted directly in Redis kills a copy, against a
//! plain key. All in turn, so that what the machine does meanwhile meets both.
//!
//! Behind each invalidation the tag is put back as it was, past the sidecar, so that all of them carry it the next time, too.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::load::{bulk, get, key, set, timed, value};
use crate::pushes::ratio;
use crate::server::{Kind, Servers};
use crate::table::median;

/// Requests of a batch of hits, and batches of a round.
const PIPELINE: usize = 64;
const BATCHES: usize = 200;
/// Invalidations, and pushes, of a round.
const WRITES: usize = 200;
/// Values that are written in one go.
const CHUNK: usize = 1000;
/// Carriers of which the sidecar has a copy when their tag is invalidated.
const COPIES: usize = 10_000;
/// By the names that the sidecar of a benchmark has.
const ONE: &[u8] = b"caddy:default.local:g:t:one";
const MANY: &[u8] = b"caddy:default.local:g:t:many";
const SAVED: &[u8] = b"saved";

/// Measures, and says what was seen.
pub(crate) fn measure(servers: &Servers, rounds: usize, entries: usize) -> Result<String> {
    let sidecar = servers.iter().find(|one| one.kind() == Kind::Sidecar).context("a sidecar is always measured")?;
    let mut bench = Groups { app: sidecar.connect()?, data: sidecar.connect_to_data()?, entries };
    bench.fill()?;
    let (mut hits, mut invalidations, mut pushes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        hits.push(bench.hits()?);
        invalidations.push(bench.invalidations()?);
        pushes.push(bench.pushes()?);
    }
    bench.empty()?;
    let middle = |values| median(values).unwrap_or(f64::NAN);
    Ok(format!(
        "A hit with three tags, in pipelines of {PIPELINE}: × {:.2} of a plain one. Invalidating a tag of {entries} values: \
         p50 × {:.2} of a DEL. A tag's DEL kills a copy: p50 × {:.2} of a plain key's write.",
        middle(hits),
        middle(invalidations),
        middle(pushes)
    ))
}

struct Groups {
    app: UnixStream,
    data: UnixStream,
    /// Values that carry the tag which is invalidated.
    entries: usize,
}

fn tagged(name: &str, tags: &[&str]) -> Vec<u8> {
    let (value, count) = (value(100), tags.len().to_string());
    let mut words: Vec<&[u8]> = vec![b"CACHE.SET", name.as_bytes(), &value, b"TAGS", count.as_bytes()];
    words.extend(tags.iter().map(|tag| tag.as_bytes()));
    request(&words)
}

pub(crate) fn request(words: &[&[u8]]) -> Vec<u8> {
    let head = format!("*{}\r\n", words.len()).into_bytes();
    words.iter().fold(head, |request, word| [request, bulk(word)].concat())
}

impl Groups {
    fn fill(&mut self) -> Result<()> {
        for from in (0..self.entries).step_by(CHUNK) {
            let numbers = from..self.entries.min(from + CHUNK);
            let chunk: Vec<_> = numbers.map(|number| tagged(&key("carrier", number), &["many"])).collect();
            timed(std::slice::from_mut(&mut self.app), &chunk, CHUNK, b"+OK\r\n").context("write the carriers")?;
        }
        self.tell(&[b"COPY", MANY, SAVED, b"REPLACE"])
    }

    /// Gives back what the carriers take.
    fn empty(&mut self) -> Result<()> {
        self.data.write_all(&request(&[b"FLUSHALL", b"ASYNC"]))?;
        expect(&mut self.data, b"+OK\r\n")
    }

    fn ask(&mut self, request: &[u8], reply: &[u8]) -> Result<Duration> {
        let sent = Instant::now();
        self.app.write_all(request)?;
        expect(&mut self.app, reply)?;
        Ok(sent.elapsed())
    }

    /// Something that is done once, past the sidecar.
    fn tell(&mut self, words: &[&[u8]]) -> Result<()> {
        self.data.write_all(&request(words))?;
        expect(&mut self.data, b":1\r\n")
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
        Ok(ratio(&mut of_tagged, &mut of_plain, 50))
    }

    fn invalidations(&mut self) -> Result<f64> {
        let (mut of_one, mut of_many) = (Vec::new(), Vec::new());
        let (name, there) = (key("single", 1), bulk(&value(100)));
        let copies: Vec<_> = (0..COPIES.min(self.entries)).map(|number| get(&key("carrier", number))).collect();
        timed(std::slice::from_mut(&mut self.app), &copies, PIPELINE, &there).context("read carriers")?;
        for write in 0..WRITES {
            let carrier = get(&key("carrier", write * (self.entries / WRITES)));
            self.ask(&carrier, &there)?;
            self.ask(&set(&name, b"v"), b"+OK\r\n")?;
            of_one.push(self.ask(&request(&[b"DEL", name.as_bytes()]), b":1\r\n")?);
            of_many.push(self.ask(&request(&[b"CACHE.INVALIDATE", b"TAG", b"many"]), b":1\r\n")?);
            self.ask(&carrier, b"$-1\r\n")?;
            self.tell(&[b"COPY", SAVED, MANY])?;
            // Behind a script all is told that came before it.
            self.ask(&request(&[b"EVAL", b"return 1", b"0"]), b":1\r\n")?;
        }
        Ok(ratio(&mut of_many, &mut of_one, 50))
    }

    fn pushes(&mut self) -> Result<f64> {
        let (plain, with) = (key("plain", 2), key("tagged", 2));
        let (old, gone) = (bulk(&value(100)), b"$-1\r\n".to_vec());
        let (mut of_plain, mut of_tagged) = (Vec::new(), Vec::new());
        for _ in 0..WRITES {
            let turns = [
                (&plain, set(&plain, &value(100)), plain.as_bytes(), &mut of_plain),
                (&with, tagged(&with, &["one"]), ONE, &mut of_tagged),
            ];
            for (name, write, deleted, times) in turns {
                self.ask(&write, b"+OK\r\n")?;
                for _ in 0..3 {
                    self.ask(&get(name), &old)?;
                }
                let sent = Instant::now();
                self.data.write_all(&request(&[b"DEL", deleted]))?;
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
        Ok(ratio(&mut of_tagged, &mut of_plain, 50))
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

pub(crate) fn expect(stream: &mut UnixStream, wanted: &[u8]) -> Result<()> {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got)?;
    ensure!(got == wanted, "a wrong reply: {}", got.escape_ascii());
    Ok(())
}
