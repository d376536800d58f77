//! Strings: reading, writing, counting, and the options of SET and GETEX.

use caddy_resp::encode;

use super::{
    Call,
    arguments::{Fault, count, integer, is},
    extended::Extended,
};

/// Redis's default `proto-max-bulk-len`.
const MAX_LEN: usize = 512 << 20;

/// What SET does if the key exists, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Always,
    IfAbsent,
    IfPresent,
}

/// A time to live as it was given.
#[derive(Debug, Clone, Copy)]
enum Expiry<'a> {
    Seconds(&'a [u8]),
    Milliseconds(&'a [u8]),
    AtSeconds(&'a [u8]),
    AtMilliseconds(&'a [u8]),
}

impl Expiry<'_> {
    /// The deadline in milliseconds since 1970; times that are not positive are refused.
    fn deadline(self, now: i64, command: &'static str) -> Result<i64, Fault> {
        let (Self::Seconds(text) | Self::Milliseconds(text) | Self::AtSeconds(text) | Self::AtMilliseconds(text)) =
            self;
        let time = integer(text)?;
        let milliseconds = match self {
            Self::Seconds(_) | Self::AtSeconds(_) => time.checked_mul(1000),
            Self::Milliseconds(_) | Self::AtMilliseconds(_) => Some(time),
        };
        let deadline = match self {
            Self::Seconds(_) | Self::Milliseconds(_) => milliseconds.and_then(|time| time.checked_add(now)),
            Self::AtSeconds(_) | Self::AtMilliseconds(_) => milliseconds,
        };
        deadline.filter(|_| time > 0).ok_or(Fault::InvalidExpireTime(command))
    }

    fn is_absolute(self) -> bool {
        matches!(self, Self::AtSeconds(_) | Self::AtMilliseconds(_))
    }
}

/// The options of SET and GETEX together; each accepts its own.
#[derive(Debug)]
struct Options<'a> {
    condition: Condition,
    get: bool,
    keep_ttl: bool,
    persist: bool,
    expiry: Option<Expiry<'a>>,
}

impl<'a> Options<'a> {
    /// As `parseExtendedStringArgumentsOrReply` reads them: the same unit may come twice, another may not.
    fn parse(args: &[&'a [u8]], is_set: bool) -> Result<Self, Fault> {
        let mut options =
            Self { condition: Condition::Always, get: false, keep_ttl: false, persist: false, expiry: None };
        let mut rest = args.iter().copied();
        while let Some(option) = rest.next() {
            let free = !options.keep_ttl && !options.persist;
            if is_set && is(option, "NX") && options.condition != Condition::IfPresent {
                options.condition = Condition::IfAbsent;
            } else if is_set && is(option, "XX") && options.condition != Condition::IfAbsent {
                options.condition = Condition::IfPresent;
            } else if is_set && is(option, "GET") {
                options.get = true;
            } else if is_set && is(option, "KEEPTTL") && options.expiry.is_none() {
                options.keep_ttl = true;
            } else if !is_set && is(option, "PERSIST") && options.expiry.is_none() {
                options.persist = true;
            } else if let Some(make) = expiry_unit(option).filter(|_| free) {
                let expiry = make(rest.next().ok_or(Fault::Syntax)?);
                let same = |other: &Expiry<'_>| std::mem::discriminant(other) == std::mem::discriminant(&expiry);
                if !options.expiry.as_ref().is_none_or(same) {
                    return Err(Fault::Syntax);
                }
                options.expiry = Some(expiry);
            } else {
                return Err(Fault::Syntax);
            }
        }
        Ok(options)
    }
}

fn expiry_unit<'a>(option: &[u8]) -> Option<fn(&'a [u8]) -> Expiry<'a>> {
    Some(match option.to_ascii_uppercase().as_slice() {
        b"EX" => Expiry::Seconds,
        b"PX" => Expiry::Milliseconds,
        b"EXAT" => Expiry::AtSeconds,
        b"PXAT" => Expiry::AtMilliseconds,
        _ => return None,
    })
}

