//! Keys as such, and databases: DEL, RENAME, SCAN, FLUSHALL and their like.

use caddy_engine::glob::Glob;
use caddy_resp::encode;

use super::{
    Call,
    arguments::{Fault, count, database, int, integer, is},
    data::Database,
};

pub(super) fn del(call: &mut Call<'_>) -> Result<(), Fault> {
    count_keys(call, |db, key| db.remove(key).is_some())
}

pub(super) fn exists(call: &mut Call<'_>) -> Result<(), Fault> {
    count_keys(call, |db, key| db.contains(key))
}

fn count_keys(call: &mut Call<'_>, counts: impl Fn(&mut Database, &[u8]) -> bool) -> Result<(), Fault> {
    let keys = &call.args[1..];
    let counted = keys.iter().filter(|key| counts(call.db(), key)).count();
    encode::integer(call.out, count(counted));
    Ok(())
}

pub(super) fn kind(call: &mut Call<'_>) -> Result<(), Fault> {
    let key = call.args[1];
    let name = if call.db().contains(key) { "string" } else { "none" };
    encode::simple(call.out, name);
    Ok(())
}

pub(super) fn rename(call: &mut Call<'_>) -> Result<(), Fault> {
    let (from, to) = (call.args[1], call.args[2]);
    let entry = call.db().remove(from).ok_or(Fault::NoSuchKey)?;
    call.db().set(to, entry.value, entry.deadline);
    encode::ok(call.out);
    Ok(())
}

pub(super) fn renamenx(call: &mut Call<'_>) -> Result<(), Fault> {
    let (from, to) = (call.args[1], call.args[2]);
    if !call.db().contains(from) {
        return Err(Fault::NoSuchKey);
    }
    let free = !call.db().contains(to);
    if let Some(entry) = free.then(|| call.db().remove(from)).flatten() {
        call.db().set(to, entry.value, entry.deadline);
    }
    encode::integer(call.out, i64::from(free));
    Ok(())
}

pub(super) fn copy(call: &mut Call<'_>) -> Result<(), Fault> {
    let (from, to) = (call.args[1], call.args[2]);
    let (mut target, mut replace) = (call.database, false);
    let mut options = call.args[3..].iter();
    while let Some(option) = options.next() {
        if is(option, "REPLACE") {
            replace = true;
        } else if is(option, "DB") {
            target = database(options.next().ok_or(Fault::Syntax)?, call.databases.len())?;
        } else {
            return Err(Fault::Syntax);
        }
    }
    if target == call.database && from == to {
        return Err(Fault::SameObject);
    }
    let copied = match call.databases[call.database].entry(from) {
        Some(entry) if replace || !call.databases[target].contains(to) => Some((entry.value.clone(), entry.deadline)),
        _ => None,
    };
    encode::integer(call.out, i64::from(copied.is_some()));
    if let Some((value, deadline)) = copied {
        call.databases[target].set(to, value, deadline);
    }
    Ok(())
}

pub(super) fn move_key(call: &mut Call<'_>) -> Result<(), Fault> {
    let key = call.args[1];
    let target = database(call.args[2], call.databases.len())?;
    if target == call.database {
        return Err(Fault::SameObject);
    }
    let free = !call.databases[target].contains(key);
    let moved = free.then(|| call.db().remove(key)).flatten();
    encode::integer(call.out, i64::from(moved.is_some()));
    if let Some(entry) = moved {
        call.databases[target].set(key, entry.value, entry.deadline);
    }
    Ok(())
}

pub(super) fn random_key(call: &mut Call<'_>) -> Result<(), Fault> {
    match call.databases[call.database].random_key() {
        Some(key) => encode::bulk(call.out, key),
        None => encode::null(call.out, call.protocol),
    }
    Ok(())
}

pub(super) fn dbsize(call: &mut Call<'_>) -> Result<(), Fault> {
    let keys = call.db().len();
    encode::integer(call.out, count(keys));
    Ok(())
}

pub(super) fn keys(call: &mut Call<'_>) -> Result<(), Fault> {
    let pattern = Glob::new(call.args[1]);
    let keys: Vec<&[u8]> = call.databases[call.database].keys().filter(|key| pattern.matches(key)).collect();
    reply_keys(call.out, &keys);
    Ok(())
}

pub(super) fn scan(call: &mut Call<'_>) -> Result<(), Fault> {
    let cursor = cursor(call.args[1])?;
    let (mut at_least, mut pattern, mut strings) = (10, None, true);
    for option in call.args[2..].chunks(2) {
        match option {
            [name, value] if is(name, "COUNT") => {
                at_least = usize::try_from(integer(value)?).ok().filter(|count| *count > 0).ok_or(Fault::Syntax)?;
            }
            [name, value] if is(name, "MATCH") => pattern = Some(Glob::new(value)),
            [name, value] if is(name, "TYPE") => strings = is(value, "string"),
            _ => return Err(Fault::Syntax),
        }
    }
    let (next, mut keys) = call.databases[call.database].scan(cursor, at_least);
    keys.retain(|key| strings && pattern.as_ref().is_none_or(|pattern| pattern.matches(key)));
    encode::array_header(call.out, 2);
    encode::bulk(call.out, next.to_string().as_bytes());
    reply_keys(call.out, &keys);
    Ok(())
}

/// As `strtoul` reads it: nothing is 0, a sign is taken, and minus counts from the top.
fn cursor(text: &[u8]) -> Result<u64, Fault> {
    let text = str::from_utf8(text).map_err(|_| Fault::InvalidCursor)?;
    match text.strip_prefix('-') {
        _ if text.is_empty() => Ok(0),
        Some(digits) if !digits.starts_with('+') => digits.parse().map(u64::wrapping_neg),
        _ => text.parse(),
    }
    .map_err(|_| Fault::InvalidCursor)
}

fn reply_keys(out: &mut Vec<u8>, keys: &[&[u8]]) {
    encode::array_header(out, keys.len());
    for key in keys {
        encode::bulk(out, key);
    }
}

pub(super) fn flushall(call: &mut Call<'_>) -> Result<(), Fault> {
    check_flush_mode(call.args)?;
    for database in call.databases.iter_mut() {
        database.clear();
    }
    encode::ok(call.out);
    Ok(())
}

pub(super) fn flushdb(call: &mut Call<'_>) -> Result<(), Fault> {
    check_flush_mode(call.args)?;
    call.db().clear();
    encode::ok(call.out);
    Ok(())
}

fn check_flush_mode(args: &[&[u8]]) -> Result<(), Fault> {
    match args {
        [_] => Ok(()),
        [_, mode] if is(mode, "SYNC") || is(mode, "ASYNC") => Ok(()),
        _ => Err(Fault::Syntax),
    }
}

pub(super) fn swapdb(call: &mut Call<'_>) -> Result<(), Fault> {
    let first = int(call.args[1]).map_err(|_| Fault::InvalidFirstDatabase)?;
    let second = int(call.args[2]).map_err(|_| Fault::InvalidSecondDatabase)?;
    let existing = |index: i32| {
        usize::try_from(index).ok().filter(|index| *index < call.databases.len()).ok_or(Fault::DatabaseOutOfRange)
    };
    let (first, second) = (existing(first)?, existing(second)?);
    call.databases.swap(first, second);
    encode::ok(call.out);
    Ok(())
}

/// Only checks the index: which database a connection uses is the caller's.
pub(super) fn select(call: &mut Call<'_>) -> Result<(), Fault> {
    database(call.args[1], call.databases.len())?;
    encode::ok(call.out);
    Ok(())
}
