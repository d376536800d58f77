//! Conditional writes: `CACHE.SET` under a fill token, or under a lock's fencing token.
//!
//! Owns what a fill token is as text, and the way of such a write: where the lock is, it is asked what its token is worth;
//! then one script at the key's node compares and stores (`caddy_remote::guarded`); if Redis does not know what the key
//! has seen, the lock is asked once more, and the script sent again with that proof. Fails towards the app with `-STALE`
//! or `-FENCED` when a condition does not hold: nothing was written then; with `-NOTREADY` when nobody can tell.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_engine::{
    codec::envelope::{
        Body, EnvelopeError, Generation, GenerationList, GenerationName, GenerationValue, Header, Stored, open, seal,
    },
    locks::FencingToken,
};
use caddy_remote::{
    guarded::{Guarded, Keys, Outcome, Renewed, State},
    leases,
    locks::Standing,
};

use crate::{
    effect::Renewal,
    errands::{self, ErrandError},
    guards::{Guard, hold},
    shared::{L3, Shared},
};

/// How often the holder of a lock is proved to be one, while records are lost.
const PROOFS: usize = 3;
/// Characters of a lease's id.
const ID_CHARS: usize = 32;

/// Permission to fill a key, as it is handed to an app: which lease it has, what the key was, and what the groups were that
/// the value will belong to.
///
/// Its text is an envelope for the key, in hexadecimal: what was not handed out like this for this key is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FillPermit {
    pub(crate) lease: u128,
    pub(crate) state: State,
    pub(crate) generations: Vec<(Bytes, GenerationValue)>,
}

/// A write and its conditions.
#[derive(Debug)]
pub(crate) struct ConditionalWrite {
    pub(crate) database: u32,
    pub(crate) key: Bytes,
    /// As it is stored.
    pub(crate) value: Vec<u8>,
    pub(crate) life: Option<Duration>,
    pub(crate) condition: Option<&'static [u8]>,
    /// The lease that has to be there, and what the key has to be.
    pub(crate) permit: Option<(u128, State)>,
    /// The lock, and the token under which it is held.
    pub(crate) fence: Option<(Bytes, FencingToken)>,
    /// The generation that what depends on the key carries, if it ends with this; and what it is made then.
    pub(crate) renews: Option<(Bytes, Option<Renewal>)>,
}

/// Why nothing was written; or, of [`Unclear`](Self::Unclear), why nobody knows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("STALE {0}; nothing was written: read the key again, and compute the value anew if it is still missing")]
    Stale(&'static str),
    #[error("FENCED {0}; nothing was written: do not go on as if the lock were held")]
    Fenced(String),
    #[error("NOTREADY {0}; nothing was written: try again")]
    NotReady(String),
    #[error(
        "NOTREADY {0}; it may or may not have been written: see whether Redis answers, and read the key before repeating it"
    )]
    Unclear(String),
    #[error("{0}")]
    Refused(String),
}

// === impl FillPermit ===

impl FillPermit {
    /// The text for an app.
    pub(crate) fn to_text(&self, key: &[u8]) -> Result<String, EnvelopeError> {
        let mut list = GenerationList::default();
        for (name, value) in &self.generations {
            list.push(Generation { name: GenerationName::Name(name), value: *value })?;
        }
        let body = [leases::hex(self.lease).as_bytes(), self.state.as_str().as_bytes()].concat();
        let header = Header { generations: list.generations(), ..Header::default() };
        let sealed = seal(key, &header, Body::plain(&body));
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
        Ok(sealed.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect())
    }

    /// From such a text; `None` if it is none, or another key's.
    pub(crate) fn parse(key: &[u8], text: &[u8]) -> Option<Self> {
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|nibble| u8::try_from(nibble).ok());
        let pairs = text.chunks(2).map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        });
        let sealed = pairs.collect::<Option<Vec<u8>>>()?;
        let Ok(Stored::Enveloped(opened)) = open(key, &sealed) else { return None };
        let (id, state) = opened.body.payload().split_at_checked(ID_CHARS)?;
        let named = |generation: Generation<'_>| match generation.name {
            GenerationName::Name(name) => Some((Bytes::copy_from_slice(name), generation.value)),
            GenerationName::Id(_) => None,
        };
        Some(Self {
            lease: u128::from_str_radix(std::str::from_utf8(id).ok()?, 16).ok()?,
            state: State::parse(state)?,
            generations: opened.header.generations.iter().map(named).collect::<Option<_>>()?,
        })
    }
}

// === the write ===

impl Shared {
    /// The names of what belongs to a key.
    pub(crate) fn guarded_keys(&self, key: &[u8]) -> Keys {
        let is_cluster = matches!(&self.l3, L3::Redis(redis) if redis.cluster().is_some());
        Keys::new(&self.config().cluster.domain, key, is_cluster)
    }
}

