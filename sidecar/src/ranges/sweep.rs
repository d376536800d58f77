//! The sweep: removes from L3 what a pattern in force has and nobody asked for, then ends the pattern.
//!
//! Done by the sidecar that has the cluster's duties, one at a time, node by node, in small batches with pauses three
//! times as long, so that L3 goes on serving. Where it is, is noted in L3: whoever takes over goes on there, if the server
//! is still the same process (a cursor means nothing to another one). What was written since the pattern took effect stays.
//! In a cluster whose slots move meanwhile it begins again: a key may have gone where the sweep has been. It fails by
//! trying again: the pattern stays in force until it is done.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_engine::invalidation::PatternKind;
use caddy_remote::{
    cluster::slot_of,
    ranges::{self as wire, Record},
};
use caddy_resp::Value;

use super::{ActiveRange, unique};
use crate::{
    answers::integer,
    errands::{self, ErrandError},
    events,
    nodes::Node,
    shared::{L3, Shared},
};

/// Keys that one SCAN looks at: with its removals some hundred microseconds of the server's time.
const BATCH: &[u8] = b"256";
/// Keys that one script removes.
const CHUNK: usize = 128;
/// The pause behind a batch is so many times what the batch took, at least [`PAUSE_MIN`].
const PAUSE_TIMES: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Batches between two notes of where the sweep is.
const NOTE_EVERY: u64 = 32;
/// For how long a sweeper that says nothing is waited for.
const CLAIM_MILLIS: &[u8] = b"10000";
/// How long until another try, and between two looks for work.
const RETRY: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(5);
/// For how long a finished sweep's numbers can be read.
const KEEP_SECONDS: &[u8] = b"86400";

/// Why a sweep did not come to its end.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("failed to ask L3: {0}")]
    Ask(#[from] ErrandError),
    #[error("the answer to SCAN makes no sense")]
    Scan,
    #[error("another sidecar sweeps")]
    Claimed,
    #[error("the cluster's duties are another sidecar's now")]
    Deposed,
    #[error("slots moved while it was under way; it begins again")]
    Moved,
}

/// How far a sweep is, as it stands in L3.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Keys removed.
    pub(crate) removed: u64,
    /// Keys looked at.
    pub(crate) seen: u64,
    /// Its end was reached.
    pub(crate) done: bool,
    /// By the id of a server's process: where to go on, or that it is done.
    places: HashMap<Bytes, Bytes>,
}

const DONE: &[u8] = b"done";

