//! What locks cost: taking and letting go beside the two scripts that one would write oneself, handing over beside a bare
//! message, and ten thousand held by one sidecar.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::footprint::memory;
use crate::load::{micros, percentile};
use crate::server::{Kind, Servers};
use crate::table::median;

/// Locks taken and let go in one round.
const PAIRS: usize = 1000;
/// Hand-overs of one round.
const TURNS: usize = 300;
/// Locks that one sidecar holds.
const HELD: usize = 10_000;
/// How long their renewals are watched: two at least of each, at the default lease.
const WATCHED: Duration = Duration::from_secs(20);

/// The lock that one would write: a value of one's own with an expiry, and a counter as fencing token.
const ACQUIRE: &str =
    "if redis.call('SET',KEYS[1],ARGV[1],'NX','PX',ARGV[2]) then return redis.call('INCR',KEYS[2]) end return -1";
const RELEASE: &str = "if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0";

/// Measures, and says what was seen.
pub(crate) fn measure(servers: &Servers, rounds: usize) -> Result<String> {
    let sidecar = servers.iter().find(|one| one.kind() == Kind::Sidecar).context("a sidecar is always measured")?;
    let relay = servers.iter().find(|one| one.kind() == Kind::Relay).context("a relay is always measured")?;
    let (mut ours, mut direct) = (Line(sidecar.connect()?), Line(sidecar.connect_to_data()?));
    let mut own = OwnLock::prepare(Line(sidecar.connect_to_data()?))?;
    let mut relayed = OwnLock::prepare(Line(relay.connect()?))?;
    let (mut pairs, mut pair, mut relays) = (Vec::new(), Vec::new(), Vec::new());
    let (mut turns, mut turn) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut through, mut bare, mut passed_on) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            through.push(ours.take_and_let_go()?);
            bare.push(own.take_and_let_go()?);
            passed_on.push(relayed.take_and_let_go()?);
        }
        pair.push(micros(percentile(&mut through, 50)));
        pairs.push(ratio(&mut through, &mut bare));
        relays.push(ratio(&mut through, &mut passed_on));
    }
    let (mut holder, mut waiter) = (Line(sidecar.connect()?), Line(sidecar.connect()?));
    let mut subscriber = Line(sidecar.connect_to_data()?);
    subscriber.send(&["SUBSCRIBE", "bench"])?;
    subscriber.read_until(b":1\r\n")?;
    for _ in 0..rounds {
        let (mut through, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            through.push(hand_over(&mut holder, &mut waiter)?);
            std::mem::swap(&mut holder, &mut waiter);
            let begun = Instant::now();
            direct.send(&["PUBLISH", "bench", "go"])?;
            subscriber.read_until(b"$2\r\ngo\r\n")?;
            bare.push(begun.elapsed());
            direct.read_until(b"\r\n")?;
        }
        turn.push(micros(percentile(&mut through, 50)));
        turns.push(ratio(&mut through, &mut bare));
    }
    let middle = |values| median(values).unwrap_or(f64::NAN);
    Ok(format!(
        "A lock taken and let go: {:.0} µs (p50), × {:.2} of two EVALSHA of one's own, × {:.2} of the same two through a bare \
         relay; handed over in {:.0} µs (p50), × {:.2} of a bare PUBLISH.\n{}",
        middle(pair),
        middle(pairs),
        middle(relays),
        middle(turn),
        middle(turns),
        many(servers)?
    ))
}

fn ratio(ours: &mut [Duration], others: &mut [Duration]) -> f64 {
    percentile(ours, 50).as_secs_f64() / percentile(others, 50).as_secs_f64()
}

/// From the moment that the holder lets go until the waiter knows.
fn hand_over(holder: &mut Line, waiter: &mut Line) -> Result<Duration> {
    let token = token(&holder.ask(&["LOCK.ACQUIRE", "turn", "WAIT", "5000"])?)?;
    waiter.send(&["LOCK.ACQUIRE", "turn", "WAIT", "5000"])?;
    // Until it waits.
    while !holder.ask(&["LOCK.LIST", "turn"])?.ends_with(b":1\r\n:1\r\n") {}
    let begun = Instant::now();
    holder.send(&["LOCK.RELEASE", "turn", &token])?;
    let reply = waiter.reply()?;
    let took = begun.elapsed();
    holder.reply()?;
    let token = self::token(&reply)?;
    waiter.ask(&["LOCK.RELEASE", "turn", &token])?;
    Ok(took)
}

