//! Letting a pattern take effect: its record in the index, and then in this sidecar, before anybody is told that it has.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use caddy_engine::invalidation::{KeyPattern, PatternError};
use caddy_remote::ranges::{self as wire, RESERVED, Record};
use caddy_resp::{Protocol, Value};
use tokio::sync::oneshot;

use crate::{
    errands::{self, ErrandError},
    shared::{L3, Shared},
};

/// Why a pattern did not take effect, or nobody can say whether it did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnterError {
    /// It is none.
    #[error("ERR {0}")]
    Pattern(#[from] PatternError),
    /// L3 refused its record.
    #[error("{0}")]
    Refused(String),
    /// L3 did not answer.
    #[error("NOTREADY {0}; the invalidation may or may not have taken effect: send it again, which is harmless")]
    Lost(String),
}

/// Lets `pattern` take effect in `database`; tells its id. When it returns, nothing that matches and is from before is
/// served by this sidecar.
pub(crate) async fn enter(
    shared: &Arc<Shared>,
    pattern: KeyPattern,
    database: u32,
    note: String,
) -> Result<String, EnterError> {
    enter_as(shared, unique(), pattern, database, note).await
}

/// As [`enter`], under an id that the caller chose: entered again it is the same invalidation.
pub(crate) async fn enter_as(
    shared: &Arc<Shared>,
    id: String,
    pattern: KeyPattern,
    database: u32,
    note: String,
) -> Result<String, EnterError> {
    let ranges = &shared.ranges;
    if let L3::Embedded(_) = &shared.l3 {
        remove_embedded(shared, &pattern, database);
        return Ok(id);
    }
    let entered = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let origin = ranges.origin.clone();
    let record = Record { id, pattern, database, entered: u64::try_from(entered).unwrap_or(u64::MAX), origin, note };
    let bytes = wire::enter(&ranges.names, &unique(), &record);
    errands::ask_owner(shared, &ranges.names.index, 0, bytes).await.map_err(|error| match error {
        ErrandError::Refused(text) => EnterError::Refused(text),
        error => EnterError::Lost(error.to_string()),
    })?;
    ranges.remember(shared.now(), record.clone());
    // Its record stands; a connection that is lost just now comes back.
    let mut trouble = String::new();
    for pause in [0, 20, 100, 500] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let (then, looked) = oneshot::channel();
        ranges.look(shared, Some(then));
        match looked.await {
            Ok(Ok(())) => return Ok(record.id),
            Ok(Err(reason)) => trouble = reason,
            Err(_) => return Err(EnterError::Lost("the sidecar is shutting down".to_owned())),
        }
    }
    Err(EnterError::Lost(trouble))
}

/// The embedded L3 is small and here: what matches goes at once.
fn remove_embedded(shared: &Shared, pattern: &KeyPattern, database: u32) {
    let L3::Embedded(store) = &shared.l3 else { return };
    let mut reply = Vec::new();
    store.execute(database, Protocol::Resp3, &[b"KEYS", b"*"], &mut reply);
    let Ok((Value::Array(keys), _)) = Value::decode(&reply) else { return };
    let keys = keys.iter().filter_map(Value::as_bytes).filter(|key| !key.starts_with(RESERVED));
    for key in keys.filter(|key| pattern.matches(key)) {
        let mut removed = Vec::new();
        store.execute(database, Protocol::Resp3, &[b"DEL", key], &mut removed);
        shared.kernel().bump(caddy_engine::KeyHash::of(key));
    }
}

/// 128 random bits in hexadecimal.
pub(crate) fn unique() -> String {
    // Each `RandomState` has a key of its own, made from random bits; the hash of a constant under it is as random.
    let half = || RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", half(), half())
}
