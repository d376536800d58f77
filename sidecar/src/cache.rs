//! What the sidecar keeps in the engine's tiers: keys of one database, and replies ready to be sent.

use bytes::Bytes;
use caddy_engine::{Held, KeyHash, TierHash, Weigh, same_bytes};
use caddy_remote::COPIED;
use caddy_resp::{Protocol, Value, encode};
use hashbrown::Equivalent;
use smallvec::SmallVec;

use crate::{
    answers::nil,
    keyspaces::{Expiry, Id, Rule},
    mailbox::ReplyTo,
};

/// Which read of a key a copy answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Read {
    /// GET and what is derived from it; the name is the key.
    Get,
    /// Another read; the name is its whole request.
    Request,
}

/// An entry's name, with what a hit has to know of the rule that let it in.
#[derive(Debug, Clone)]
pub(crate) struct TierKey {
    database: u32,
    pub(crate) keyspace: Id,
    pub(crate) read: Read,
    /// Its rule says `Observe`: not to be served.
    pub(crate) is_observed: bool,
    /// It expires before its key does in L3, so that TTL cannot be told from it.
    pub(crate) is_bounded: bool,
    /// A hit asks for a new value if this one is fresh for no longer than so many milliseconds; 0: never.
    pub(crate) refresh_within: u32,
    name: Box<[u8]>,
}

impl PartialEq for TierKey {
    /// The name alone.
    fn eq(&self, other: &Self) -> bool {
        self.as_ref().equivalent(other)
    }
}

impl Eq for TierKey {}

impl TierKey {
    /// The name of what GET of a key answers.
    pub(crate) fn get(database: u32, key: &[u8]) -> Self {
        KeyRef { database, read: Read::Get, name: key }.to_tier_key()
    }

    pub(crate) fn as_ref(&self) -> KeyRef<'_> {
        KeyRef { database: self.database, read: self.read, name: &self.name }
    }

    /// Notes the rule under which it is kept.
    pub(crate) fn admit(&mut self, rule: &Rule, expiry: Expiry) {
        self.keyspace = rule.id;
        self.is_observed = rule.observes();
        self.is_bounded = expiry.is_bounded;
    }
}

/// A [`TierKey`] that borrows its name from a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyRef<'a> {
    pub(crate) database: u32,
    pub(crate) read: Read,
    pub(crate) name: &'a [u8],
}

impl<'a> KeyRef<'a> {
    /// The key that is read.
    pub(crate) fn key(&self) -> &'a [u8] {
        match self.read {
            Read::Get => self.name,
            Read::Request => key_of_request(self.name).unwrap_or_default(),
        }
    }

    /// The request that it stands for, its name in lower case.
    pub(crate) fn words(&self) -> SmallVec<[&'a [u8]; 4]> {
        match self.read {
            Read::Get => SmallVec::from_slice(&[b"get", self.name]),
            Read::Request => words_of_request(self.name).unwrap_or_default(),
        }
    }

    /// The hash that the tiers find it under.
    pub(crate) fn tier_hash(&self) -> TierHash {
        self.tier_hash_of(KeyHash::of(self.name))
    }

    /// As [`tier_hash`](Self::tier_hash), where the name's hash is known: for GET it is the key's.
    pub(crate) fn tier_hash_of(&self, name: KeyHash) -> TierHash {
        let salt = match self.read {
            Read::Get => u64::from(self.database),
            Read::Request => u64::from(self.database) | 1 << 32,
        };
        name.tier(salt)
    }

    /// As yet under no rule.
    pub(crate) fn to_tier_key(self) -> TierKey {
        let Self { database, read, name } = self;
        TierKey {
            database,
            keyspace: Id::default(),
            read,
            is_observed: false,
            is_bounded: false,
            refresh_within: 0,
            name: name.into(),
        }
    }
}

impl Equivalent<TierKey> for KeyRef<'_> {
    fn equivalent(&self, key: &TierKey) -> bool {
        same_bytes(self.name, &key.name) && self.database == key.database && self.read == key.read
    }
}

/// Writes the name of a [`Read::Request`]: the command and each argument behind their lengths, so that two requests have
/// the same name only if they are the same.
pub(crate) fn request_name<'a>(command: &str, args: impl Iterator<Item = &'a [u8]>, name: &mut SmallVec<[u8; 128]>) {
    name.push(command.len() as u8);
    name.extend_from_slice(command.as_bytes());
    for arg in args {
        name.extend_from_slice(&(arg.len() as u32).to_le_bytes());
        name.extend_from_slice(arg);
    }
}

/// The first argument of the request that a name stands for.
fn key_of_request(name: &[u8]) -> Option<&[u8]> {
    let (command, rest) = name.split_first()?;
    argument(rest.get(usize::from(*command)..)?).map(|(key, _)| key)
}

