//! From what L3 holds under a key to what an app is answered: the seam that every string read passes.
//!
//! Owns the way from stored bytes to a value or a miss: an envelope is opened, its soft expiry told apart from the key's
//! own, its generations looked at: a value with one that is not in force is absent. A plain value stays what it is and costs two comparisons. What cannot be opened is a miss and is counted, never
//! another value; but in a domain in which this sidecar has seen no envelope yet, bytes that merely begin like one are an
//! app's own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::codec::{
    CodecConfig, CompressionAlgorithm, Dictionaries, KeyspaceCodec, Opened, ValueError,
    envelope::{Fence, GenerationName, Generations, Header, MAGIC, SoftExpiry},
};
use caddy_resp::encode;

use crate::{
    cache::Cached,
    generations::{How, Learned, Then, Want, was},
    shared::Shared,
    stored::Dependencies,
};

/// Opens envelopes; one per sidecar.
pub(crate) struct Envelopes {
    codec: KeyspaceCodec,
    seen: AtomicBool,
    failures: AtomicU64,
}

/// What a read of L3 means.
#[derive(Debug, Clone)]
pub(crate) struct Decoded {
    /// What the app is answered; nil if there is nothing that is fresh.
    pub(crate) value: Cached,
    /// How long that is so, as `PTTL` would say it.
    pub(crate) pttl: Option<i64>,
    /// That is less than what the key has left to live.
    pub(crate) is_bounded: bool,
    /// What is no longer fresh, and may be answered when nothing better can be had.
    pub(crate) stale: Option<Cached>,
    /// What has to stay in force for it.
    pub(crate) dependencies: Dependencies,
    /// What else the envelope says.
    pub(crate) notes: Notes,
}

/// What an envelope says of its value that decides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Notes {
    /// The fencing token that it was written under.
    pub(crate) fence: Option<Fence>,
    /// How long it is kept once it is not fresh any more.
    pub(crate) stale_for: Duration,
}

/// How a value stands to its generations.
#[derive(Debug, Clone)]
enum Standing {
    /// All of them are in force.
    InForce(Dependencies),
    /// One was expired since: the value is stale.
    Expired,
    /// One is another: the value is as if it were absent.
    Ended,
}