/// Sweeps whatever is in force, until the sidecar ends.
pub(crate) async fn sweep(shared: Arc<Shared>) {
    if let L3::Embedded(_) = &shared.l3 {
        return std::future::pending().await;
    }
    let me = unique();
    loop {
        // Also a sidecar without apps that ask follows the index: the duties may be its own.
        if !shared.ranges.is_followed(&shared) {
            shared.ranges.look_if_nobody_does(&shared);
        }
        let oldest = shared.ranges.active().iter().find(|range| !range.record.is_marker()).cloned();
        match oldest.filter(|_| shared.coordination.duties().is_holder()) {
            None => {
                // Also when the duties come here while nothing new does.
                let _ = tokio::time::timeout(LOOK, shared.ranges.entered.notified()).await;
            }
            Some(range) => {
                if let Err(error) = sweep_one(&shared, &range, &me).await {
                    tracing::debug!(%error, id = range.record.id, "a sweep is not done yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

async fn sweep_one(shared: &Arc<Shared>, range: &ActiveRange, me: &str) -> Result<(), SweepError> {
    let (names, record) = (&shared.ranges.names, &range.record);
    claim(shared, me).await?;
    let mut progress = read_progress(shared, &record.id).await?;
    let L3::Redis(redis) = &shared.l3 else { return Ok(()) };
    let layout = layout(shared).await?;
    for node in redis.nodes() {
        sweep_node(shared, &node, record, me, &mut progress).await?;
    }
    if layout != self::layout(shared).await? || layout.iter().any(|line| line.contains("->-") || line.contains("-<-")) {
        let key = names.progress(&record.id);
        errands::ask_owner(shared, &key, 0, wire::command(&[b"UNLINK", &key])).await?;
        return Err(SweepError::Moved);
    }
    progress.done = true;
    write_progress(shared, &record.id, &progress).await?;
    errands::ask_owner(shared, &names.index, 0, wire::finish(names, &record.id)).await?;
    // Itself first: the next round must not find it in force still.
    let (then, looked) = tokio::sync::oneshot::channel();
    shared.ranges.look(shared, Some(then));
    let _ = looked.await;
    shared.metrics.swept_patterns.inc();
    tracing::info!(id = record.id, removed = progress.removed, seen = progress.seen, "a pattern is swept");
    events::swept(shared, record, progress.removed);
    Ok(())
}

/// Takes the sweep, or goes on with it.
async fn claim(shared: &Arc<Shared>, me: &str) -> Result<(), SweepError> {
    const SCRIPT: &str = "local who = redis.call('GET', KEYS[1]) \
         if who and who ~= ARGV[1] then return 0 end redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1";
    if !shared.coordination.duties().is_holder() {
        return Err(SweepError::Deposed);
    }
    let key = &shared.ranges.names.sweeper;
    let claim = wire::command(&[b"EVAL", SCRIPT.as_bytes(), b"1", key, me.as_bytes(), CLAIM_MILLIS]);
    let reply = errands::ask_owner(shared, key, 0, claim).await?;
    if reply.starts_with(b":1") { Ok(()) } else { Err(SweepError::Claimed) }
}

/// What the nodes of a cluster say of their slots, empty where there is none.
async fn layout(shared: &Arc<Shared>) -> Result<Vec<String>, SweepError> {
    let L3::Redis(redis) = &shared.l3 else { return Ok(Vec::new()) };
    if redis.cluster().is_none() {
        return Ok(Vec::new());
    }
    let mut lines = Vec::new();
    for node in redis.nodes() {
        let replies = errands::ask(shared, &node, 0, wire::command(&[b"CLUSTER", b"NODES"]), 1).await?;
        let value = replies.first().and_then(|reply| Value::decode(reply).ok());
        let text = value.as_ref().and_then(|(value, _)| value.as_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(text).into_owned();
        let own = text.lines().filter(|line| line.contains("myself"));
        // Its id, and its slots with those on their way; not the times between.
        lines.extend(own.map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            [words.get(..1).unwrap_or_default(), words.get(8..).unwrap_or_default()].concat().join(" ")
        }));
    }
    lines.sort();
    Ok(lines)
}

async fn sweep_node(
    shared: &Arc<Shared>,
    node: &Arc<Node>,
    record: &Record,
    me: &str,
    progress: &mut Progress,
) -> Result<(), SweepError> {
    let process = process_of(shared, node).await?;
    let mut cursor = progress.places.get(&process).cloned().unwrap_or_else(|| Bytes::from_static(b"0"));
    let mut batches = 0;
    while cursor != DONE {
        let began = tokio::time::Instant::now();
        let Page { next, keys, leases } = scan(shared, node, record, &cursor).await?;
        progress.seen += keys.len() as u64;
        progress.removed += remove(shared, node, record, &keys).await?;
        end(shared, node, record, &leases).await?;
        cursor = if next == "0" { Bytes::from_static(DONE) } else { next };
        batches += 1;
        if batches % NOTE_EVERY == 0 || cursor == DONE {
            progress.places.insert(process.clone(), cursor.clone());
            claim(shared, me).await?;
            write_progress(shared, &record.id, progress).await?;
        }
        if cursor != DONE {
            tokio::time::sleep((began.elapsed() * PAUSE_TIMES).max(PAUSE_MIN)).await;
        }
    }
    Ok(())
}

/// Tells one process of a server from the next: its cursors are its own.
async fn process_of(shared: &Arc<Shared>, node: &Arc<Node>) -> Result<Bytes, SweepError> {
    let replies = errands::ask(shared, node, 0, wire::command(&[b"INFO", b"server"]), 1).await?;
    let value = replies.first().and_then(|reply| Value::decode(reply).ok());
    let text = value.as_ref().and_then(|(value, _)| value.as_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let id = text.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::trim);
    // Without one it cannot be resumed.
    Ok(id.map_or_else(|| unique().into(), |id| Bytes::copy_from_slice(id.as_bytes())))
}

/// What one SCAN shows.
struct Page {
    next: Bytes,
    /// Those that the pattern has.
    keys: Vec<Bytes>,
    /// Fill leases of such.
    leases: Vec<Bytes>,
}

/// The next keys that the pattern has, and where to go on.
async fn scan(shared: &Arc<Shared>, node: &Arc<Node>, record: &Record, cursor: &Bytes) -> Result<Page, SweepError> {
    let mut command: Vec<&[u8]> = vec![b"SCAN", cursor, b"COUNT", BATCH];
    // Redis would not show leases where only the pattern is asked for.
    if record.pattern.kind() == PatternKind::Glob && !shared.ranges.knows_tokens() {
        command.extend([b"MATCH".as_slice(), record.pattern.text()]);
    }
    let replies = errands::ask(shared, node, record.database, wire::command(&command), 1).await?;
    let value = replies.first().and_then(|reply| Value::decode(reply).ok());
    let elements = value.as_ref().and_then(|(value, _)| value.as_elements()).ok_or(SweepError::Scan)?;
    let [next, keys] = elements else { return Err(SweepError::Scan) };
    let next = next.as_bytes().map(Bytes::copy_from_slice).ok_or(SweepError::Scan)?;
    let all = || keys.as_elements().unwrap_or_default().iter().filter_map(Value::as_bytes);
    let names = &shared.ranges.names;
    let has = |key: &[u8]| !key.starts_with(wire::RESERVED) && record.pattern.matches(key);
    Ok(Page {
        next,
        keys: all().filter(|key| has(key)).map(Bytes::copy_from_slice).collect(),
        leases: all().filter(|key| names.leased(key).is_some_and(has)).map(Bytes::copy_from_slice).collect(),
    })
}

/// Ends fill leases: what is computed for keys that the pattern has may be from before it.
async fn end(shared: &Arc<Shared>, node: &Arc<Node>, record: &Record, leases: &[Bytes]) -> Result<(), SweepError> {
    if leases.is_empty() {
        return Ok(());
    }
    let bytes = leases.iter().flat_map(|lease| wire::command(&[b"UNLINK", lease])).collect();
    errands::ask(shared, node, record.database, bytes, u16::try_from(leases.len()).unwrap_or(u16::MAX)).await?;
    Ok(())
}

/// Removes those that were not written since; tells how many it were.
async fn remove(shared: &Arc<Shared>, node: &Arc<Node>, record: &Record, keys: &[Bytes]) -> Result<u64, SweepError> {
    let L3::Redis(redis) = &shared.l3 else { return Ok(0) };
    // A script's keys are of one slot.
    let mut groups: HashMap<u16, Vec<&[u8]>> = HashMap::new();
    for key in keys {
        let slot = if redis.cluster().is_some() { slot_of(key) } else { 0 };
        groups.entry(slot).or_default().push(key);
    }
    let mut bytes = Vec::new();
    let mut replies = 0;
    for chunk in groups.values().flat_map(|keys| keys.chunks(CHUNK)) {
        bytes.extend(wire::sweep(&shared.ranges.names, &record.id, chunk));
        replies += 1;
    }
    if replies == 0 {
        return Ok(0);
    }
    let replies = errands::ask(shared, node, record.database, bytes, replies).await?;
    Ok(replies.iter().filter_map(|reply| integer(reply)).map(i64::unsigned_abs).sum())
}

// === progress ===

/// How far the sweep for a pattern is, or was.
pub(crate) async fn read_progress(shared: &Arc<Shared>, id: &str) -> Result<Progress, ErrandError> {
    let key = shared.ranges.names.progress(id);
    let reply = errands::ask_owner(shared, &key, 0, wire::command(&[b"HGETALL", &key])).await?;
    let mut progress = Progress::default();
    let Ok((Value::Map(pairs), _)) = Value::decode(&reply) else { return Ok(progress) };
    for (name, value) in pairs.iter().filter_map(|(name, value)| name.as_bytes().zip(value.as_bytes())) {
        let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        match name {
            b"removed" => progress.removed = number(),
            b"seen" => progress.seen = number(),
            b"done" => progress.done = number() == 1,
            process => {
                progress.places.insert(Bytes::copy_from_slice(process), Bytes::copy_from_slice(value));
            }
        }
    }
    Ok(progress)
}

async fn write_progress(shared: &Arc<Shared>, id: &str, progress: &Progress) -> Result<(), ErrandError> {
    let key = shared.ranges.names.progress(id);
    let (removed, seen) = (progress.removed.to_string(), progress.seen.to_string());
    let done: &[u8] = if progress.done { b"1" } else { b"0" };
    let mut set: Vec<&[u8]> =
        vec![b"HSET", &key, b"removed", removed.as_bytes(), b"seen", seen.as_bytes(), b"done", done];
    progress.places.iter().for_each(|(process, cursor)| set.extend([&process[..], cursor]));
    errands::ask_owner(shared, &key, 0, wire::command(&set)).await?;
    errands::ask_owner(shared, &key, 0, wire::command(&[b"EXPIRE", &key, KEEP_SECONDS])).await?;
    Ok(())
}
