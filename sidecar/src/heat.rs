//! Which reads of this sidecar are the hottest: what [`caddy_engine::hot`] counts here, by request.
//!
//! Owns the names of those reads, and nothing of what they answered. A read whose name is longer than [`MAX_NAME`] is not
//! counted, so that memory is bounded by what a client may name: [`PLACES`](caddy_engine::hot::PLACES) names, some 300 KiB
//! at most. A name that comes from elsewhere is taken only if it is a read that the tiers would answer.

use caddy_engine::hot::{Hot, HotNames};
use caddy_resp::encode;
use smallvec::SmallVec;

use crate::{
    cache::{KeyRef, Read, request_name},
    commands::{self, Class},
    shared::Shared,
};

/// Longest name of a read that is counted, bytes: a key, or a request with all its arguments.
pub(crate) const MAX_NAME: usize = 256;

/// The counters of a sidecar.
pub(crate) type Heat = HotNames<HotRead>;
/// A read and how often it is made.
pub(crate) type Heated = Hot<HotRead>;

/// What is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HotRead {
    database: u32,
    read: Read,
    name: Box<[u8]>,
}

impl HotRead {
    pub(crate) fn new(name: KeyRef<'_>) -> Self {
        Self { database: name.database, read: name.read, name: name.name.into() }
    }

    /// The read that a request makes; `None`: it is none that the tiers would answer, or too long.
    pub(crate) fn of_request(shared: &Shared, database: u32, words: &[&[u8]]) -> Option<Self> {
        let row = commands::lookup_request(words.len(), |index| words.get(index).copied().unwrap_or_default());
        let arg = |index: usize| words.get(index).copied().unwrap_or_default();
        let fills = match row.class_of(words.len(), arg) {
            Class::Fill => row.name != "mget",
            Class::FillFields => !shared.status.fields_expire(),
            _ => false,
        };
        let is_one_key = row.keys(words.len(), arg).as_slice() == [1];
        let has_scores = words.iter().skip(2).any(|word| word.eq_ignore_ascii_case(b"WITHSCORES"));
        if !fills || !is_one_key || has_scores || !row.accepts(words.len()) {
            return None;
        }
        let mut request = SmallVec::new();
        let (read, name) = match row.name {
            "get" => (Read::Get, words[1]),
            name => {
                request_name(name, words[1..].iter().copied(), &mut request);
                (Read::Request, request.as_slice())
            }
        };
        let name = KeyRef { database, read, name };
        Self::fits(name).then(|| Self::new(name))
    }

    /// Whether it is short enough to be counted.
    pub(crate) fn fits(name: KeyRef<'_>) -> bool {
        name.name.len() <= MAX_NAME
    }

    pub(crate) fn as_ref(&self) -> KeyRef<'_> {
        KeyRef { database: self.database, read: self.read, name: &self.name }
    }

    /// The bytes that ask Redis for it.
    pub(crate) fn request(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.name.len() + 64);
        encode::command(&mut out, self.as_ref().words().iter());
        out
    }
}