impl ConditionalWrite {
    /// Stores the value if all conditions hold; whether `NX` or `XX` did.
    pub(crate) async fn run(&self, shared: &Arc<Shared>) -> Result<bool, WriteError> {
        if let Some((lock, token)) = &self.fence
            && let Standing::OtherEpoch(epoch) = standing(shared, lock, *token).await?
            && hold(Guard::FenceEpoch)
        {
            let text = format!(
                "the token is of epoch {}, and {epoch} is in force: all locks of before are void",
                token.epoch()
            );
            return Err(WriteError::Fenced(text));
        }
        let keys = shared.guarded_keys(&self.key);
        let fence = self.fence.as_ref().map(|(_, token)| token.to_string()).filter(|_| hold(Guard::FenceGreatest));
        let mut proof: Option<String> = None;
        for _ in 0..=PROOFS {
            let permit = self.permit.as_ref();
            let bytes = keys.store(&Guarded {
                value: &self.value,
                life: self.life,
                condition: self.condition,
                lease: permit.map(|(lease, _)| *lease).filter(|_| hold(Guard::LeaseEqual)),
                state: permit.map(|(_, state)| state).filter(|_| hold(Guard::KeyAsItWas)),
                fence: fence.as_deref(),
                proof: proof.as_deref(),
                renews: self.renews.as_ref().map(|(generation, made)| Renewed {
                    generation,
                    made: made.as_ref().map(|made| (&made.value[..], made.life)),
                }),
            });
            let reply = errands::ask_owner(shared, &self.key, self.database, bytes).await.map_err(unanswered)?;
            let unreadable = || WriteError::Unclear("the answer cannot be read".to_owned());
            match Outcome::parse(&reply).ok_or_else(unreadable)? {
                Outcome::Stored => return Ok(true),
                Outcome::Kept => return Ok(false),
                Outcome::LeaseEnded => {
                    return Err(WriteError::Stale(
                        "the token has run out, or the key was written, deleted or invalidated since",
                    ));
                }
                Outcome::Changed => {
                    return Err(WriteError::Stale("the key is not what it was when the token was given"));
                }
                Outcome::Older(seen) => {
                    return Err(WriteError::Fenced(format!("the key has seen the token {seen}, which is greater")));
                }
                Outcome::Unproved(mark) => {
                    self.prove(shared).await?;
                    proof = Some(mark);
                }
            }
        }
        Err(WriteError::NotReady("what the key has seen is lost again and again; does Redis evict keys?".to_owned()))
    }

    /// Redis does not know what the key has seen: only a holder comes behind all others.
    async fn prove(&self, shared: &Arc<Shared>) -> Result<(), WriteError> {
        let Some((lock, token)) = &self.fence else { return Ok(()) };
        if standing(shared, lock, *token).await? == Standing::Held || !hold(Guard::FenceProved) {
            return Ok(());
        }
        let text = "Redis has no record of what the key has seen, and the lock is not held under this token".to_owned();
        Err(WriteError::Fenced(text))
    }
}

async fn standing(shared: &Arc<Shared>, lock: &Bytes, token: FencingToken) -> Result<Standing, WriteError> {
    shared.locks.standing(lock, token).await.map_err(WriteError::NotReady)
}

fn unanswered(error: ErrandError) -> WriteError {
    match error {
        ErrandError::NoNode => WriteError::NotReady(error.to_string()),
        ErrandError::Lost(text) => WriteError::Unclear(text),
        ErrandError::Refused(text) if text.starts_with("ASK ") || text.starts_with("TRYAGAIN") => {
            WriteError::NotReady("the key's slot is on its way to another node of the cluster".to_owned())
        }
        ErrandError::Refused(text) => WriteError::Refused(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_read_as_it_was_written_and_for_its_key_only() {
        let generations = vec![(Bytes::from_static(b"t:news"), GenerationValue([7; 16]))];
        for state in [State::absent(), State::parse(&[b'a'; 40]).unwrap()] {
            let permit = FillPermit { lease: u128::MAX / 7, state, generations: generations.clone() };
            let text = permit.to_text(b"page").unwrap();
            assert_eq!(FillPermit::parse(b"page", text.as_bytes()), Some(permit));
            assert_eq!(FillPermit::parse(b"other", text.as_bytes()), None);
            for cut in [0, 1, 2, text.len() / 2, text.len() - 1] {
                assert_eq!(FillPermit::parse(b"page", &text.as_bytes()[..cut]), None);
            }
            let mut damaged = text.into_bytes();
            damaged[20] ^= 1;
            assert_eq!(FillPermit::parse(b"page", &damaged), None);
        }
    }
}
