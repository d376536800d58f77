//! What an invalidation by pattern costs who has nothing to do with it: the time of a GET directly in Redis, of a key that
//! the pattern does not have, while `--entries` keys are swept, against the same before. Also: how long until the pattern is
//! in force, and until the last of its keys is gone.
//!
//! In front of a Redis with a core of its own, as a Redis has: sidecars are elsewhere, with what they do for a sweep.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::groups::{expect, request};
use crate::load::{bulk, get, key, micros, set, timed, value};
use crate::pushes::ratio;
use crate::server::{Server, Servers};
use crate::table::median;

/// Keys that are written in one go.
const CHUNK: usize = 1000;
/// Keys of others, and GETs of them before the pattern.
const OTHERS: usize = 1000;
const IDLE: usize = 20_000;
/// GETs between two looks whether the sweep is over.
const BETWEEN: usize = 500;
/// Keys that are read when the pattern is in force.
const READ: usize = 100;
/// By the name that the sidecar of a benchmark has: what is in force.
const INDEX: &[u8] = b"caddy:default.local:ranges";
/// A sweep that takes longer is given up.
const PATIENCE: Duration = Duration::from_mins(5);

/// Measures, and says what was seen.
pub(crate) fn measure(servers: &Servers, rounds: usize, entries: usize) -> Result<String> {
    let (behind, data) = servers.redis_behind("swept")?;
    let sidecar = servers.sidecar_beside_the_load("sweeper", &data, behind)?;
    let (mut p50, mut p99, mut entered, mut swept) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut sweep = Sweep::prepare(&sidecar, entries)?;
        let mut idle = sweep.others(IDLE)?;
        let (in_force, mut busy, took) = sweep.run()?;
        p50.push(ratio(&mut busy, &mut idle, 50));
        p99.push(ratio(&mut busy, &mut idle, 99));
        entered.push(micros(in_force));
        swept.push(took.as_secs_f64());
    }
    let middle = |values| median(values).unwrap_or(f64::NAN);
    Ok(format!(
        "A pattern of {entries} keys is in force after {:.0} µs and swept after {:.1} s; meanwhile a GET of another key \
         in Redis itself: p50 × {:.2}, p99 × {:.2} of before.",
        middle(entered),
        middle(swept),
        middle(p50),
        middle(p99)
    ))
}

struct Sweep {
    app: UnixStream,
    data: UnixStream,
    entries: usize,
    reads: Vec<Vec<u8>>,
}

impl Sweep {
    fn prepare(sidecar: &Server, entries: usize) -> Result<Self> {
        let mut data = sidecar.connect_to_data()?;
        let value = value(100);
        let mut write = |kind: &str, count: usize| -> Result<()> {
            for from in (0..count).step_by(CHUNK) {
                let chunk: Vec<_> =
                    (from..count.min(from + CHUNK)).map(|number| set(&key(kind, number), &value)).collect();
                timed(std::slice::from_mut(&mut data), &chunk, CHUNK, b"+OK\r\n").context("write the keys")?;
            }
            Ok(())
        };
        write("swept", entries)?;
        write("other", OTHERS)?;
        let reads = (0..OTHERS).map(|number| get(&key("other", number))).collect();
        Ok(Self { app: sidecar.connect()?, data, entries, reads })
    }

    /// How long each of so many GETs of other keys took, one at a time.
    fn others(&mut self, count: usize) -> Result<Vec<Duration>> {
        let (mut times, reply) = (Vec::with_capacity(count), bulk(&value(100)));
        while times.len() < count {
            let reads = &self.reads[..OTHERS.min(count - times.len())];
            times.extend(timed(std::slice::from_mut(&mut self.data), reads, 1, &reply).context("read others' keys")?);
        }
        Ok(times)
    }

    /// Lets the pattern take effect; how long that took, what others' GETs took until all was gone, and how long that was.
    fn run(&mut self) -> Result<(Duration, Vec<Duration>, Duration)> {
        let began = Instant::now();
        self.app.write_all(&request(&[b"CACHE.INVALIDATE", b"PATTERN", b"swept*"]))?;
        let mut id = [0; 39];
        self.app.read_exact(&mut id).context("the pattern's id")?;
        ensure!(id.starts_with(b"$32\r\n"), "CACHE.INVALIDATE PATTERN is answered {}", id.escape_ascii());
        let in_force = began.elapsed();
        for number in (0..self.entries).step_by(self.entries / READ) {
            self.app.write_all(&get(&key("swept", number)))?;
            expect(&mut self.app, b"$-1\r\n").context("a key that a pattern has was read")?;
        }
        let mut times = Vec::new();
        while self.is_in_force(&id[5..37])? {
            times.extend(self.others(BETWEEN)?);
            ensure!(began.elapsed() < PATIENCE, "it is not over after {PATIENCE:?}");
        }
        Ok((in_force, times, began.elapsed()))
    }

    /// Whether the pattern is still in force.
    fn is_in_force(&mut self, id: &[u8]) -> Result<bool> {
        self.data.write_all(&request(&[b"HEXISTS", INDEX, id]))?;
        let mut reply = [0; 4];
        self.data.read_exact(&mut reply)?;
        ensure!(&reply == b":0\r\n" || &reply == b":1\r\n", "HEXISTS is answered {}", reply.escape_ascii());
        Ok(&reply == b":1\r\n")
    }
}