/// Ten thousand locks of one connection: their memory, and the time that their renewals take.
fn many(servers: &Servers) -> Result<String> {
    let (behind, data) = servers.redis_behind("locks")?;
    let sidecar = servers.sidecar("locks-sidecar", &data, behind)?;
    let mut line = Line(sidecar.connect()?);
    let first = token(&line.ask(&["LOCK.ACQUIRE", "first"])?)?;
    line.ask(&["LOCK.RELEASE", "first", &first])?;
    thread::sleep(Duration::from_secs(1));
    let rss = memory(sidecar.pid())?;
    for number in 0..HELD {
        token(&line.ask(&["LOCK.ACQUIRE", &format!("orders:customer:{number:08}")])?)?;
    }
    thread::sleep(Duration::from_secs(1));
    let more = memory(sidecar.pid())?.saturating_sub(rss);
    let before = ticks(sidecar.pid())?;
    thread::sleep(WATCHED);
    let share = (ticks(sidecar.pid())? - before) as f64 / 100.0 / WATCHED.as_secs_f64();
    Ok(format!(
        "{HELD} locks held by one sidecar: {:.1} MiB more, {:.1} % of a core to renew them.",
        more as f64 / f64::from(1 << 20),
        share * 100.0
    ))
}

/// Processor time, hundredths of a second.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read the times of the sidecar")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).context("a time");
    Ok(field(11)? + field(12)?)
}

/// The lock that one would write, on a connection of its own.
struct OwnLock {
    line: Line,
    acquire: String,
    release: String,
}

impl OwnLock {
    fn prepare(mut line: Line) -> Result<Self> {
        let mut load = |script| text(&line.ask(&["SCRIPT", "LOAD", script])?);
        let (acquire, release) = (load(ACQUIRE)?, load(RELEASE)?);
        Ok(Self { line, acquire, release })
    }

    fn take_and_let_go(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.line.ask(&["EVALSHA", &self.acquire, "2", "{bench}lock", "{bench}count", "me", "30000"])?;
        self.line.ask(&["EVALSHA", &self.release, "1", "{bench}lock", "me"])?;
        Ok(begun.elapsed())
    }
}

/// One connection that asks and waits.
pub(crate) struct Line(pub(crate) UnixStream);

impl Line {
    fn send(&mut self, args: &[&str]) -> Result<()> {
        let mut request = Vec::new();
        caddy_resp::encode::command(&mut request, args);
        Ok(self.0.write_all(&request)?)
    }

    /// One whole reply.
    fn reply(&mut self) -> Result<Vec<u8>> {
        let mut reply = Vec::new();
        loop {
            let mut some = [0; 4096];
            let read = self.0.read(&mut some)?;
            ensure!(read > 0, "the connection ended");
            reply.extend_from_slice(&some[..read]);
            if caddy_resp::Value::decode(&reply).is_ok_and(|(_, length)| length == reply.len()) {
                return Ok(reply);
            }
        }
    }

    pub(crate) fn ask(&mut self, args: &[&str]) -> Result<Vec<u8>> {
        self.send(args)?;
        let reply = self.reply()?;
        ensure!(!reply.starts_with(b"-"), "{args:?}: {}", reply.escape_ascii());
        Ok(reply)
    }

    fn read_until(&mut self, end: &[u8]) -> Result<()> {
        let mut reply = Vec::new();
        while !reply.ends_with(end) {
            let mut some = [0; 512];
            let read = self.0.read(&mut some)?;
            ensure!(read > 0, "the connection ended");
            reply.extend_from_slice(&some[..read]);
        }
        Ok(())
    }

    fn take_and_let_go(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let token = token(&self.ask(&["LOCK.ACQUIRE", "bench"])?)?;
        self.ask(&["LOCK.RELEASE", "bench", &token])?;
        Ok(begun.elapsed())
    }
}

/// The token of `[token, ms]`.
fn token(reply: &[u8]) -> Result<String> {
    let (value, _) = caddy_resp::Value::decode(reply)?;
    let token = value.as_elements().and_then(|elements| elements.first()?.as_bytes()).context("a token")?;
    Ok(String::from_utf8(token.to_vec())?)
}

fn text(reply: &[u8]) -> Result<String> {
    let (value, _) = caddy_resp::Value::decode(reply)?;
    Ok(String::from_utf8(value.as_bytes().context("a text")?.to_vec())?)
}
