//! Negative filters: reads of keys that Redis does not have, answered without asking it.
//!
//! Owns, for the keyspaces whose rule says `negativeFilter`, what [`caddy_engine::absence`] knows of their keys, and the one
//! connection on which it learns that: Redis announces there every write to a key with one of their prefixes
//! (`CLIENT TRACKING ON BCAST`), and is scanned there. An announcement that is lost is a gap: the filter says nothing until
//! it was built anew. The connection is proven current like any other that copies depend on, when a read needs it.
//!
//! One thing that per-key tracking gives for nothing has to be done here: a session that was shown a key, or wrote it, over
//! another connection may be ahead of the announcements. So every reply that has to do with a key is noted
//! ([`Absences::touched`]) before it is handed on. Never decides that a key is there; fails by saying nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use caddy_engine::{
    KeyHash, Moment,
    absence::{AbsenceFilter, Finished, Touches},
};
use caddy_resp::{Value, encode};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    errands::{self, ErrandError},
    guards::{Guard as Rule, hold},
    keyspaces::Id,
    nodes::Announcing,
    probe::probe_if_due,
    shared::{L3, Shared},
};

/// Keys that one SCAN looks at: with COUNT 1000 some hundred microseconds of the server's time.
const BATCH: &[u8] = b"1000";
/// The pause behind a batch is so many times what the batch took, at least [`PAUSE_MIN`].
const PAUSE_TIMES: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// How often it is looked whether filters are as they should be.
const LOOK: Duration = Duration::from_millis(250);
/// A filter is built anew this often, so that it forgets keys that were removed.
const RENEWAL: Duration = Duration::from_hours(1);
/// One that has become too full is not built anew before.
const LEAST_AGE: Duration = Duration::from_secs(30);
/// How long one that cannot be had is left alone.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_TOO_MANY: Duration = Duration::from_mins(10);

/// The filter of a keyspace.
#[derive(Debug)]
pub(crate) struct KeyspaceFilter {
    pub(crate) keyspace: Id,
    /// What all of its keys begin with, and no other.
    prefix: String,
    capacity: usize,
    filter: AbsenceFilter,
    /// How often it was built.
    builds: AtomicU64,
    /// Why it says nothing; empty when it does.
    trouble: Mutex<String>,
}

/// What is told of a filter.
#[derive(Debug, Clone)]
pub(crate) struct FilterStats {
    pub(crate) is_active: bool,
    pub(crate) keys: usize,
    pub(crate) bytes: usize,
    pub(crate) builds: u64,
    pub(crate) trouble: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Absences {
    /// Whether there are filters: all that others pay for them.
    any: AtomicBool,
    touches: Touches,
    line: ArcSwapOption<Announcing>,
    /// The rules have changed.
    changed: Notify,
}

// === impl KeyspaceFilter ===

impl KeyspaceFilter {
    pub(crate) fn new(keyspace: Id, prefix: String, capacity: usize) -> Self {
        Self {
            keyspace,
            prefix,
            capacity,
            filter: AbsenceFilter::new(capacity),
            builds: AtomicU64::new(0),
            trouble: Mutex::new("it was not built yet".to_owned()),
        }
    }

    /// Whether another rule's filter is the same.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        (self.keyspace, &self.prefix, self.capacity) == (other.keyspace, &other.prefix, other.capacity)
    }

    pub(crate) fn stats(&self, shared: &Shared) -> FilterStats {
        let is_active = self.filter.is_active(shared.kernel());
        FilterStats {
            is_active,
            keys: if is_active { self.filter.len() } else { 0 },
            bytes: AbsenceFilter::bytes_for(self.capacity),
            builds: self.builds.load(Ordering::Relaxed),
            trouble: if is_active { String::new() } else { self.trouble.lock().clone() },
        }
    }
}

// === what others tell ===

impl Absences {
    /// The rules may have changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// A reply that has to do with a key is in, and is about to be handed on.
    #[inline]
    pub(crate) fn touched(&self, key: KeyHash, now: impl FnOnce() -> Moment) {
        if self.any.load(Ordering::Acquire) && hold(Rule::FilterTouches) {
            self.touches.touch(key, now());
        }
    }

