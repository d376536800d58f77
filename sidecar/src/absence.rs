//! Negative filters: reads of keys that Redis does not have, answered without asking it.
//!
//! Owns, for the keyspaces whose rule says `negativeFilter`, what [`caddy_engine::absence`] knows of their keys, and per server
//! the one connection on which it learns that: Redis announces there every write to a key with one of their prefixes
//! (`CLIENT TRACKING ON BCAST`), and is scanned there. An announcement that is lost is a gap: the filter says nothing until
//! it was built anew. The connection is proven current like any other that copies depend on, when a read needs it.
//!
//! Of a cluster each primary is such a server, and what is known of its keys is asked about keys in its slots. A key may come
//! to be elsewhere while a slot is on its way, and nobody announces that here: a node that gives slots away proves nothing
//! ([`probe`](crate::probe)), and a new slot map ends all filters before it is used ([`Absences::moved`]).
//!
//! One thing that per-key tracking gives for nothing has to be done here: a session that was shown a key, or wrote it, over
//! another connection may be ahead of the announcements. So every reply that has to do with a key is noted before it is
//! handed on: where it kills copies by the kernel itself ([`Absences::witness`]), else by [`Absences::touched`]. Never
//! decides that a key is there; fails by saying nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use caddy_engine::{
    Clock, Kernel, KeyHash, Moment, SourceId,
    absence::{AbsenceFilter, Finished, Touches},
};
use caddy_remote::{LaneHandle, Tracking, cluster::gives_slots_away};
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
    nodes::{Announcing, Node, RedisL3},
    probe::{probe, probe_if_due},
    shared::{L3, Shared},
    upstream::Tag,
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
    seen: Arc<Seen>,
    lines: ArcSwapOption<Vec<Line>>,
    /// The rules, or the slots, have changed.
    changed: Notify,
}

/// What apps were shown, or wrote, by key.
#[derive(Debug, Default)]
struct Seen {
    /// Whether there are filters: all that others pay for them.
    any: AtomicBool,
    touches: Touches,
}

impl Seen {
    #[inline]
    fn touched(&self, key: KeyHash, now: impl FnOnce() -> Moment) {
        if self.any.load(Ordering::Acquire) && hold(Rule::FilterTouches) {
            self.touches.touch(key, now());
        }
    }
}

/// What is known of the keys of one server.
#[derive(Debug)]
struct Line {
    announcing: Arc<Announcing>,
    filters: Vec<Known>,
}

/// Of one keyspace.
#[derive(Debug)]
struct Known {
    of: Arc<KeyspaceFilter>,
    absence: AbsenceFilter,
}

// === impl KeyspaceFilter ===

impl KeyspaceFilter {
    pub(crate) fn new(keyspace: Id, prefix: String, capacity: usize) -> Self {
        Self {
            keyspace,
            prefix,
            capacity,
            builds: AtomicU64::new(0),
            trouble: Mutex::new("it was not built yet".to_owned()),
        }
    }

    /// Whether another rule's filter is the same.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        (self.keyspace, &self.prefix, self.capacity) == (other.keyspace, &other.prefix, other.capacity)
    }

    pub(crate) fn stats(&self, shared: &Shared) -> FilterStats {
        let lines = shared.absences.lines.load();
        let all = lines.iter().flat_map(|lines| lines.iter()).flat_map(|line| &line.filters);
        let known: Vec<&AbsenceFilter> =
            all.filter(|known| std::ptr::eq(Arc::as_ptr(&known.of), self)).map(|known| &known.absence).collect();
        let is_active = !known.is_empty() && known.iter().all(|absence| absence.is_active(shared.kernel()));
        FilterStats {
            is_active,
            keys: if is_active { known.iter().map(|absence| absence.len()).sum() } else { 0 },
            bytes: known.len().max(1) * AbsenceFilter::bytes_for(self.share(known.len())),
            builds: self.builds.load(Ordering::Relaxed),
            trouble: if is_active { String::new() } else { self.trouble.lock().clone() },
        }
    }

    /// Keys that the filter of one of so many servers is made for: slots, and keys in them, are never spread quite evenly.
    fn share(&self, servers: usize) -> usize {
        if servers < 2 { self.capacity } else { self.capacity.min(2 * self.capacity.div_ceil(servers)) }
    }
}

impl Line {
    fn is_of(&self, server: &Node) -> bool {
        self.announcing.node.target.endpoint == server.target.endpoint
    }
}

// === what others tell ===

