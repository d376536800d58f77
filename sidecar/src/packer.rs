//! The thread for work that would hold up a worker: packing large values, and training dictionaries.
//!
//! Owns that thread and the queue in front of it. A value in the queue is already kept, as it came, and is only replaced
//! by its packed form if it is still there; the queue does not keep evicted values alive, and when it is full, values stay
//! as they are. Never answers anybody.

use std::{sync::Arc, time::Duration};

use caddy_engine::{
    Clock as _, Counter,
    codec::{KeyspaceCodec, training::MIN_SAMPLES},
};
use tokio::sync::mpsc;

use crate::{cache::TierKey, keyspaces::Rule, shared::Shared, stored::Stored, supervisor::Supervisor, tally::Count};

/// Values from here on are packed here and not by the worker that got them; LZ4 and quick ZSTD need some tens of
/// microseconds for less.
const LARGE_BYTES: usize = 16 << 10;
/// ZSTD levels above this one are slow enough for any value to be large.
const QUICK_LEVEL: i32 = 3;
/// Values that may wait.
const QUEUE: usize = 256;
/// How often it is looked whether a keyspace has samples enough, and old reads fade; and how often where nobody reads.
const UPKEEP: Duration = Duration::from_secs(2);
const IDLE_UPKEEP: Duration = Duration::from_secs(8);
/// How long a dictionary is used before it is trained anew, and how long a training that came to nothing is not repeated.
const RETRAINING: Duration = Duration::from_hours(1);
const RETRY: Duration = Duration::from_mins(5);

/// The name of an entry whose value is to be packed.
pub(crate) struct Job {
    key: TierKey,
    codec: Arc<KeyspaceCodec>,
}

/// The way into the queue.
#[derive(Debug)]
pub(crate) struct Packer(mpsc::Sender<Job>);

/// Its other end.
pub(crate) type Jobs = mpsc::Receiver<Job>;

impl Packer {
    pub(crate) fn new() -> (Self, Jobs) {
        let (sender, jobs) = mpsc::channel(QUEUE);
        (Self(sender), jobs)
    }

    /// Hands a value over that was just kept; not if too many wait already.
    pub(crate) fn offer(&self, key: &TierKey, codec: &Arc<KeyspaceCodec>) {
        let _ = self.0.try_send(Job { key: key.clone(), codec: codec.clone() });
    }
}

/// Whether a worker leaves a value of so many bytes to the packer.
pub(crate) fn is_for_the_packer(codec: &KeyspaceCodec, bytes: usize) -> bool {
    let slow = matches!(codec.config().algorithm,
        caddy_engine::codec::CompressionAlgorithm::Zstd { level } if level > QUICK_LEVEL);
    bytes >= if slow { codec.config().min_bytes } else { LARGE_BYTES }
}

/// Packs, and counts what came of it.
pub(crate) fn pack(shared: &Shared, rule: &Rule, codec: &KeyspaceCodec, value: &Stored) -> Option<Stored> {
    let plain = value.ready()?;
    let begun = shared.now();
    let packed = Stored::pack(codec, plain);
    let spent = shared.now().since(begun);
    let count = |what, n: usize| shared.tally.add_many(rule.id, what, n as u64);
    count(Count::PackNanos, usize::try_from(spent.as_nanos()).unwrap_or(usize::MAX));
    match &packed {
        Some(packed) => {
            count(Count::Packed, 1);
            count(Count::PackedFrom, caddy_engine::Weigh::heap_bytes(plain));
            count(Count::PackedTo, caddy_engine::Weigh::heap_bytes(packed));
        }
        None => count(Count::NotPacked, 1),
    }
    packed.map(|packed| value.in_form(packed))
}

/// Works until the sidecar ends.
pub(crate) async fn run(shared: Arc<Shared>, mut jobs: Jobs, supervisor: Supervisor) {
    let mut upkeep = std::pin::pin!(tokio::time::sleep(UPKEEP));
    let mut hits_and_fills = 0;
    loop {
        tokio::select! {
            () = supervisor.shutdown().cancelled() => return,
            Some(job) = jobs.recv() => repack(&shared, &job),
            () = &mut upkeep => {
                shared.advance_reuse();
                train(&shared);
                let stats = shared.cache.stats();
                let now = [Counter::HitL1, Counter::HitL2, Counter::Filled].map(|counter| stats.get(counter)).iter().sum();
                let pause = if std::mem::replace(&mut hits_and_fills, now) == now { IDLE_UPKEEP } else { UPKEEP };
                upkeep.as_mut().reset(tokio::time::Instant::now() + pause);
            }
        }
    }
}

fn repack(shared: &Shared, job: &Job) {
    let name = job.key.as_ref();
    let hash = name.tier_hash();
    let Some(entry) = shared.cache.peek(hash, &name) else { return };
    let keyspaces = shared.keyspaces();
    let rule = keyspaces.rule(name.key());
    if let Some(packed) = pack(shared, rule, &job.codec, entry.value()) {
        shared.cache.renew(hash, &entry, entry.key().clone(), packed);
    }
}

/// Trains where it is time to.
fn train(shared: &Shared) {
    let keyspaces = shared.keyspaces();
    for (codec, schedule) in keyspaces.training() {
        let now = caddy_engine::BootClock.now();
        if !schedule.is_due(now) || codec.samples().is_none_or(|samples| samples < MIN_SAMPLES) {
            continue;
        }
        match codec.train() {
            Ok(dictionary) => {
                tracing::info!(dictionary = %dictionary.id(), "trained a dictionary");
                schedule.next_at(now + RETRAINING);
            }
            Err(error) => {
                tracing::debug!(%error, "no dictionary");
                schedule.next_at(now + RETRY);
            }
        }
    }
}