    /// The same for a reply that may have to do with any key.
    pub(crate) fn touched_any(&self, now: impl FnOnce() -> Moment) {
        if self.any.load(Ordering::Acquire) && hold(Rule::FilterTouches) {
            self.touches.touch_all(now());
        }
    }

    /// Redis announces a write of a key.
    pub(crate) fn announced(shared: &Shared, key: &[u8]) {
        if !hold(Rule::FilterLearns) {
            return;
        }
        let hash = KeyHash::of(key);
        for filter in shared.keyspaces().filters().iter().filter(|filter| key.starts_with(filter.prefix.as_bytes())) {
            filter.filter.written(hash);
        }
    }

    /// Whether Redis is known not to have a key of the filter's keyspace. Sends a probe if one is due.
    pub(crate) fn is_absent(&self, shared: &Arc<Shared>, filter: &KeyspaceFilter, key: KeyHash, now: Moment) -> bool {
        let line = self.line.load();
        let Some(line) = &*line else { return false };
        if filter.filter.is_active(shared.kernel()) {
            probe_if_due(shared, &line.node, &line.tracked, now);
        }
        filter.filter.is_absent(key, shared.kernel(), &self.touches, now)
    }

    /// What ails the connection.
    pub(crate) fn trouble(shared: &Shared, reason: &str) {
        for filter in shared.keyspaces().filters() {
            reason.clone_into(&mut filter.trouble.lock());
        }
    }
}

// === building ===

/// Why a filter was not built.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("failed to scan Redis: {0}")]
    Ask(#[from] ErrandError),
    #[error("the answer to SCAN, or to INFO keyspace, makes no sense")]
    Answer,
    #[error("the connection that announces writes was lost, or its data replaced, while Redis was scanned")]
    Gap,
    #[error("the keyspace has more keys than negativeFilter.maxKeys; raise it")]
    TooMany,
}

/// Keeps filters as the rules want them, until the sidecar ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let L3::Redis(redis) = &shared.l3 else { return std::future::pending().await };
    loop {
        let filters = shared.keyspaces().filters().to_vec();
        let line = (!filters.is_empty()).then(|| redis.announce(&shared, prefixes(&filters))).flatten();
        shared.absences.any.store(line.is_some(), Ordering::Release);
        shared.absences.line.store(line.clone());
        match line {
            None => shared.absences.changed.notified().await,
            Some(line) => tokio::select! {
                () = keep(&shared, &line, &filters) => {}
                () = changed(&shared, &filters) => {}
            },
        }
    }
}

/// Waits until the rules want other filters.
async fn changed(shared: &Shared, filters: &[Arc<KeyspaceFilter>]) {
    loop {
        shared.absences.changed.notified().await;
        let keyspaces: Guard<_> = shared.keyspaces();
        let wanted = keyspaces.filters();
        if wanted.len() != filters.len() || !wanted.iter().zip(filters).all(|(a, b)| Arc::ptr_eq(a, b)) {
            return;
        }
    }
}

async fn keep(shared: &Arc<Shared>, line: &Announcing, filters: &[Arc<KeyspaceFilter>]) {
    let mut due: Vec<Instant> = vec![Instant::now(); filters.len()];
    loop {
        for (filter, due) in filters.iter().zip(&mut due) {
            let age = Instant::now().saturating_duration_since(*due);
            let is_worn = age > RENEWAL || age > LEAST_AGE && filter.filter.is_overfull();
            if *due > Instant::now() || !is_worn && filter.filter.is_active(shared.kernel()) {
                continue;
            }
            *due = Instant::now()
                + match build(shared, line, filter).await {
                    Ok(()) => Duration::ZERO,
                    Err(error) => {
                        tracing::debug!(%error, prefix = filter.prefix, "a negative filter was not built");
                        let pause = if matches!(error, BuildError::TooMany) { RETRY_TOO_MANY } else { RETRY };
                        *filter.trouble.lock() = error.to_string();
                        pause
                    }
                };
        }
        sleep(LOOK).await;
    }
}