impl Absences {
    /// The rules may have changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// What the kernel tells of every key of which it kills the copies, since somebody wrote it, or was shown it elsewhere.
    pub(crate) fn witness(&self, clock: impl Clock + 'static) -> impl Fn(KeyHash) + Send + Sync + 'static {
        let seen = self.seen.clone();
        move |key| seen.touched(key, || clock.now())
    }

    /// A reply on the tracked connection that has to do with a key is in, and is about to be handed on.
    #[inline]
    pub(crate) fn touched(&self, key: KeyHash, now: impl FnOnce() -> Moment) {
        self.seen.touched(key, now);
    }

    /// The same for a reply that may have to do with any key.
    pub(crate) fn touched_any(&self, now: impl FnOnce() -> Moment) {
        if self.seen.any.load(Ordering::Acquire) && hold(Rule::FilterTouches) {
            self.seen.touches.touch_all(now());
        }
    }

    /// Before a new slot map is used, and behind it: nothing that was known is.
    pub(crate) fn moved(&self, kernel: &Kernel) {
        for line in self.lines.load().iter().flat_map(|lines| lines.iter()) {
            kernel.lapse(line.announcing.tracked.source);
        }
        self.changed.notify_one();
    }

    /// Redis announces a write of a key on the connection of `source`.
    pub(crate) fn announced(&self, source: SourceId, key: &[u8]) {
        if !hold(Rule::FilterLearns) {
            return;
        }
        let hash = KeyHash::of(key);
        let lines = self.lines.load();
        let line = lines.iter().flat_map(|lines| lines.iter()).find(|line| line.announcing.tracked.source == source);
        let has = |known: &&Known| key.starts_with(known.of.prefix.as_bytes());
        line.iter().flat_map(|line| &line.filters).filter(has).for_each(|known| known.absence.written(hash));
    }

    /// Whether Redis is known not to have a key of the filter's keyspace. Sends a probe if one is due.
    pub(crate) fn is_absent(
        &self,
        shared: &Arc<Shared>,
        filter: &KeyspaceFilter,
        key: &[u8],
        hash: KeyHash,
        now: Moment,
    ) -> bool {
        let (lines, L3::Redis(redis)) = (self.lines.load(), &shared.l3) else { return false };
        let Some(lines) = &*lines else { return false };
        let line = match redis.only() {
            Some(_) => lines.first(),
            None => redis.owner(key).and_then(|owner| lines.iter().find(|line| line.is_of(&owner))),
        };
        let Some(line) = line else { return false };
        let Some(known) = line.filters.iter().find(|known| std::ptr::eq(Arc::as_ptr(&known.of), filter)) else {
            return false;
        };
        if known.absence.is_active(shared.kernel()) {
            probe_if_due(shared, &line.announcing.node, &line.announcing.tracked, now);
        }
        known.absence.is_absent(hash, shared.kernel(), &self.seen.touches, now)
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
    #[error("a slot of the cluster is on its way to another node")]
    SlotsLeave,
}

/// Keeps filters as the rules want them, until the sidecar ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let L3::Redis(redis) = &shared.l3 else { return std::future::pending().await };
    loop {
        let filters = shared.keyspaces().filters().to_vec();
        let servers = if filters.is_empty() { Vec::new() } else { redis.nodes() };
        let version = redis.map_version();
        let lines = Arc::new(lines(&shared, redis, &servers, &filters));
        shared.absences.seen.any.store(!lines.is_empty(), Ordering::Release);
        shared.absences.lines.store(Some(lines.clone()));
        tokio::select! {
            () = keep(&shared, &lines) => {}
            () = changed(&shared, &filters, version) => {}
        }
        if redis.cluster().is_some() {
            // Slots move one after the other.
            sleep(RETRY).await;
        }
    }
}

/// What is known of each server, nothing at first; connections that there are go on.
fn lines(shared: &Arc<Shared>, redis: &RedisL3, servers: &[Arc<Node>], filters: &[Arc<KeyspaceFilter>]) -> Vec<Line> {
    let (prefixes, before) = (prefixes(filters), shared.absences.lines.load_full().unwrap_or_default());
    let line = |server: &Arc<Node>| {
        let kept = before.iter().find(|line| {
            line.is_of(server) && line.announcing.node.target.tracking == Tracking::Broadcast(prefixes.clone())
        });
        let announcing = match kept {
            Some(line) => line.announcing.clone(),
            None => redis.announce(shared, server, prefixes.clone())?,
        };
        announcing.node.is_probed_as(server);
        let known =
            |of: &Arc<KeyspaceFilter>| Known { absence: AbsenceFilter::new(of.share(servers.len())), of: of.clone() };
        Some(Line { announcing, filters: filters.iter().map(known).collect() })
    };
    let lines: Option<Vec<Line>> = servers.iter().map(line).collect();
    lines.unwrap_or_default()
}

/// Waits until the rules want other filters, or slots have moved.
async fn changed(shared: &Shared, filters: &[Arc<KeyspaceFilter>], version: Option<u64>) {
    let L3::Redis(redis) = &shared.l3 else { return };
    loop {
        let keyspaces: Guard<_> = shared.keyspaces();
        let wanted = keyspaces.filters();
        let is_other = wanted.len() != filters.len() || !wanted.iter().zip(filters).all(|(a, b)| Arc::ptr_eq(a, b));
        if is_other || redis.map_version() != version {
            return;
        }
        drop(keyspaces);
        shared.absences.changed.notified().await;
    }
}

async fn keep(shared: &Arc<Shared>, lines: &[Line]) {
    if lines.is_empty() {
        return std::future::pending().await;
    }
    let mut all: Vec<(&Line, &Known, Instant)> = Vec::new();
    for line in lines {
        all.extend(line.filters.iter().map(|known| (line, known, Instant::now())));
    }
    loop {
        for (line, known, due) in &mut all {
            let age = Instant::now().saturating_duration_since(*due);
            let is_worn = age > RENEWAL || age > LEAST_AGE && known.absence.is_overfull();
            if *due > Instant::now() || !is_worn && known.absence.is_active(shared.kernel()) {
                continue;
            }
            *due = Instant::now()
                + match build(shared, &line.announcing, known).await {
                    Ok(()) => Duration::ZERO,
                    Err(error) => {
                        tracing::debug!(%error, prefix = known.of.prefix, "a negative filter was not built");
                        let pause = if matches!(error, BuildError::TooMany) { RETRY_TOO_MANY } else { RETRY };
                        *known.of.trouble.lock() = error.to_string();
                        pause
                    }
                };
        }
        sleep(LOOK).await;
    }
}

/// Scans all databases for the filter's keys. Names alone count: a key is absent if no database has it, so that SELECT and
/// SWAPDB change nothing.
async fn build(shared: &Arc<Shared>, line: &Announcing, known: &Known) -> Result<(), BuildError> {
    let (kernel, lane, filter) = (shared.kernel(), &line.tracked.lane, &known.absence);
    // Connects, if need be.
    errands::ask_on(shared, lane, b"*1\r\n$4\r\nPING\r\n".to_vec(), 1).await?;
    // The first probe of a connection tells which slots the node has, and ends what was known before.
    probe(shared, &line.node, lane, kernel.sending(line.tracked.source, shared.now()));
    if shared.in_cluster() && gives_slots(shared, lane).await? {
        return Err(BuildError::SlotsLeave);
    }
    filter.begin(kernel, line.tracked.source);
    // A cluster has one.
    let databases = if shared.in_cluster() { vec![None] } else { databases(shared, line).await? };
    for database in databases {
        let mut cursor = b"0".to_vec();
        loop {
            let begun = Instant::now();
            let mut scan = Vec::new();
            if let Some(database) = &database {
                encode::command(&mut scan, [b"SELECT", database.as_bytes()]);
            }
            let pattern = format!("{}*", known.of.prefix);
            encode::command(&mut scan, [b"SCAN", &*cursor, b"MATCH", pattern.as_bytes(), b"COUNT", BATCH]);
            let replies = errands::ask_on(shared, lane, scan, if database.is_some() { 2 } else { 1 }).await?;
            let reply = replies.last().ok_or(BuildError::Answer)?;
            let (value, _) = Value::decode(reply).map_err(|_| BuildError::Answer)?;
            let Some([next, keys]) = value.as_elements() else { return Err(BuildError::Answer) };
            let keys = keys.as_elements().ok_or(BuildError::Answer)?;
            keys.iter().filter_map(Value::as_bytes).for_each(|key| filter.found(KeyHash::of(key)));
            cursor = next.as_bytes().ok_or(BuildError::Answer)?.to_vec();
            if cursor == b"0" {
                break;
            }
            sleep((begun.elapsed() * PAUSE_TIMES).max(PAUSE_MIN)).await;
        }
    }
    match filter.finish(kernel) {
        Finished::Active { keys } => {
            known.of.builds.fetch_add(1, Ordering::Relaxed);
            known.of.trouble.lock().clear();
            tracing::debug!(keys, prefix = known.of.prefix, "a negative filter answers");
            Ok(())
        }
        Finished::Gap => Err(BuildError::Gap),
        Finished::TooMany => Err(BuildError::TooMany),
    }
}

/// The databases that have keys; what others get is announced.
async fn databases(shared: &Shared, line: &Announcing) -> Result<Vec<Option<String>>, BuildError> {
    let mut info = Vec::new();
    encode::command(&mut info, ["INFO", "keyspace"]);
    let replies = errands::ask_on(shared, &line.tracked.lane, info, 1).await?;
    let (value, _) = replies.first().and_then(|reply| Value::decode(reply).ok()).ok_or(BuildError::Answer)?;
    let text = String::from_utf8_lossy(value.as_bytes().ok_or(BuildError::Answer)?).into_owned();
    let number = |line: &str| Some(line.strip_prefix("db")?.split_once(':')?.0.to_owned());
    Ok(text.lines().filter_map(number).map(Some).collect())
}

/// Whether a node of a cluster has slots on their way to another one.
async fn gives_slots(shared: &Shared, lane: &LaneHandle<Tag>) -> Result<bool, BuildError> {
    let mut nodes = Vec::new();
    encode::command(&mut nodes, ["CLUSTER", "NODES"]);
    let replies = errands::ask_on(shared, lane, nodes, 1).await?;
    let (value, _) = replies.first().and_then(|reply| Value::decode(reply).ok()).ok_or(BuildError::Answer)?;
    Ok(gives_slots_away(value.as_bytes().ok_or(BuildError::Answer)?))
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