impl Call<'_> {
    /// The value of `key`, or null.
    fn reply_value(&mut self, key: &[u8]) {
        match self.databases[self.database].value(key) {
            Some(value) => encode::bulk(self.out, value),
            None => encode::null(self.out, self.protocol),
        }
    }
}

pub(super) fn get(call: &mut Call<'_>) -> Result<(), Fault> {
    call.reply_value(call.args[1]);
    Ok(())
}

pub(super) fn mget(call: &mut Call<'_>) -> Result<(), Fault> {
    encode::array_header(call.out, call.args.len() - 1);
    for key in &call.args[1..] {
        call.reply_value(key);
    }
    Ok(())
}

pub(super) fn strlen(call: &mut Call<'_>) -> Result<(), Fault> {
    let key = call.args[1];
    let len = call.db().value(key).map_or(0, <[u8]>::len);
    encode::integer(call.out, count(len));
    Ok(())
}

pub(super) fn set(call: &mut Call<'_>) -> Result<(), Fault> {
    let (key, value) = (call.args[1], call.args[2]);
    let options = Options::parse(&call.args[3..], true)?;
    let deadline = options.expiry.map(|expiry| expiry.deadline(call.now, call.name)).transpose()?;
    if options.get {
        call.reply_value(key);
    }
    let wanted = match options.condition {
        Condition::Always => true,
        Condition::IfAbsent => !call.db().contains(key),
        Condition::IfPresent => call.db().contains(key),
    };
    if wanted && options.keep_ttl {
        call.db().update(key, value.to_vec());
    } else if wanted {
        call.db().set(key, value.to_vec(), deadline);
    }
    match (options.get, wanted) {
        (true, _) => {}
        (false, true) => encode::ok(call.out),
        (false, false) => encode::null(call.out, call.protocol),
    }
    Ok(())
}

pub(super) fn setex(call: &mut Call<'_>) -> Result<(), Fault> {
    set_with(call, Expiry::Seconds(call.args[2]))
}

pub(super) fn psetex(call: &mut Call<'_>) -> Result<(), Fault> {
    set_with(call, Expiry::Milliseconds(call.args[2]))
}

fn set_with(call: &mut Call<'_>, expiry: Expiry<'_>) -> Result<(), Fault> {
    let deadline = expiry.deadline(call.now, call.name)?;
    let (key, value) = (call.args[1], call.args[3].to_vec());
    call.db().set(key, value, Some(deadline));
    encode::ok(call.out);
    Ok(())
}

pub(super) fn setnx(call: &mut Call<'_>) -> Result<(), Fault> {
    let (key, value) = (call.args[1], call.args[2].to_vec());
    let absent = !call.db().contains(key);
    if absent {
        call.db().set(key, value, None);
    }
    encode::integer(call.out, i64::from(absent));
    Ok(())
}

pub(super) fn getset(call: &mut Call<'_>) -> Result<(), Fault> {
    let (key, value) = (call.args[1], call.args[2].to_vec());
    call.reply_value(key);
    call.db().set(key, value, None);
    Ok(())
}

pub(super) fn getdel(call: &mut Call<'_>) -> Result<(), Fault> {
    let key = call.args[1];
    call.reply_value(key);
    call.db().remove(key);
    Ok(())
}

pub(super) fn getex(call: &mut Call<'_>) -> Result<(), Fault> {
    let key = call.args[1];
    let options = Options::parse(&call.args[2..], false)?;
    if !call.db().contains(key) {
        encode::null(call.out, call.protocol);
        return Ok(());
    }
    let deadline = options.expiry.map(|expiry| expiry.deadline(call.now, call.name)).transpose()?;
    call.reply_value(key);
    let now = call.now;
    match deadline {
        Some(deadline) if deadline <= now && options.expiry.is_some_and(Expiry::is_absolute) => {
            call.db().remove(key);
        }
        Some(deadline) => call.db().set_deadline(key, Some(deadline)),
        None if options.persist => call.db().set_deadline(key, None),
        None => {}
    }
    Ok(())
}

pub(super) fn mset(call: &mut Call<'_>) -> Result<(), Fault> {
    set_pairs(call)?;
    encode::ok(call.out);
    Ok(())
}