/// Scans all databases for the filter's keys. Names alone count: a key is absent if no database has it, so that SELECT and
/// SWAPDB change nothing.
async fn build(shared: &Arc<Shared>, line: &Announcing, filter: &KeyspaceFilter) -> Result<(), BuildError> {
    let (kernel, lane) = (shared.kernel(), &line.tracked.lane);
    // Connects, if need be.
    errands::ask_on(shared, lane, b"*1\r\n$4\r\nPING\r\n".to_vec(), 1).await?;
    filter.filter.begin(kernel, line.tracked.source);
    for database in databases(shared, line).await? {
        let mut cursor = b"0".to_vec();
        loop {
            let begun = Instant::now();
            let mut scan = Vec::new();
            encode::command(&mut scan, [b"SELECT", database.as_bytes()]);
            let pattern = format!("{}*", filter.prefix);
            encode::command(&mut scan, [b"SCAN", &*cursor, b"MATCH", pattern.as_bytes(), b"COUNT", BATCH]);
            let replies = errands::ask_on(shared, lane, scan, 2).await?;
            let reply = replies.get(1).ok_or(BuildError::Answer)?;
            let (value, _) = Value::decode(reply).map_err(|_| BuildError::Answer)?;
            let Some([next, keys]) = value.as_elements() else { return Err(BuildError::Answer) };
            let keys = keys.as_elements().ok_or(BuildError::Answer)?;
            keys.iter().filter_map(Value::as_bytes).for_each(|key| filter.filter.found(KeyHash::of(key)));
            cursor = next.as_bytes().ok_or(BuildError::Answer)?.to_vec();
            if cursor == b"0" {
                break;
            }
            sleep((begun.elapsed() * PAUSE_TIMES).max(PAUSE_MIN)).await;
        }
    }
    match filter.filter.finish(kernel) {
        Finished::Active { keys } => {
            filter.builds.fetch_add(1, Ordering::Relaxed);
            filter.trouble.lock().clear();
            tracing::debug!(keys, prefix = filter.prefix, "a negative filter answers");
            Ok(())
        }
        Finished::Gap => Err(BuildError::Gap),
        Finished::TooMany => Err(BuildError::TooMany),
    }
}

/// The databases that have keys; what others get is announced.
async fn databases(shared: &Shared, line: &Announcing) -> Result<Vec<String>, BuildError> {
    let mut info = Vec::new();
    encode::command(&mut info, ["INFO", "keyspace"]);
    let replies = errands::ask_on(shared, &line.tracked.lane, info, 1).await?;
    let (value, _) = replies.first().and_then(|reply| Value::decode(reply).ok()).ok_or(BuildError::Answer)?;
    let text = String::from_utf8_lossy(value.as_bytes().ok_or(BuildError::Answer)?).into_owned();
    let number = |line: &str| Some(line.strip_prefix("db")?.split_once(':')?.0.to_owned());
    Ok(text.lines().filter_map(number).collect())
}

/// Redis refuses prefixes of which one begins with another.
fn prefixes(filters: &[Arc<KeyspaceFilter>]) -> Vec<String> {
    let all: Vec<&String> = filters.iter().map(|filter| &filter.prefix).collect();
    let covered = |prefix: &String| all.iter().any(|other| *other != prefix && prefix.starts_with(other.as_str()));
    let mut least: Vec<String> = all.iter().filter(|prefix| !covered(prefix)).map(|prefix| (*prefix).clone()).collect();
    least.sort();
    least.dedup();
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_prefixes_that_overlap_the_shortest_is_asked_for() {
        let filter = |prefix: &str| Arc::new(KeyspaceFilter::new(Id::default(), prefix.to_owned(), 10));
        let filters = ["user:", "user:vip:", "a", "user:", "b:"].map(filter);
        assert_eq!(prefixes(&filters), ["a", "b:", "user:"]);
    }
}
