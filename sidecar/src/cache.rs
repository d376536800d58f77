//! What the sidecar keeps in the engine's tiers: keys of one database, and replies ready to be sent.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{KeyHash, TierHash, Weigh};
use caddy_resp::{Protocol, Value, encode};
use hashbrown::Equivalent;

use crate::{mailbox::Mailbox, upstream::nil};

/// An entry's name: a key of one database, as GET reads it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TierKey {
    pub(crate) database: u32,
    pub(crate) key: Box<[u8]>,
}

impl TierKey {
    pub(crate) fn new(database: u32, key: &[u8]) -> Self {
        Self { database, key: key.into() }
    }
}

impl TierKey {
    /// The hash that the tiers find it under.
    pub(crate) fn tier_hash(&self) -> TierHash {
        KeyHash::of(&self.key).tier(u64::from(self.database))
    }
}

/// A [`TierKey`] that borrows the key's bytes from a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyRef<'a> {
    pub(crate) database: u32,
    pub(crate) key: &'a [u8],
}

impl KeyRef<'_> {
    /// As [`TierKey::tier_hash`], for a key whose own hash is known.
    pub(crate) fn tier_hash(&self, key: KeyHash) -> TierHash {
        key.tier(u64::from(self.database))
    }

    pub(crate) fn to_tier_key(self) -> TierKey {
        TierKey::new(self.database, self.key)
    }
}

impl Equivalent<TierKey> for KeyRef<'_> {
    fn equivalent(&self, key: &TierKey) -> bool {
        self.key == &*key.key && self.database == key.database
    }
}

impl Weigh for TierKey {
    fn heap_bytes(&self) -> usize {
        self.key.len()
    }
}

/// What GET answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cached {
    /// The key is absent.
    Nil,
    /// The whole reply, `$<length>\r\n<value>\r\n`: the same bytes in RESP2 and RESP3.
    Bulk(Bytes),
}

impl Cached {
    /// A reply to GET; `None` if it is an error. Copies, so that no read buffer is kept alive by a small value.
    pub(crate) fn from_reply(reply: &[u8]) -> Option<Self> {
        match reply.first()? {
            b'$' if !reply.starts_with(b"$-") => Some(Self::Bulk(Bytes::copy_from_slice(reply))),
            b'$' | b'_' => Some(Self::Nil),
            _ => None,
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
            Self::Bulk(reply) => out.extend_from_slice(reply),
            Self::Nil => out.extend_from_slice(nil(protocol)),
        }
    }

    /// The value's length; 0 for an absent key, as STRLEN has it.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bulk(reply) => {
                let digits = reply.iter().skip(1).take_while(|byte| byte.is_ascii_digit());
                digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
            }
            Self::Nil => 0,
        }
    }

    /// Whether the key exists.
    pub(crate) fn exists(&self) -> bool {
        matches!(self, Self::Bulk(_))
    }
}

impl Weigh for Cached {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Bulk(reply) => reply.len(),
            Self::Nil => 0,
        }
    }
}

/// A request that waits for a fill.
#[derive(Debug, Clone)]
pub(crate) struct Waiter {
    pub(crate) to: Arc<Mailbox>,
    pub(crate) seq: u64,
    pub(crate) protocol: Protocol,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_its_reply_and_knows_its_length() {
        let value = Cached::from_reply(b"$11\r\nhello world\r\n").unwrap();
        assert_eq!((value.len(), value.exists()), (11, true));
        assert_eq!(Cached::from_value(&Value::Bulk(b"hello world")), value);
    }

    #[test]
    fn an_absent_key_is_a_value_and_an_error_is_not() {
        assert_eq!(Cached::from_reply(b"_\r\n"), Some(Cached::Nil));
        assert_eq!(Cached::from_reply(b"$-1\r\n"), Some(Cached::Nil));
        assert_eq!(Cached::from_reply(b"-WRONGTYPE Operation\r\n"), None);
    }
}
