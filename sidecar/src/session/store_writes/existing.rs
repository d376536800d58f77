//! What a command depends on that L3 has not, or has in an envelope: brought there before the command is executed.
//!
//! Owns that step alone. What is absent, or old, is loaded as a `GET` would load it: once for all who want it, and stored under
//! the key's fill lease. Where Redis computes with it (`INCR` and the like), an envelope is replaced by the value that a `GET`
//! would show, with the life that it has, unless somebody has written the key meanwhile. Nothing of it is a promise for
//! the command, which looks once more as it is executed. Fails before anything was written, and says so.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::strategy::behind::Write;
use caddy_resp::{Value, encode};
use tokio::sync::oneshot;

use crate::{
    answers::integer,
    cache::Cached,
    envelope::is_suspect,
    errands,
    keyspaces::Source,
    loading::{Answer, Asker, Miss},
    shared::Shared,
};

/// `KEYS`: the key. `ARGV`: what it had, and what it is to have.
const OPEN: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') end return 1";

pub(super) const DOES_NOT_STAY: &str = "STOREERR the value of the key does not stay in Redis for long enough to do anything with it there: see the keyspace's ttl, and \
     whether the store forbids to keep it (no-store, max-age=0); nothing was written";

/// What there is of a command's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// All of them.
    All,
    /// Of some the store has nothing, either.
    Some,
}

/// Brings what there is of `keys` to L3, as plain values if `is_to_be_plain`; why not, as the app is told.
pub(super) async fn see_to(
    shared: &Arc<Shared>,
    database: u32,
    keys: impl Iterator<Item = &Bytes>,
    is_to_be_plain: bool,
) -> Result<Existing, String> {
    let mut existing = Existing::All;
    for key in keys {
        let is_there = is_there(shared, database, key, is_to_be_plain).await?;
        if !is_there && !load(shared, database, key).await? {
            existing = Existing::Some;
        } else if !is_there && is_to_be_plain {
            self::is_there(shared, database, key, true).await?;
        }
    }
    Ok(existing)
}

/// Whether there is a value, in L3 then.
pub(super) async fn load(shared: &Arc<Shared>, database: u32, key: &Bytes) -> Result<bool, String> {
    let keyspaces = shared.keyspaces();
    if let Some(source) = keyspaces.source(key)
        && let Some(Write::Put(_)) = shared.behinds.pending(source, key)
    {
        settled(shared, source, key).await?;
    }
    let (answer, answered) = oneshot::channel();
    shared.loading.miss(Miss::unfilled(shared, database, key.clone(), shared.now(), Asker::Told(answer)));
    let nothing = "nothing was written";
    match answered.await {
        Ok(Answer::Fresh(value)) => Ok(value.exists()),
        Ok(Answer::Stale(_)) => Err(format!(
            "STALE the value of the key is old, and its store gives no newer one: see whether it is up; {nothing}"
        )),
        Ok(Answer::Failed(reason)) => Err(format!("STOREERR {reason}; {nothing}")),
        Err(_) => Err(format!("NOTREADY the sidecar is shutting down; {nothing}")),
    }
}

/// Waits until the store has what is on its way there: Redis may have lost it, and it is then loaded as all else.
async fn settled(shared: &Arc<Shared>, source: &Source, key: &Bytes) -> Result<(), String> {
    let (store, keys) = (&source.store.name, [key.clone()]);
    let failed = |error| format!("STOREERR store '{store}': {error}; nothing was written");
    if let Some(behind) = &source.behind {
        behind.writer.settled(&keys).await.map_err(failed)?;
    }
    shared.behinds.settled(store, &keys).await.map_err(failed)
}

/// Whether L3 has a value that is fresh; opens it, if it is to be plain.
async fn is_there(shared: &Arc<Shared>, database: u32, key: &[u8], is_to_be_plain: bool) -> Result<bool, String> {
    let reply = ask(shared, database, key, &[b"GET", key]).await?;
    let (value, _) = Value::decode(&reply).map_err(|error| format!("NOTREADY {error}; nothing was written"))?;
    // Of what is no string, Redis says so.
    let Some(stored) = value.as_bytes() else { return Ok(value.as_error().is_some()) };
    if !is_suspect(stored) {
        return Ok(true);
    }
    let left = integer(&ask(shared, database, key, &[b"PTTL", key]).await?);
    let decode = |learned: &[_]| shared.decode(database, key, Cached::from_value(&value), left, learned);
    let decoded = match decode(&[]) {
        Ok(decoded) => decoded,
        Err(wants) => {
            let learned = shared
                .learned(database, wants)
                .await
                .map_err(|reason| format!("NOTREADY {reason}; nothing was written"))?;
            let Ok(decoded) = decode(&learned) else { return Ok(false) };
            decoded
        }
    };
    let is_fresh = decoded.stale.is_none();
    let Some(opened) = decoded.value.bytes().filter(|_| is_fresh) else { return Ok(false) };
    if is_to_be_plain && opened != stored {
        ask(shared, database, key, &[b"EVAL", OPEN.as_bytes(), b"1", key, stored, opened]).await?;
    }
    Ok(true)
}

async fn ask(shared: &Arc<Shared>, database: u32, key: &[u8], command: &[&[u8]]) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    encode::command(&mut bytes, command.to_vec());
    errands::ask_owner(shared, key, database, bytes)
        .await
        .map_err(|error| format!("NOTREADY {error}; nothing was written"))
}
