//! What a load has left in an envelope, opened in L3 before a command that computes with it there (`INCR` and the like).
//!
//! Owns that step alone: the envelope is replaced by the value that a `GET` would show, with the life that it has, unless
//! somebody has written the key meanwhile. A value that is old, or belongs to a group that was invalidated, is to be loaded
//! first: the command is refused before anything was written. What is no envelope stays as it is.

use std::sync::Arc;

use bytes::Bytes;
use caddy_resp::{Value, encode};

use crate::{cache::Cached, envelope::is_suspect, errands, shared::Shared, upstream::integer};

/// `KEYS`: the key. `ARGV`: what it had, and what it is to have.
const OPEN: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') end return 1";

const OLD: &str = "STALE the value of the key is old, and has to be loaded before anything is computed from it: read it with GET, and \
                   repeat the command; nothing was written";

/// Opens the value of `key`; why not, as the app is told.
pub(super) async fn open(shared: &Arc<Shared>, database: u32, key: &[u8]) -> Result<(), String> {
    let reply = ask(shared, database, key, &[b"GET", key]).await?;
    let (value, _) = Value::decode(&reply).map_err(|error| format!("NOTREADY {error}; nothing was written"))?;
    let Some(stored) = value.as_bytes().filter(|stored| is_suspect(stored)) else { return Ok(()) };
    let left = integer(&ask(shared, database, key, &[b"PTTL", key]).await?);
    let decode = |learned: &[_]| shared.decode(database, key, Cached::from_value(&value), left, learned);
    let decoded = match decode(&[]) {
        Ok(decoded) => decoded,
        Err(wants) => {
            let learned = shared
                .learned(database, wants)
                .await
                .map_err(|reason| format!("NOTREADY {reason}; nothing was written"))?;
            decode(&learned).map_err(|_| OLD.to_owned())?
        }
    };
    let is_fresh = decoded.stale.is_none();
    let Some(opened) = decoded.value.bytes().filter(|_| is_fresh) else { return Err(OLD.to_owned()) };
    if opened != stored {
        ask(shared, database, key, &[b"EVAL", OPEN.as_bytes(), b"1", key, stored, opened]).await?;
    }
    Ok(())
}

async fn ask(shared: &Arc<Shared>, database: u32, key: &[u8], command: &[&[u8]]) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    encode::command(&mut bytes, command.to_vec());
    errands::ask_owner(shared, key, database, bytes)
        .await
        .map_err(|error| format!("NOTREADY {error}; nothing was written"))
}
