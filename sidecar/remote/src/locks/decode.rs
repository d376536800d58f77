//! What the scripts answered.

use std::time::Duration;

use bytes::Bytes;
use caddy_engine::locks::{Answer, BackendError, HolderStatus, LockMode, LockStatus, Owner, Ticket, WaiterStatus};
use caddy_resp::Value;

use super::token;

/// Something that no script of ours says, or an error.
pub(super) fn unexpected(reply: &[u8]) -> BackendError {
    if let Some(message) = reply.strip_prefix(b"-") {
        return refused(message);
    }
    let shown = String::from_utf8_lossy(&reply[..reply.len().min(120)]).into_owned();
    BackendError::Unavailable(format!("Redis answered a lock script with {shown:?}").into())
}

/// An error of the server's, as told to an app.
pub(super) fn refused(message: &[u8]) -> BackendError {
    let message = String::from_utf8_lossy(message);
    let message = message.trim_end();
    let code = message.split(' ').next().unwrap_or_default();
    let advice = match code {
        "OOM" => "make room in Redis, or raise its maxmemory",
        "NOPERM" => "give the Redis user of the sidecars what locks need (docs/locks.md, Settings)",
        _ if message.starts_with("ERR unknown command") => "locks need it (docs/locks.md, Settings)",
        "MISCONF" | "NOREPLICAS" | "LOADING" | "BUSY" | "MASTERDOWN" => "see what ails Redis, then try again",
        _ => {
            "see whether somebody else writes to the keys of the locks, caddy:{<domain>}:locks*; to delete one that is \
             broken voids locks, which is noticed"
        }
    };
    BackendError::Unavailable(format!("Redis refused a lock script: {message}; {advice}").into())
}

/// Whether the reply says that the epoch, or the server's scripts, are not what they were.
pub(super) fn needs_confirmation(reply: &[u8]) -> bool {
    reply.starts_with(b"*1\r\n$5\r\nepoch\r\n") || reply.starts_with(b"-NOSCRIPT") || reply.starts_with(b"-READONLY")
}

/// Whether a script found a record of the lock that is none.
pub(super) fn is_unreadable(reply: &[u8]) -> bool {
    reply.starts_with(b"*1\r\n$10\r\nunreadable\r\n")
}

/// Whether a key is of a type that it cannot be of; before Redis 7 the error of a script says so at its end.
pub(super) fn is_wrong_type(reply: &[u8]) -> bool {
    reply.starts_with(b"-") && reply.windows(9).any(|part| part == b"WRONGTYPE")
}

fn elements(reply: &[u8]) -> Result<Vec<Value<'_>>, BackendError> {
    match Value::decode(reply) {
        Ok((Value::Array(elements) | Value::Set(elements), _)) => Ok(elements),
        Ok((Value::Error(message), _)) => Err(refused(message)),
        _ => Err(unexpected(reply)),
    }
}

pub(super) fn text(reply: &[u8]) -> Result<String, BackendError> {
    let (value, _) = Value::decode(reply).map_err(|_| unexpected(reply))?;
    if let Some(message) = value.as_error() {
        return Err(refused(message));
    }
    let text = value.as_bytes().ok_or_else(|| unexpected(reply))?;
    Ok(String::from_utf8_lossy(text).into_owned())
}

pub(super) fn texts(reply: &[u8]) -> Result<Vec<Bytes>, BackendError> {
    Ok(elements(reply)?.iter().filter_map(Value::as_bytes).map(Bytes::copy_from_slice).collect())
}

/// What a script says by 1 or 0.
pub(super) fn flag(reply: &[u8]) -> Result<bool, BackendError> {
    match reply {
        b":1\r\n" => Ok(true),
        b":0\r\n" => Ok(false),
        _ => Err(unexpected(reply)),
    }
}

pub(super) fn flags(reply: &[u8]) -> Result<Vec<bool>, BackendError> {
    Ok(elements(reply)?.iter().map(|flag| flag.as_integer() == Some(1)).collect())
}

fn number(value: &Value<'_>) -> Option<u64> {
    // A lease that ended while the script ran counts as nothing left.
    let text = std::str::from_utf8(value.as_bytes()?).ok()?;
    text.parse::<i64>().ok().map(|number| u64::try_from(number).unwrap_or(0))
}

/// A number, and what is the matter with it.
pub(super) fn epoch(reply: &[u8]) -> Result<(u64, String), BackendError> {
    match elements(reply)?.as_slice() {
        [epoch, outcome] => {
            let epoch = number(epoch).ok_or_else(|| unexpected(reply))?;
            Ok((epoch, String::from_utf8_lossy(outcome.as_bytes().unwrap_or_default()).into_owned()))
        }
        _ => Err(unexpected(reply)),
    }
}

pub(super) fn answer(epoch: u64, reply: &[u8], look_again: Duration, longest: usize) -> Result<Answer, BackendError> {
    if reply.starts_with(b"$") {
        let granted = Value::decode(reply).ok().and_then(|(counter, _)| token(epoch, counter.as_bytes()));
        return granted.map(Answer::Granted).ok_or_else(|| unexpected(reply));
    }
    let elements = elements(reply)?;
    let argument = elements.get(1).and_then(Value::as_bytes);
    match elements.first().and_then(Value::as_bytes) {
        Some(b"upgrade") => token(epoch, argument).map(Answer::Upgrade).ok_or_else(|| unexpected(reply)),
        Some(b"busy") => Ok(Answer::NotFree),
        Some(b"full") => Ok(Answer::Limit { what: "the lock's queue", limit: longest }),
        Some(b"queued") => {
            let ends = elements.get(1).and_then(number).map_or(look_again, Duration::from_micros);
            // Just behind the end of the lease, and not in a hurry if somebody else comes first.
            Ok(Answer::Queued((ends + Duration::from_millis(5)).min(look_again)))
        }
        _ => Err(unexpected(reply)),
    }
}

fn mode(value: &Value<'_>) -> LockMode {
    if value.as_bytes() == Some(b"s") { LockMode::Shared } else { LockMode::Exclusive }
}

fn owner(value: &Value<'_>) -> Option<Owner> {
    Some(Owner::new(String::from_utf8_lossy(value.as_bytes()?)))
}

/// How many waiters the status leaves out since they are none.
pub(super) fn left_out(reply: &[u8]) -> usize {
    let Ok((value, _)) = Value::decode(reply) else { return 0 };
    let count = value.as_elements().and_then(|parts| parts.get(3)?.as_integer());
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

pub(super) fn status(name: &Bytes, epoch: u64, reply: &[u8]) -> Result<LockStatus<Bytes>, BackendError> {
    let parts = elements(reply)?;
    let list = |index: usize| parts.get(index).and_then(Value::as_elements).unwrap_or_default().chunks_exact(4);
    let holder = |fields: &[Value<'_>]| {
        Some(HolderStatus {
            owner: owner(&fields[0])?,
            mode: mode(&fields[1]),
            token: token(epoch, fields[2].as_bytes())?,
            remaining: Duration::from_micros(number(&fields[3])?),
        })
    };
    let waiter = |fields: &[Value<'_>]| {
        Some(WaiterStatus {
            ticket: Ticket::parse(&String::from_utf8_lossy(fields[0].as_bytes()?))?,
            arrival: number(&fields[1])?,
            mode: mode(&fields[2]),
            owner: owner(&fields[3])?,
        })
    };
    let holders = list(1).filter_map(holder).collect();
    let waiters = list(2).filter_map(waiter).collect();
    Ok(LockStatus { name: name.clone(), holders, waiters })
}
