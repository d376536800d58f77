//! Commands about strings where values may be envelopes: what is sent in their place, and what is computed here.
//!
//! Owns three scripts and their replies. A command that only shows what it computes from values (`GETRANGE`, `STRLEN`, `LCS`)
//! is computed by Redis where none of them is an envelope, else here, from the opened values. One that handles the bytes as
//! they are stored (`APPEND`, `INCR`, `SETBIT`, `RENAME`) is executed only if none of them is an envelope; what it would do
//! to one nobody wants. And one that shows a whole value while it changes that (`GETDEL`, `SET … GET`) also tells how long the
//! key had left, which says whether the value was fresh. All look and act in one step. Used only where the domain is known to
//! have envelopes.

use std::sync::Arc;

use bytes::Bytes;
use caddy_remote::embedded::{Embedded, part_of};
use caddy_resp::{Protocol, Value, encode};
use smallvec::SmallVec;

use crate::cache::Cached;

/// `ARGV`: the first and the last of the keys that must be none, then the command.
const HANDLE: &str = "for i = ARGV[1], math.min(ARGV[2], #KEYS) do \
     if redis.pcall('GETRANGE', KEYS[i], 0, 1) == '\\193\\202' then return redis.error_reply(ARGV[3]) end end \
     return redis.pcall(unpack(ARGV, 4))";

/// `ARGV`: the protocol, then the command. Answers 0 and the reply to the command, or 1, and each key's value and PTTL.
const COMPUTE: &str = "local sealed = false \
     for i = 1, #KEYS do if redis.pcall('GETRANGE', KEYS[i], 0, 1) == '\\193\\202' then sealed = true end end \
     if not sealed then \
     if ARGV[1] == '3' then redis.setresp(3) end return {0, redis.pcall(unpack(ARGV, 2))} end \
     local reply = {1} \
     for i = 1, #KEYS do \
     reply[2 * i] = redis.pcall('GET', KEYS[i]) reply[2 * i + 1] = redis.pcall('PTTL', KEYS[i]) end \
     return reply";

/// `ARGV`: a command that shows what its key had. Answers as [`COMPUTE`] does, with the value and the PTTL of before.
const TAKE: &str = "local sealed = redis.pcall('GETRANGE', KEYS[1], 0, 1) == '\\193\\202' \
     local left = redis.call('PTTL', KEYS[1]) \
     local reply = redis.pcall(unpack(ARGV)) \
     if sealed and type(reply) == 'string' then return {1, reply, left} end return {0, reply}";

/// What is told of a command that handles stored bytes, and found an envelope.
pub(crate) const WRONG_TYPE: &str = "WRONGTYPE the value has tags, dependencies or a time of staleness and is kept as an envelope, \
     so that it cannot be changed, compared or renamed in place: write it whole with SET or CACHE.SET, or delete it first";
/// As Redis says it of LCS.
const NO_STRINGS: &str = "ERR The specified keys must contain string values";

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn script(script: &'static str, keys: &[&[u8]], arguments: impl IntoIterator<Item = Bytes>) -> Vec<Bytes> {
    let mut words = vec![text("EVAL"), text(script), Bytes::from(keys.len().to_string())];
    words.extend(keys.iter().map(|key| Bytes::copy_from_slice(key)));
    words.extend(arguments);
    words
}

/// What is sent in place of a command that handles the stored bytes of the keys from place `from` on, up to `to`.
pub(crate) fn handling(keys: &[&[u8]], from: usize, to: usize, command: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
    let number = |number: usize| Bytes::from(number.to_string());
    let range = [number(from + 1), number(to.min(keys.len())), text(WRONG_TYPE)];
    script(HANDLE, keys, range.into_iter().chain(command))
}

/// What is sent in place of a command that shows what it computes.
pub(crate) fn computing(keys: &[&[u8]], protocol: Protocol, command: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
    let protocol = text(if protocol == Protocol::Resp3 { "3" } else { "2" });
    script(COMPUTE, keys, std::iter::once(protocol).chain(command))
}

/// What is sent in place of a command that shows the value which `key` had before it.
pub(crate) fn taking(key: &[u8], command: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
    script(TAKE, &[key], command)
}

/// A reply to what [`computing`] or [`taking`] sends.
pub(crate) enum Computing<'a> {
    /// Redis computed this.
    Done(&'a Value<'a>),
    /// These are the keys' values, with what they have left to live.
    Values(Vec<(&'a Value<'a>, Option<i64>)>),
}

