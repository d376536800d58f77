//! What a store calls the values that it gave: so that it can be asked whether one is still what it was, instead of for all
//! of it again.
//!
//! Owns a table of fixed size, by a hash with a key of this process's own; a version that another one has displaced, or that
//! another sidecar was told, costs a whole load. Keeps no key and no value: that what L3 has is what the version names is
//! seen by a digest of both.

use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use parking_lot::Mutex;

/// Versions that one store's table has.
const PLACES: usize = 4_096;
/// A longer version is not kept.
const LONGEST: usize = 128;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Versions {
    hashes: [RandomState; 3],
    /// Empty until there is a version.
    places: Mutex<Vec<Option<Named>>>,
}

#[derive(Debug, Clone)]
struct Named {
    digest: [u64; 2],
    version: Bytes,
}

impl Versions {
    /// The store has said what it calls `value`.
    pub(super) fn note(&self, key: &[u8], value: &[u8], version: &[u8]) {
        if version.len() > LONGEST {
            return;
        }
        let named = Named { digest: self.digest(key, value), version: Bytes::copy_from_slice(version) };
        let mut places = self.places.lock();
        if places.is_empty() {
            places.resize_with(PLACES, || None);
        }
        places[self.place(key)] = Some(named);
    }

    /// What the store calls it, if that is known.
    pub(super) fn of(&self, key: &[u8], value: &[u8]) -> Option<Bytes> {
        let named = self.places.lock().get(self.place(key)).cloned().flatten()?;
        // Without the lock: the value may be long.
        (named.digest == self.digest(key, value)).then_some(named.version)
    }

    fn place(&self, key: &[u8]) -> usize {
        self.hashes[2].hash_one(key) as usize % PLACES
    }

    fn digest(&self, key: &[u8], value: &[u8]) -> [u64; 2] {
        [0, 1].map(|at| self.hashes[at].hash_one((key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_that_of_one_value_of_one_key() {
        let versions = Versions::default();
        assert_eq!(versions.of(b"a", b"1"), None);
        versions.note(b"a", b"1", b"\"x\"");
        versions.note(b"b", b"1", &[b'x'; LONGEST + 1]);
        assert_eq!(versions.of(b"a", b"1").as_deref(), Some(&b"\"x\""[..]));
        assert_eq!([versions.of(b"a", b"2"), versions.of(b"b", b"1"), versions.of(b"a1", b"")], [None, None, None]);
        versions.note(b"a", b"2", b"\"y\"");
        assert_eq!((versions.of(b"a", b"1"), versions.of(b"a", b"2").is_some()), (None, true));
    }
}
