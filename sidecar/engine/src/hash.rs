//! The two hashes of a key: one that names its stamp, one that names its slot in the tiers.
//!
//! They differ on purpose. Invalidation pushes name the key alone, so the stamp is hashed from the key bytes only; a
//! tier holds one entry per (database, key, command), so its hash mixes those in. The key bytes are read once.

use xxhash_rust::xxh3::xxh3_64;

/// Hash of the bare key: selects the stamp that kills every copy of that key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// XXH3 of the key's bytes.
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }

    /// A key hash that the caller computed; it must be the same function everywhere in the process.
    pub const fn from_raw(hash: u64) -> Self {
        Self(hash)
    }

    /// The hash itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The tier hash of this key under `salt`, which stands for what else is in the tier key (database and command).
    pub const fn tier(self, salt: u64) -> TierHash {
        // Two rounds of the Murmur3 finaliser: every bit of the result depends on every bit of both.
        let mut x = self.0 ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= x >> 33;
        x = x.wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        x ^= x >> 33;
        x = x.wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        TierHash(x ^ (x >> 33))
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