impl<'a> Computing<'a> {
    /// Reads the reply; `None`: it is an error, or something else.
    pub(crate) fn parse(reply: &'a Value<'a>) -> Option<Self> {
        match reply.as_elements()? {
            [Value::Integer(0), done] => Some(Self::Done(done)),
            [Value::Integer(1), values @ ..] => {
                let pair = |pair: &'a [Value<'a>]| Some((pair.first()?, pair.get(1)?.as_integer()));
                values.chunks(2).map(pair).collect::<Option<_>>().map(Self::Values)
            }
            _ => None,
        }
    }
}

/// Whether a command's values can be computed with: strings, or nothing.
pub(crate) fn refusal(values: &[(&Value<'_>, Option<i64>)]) -> Option<Cached> {
    values.iter().any(|(value, _)| value.as_error().is_some()).then(|| {
        let mut out = Vec::new();
        encode::error(&mut out, NO_STRINGS);
        Cached::Same(out.into())
    })
}

/// What a command answers if its keys have these values.
pub(crate) fn compute<'a>(
    protocol: Protocol,
    command: &[&[u8]],
    values: impl Iterator<Item = (&'a [u8], &'a Cached)>,
) -> Cached {
    let values: SmallVec<[_; 2]> = values.collect();
    if let [(_, value)] = values.as_slice()
        && let Some(reply) = looked_at(command, value.bytes().unwrap_or_default())
    {
        return Cached::Same(reply.into());
    }
    // The embedded L3 answers as Redis does; it is as empty as a vector, and gone behind this.
    let scratch = Embedded::new(Arc::new(|| 0));
    for (key, value) in values {
        if let Some(value) = value.bytes() {
            scratch.execute(0, protocol, &[b"SET", key, value], &mut Vec::new());
        }
    }
    let mut reply = Vec::new();
    scratch.execute(0, protocol, command, &mut reply);
    Cached::Same(reply.into())
}

/// The reply to what looks at one value only, without a copy of that: its length, a part of it. `None`: it is something
/// else, or not as it should be.
fn looked_at(command: &[&[u8]], value: &[u8]) -> Option<Vec<u8>> {
    let mut reply = Vec::new();
    match command {
        [name, _] if name.eq_ignore_ascii_case(b"STRLEN") => {
            encode::integer(&mut reply, i64::try_from(value.len()).ok()?);
        }
        [name, _, start, end] if name.eq_ignore_ascii_case(b"GETRANGE") || name.eq_ignore_ascii_case(b"SUBSTR") => {
            let (start, end) = (caddy_resp::parse_i64(start)?, caddy_resp::parse_i64(end)?);
            encode::bulk(&mut reply, part_of(value, start, end));
        }
        _ => return None,
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Cached {
        Cached::from_value(&Value::Bulk(text.as_bytes()))
    }

    #[test]
    fn what_is_computed_here_is_what_redis_answers() {
        for (command, expected) in [
            ("GETRANGE a 1 2", "$2\r\nhm\r\n"),
            ("SUBSTR a -3 -1", "$3\r\nxt0\r\n"),
            ("STRLEN a", ":9\r\n"),
            ("LCS a b", "$6\r\nmytext\r\n"),
            ("LCS a b LEN", ":6\r\n"),
            ("GETRANGE a -2 -3", "$0\r\n\r\n"),
            ("GETRANGE a 0 -1", "$9\r\nohmytext0\r\n"),
            ("GETRANGE a 5 99", "$4\r\next0\r\n"),
            ("GETRANGE a x 2", "-ERR value is not an integer or out of range\r\n"),
        ] {
            let command: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let (a, b) = (value("ohmytext0"), value("mynewtext"));
            let values = [(&b"a"[..], &a), (&b"b"[..], &b)].into_iter().filter(|(key, _)| command[1..].contains(key));
            let Cached::Same(reply) = compute(Protocol::Resp2, &command, values) else { panic!() };
            assert_eq!(String::from_utf8_lossy(&reply), expected);
        }
    }

    #[test]
    fn a_reply_says_who_has_to_compute() {
        let values = [Value::Integer(1), Value::Bulk(b"v"), Value::Integer(7), Value::Null, Value::Integer(-2)];
        let reply = Value::Array(values.to_vec());
        let Some(Computing::Values(values)) = Computing::parse(&reply) else { panic!() };
        assert_eq!(values, [(&Value::Bulk(b"v"), Some(7)), (&Value::Null, Some(-2))]);
        let reply = Value::Array(vec![Value::Integer(0), Value::Integer(5)]);
        assert!(matches!(Computing::parse(&reply), Some(Computing::Done(Value::Integer(5)))));
        assert!(Computing::parse(&Value::Error(b"NOPERM")).is_none());
    }
}
