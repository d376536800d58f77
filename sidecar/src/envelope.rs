//! From what L3 holds under a key to what an app is answered: the seam that every string read passes.
//!
//! Owns the way from stored bytes to a value or a miss: an envelope is opened, its soft expiry told apart from the key's
//! own. A plain value stays what it is and costs two comparisons. What cannot be opened is a miss and is counted, never
//! another value; but in a domain in which this sidecar has seen no envelope yet, bytes that merely begin like one are an
//! app's own.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use caddy_engine::codec::{
    CodecConfig, CompressionAlgorithm, Dictionaries, KeyspaceCodec, Opened, ValueError,
    envelope::{MAGIC, SoftExpiry},
};
use caddy_resp::encode;

use crate::cache::Cached;

/// Opens envelopes; one per sidecar.
pub(crate) struct Envelopes {
    codec: KeyspaceCodec,
    seen: AtomicBool,
    failures: AtomicU64,
}

/// What a read of L3 means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// What the app is answered; nil if there is nothing that is fresh.
    pub(crate) value: Cached,
    /// How long that is so, as `PTTL` would say it.
    pub(crate) pttl: Option<i64>,
    /// That is less than what the key has left to live.
    pub(crate) is_bounded: bool,
    /// What is no longer fresh, and may be answered when nothing better can be had.
    pub(crate) stale: Option<Cached>,
}

impl Decoded {
    /// What needs no decoding.
    pub(crate) fn plain(value: Cached, pttl: Option<i64>) -> Self {
        Self { value, pttl, is_bounded: false, stale: None }
    }
}

impl Default for Envelopes {
    fn default() -> Self {
        // Large values are relayed and not kept, but they are answered.
        let config = CodecConfig {
            algorithm: CompressionAlgorithm::None,
            max_decoded_bytes: 512 << 20,
            ..CodecConfig::default()
        };
        let codec = KeyspaceCodec::new(config, Arc::new(Dictionaries::default()));
        Self { codec, seen: AtomicBool::new(false), failures: AtomicU64::new(0) }
    }
}

impl Envelopes {
    /// What `GET key` and `PTTL key` together mean.
    pub(crate) fn decode(&self, key: &[u8], value: Cached, pttl: Option<i64>) -> Decoded {
        let Some(stored) = bulk(&value).filter(|stored| is_suspect(stored)) else {
            return Decoded::plain(value, pttl);
        };
        match self.open(key, stored) {
            Ok(None) => Decoded::plain(value, pttl),
            Ok(Some(Opened { header: Some(header), value })) if header.generations.is_empty() => {
                let mut reply = Vec::with_capacity(value.len() + 16);
                encode::bulk(&mut reply, &value);
                aged(Cached::Bulk(reply.into()), header.soft_expiry, pttl)
            }
            // Unreadable, or dependent on what cannot be checked.
            Ok(Some(_)) | Err(_) => Decoded::plain(Cached::Nil, pttl),
        }
    }

    /// An envelope opened; `None`: the bytes are the value.
    pub(crate) fn open<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<Option<Opened<'a>>, ValueError> {
        match self.codec.open(key, stored) {
            Ok(Opened { header: None, .. }) => Ok(None),
            Ok(opened) => {
                self.seen.store(true, Ordering::Relaxed);
                Ok(Some(opened))
            }
            Err(_) if !self.seen.load(Ordering::Relaxed) => Ok(None),
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "an envelope in L3 cannot be opened");
                Err(error)
            }
        }
    }

    /// How many could not be opened.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// Whether bytes may be an envelope, also one that lost a byte of its magic.
fn is_suspect(stored: &[u8]) -> bool {
    matches!(stored, [first, second, ..] if *first == MAGIC[0] || *second == MAGIC[1])
}

/// The value within GET's reply.
fn bulk(value: &Cached) -> Option<&[u8]> {
    let Cached::Bulk(reply) = value else { return None };
    let start = reply.len().checked_sub(value.len() + 2)?;
    reply.get(start..reply.len() - 2)
}

/// A value that becomes stale before its key expires.
fn aged(value: Cached, soft: Option<SoftExpiry>, pttl: Option<i64>) -> Decoded {
    let Some(soft) = soft else { return Decoded::plain(value, pttl) };
    match pttl {
        Some(left @ 1..) => {
            let stale_for = i64::try_from(soft.remaining().as_millis()).unwrap_or(i64::MAX);
            match left.saturating_sub(stale_for) {
                fresh @ 1.. => Decoded { value, pttl: Some(fresh), is_bounded: true, stale: None },
                _ => Decoded { value: Cached::Nil, pttl, is_bounded: true, stale: Some(value) },
            }
        }
        _ => Decoded::plain(value, pttl),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use caddy_engine::codec::envelope::{Body, Header, seal};

    use super::*;

    fn reply(value: &[u8]) -> Cached {
        let mut out = Vec::new();
        encode::bulk(&mut out, value);
        Cached::Bulk(out.into())
    }

    #[test]
    fn an_envelope_is_answered_as_its_value() {
        let envelopes = Envelopes::default();
        let sealed = seal(b"k", &Header::default(), Body::plain(b"v"));
        assert_eq!(envelopes.decode(b"k", reply(&sealed), Some(7)), Decoded::plain(reply(b"v"), Some(7)));
        assert_eq!(envelopes.decode(b"k", reply(b"plain"), None), Decoded::plain(reply(b"plain"), None));
        assert_eq!(envelopes.decode(b"k", Cached::Nil, Some(-2)), Decoded::plain(Cached::Nil, Some(-2)));
    }

    #[test]
    fn what_cannot_be_opened_is_a_miss_where_there_are_envelopes() {
        let envelopes = Envelopes::default();
        let mut damaged = seal(b"k", &Header::default(), Body::plain(b"v"));
        *damaged.last_mut().unwrap() ^= 1;
        // Somebody's own bytes, for all that is known.
        assert_eq!(envelopes.decode(b"k", reply(&damaged), Some(-1)).value, reply(&damaged));
        envelopes.decode(b"k", reply(&seal(b"k", &Header::default(), Body::plain(b"v"))), Some(-1));
        assert_eq!(envelopes.decode(b"k", reply(&damaged), Some(-1)), Decoded::plain(Cached::Nil, Some(-1)));
        let strayed = seal(b"other", &Header::default(), Body::plain(b"v"));
        assert_eq!(envelopes.decode(b"k", reply(&strayed), Some(-1)).value, Cached::Nil);
        assert_eq!(envelopes.failures(), 2);
    }

    #[test]
    fn a_value_is_fresh_until_its_soft_expiry() {
        let envelopes = Envelopes::default();
        let soft_expiry = Some(SoftExpiry::at_remaining(Duration::from_secs(10)));
        let sealed = seal(b"k", &Header { soft_expiry, ..Header::default() }, Body::plain(b"v"));
        let fresh = envelopes.decode(b"k", reply(&sealed), Some(12_000));
        assert_eq!((fresh.value, fresh.pttl, fresh.is_bounded), (reply(b"v"), Some(2_000), true));
        let stale = envelopes.decode(b"k", reply(&sealed), Some(9_000));
        assert_eq!((stale.value, stale.stale), (Cached::Nil, Some(reply(b"v"))));
    }
}
