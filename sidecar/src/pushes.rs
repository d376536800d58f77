//! What the server announces on tracked connections, applied where it stands in the stream.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{FlushCause, KeyHash, SourceId};
use caddy_resp::Value;

use crate::shared::Shared;

/// An invalidation push: named keys, or null for all.
pub(crate) fn invalidate(shared: &Arc<Shared>, source: SourceId, database: u32, frame: &[u8]) {
    let kernel = shared.kernel();
    let Ok((Value::Push(elements), _)) = Value::decode(frame) else { return };
    match elements.as_slice() {
        [kind, keys] if kind.as_bytes() == Some(b"invalidate") => {
            let Some(keys) = keys.as_elements() else {
                kernel.flush(source, FlushCause::Overwritten);
                return shared.ranges.told_of_a_flush(shared);
            };
            shared.metrics.pushed_keys.inc_by(keys.len() as u64);
            for key in keys.iter().filter_map(Value::as_bytes) {
                kernel.bump(KeyHash::of(key));
                if shared.ranges.is_index(key) {
                    shared.ranges.told(shared);
                }
                shared.relearn(source, database, key);
            }
        }
        _ => {}
    }
}

/// As [`invalidate`], on the connection of negative filters: keys that were written may be there now.
pub(crate) fn announced(shared: &Shared, source: SourceId, frame: &[u8]) {
    let Ok((Value::Push(elements), _)) = Value::decode(frame) else { return };
    match elements.as_slice() {
        [kind, keys] if kind.as_bytes() == Some(b"invalidate") => match keys.as_elements() {
            Some(keys) => {
                keys.iter().filter_map(Value::as_bytes).for_each(|key| shared.absences.announced(source, key));
            }
            None => shared.kernel().flush(source, FlushCause::Overwritten),
        },
        _ => {}
    }
}

/// What [`Guard::PushInline`] forbids.
pub(crate) fn invalidate_later(shared: Arc<Shared>, source: SourceId, database: u32, frame: Bytes) {
    tokio::task::spawn_local(async move {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        invalidate(&shared, source, database, &frame);
    });
}