pub(super) fn msetnx(call: &mut Call<'_>) -> Result<(), Fault> {
    let args = call.args;
    let any = args.len() % 2 == 1 && args[1..].chunks_exact(2).any(|pair| call.db().contains(pair[0]));
    if !any {
        set_pairs(call)?;
    }
    encode::integer(call.out, i64::from(!any));
    Ok(())
}

fn set_pairs(call: &mut Call<'_>) -> Result<(), Fault> {
    let args = call.args;
    if args.len().is_multiple_of(2) {
        return Err(Fault::Arity(call.name));
    }
    for pair in args[1..].chunks_exact(2) {
        call.db().set(pair[0], pair[1].to_vec(), None);
    }
    Ok(())
}

pub(super) fn incr(call: &mut Call<'_>) -> Result<(), Fault> {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_>) -> Result<(), Fault> {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_>) -> Result<(), Fault> {
    add(call, integer(call.args[2])?)
}

pub(super) fn decrby(call: &mut Call<'_>) -> Result<(), Fault> {
    let by = integer(call.args[2])?;
    add(call, by.checked_neg().ok_or(Fault::DecrementOverflow)?)
}

fn add(call: &mut Call<'_>, by: i64) -> Result<(), Fault> {
    let key = call.args[1];
    let old = call.db().value(key).map_or(Ok(0), integer)?;
    let new = old.checked_add(by).ok_or(Fault::Overflow)?;
    call.db().update(key, new.to_string().into_bytes());
    encode::integer(call.out, new);
    Ok(())
}

pub(super) fn incrbyfloat(call: &mut Call<'_>) -> Result<(), Fault> {
    let (key, by) = (call.args[1], call.args[2]);
    let number = |text: &[u8]| Extended::parse(text).ok_or(Fault::NotAFloat);
    let old = call.db().value(key).map_or(Ok(Extended::ZERO), number)?;
    let new = old.add(number(by)?).ok_or(Fault::NotFinite)?.to_text();
    encode::bulk(call.out, new.as_bytes());
    call.db().update(key, new.into_bytes());
    Ok(())
}

pub(super) fn append(call: &mut Call<'_>) -> Result<(), Fault> {
    let (key, tail) = (call.args[1], call.args[2]);
    let len = call.db().value(key).map_or(0, <[u8]>::len) + tail.len();
    if len > MAX_LEN {
        return Err(Fault::TooLong);
    }
    call.db().value_mut(key).extend_from_slice(tail);
    encode::integer(call.out, count(len));
    Ok(())
}

pub(super) fn setrange(call: &mut Call<'_>) -> Result<(), Fault> {
    let (key, part) = (call.args[1], call.args[3]);
    let offset = usize::try_from(integer(call.args[2])?).map_err(|_| Fault::OffsetOutOfRange)?;
    let len = call.db().value(key).map_or(0, <[u8]>::len);
    if part.is_empty() {
        encode::integer(call.out, count(len));
        return Ok(());
    }
    let end = offset.checked_add(part.len()).filter(|end| *end <= MAX_LEN).ok_or(Fault::TooLong)?;
    let value = call.db().value_mut(key);
    value.resize(len.max(end), 0);
    value[offset..end].copy_from_slice(part);
    encode::integer(call.out, count(len.max(end)));
    Ok(())
}

pub(super) fn getrange(call: &mut Call<'_>) -> Result<(), Fault> {
    let (start, end) = (integer(call.args[2])?, integer(call.args[3])?);
    let value = call.databases[call.database].value(call.args[1]).unwrap_or_default();
    encode::bulk(call.out, part_of(value, start, end));
    Ok(())
}

/// What GETRANGE shows of a value.
pub fn part_of(value: &[u8], start: i64, end: i64) -> &[u8] {
    let len = count(value.len());
    // Both from the end, and the wrong way round: nothing, even where cutting at 0 would find a byte.
    let crossed = start < 0 && end < 0 && start > end;
    let from_end = |index: i64| if index < 0 { (len + index).max(0) } else { index };
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if start <= end && !crossed => &value[start..=end],
        _ => &[],
    }
}