/// The whole request that a name stands for.
fn words_of_request(name: &[u8]) -> Option<SmallVec<[&[u8]; 4]>> {
    let (length, rest) = name.split_first()?;
    let (command, mut rest) = rest.split_at_checked(usize::from(*length))?;
    let mut words = SmallVec::from_slice(&[command]);
    while !rest.is_empty() {
        let (word, behind) = argument(rest)?;
        words.push(word);
        rest = behind;
    }
    Some(words)
}

/// An argument in a name, and what is behind it.
fn argument(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = name.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

impl Weigh for TierKey {
    fn heap_bytes(&self) -> usize {
        self.name.len()
    }

    fn group(&self) -> usize {
        self.keyspace.index()
    }
}

/// What a read answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cached {
    /// The key, or the field or member asked for, is absent.
    Nil,
    /// GET's whole reply, `$<length>\r\n<value>\r\n`: the same bytes in RESP2 and RESP3.
    Bulk(Bytes),
    /// The whole reply of another read, the same bytes in both protocols.
    Same(Bytes),
    /// The whole reply of another read in RESP3; RESP2 writes it differently.
    Resp3(Bytes),
}

impl Cached {
    /// A RESP3 reply, as a lane gives it; an error is given back. No read buffer is kept alive by a small value.
    pub(crate) fn from_reply(read: Read, reply: Bytes) -> Result<Self, Bytes> {
        match (reply.first(), read) {
            (None | Some(b'-' | b'!'), _) => Err(reply),
            (Some(b'_'), _) => Ok(Self::Nil),
            (Some(b'$'), _) if reply.starts_with(b"$-") => Ok(Self::Nil),
            (_, Read::Get) => Ok(Self::Bulk(by_itself(reply))),
            (_, Read::Request) => {
                let mut resp2 = Vec::with_capacity(reply.len());
                match Value::decode(&reply) {
                    Ok((value, _)) => value.encode(Protocol::Resp2, &mut resp2),
                    Err(_) => return Err(reply),
                }
                let is_same = resp2 == reply;
                let reply = by_itself(reply);
                Ok(if is_same { Self::Same(reply) } else { Self::Resp3(reply) })
            }
        }
    }

    /// An element of a reply to MGET.
    pub(crate) fn from_value(value: &Value<'_>) -> Self {
        match value.as_bytes() {
            Some(bytes) => {
                let mut reply = Vec::with_capacity(bytes.len() + 16);
                encode::bulk(&mut reply, bytes);
                Self::Bulk(Bytes::copy_from_slice(&reply))
            }
            None => Self::Nil,
        }
    }

    /// Appends the reply.
    pub(crate) fn encode(&self, protocol: Protocol, out: &mut Vec<u8>) {
        match self {
            Self::Bulk(reply) | Self::Same(reply) => out.extend_from_slice(reply),
            Self::Nil => out.extend_from_slice(nil(protocol)),
            Self::Resp3(reply) if protocol == Protocol::Resp3 => out.extend_from_slice(reply),
            Self::Resp3(reply) => {
                // It was decoded once, when it was filled.
                if let Ok((value, _)) = Value::decode(reply) {
                    value.encode(Protocol::Resp2, out);
                }
            }
        }
    }

    /// The length of GET's value; 0 for an absent key, as STRLEN has it.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bulk(reply) => {
                let digits = reply.iter().skip(1).take_while(|byte| byte.is_ascii_digit());
                digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
            }
            Self::Nil | Self::Same(_) | Self::Resp3(_) => 0,
        }
    }

    /// The value within GET's reply.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        let Self::Bulk(reply) = self else { return None };
        let start = reply.len().checked_sub(self.len() + 2)?;
        reply.get(start..reply.len() - 2)
    }

    /// The same, sharing the reply's memory.
    pub(crate) fn to_bytes(&self) -> Option<Bytes> {
        let Self::Bulk(reply) = self else { return None };
        self.bytes().map(|bytes| reply.slice_ref(bytes))
    }

    /// The whole reply; `None` for nil.
    pub(crate) fn reply(&self) -> Option<Bytes> {
        match self {
            Self::Nil => None,
            Self::Bulk(reply) | Self::Same(reply) | Self::Resp3(reply) => Some(reply.clone()),
        }
    }

    /// The same, which counts as in flight until the last clone is gone. A short reply is copied: a part in its memory would
    /// cost whoever keeps it for as long as that is.
    pub(crate) fn held(&self, held: Held) -> Self {
        let held =
            |reply: &Bytes| held.with(if reply.len() > COPIED { reply.clone() } else { Bytes::copy_from_slice(reply) });
        match self {
            Self::Nil => Self::Nil,
            Self::Bulk(reply) => Self::Bulk(held(reply)),
            Self::Same(reply) => Self::Same(held(reply)),
            Self::Resp3(reply) => Self::Resp3(held(reply)),
        }
    }

    /// Bytes of the reply.
    pub(crate) fn reply_len(&self) -> usize {
        match self {
            Self::Nil => 0,
            Self::Bulk(reply) | Self::Same(reply) | Self::Resp3(reply) => reply.len(),
        }
    }

    /// Whether an absent key would be answered like this: nothing, zero, or only such.
    pub(crate) fn looks_absent(&self) -> bool {
        fn is_nothing(value: &Value<'_>) -> bool {
            match value {
                Value::Null => true,
                Value::Integer(number) => *number == 0,
                Value::Bulk(text) => text.is_empty(),
                Value::Map(pairs) => pairs.is_empty(),
                Value::Array(elements) | Value::Set(elements) => elements.iter().all(is_nothing),
                _ => false,
            }
        }
        match self {
            Self::Nil => true,
            Self::Bulk(_) => false,
            Self::Same(reply) | Self::Resp3(reply) => {
                Value::decode(reply).is_ok_and(|(value, _)| is_nothing(&value) || value == Value::Integer(-1))
            }
        }
    }

    /// Whether the key exists.
    pub(crate) fn exists(&self) -> bool {
        matches!(self, Self::Bulk(_))
    }
}

