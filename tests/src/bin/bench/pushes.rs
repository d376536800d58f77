//! How soon a write made directly in Redis kills a copy: in a sidecar, and beside it in a bare client with tracking on.
//! Both times begin when the write is sent. The bare client's ends when the push is read; the sidecar's when the first
//! GET is sent that is answered with the new value, so it is exact to one hit.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::load::{bulk, get, key, micros, percentile, set};
use crate::server::{Kind, Server, Servers};
use crate::table::median;

/// Writes of one round.
const WRITES: usize = 500;

/// Measures, and says what was seen.
pub(crate) fn measure(servers: &Servers, rounds: usize) -> Result<String> {
    let sidecar = servers.iter().find(|one| one.kind() == Kind::Sidecar).context("a sidecar is always measured")?;
    let mut race = Race::prepare(sidecar)?;
    let (mut p50, mut p99, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut bare, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..WRITES {
            bare.push(race.until_the_push()?);
            copies.push(race.until_the_copy_is_dead()?);
        }
        p50.push(ratio(&mut copies, &mut bare, 50));
        p99.push(ratio(&mut copies, &mut bare, 99));
        ours.push(micros(percentile(&mut copies, 50)));
    }
    let middle = |values| median(values).unwrap_or(f64::NAN);
    Ok(format!(
        "A foreign write kills a copy after {:.0} µs (p50); to a bare tracking client: p50 × {:.2}, p99 × {:.2}.",
        middle(ours),
        middle(p50),
        middle(p99)
    ))
}

/// How many times as long as the others' percentile ours is.
pub(crate) fn ratio(ours: &mut [Duration], others: &mut [Duration], percent: usize) -> f64 {
    percentile(ours, percent).as_secs_f64() / percentile(others, percent).as_secs_f64()
}

struct Race {
    writer: UnixStream,
    tracker: UnixStream,
    app: UnixStream,
    version: usize,
}

impl Race {
    fn prepare(sidecar: &Server) -> Result<Self> {
        let mut this = Self {
            writer: sidecar.connect_to_data()?,
            tracker: sidecar.connect_to_data()?,
            app: sidecar.connect()?,
            version: 0,
        };
        this.tracker
            .write_all(b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*3\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$2\r\nON\r\n")?;
        let mut greeting = Vec::new();
        while !greeting.ends_with(b"+OK\r\n") {
            let mut some = [0; 1024];
            let read = this.tracker.read(&mut some)?;
            ensure!(read > 0, "Redis closed the tracking connection");
            greeting.extend_from_slice(&some[..read]);
        }
        Ok(this)
    }

    /// Values of one length, so that a reply is read in one go.
    fn value(&self) -> Vec<u8> {
        format!("{:0100}", self.version).into_bytes()
    }

    fn write(&mut self, key: &str) -> Result<Instant> {
        self.version += 1;
        let request = set(key, &self.value());
        let sent = Instant::now();
        self.writer.write_all(&request)?;
        Ok(sent)
    }

    fn written(&mut self) -> Result<()> {
        expect(&mut self.writer, b"+OK\r\n")
    }

    fn until_the_push(&mut self) -> Result<Duration> {
        let name = key("tracked", 0);
        self.write(&name)?;
        self.written()?;
        // Read once, so that the server tells of the next write.
        self.tracker.write_all(&get(&name))?;
        let value = bulk(&self.value());
        expect(&mut self.tracker, &value)?;
        let sent = self.write(&name)?;
        let push = [b">2\r\n$10\r\ninvalidate\r\n*1\r\n".as_slice(), &bulk(name.as_bytes())].concat();
        expect(&mut self.tracker, &push)?;
        let took = sent.elapsed();
        self.written()?;
        Ok(took)
    }

    fn until_the_copy_is_dead(&mut self) -> Result<Duration> {
        let name = key("copied", 0);
        self.write(&name)?;
        self.written()?;
        let request = get(&name);
        // The first read may still see the copy of an earlier round; one more brings the present value close.
        while self.read(&request)? != bulk(&self.value()) {}
        self.read(&request)?;
        let sent = self.write(&name)?;
        let new = bulk(&self.value());
        let took = loop {
            let asked = sent.elapsed();
            if self.read(&request)? == new {
                break asked;
            }
            if asked > Duration::from_secs(5) {
                bail!("the copy of {name} is still served 5 s after a foreign write");
            }
        };
        self.written()?;
        Ok(took)
    }

    fn read(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.app.write_all(request)?;
        let mut reply = vec![0; bulk(&self.value()).len()];
        self.app.read_exact(&mut reply)?;
        Ok(reply)
    }
}

fn expect(stream: &mut UnixStream, wanted: &[u8]) -> Result<()> {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got)?;
    ensure!(got == wanted, "a wrong reply: {}", got.escape_ascii());
    Ok(())
}
