//! What somebody else wrote where the data of locks belongs: what it is, and what to do. It is left alone, since whoever
//! wrote it may want it; only what counts as lost, or as a waiter that died, is replaced.

use std::collections::BTreeMap;

use bytes::Bytes;
use caddy_engine::locks::BackendError;
use caddy_resp::Value;
use parking_lot::Mutex;

use super::scripts::{Keys, Part};

/// Locks of which that was told.
const MAX_TOLD: usize = 1000;

/// Says it in the log, once for as long as it lasts.
#[derive(Debug, Default)]
pub(super) struct Foreign(Mutex<BTreeMap<Bytes, String>>);

impl Foreign {
    pub(super) fn found(&self, name: &Bytes, what: &str) {
        let mut told = self.0.lock();
        if told.get(name).is_some_and(|before| before == what) || told.len() >= MAX_TOLD {
            return;
        }
        told.insert(name.clone(), what.to_owned());
        tracing::warn!(lock = %name.escape_ascii(), "{what}");
    }

    pub(super) fn is_gone(&self, name: &Bytes) {
        if self.0.lock().remove(name).is_some() {
            tracing::info!(lock = %name.escape_ascii(), "all of the lock can be read again");
        }
    }
}

/// The record of an exclusive holder is none.
pub(super) fn record(keys: &Keys, name: &Bytes) -> BackendError {
    let (all, field) = (quoted(&keys.all()), quoted(&[b"x:", &**name].concat()));
    unreadable(name, &format!("the field {field} of {all} is"), &format!("HDEL {all} {field}"))
}

/// The first of these keys whose type, by the reply to TYPE, is another one.
pub(super) fn key(name: &Bytes, parts: &[Part], replies: &[Bytes]) -> Option<BackendError> {
    parts.iter().zip(replies).find_map(|(part, reply)| {
        let (value, _) = Value::decode(reply).ok()?;
        let found = String::from_utf8_lossy(value.as_bytes()?).into_owned();
        if found == "none" || found == part.kind {
            return None;
        }
        let key = quoted(&part.key);
        let what = format!("its key {key} is a {found} instead of a {},", part.kind);
        Some(if part.is_of_all {
            let advice = format!("see who wrote it, then DEL {key}: sidecars make it again");
            BackendError::Unavailable(
                format!("locks cannot be waited for: {key} is a {found} instead of a {}; {advice}", part.kind).into(),
            )
        } else {
            unreadable(name, &what, &format!("DEL {key}"))
        })
    })
}

/// Entries of a queue that are none.
pub(super) fn entries(name: &Bytes) -> String {
    let name = name.escape_ascii();
    format!("some of who waits for the lock '{name}' cannot be read: somebody else wrote them, they are passed by")
}

fn unreadable(name: &[u8], what: &str, remedy: &str) -> BackendError {
    let name = name.escape_ascii();
    BackendError::Unreadable(
        format!(
            "the lock '{name}' cannot be read: {what} nothing that a sidecar wrote; see who did, then {remedy}: whoever has \
             it or waits for it takes it anew"
        )
        .into(),
    )
}

/// As redis-cli reads it.
fn quoted(text: &[u8]) -> String {
    let shown = text.escape_ascii().to_string();
    let is_plain = shown.as_bytes() == text && !text.iter().any(|byte| matches!(byte, b' ' | b'"' | b'\''));
    if is_plain { shown } else { format!("\"{shown}\"") }
}