impl Decoded {
    /// What needs no decoding.
    pub(crate) fn plain(value: Cached, pttl: Option<i64>) -> Self {
        Self { value, pttl, is_bounded: false, stale: None, dependencies: Dependencies::new(), notes: Notes::default() }
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

impl Shared {
    /// What `GET key` and `PTTL key` together mean, by what is `learned` of generations and what is known of them anyway.
    /// `Err`: what has to be learned first, which is all that it depends on.
    pub(crate) fn decode(
        self: &Arc<Self>,
        database: u32,
        key: &[u8],
        value: Cached,
        pttl: Option<i64>,
        learned: &[Learned],
    ) -> Result<Decoded, Vec<Want>> {
        self.envelopes.decode(key, value, pttl, |generations| self.in_force_all(database, generations, learned))
    }

    /// As [`decode`](Self::decode), where nothing has to be waited for.
    pub(crate) fn decode_embedded(
        self: &Arc<Self>,
        database: u32,
        key: &[u8],
        value: Cached,
        pttl: Option<i64>,
    ) -> Decoded {
        let decode = |value| self.decode(database, key, value, pttl, &[]);
        let decoded = decode(value.clone()).or_else(|wants| {
            self.learn(database, wants, Then::Nothing);
            decode(value)
        });
        decoded.unwrap_or_else(|_| Decoded::plain(Cached::Nil, pttl))
    }

    /// How a value with these generations stands.
    fn in_force_all(
        self: &Arc<Self>,
        database: u32,
        generations: Generations<'_>,
        learned: &[Learned],
    ) -> Result<Standing, Vec<Want>> {
        let (mut dependencies, mut is_known, mut is_expired) = (Dependencies::new(), true, false);
        let mut wants = Vec::new();
        for generation in generations.iter() {
            let GenerationName::Name(name) = generation.name else { return Ok(Standing::Ended) };
            let name = self.domain.key(name);
            let known = learned.iter().find(|learned| learned.cell.name() == &*name).cloned();
            match known.or_else(|| self.in_force(database, &name)) {
                Some(Learned { cell, reading }) if reading.value == Some(generation.value) => {
                    dependencies.extend(reading.dependency(&cell));
                }
                Some(Learned { reading, .. }) if was(&reading.detail, &generation.value) => is_expired = true,
                Some(_) => return Ok(Standing::Ended),
                None => is_known = false,
            }
            wants.push(Want { name, how: How::Read });
        }
        match (is_known, is_expired) {
            (false, _) => Err(wants),
            (true, true) => Ok(Standing::Expired),
            (true, false) => Ok(Standing::InForce(dependencies)),
        }
    }
}

impl Envelopes {
    /// As [`Shared::decode`]; `depend` looks at the generations.
    fn decode<E>(
        &self,
        key: &[u8],
        value: Cached,
        pttl: Option<i64>,
        depend: impl FnOnce(Generations<'_>) -> Result<Standing, E>,
    ) -> Result<Decoded, E> {
        let Some(stored) = value.bytes().filter(|stored| is_suspect(stored)) else {
            return Ok(Decoded::plain(value, pttl));
        };
        let (header, opened) = match self.open(key, stored) {
            Ok(Some(Opened { header: Some(header), value })) => (header, value),
            Ok(_) => return Ok(Decoded::plain(value, pttl)),
            Err(_) => return Ok(Decoded::plain(Cached::Nil, pttl)),
        };
        let standing = depend(header.generations)?;
        let mut reply = Vec::with_capacity(opened.len() + 16);
        encode::bulk(&mut reply, &opened);
        let stale_for = header.soft_expiry.map_or(Duration::ZERO, SoftExpiry::remaining);
        let notes = Notes { fence: header.fence, stale_for };
        let value = Cached::Bulk(reply.into());
        Ok(match standing {
            Standing::InForce(dependencies) => Decoded { dependencies, notes, ..aged(value, header.soft_expiry, pttl) },
            Standing::Expired if header.soft_expiry.is_some() => {
                Decoded { is_bounded: true, stale: Some(value), notes, ..Decoded::plain(Cached::Nil, pttl) }
            }
            Standing::Expired | Standing::Ended => Decoded::plain(Cached::Nil, pttl),
        })
    }

    /// The envelope of a value that this sidecar writes.
    pub(crate) fn seal(&self, key: &[u8], header: &Header<'_>, value: &[u8]) -> Vec<u8> {
        self.seen.store(true, Ordering::Relaxed);
        self.codec.seal(key, header, value).into_bytes()
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

    /// What an envelope depends on, by names within the domain.
    pub(crate) fn groups(&self, key: &[u8], stored: &[u8]) -> Vec<Bytes> {
        let Ok(Some(Opened { header: Some(header), .. })) = self.open(key, stored) else { return Vec::new() };
        let name = |name| match name {
            GenerationName::Name(name) => Some(Bytes::copy_from_slice(name)),
            GenerationName::Id(_) => None,
        };
        header.generations.iter().filter_map(|generation| name(generation.name)).collect()
    }

    /// Whether what is stored becomes stale before its key expires.
    pub(crate) fn ages(&self, key: &[u8], stored: &[u8]) -> bool {
        let opened = self.open(key, stored).ok().flatten();
        opened.and_then(|opened| opened.header).is_some_and(|header| header.soft_expiry.is_some())
    }

    /// Whether the domain has envelopes, as far as is known.
    #[inline]
    pub(crate) fn are_there(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }

    /// It has some, or is to have.
    pub(crate) fn note(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }

    /// How many could not be opened.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// Whether bytes may be an envelope, also one that lost a byte of its magic.
pub(crate) fn is_suspect(stored: &[u8]) -> bool {
    matches!(stored, [first, second, ..] if *first == MAGIC[0] || *second == MAGIC[1])
}

/// `PTTL` of a key that never expires.
const NO_END: i64 = -1;

/// A value that becomes stale before its key expires.
fn aged(value: Cached, soft: Option<SoftExpiry>, pttl: Option<i64>) -> Decoded {
    let Some(soft) = soft else { return Decoded::plain(value, pttl) };
    match pttl {
        Some(left) if left != NO_END => {
            let stale_for = i64::try_from(soft.remaining().as_millis()).unwrap_or(i64::MAX);
            // It may be gone by now.
            match left.max(0).saturating_sub(stale_for) {
                fresh @ 1.. => Decoded { is_bounded: true, ..Decoded::plain(value, Some(fresh)) },
                _ => Decoded { is_bounded: true, stale: Some(value), ..Decoded::plain(Cached::Nil, pttl) },
            }
        }
        _ => Decoded::plain(value, pttl),
    }
}

#[cfg(test)]
mod tests {
    use caddy_engine::codec::envelope::{Body, Generation, GenerationList, GenerationValue, seal};

    use super::*;

    fn reply(value: &[u8]) -> Cached {
        let mut out = Vec::new();
        encode::bulk(&mut out, value);
        Cached::Bulk(out.into())
    }

    fn decode(envelopes: &Envelopes, value: Cached, pttl: Option<i64>) -> Decoded {
        let none = |generations: Generations<'_>| {
            assert!(generations.is_empty());
            Ok::<_, std::convert::Infallible>(Standing::InForce(Dependencies::new()))
        };
        envelopes.decode(b"k", value, pttl, none).unwrap_or_else(|never| match never {})
    }

    #[test]
    fn an_envelope_is_answered_as_its_value() {
        let envelopes = Envelopes::default();
        let sealed = seal(b"k", &Header::default(), Body::plain(b"v"));
        for (stored, value, pttl) in [
            (reply(&sealed), reply(b"v"), Some(7)),
            (reply(b"plain"), reply(b"plain"), None),
            (Cached::Nil, Cached::Nil, Some(-2)),
        ] {
            let decoded = decode(&envelopes, stored, pttl);
            assert_eq!((decoded.value, decoded.pttl, decoded.is_bounded), (value, pttl, false));
        }
    }

    #[test]
    fn what_cannot_be_opened_is_a_miss_where_there_are_envelopes() {
        let envelopes = Envelopes::default();
        let mut damaged = seal(b"k", &Header::default(), Body::plain(b"v"));
        *damaged.last_mut().unwrap() ^= 1;
        // Somebody's own bytes, for all that is known.
        assert_eq!(decode(&envelopes, reply(&damaged), Some(-1)).value, reply(&damaged));
        decode(&envelopes, reply(&seal(b"k", &Header::default(), Body::plain(b"v"))), Some(-1));
        assert_eq!(decode(&envelopes, reply(&damaged), Some(-1)).value, Cached::Nil);
        let strayed = seal(b"other", &Header::default(), Body::plain(b"v"));
        assert_eq!(decode(&envelopes, reply(&strayed), Some(-1)).value, Cached::Nil);
        assert_eq!(envelopes.failures(), 2);
    }

    #[test]
    fn a_value_is_absent_while_a_generation_of_it_is_not_in_force() {
        let envelopes = Envelopes::default();
        let mut generations = GenerationList::default();
        let name = GenerationName::Name(b"t:news");
        generations.push(Generation { name, value: GenerationValue([7; 16]) }).unwrap();
        let soft = Some(SoftExpiry::at_remaining(Duration::from_secs(10)));
        for (soft_expiry, stale) in [(None, None), (soft, Some(reply(b"v")))] {
            let header = Header { soft_expiry, generations: generations.generations(), ..Header::default() };
            let sealed = seal(b"k", &header, Body::plain(b"v"));
            let with = |verdict: Result<Standing, &'static str>| {
                let decoded = envelopes.decode(b"k", reply(&sealed), Some(20_000), |_| verdict);
                decoded.map(|decoded| (decoded.value, decoded.stale))
            };
            assert_eq!(with(Ok(Standing::InForce(Dependencies::new()))), Ok((reply(b"v"), None)));
            assert_eq!(with(Ok(Standing::Ended)), Ok((Cached::Nil, None)));
            assert_eq!(with(Ok(Standing::Expired)), Ok((Cached::Nil, stale)));
            assert_eq!(with(Err("read it first")), Err("read it first"));
        }
    }

    #[test]
    fn a_value_is_fresh_until_its_soft_expiry() {
        let envelopes = Envelopes::default();
        let soft_expiry = Some(SoftExpiry::at_remaining(Duration::from_secs(10)));
        let sealed = seal(b"k", &Header { soft_expiry, ..Header::default() }, Body::plain(b"v"));
        let fresh = decode(&envelopes, reply(&sealed), Some(12_000));
        assert_eq!((fresh.value, fresh.pttl, fresh.is_bounded), (reply(b"v"), Some(2_000), true));
        let stale = decode(&envelopes, reply(&sealed), Some(9_000));
        assert_eq!((stale.value, stale.stale), (Cached::Nil, Some(reply(b"v"))));
        let gone = decode(&envelopes, reply(&sealed), Some(-2));
        assert_eq!((gone.value, gone.stale), (Cached::Nil, Some(reply(b"v"))));
        assert_eq!(decode(&envelopes, reply(&sealed), Some(-1)).value, reply(b"v"));
    }
}