/// A frame that may be part of a read buffer, in memory of its own: short ones are.
fn by_itself(frame: Bytes) -> Bytes {
    if frame.len() > COPIED { Bytes::copy_from_slice(&frame) } else { frame }
}

impl Weigh for Cached {
    fn heap_bytes(&self) -> usize {
        self.reply_len()
    }
}

/// A request that waits for a fill.
#[derive(Debug, Clone)]
pub(crate) struct Waiter {
    pub(crate) to: ReplyTo,
    pub(crate) protocol: Protocol,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_its_reply_and_knows_its_length() {
        let value = Cached::from_reply(Read::Get, Bytes::from_static(b"$11\r\nhello world\r\n")).unwrap();
        assert_eq!((value.len(), value.exists()), (11, true));
        assert_eq!(Cached::from_value(&Value::Bulk(b"hello world")), value);
    }

    #[test]
    fn an_absent_key_is_a_value_and_an_error_is_not() {
        let of = |reply| Cached::from_reply(Read::Get, Bytes::from_static(reply));
        assert_eq!(of(b"_\r\n"), Ok(Cached::Nil));
        assert_eq!(of(b"$-1\r\n"), Ok(Cached::Nil));
        assert!(of(b"-WRONGTYPE Operation\r\n").is_err());
    }

    #[test]
    fn other_reads_are_kept_as_resp3_and_written_as_the_client_speaks() {
        let write = |reply: &[u8], protocol| {
            let mut out = Vec::new();
            Cached::from_reply(Read::Request, Bytes::copy_from_slice(reply)).unwrap().encode(protocol, &mut out);
            out
        };
        assert_eq!(write(b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n", Protocol::Resp2), b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
        assert_eq!(write(b"*1\r\n_\r\n", Protocol::Resp2), b"*1\r\n$-1\r\n");
        assert_eq!(write(b",1.5\r\n", Protocol::Resp2), b"$3\r\n1.5\r\n");
        for same in [&b":7\r\n"[..], b"*1\r\n$1\r\na\r\n", b"_\r\n"] {
            assert_eq!(write(same, Protocol::Resp3), same);
        }
    }

    #[test]
    fn different_requests_have_different_names() {
        let name = |command: &str, args: &[&[u8]]| {
            let mut name = SmallVec::new();
            request_name(command, args.iter().copied(), &mut name);
            name
        };
        assert_ne!(name("hget", &[b"ab", b"c"]), name("hget", &[b"a", b"bc"]));
        assert_ne!(name("hget", &[b"a", b"b"]), name("hmget", &[b"a", b"b"]));
        let key_of = |name: &[u8]| KeyRef { database: 0, read: Read::Request, name }.key().to_vec();
        assert_eq!(key_of(&name("hget", &[b"ab", b"c"])), b"ab");
        assert_eq!(key_of(&name("smembers", &[b""])), b"");
        let request = name("hget", &[b"ab", b""]);
        let words = KeyRef { database: 0, read: Read::Request, name: &request }.words();
        assert_eq!(words.as_slice(), [&b"hget"[..], b"ab", b""]);
    }

    #[test]
    fn what_an_absent_key_answers_is_recognised() {
        let looks_absent =
            |reply: &[u8]| Cached::from_reply(Read::Request, Bytes::copy_from_slice(reply)).unwrap().looks_absent();
        for reply in [
            &b":0\r\n"[..],
            b"*0\r\n",
            b"%0\r\n",
            b"~0\r\n",
            b"*2\r\n_\r\n_\r\n",
            b"*1\r\n:0\r\n",
            b"$0\r\n\r\n",
            b"_\r\n",
        ] {
            assert!(looks_absent(reply), "{}", String::from_utf8_lossy(reply));
        }
        for reply in [&b":1\r\n"[..], b"*1\r\n$1\r\na\r\n", b",0\r\n"] {
            assert!(!looks_absent(reply), "{}", String::from_utf8_lossy(reply));
        }
    }
}
