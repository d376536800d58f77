//! The two hashes of a key: one that names its stamp, one that names its slot in the tiers.
//!
//! They differ on purpose. Invalidation pushes name the key alone, so the stamp is hashed from the key bytes only; a
//! tier holds one entry per (database, key, command), so its hash mixes those in. The key bytes are read once. Both are
//! seeded at random per process, so that nobody can choose keys that collide; they mean nothing outside of it.

use std::hash::Hasher;

use foldhash::{SharedSeed, fast::FoldHasher};

/// Sets this use of the process's random seed apart from others.
const PURPOSE: u64 = 0xCADD_1CAC_8E00_0001;

/// Hash of the bare key: selects the stamp that kills every copy of that key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The hash of the key's bytes in this process.
    #[inline]
    pub fn of(key: &[u8]) -> Self {
        let mut hasher = FoldHasher::with_seed(PURPOSE, SharedSeed::global_random());
        hasher.write(key);
        Self(hasher.finish())
    }

    /// A key hash that the caller computed: one function everywhere in the process, all 64 bits mixed.
    pub const fn from_raw(hash: u64) -> Self {
        Self(hash)
    }

    /// The hash itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The tier hash of this key under `salt`, which stands for what else is in the tier key (database and command).
    #[inline]
    pub const fn tier(self, salt: u64) -> TierHash {
        // The key's bits are mixed already, and stay so whatever they are combined with.
        TierHash(self.0 ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32))
    }
}

/// Hash of the whole tier key: selects shard and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TierHash(u64);

impl TierHash {
    /// A tier hash that the caller computed; equal tier keys must have equal hashes, and all 64 bits must be mixed.
    pub const fn from_raw(hash: u64) -> Self {
        Self(hash)
    }

    /// The hash itself.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_salt_separates_databases_and_commands() {
        let key = KeyHash::of(b"user:1");
        assert_ne!(key.tier(0), key.tier(1));
        assert_eq!(key.tier(7), KeyHash::of(b"user:1").tier(7));
    }
}
