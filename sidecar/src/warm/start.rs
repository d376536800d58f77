//! Warming: members write down what they are asked for most, and one that starts reads that before it is asked.
//!
//! It reads at `warming.ratePerSecond`, the hottest first, into what room there is: half of L2 at most, and nothing once
//! L2 is three quarters full, so that it pushes nothing out. It never holds up a session; the startup probe may wait for
//! a share of it, until a deadline. Without L3 it waits a while and gives up. Fails by warming less.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use caddy_contract::Warming;
use caddy_resp::{Value, encode};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    board::{self, Line},
    is_cached, pull,
};
use crate::{
    answers::integer,
    errands,
    heat::HotRead,
    shared::{L3, Shared},
};

/// How often a member looks whether its record is still new, and for how long records count.
const PERIOD: Duration = Duration::from_mins(1);
const LIFE: Duration = Duration::from_hours(1);
/// Less than this is not worth a line, in a thousand seconds.
const LEAST_RATE: u64 = 10;
/// How long a sidecar that starts waits for L3; by then its apps have asked for what they need.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(50);
/// Steps in which reads are made, per second.
const STEPS: u32 = 20;
/// How long the last record of a sidecar that ends may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// How far warming is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Reads that were chosen.
    wanted: AtomicU64,
    /// Those that are copies now.
    pub(crate) pulled: AtomicU64,
    /// Those that were copies already, for which there was no room, or of which nothing could be kept.
    pub(crate) skipped: AtomicU64,
    is_over: AtomicBool,
    millis: AtomicU64,
}

impl Progress {
    /// The part of the chosen reads that is done with, percent; of nothing all is done once that is known.
    pub(crate) fn percent(&self) -> u64 {
        if self.is_over.load(Ordering::Acquire) {
            return 100;
        }
        let done = self.pulled.load(Ordering::Relaxed) + self.skipped.load(Ordering::Relaxed);
        (done * 100).checked_div(self.wanted.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// How long it took, or has taken so far.
    pub(crate) fn millis(&self) -> u64 {
        self.millis.load(Ordering::Relaxed)
    }
}

/// Whether the startup probe may succeed.
pub(crate) fn has_started(shared: &Shared) -> bool {
    shared.config().warming.is_none_or(|warming| {
        shared.warming.percent() >= u64::from(warming.startup_share)
            || shared.now().since(shared.started) >= warming.startup_deadline
    })
}

/// Reads ahead, then writes down from time to time what is read here, until the sidecar ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let begun = shared.now();
    if let Some(warming) = shared.config().warming {
        begin(&shared, &warming).await;
    }
    shared.warming.is_over.store(true, Ordering::Release);
    if shared.warming.wanted.load(Ordering::Relaxed) > 0 {
        let [pulled, skipped] = [&shared.warming.pulled, &shared.warming.skipped].map(|n| n.load(Ordering::Relaxed));
        tracing::info!(pulled, skipped, took = ?shared.now().since(begun), "read what other sidecars are asked for most");
    }
    if let L3::Embedded(_) = &shared.l3 {
        return std::future::pending().await;
    }
    loop {
        // Those that started together do not come together.
        sleep(PERIOD.mul_f64(0.75 + random() as f64 / u64::MAX as f64 / 2.0)).await;
        write_down(&shared, IfNew::Leave).await;
    }
}

/// The record of a sidecar that ends, for the one that comes in its place.
pub(crate) async fn farewell(shared: &Arc<Shared>) {
    let _ = tokio::time::timeout(FAREWELL, write_down(shared, IfNew::Replace)).await;
}

// === reading ahead ===

async fn begin(shared: &Arc<Shared>, warming: &Warming) {
    let (progress, begun) = (&shared.warming, Instant::now());
    while !shared.status.get().coherent {
        if begun.elapsed() > PATIENCE {
            return;
        }
        sleep(LOOK).await;
    }
    let reads = chosen(shared, warming).await;
    progress.wanted.store(reads.len() as u64, Ordering::Relaxed);
    let step = (warming.rate_per_second / STEPS).max(1);
    let mut pace = interval(Duration::from_secs(1) * step / warming.rate_per_second);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut room = shared.cache.l2_max_bytes() as u64 / 2;
    for some in reads.chunks(step as usize) {
        pace.tick().await;
        let mut now = Vec::with_capacity(some.len());
        for (read, bytes) in some {
            if *bytes <= room && !is_cached(shared, read.as_ref()) && has_room(shared) {
                room -= bytes;
                now.push(read.clone());
            }
        }
        pull(shared, &now).await;
        let pulled = now.iter().filter(|read| is_cached(shared, read.as_ref())).count() as u64;
        progress.pulled.fetch_add(pulled, Ordering::Relaxed);
        progress.skipped.fetch_add(some.len() as u64 - pulled, Ordering::Relaxed);
        progress.millis.store(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

/// Whether nothing has to leave for what comes.
fn has_room(shared: &Shared) -> bool {
    shared.cache.stats().l2_bytes < shared.cache.l2_max_bytes() / 4 * 3
}

/// The hottest reads that others have written down and that the rules here let in, with the size of each.
async fn chosen(shared: &Arc<Shared>, warming: &Warming) -> Vec<(HotRead, u64)> {
    let mut records = Vec::new();
    for n in 0..board::BOARDS {
        let name = board::name(&shared.config().cluster.domain, n);
        let mut get = Vec::new();
        encode::command(&mut get, ["GET", &name]);
        match errands::ask_owner(shared, name.as_bytes(), 0, get).await {
            Ok(reply) => {
                let record = Value::decode(&reply).ok().and_then(|(value, _)| value.as_bytes().map(board::decode));
                records.extend(record);
            }
            Err(error) => tracing::debug!(%error, name, "a record of what is read most cannot be read"),
        }
    }
    let (keyspaces, most) = (shared.keyspaces(), shared.config().limits.max_value_bytes.as_usize() as u64);
    let read = |line: Line| {
        let words: Vec<&[u8]> = line.words.iter().map(|word| &**word).collect();
        let read = HotRead::of_request(shared, line.database, &words)?;
        (keyspaces.may_cache(&[read.as_ref().key()]) && line.bytes <= most).then_some((read, line.bytes))
    };
    board::merge(records).into_iter().filter_map(read).take(warming.keys).collect()
}

// === writing down ===

/// What becomes of a record that somebody wrote a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfNew {
    Leave,
    Replace,
}

async fn write_down(shared: &Arc<Shared>, if_new: IfNew) {
    let Some(warming) = shared.config().warming else { return };
    let lines = lines(shared, &warming);
    if lines.is_empty() {
        return;
    }
    let name = board::name(&shared.config().cluster.domain, random());
    if if_new == IfNew::Leave {
        let mut pttl = Vec::new();
        encode::command(&mut pttl, ["PTTL", &name]);
        let left = errands::ask_owner(shared, name.as_bytes(), 0, pttl).await;
        let left = left.ok().and_then(|reply: Bytes| integer(&reply)).and_then(|left| u64::try_from(left).ok());
        if left.is_some_and(|left| Duration::from_millis(left) + PERIOD / 2 > LIFE) {
            return;
        }
    }
    let (record, life) = (board::encode(&lines), LIFE.as_millis().to_string());
    let mut set = Vec::with_capacity(record.len() + 128);
    encode::command(&mut set, [b"SET", name.as_bytes(), &record, b"PX", life.as_bytes()]);
    if let Err(error) = errands::ask_owner(shared, name.as_bytes(), 0, set).await {
        tracing::debug!(%error, name, "what is read most cannot be written down");
    }
}

/// What is read most here, of what may be kept.
fn lines(shared: &Shared, warming: &Warming) -> Vec<Line> {
    let keyspaces = shared.keyspaces();
    let hottest = shared.heat.hottest(warming.keys, shared.now());
    let line = |hot: crate::heat::Heated| {
        let name = hot.name.as_ref();
        let rate = per_thousand_seconds(hot.per_second);
        let bytes = shared.cache.peek(name.tier_hash(), &name).map_or(0, |entry| entry.bytes());
        let words = name.words().iter().map(|word| Bytes::copy_from_slice(word)).collect();
        let is_kept = rate >= LEAST_RATE && keyspaces.may_cache(&[name.key()]);
        is_kept.then_some(Line { database: name.database, words, bytes: bytes as u64, rate })
    };
    hottest.into_iter().filter_map(line).collect()
}

#[expect(clippy::cast_sign_loss, reason = "clamped to what is positive")]
fn per_thousand_seconds(per_second: f64) -> u64 {
    (per_second * 1000.0).round().clamp(0.0, 1e15) as u64
}

fn random() -> u64 {
    // Each `RandomState` has a key of its own, made from random bits.
    RandomState::new().hash_one(0)
}
