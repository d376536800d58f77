//! The section `keyspaces`, and how values are kept small.

use super::reader::Reader;
use crate::{Algorithm, ByteSize, CacheMode, KeyspaceMode, RawCompression, RawKeyspace};
use std::{collections::HashSet, time::Duration};

/// Levels of ZSTD: above 19 a compressor takes hundreds of megabytes.
const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;

/// How values are kept small in L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// How they are compressed.
    pub algorithm: Algorithm,
    /// For `Zstd`.
    pub level: i32,
    /// Smaller values stay as they are.
    pub min_bytes: ByteSize,
}

/// A rule for the keys that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    /// Name in metrics and messages, unique.
    pub name: String,
    /// Redis glob over whole keys.
    pub pattern: String,
    /// Whether copies are kept.
    pub cache: CacheMode,
    /// Whether copies answer, or are only counted.
    pub mode: KeyspaceMode,
    /// Bound on the life of a copy.
    pub ttl: Option<Duration>,
    /// Bound on the life of a copy that says "absent".
    pub negative_ttl: Option<Duration>,
    /// How its values are kept small.
    pub compression: Compression,
}

impl Reader {
    pub(super) fn compression(&mut self, path: &str, raw: &RawCompression) -> Compression {
        let level = raw.level;
        self.check(
            (LEVELS).contains(&level),
            &format!("{path}.level"),
            format!("{level} is out of range; write {} to {}", LEVELS.start(), LEVELS.end()),
        );
        let min_bytes = self.size(&format!("{path}.minBytes"), &raw.min_bytes);
        Compression { algorithm: raw.algorithm, level, min_bytes }
    }

    pub(super) fn keyspaces(&mut self, raw: &[RawKeyspace], compression: &RawCompression) -> Vec<Keyspace> {
        let mut names = HashSet::new();
        for (n, keyspace) in raw.iter().enumerate() {
            let path = format!("keyspaces[{n}]");
            let name = &keyspace.name;
            let plain = (1..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            self.check(
                plain,
                &format!("{path}.name"),
                format!("{name:?} must be 1 to 63 letters, digits, `-`, `_`, `.`"),
            );
            self.check(
                names.insert(name),
                &format!("{path}.name"),
                format!("{name:?} is taken by an earlier keyspace; names are unique"),
            );
            self.check(
                (1..=512).contains(&keyspace.pattern.len()),
                &format!("{path}.match"),
                "must be a Redis glob of 1 to 512 bytes, e.g. user:*",
            );
        }
        let parsed = |(n, keyspace): (usize, &RawKeyspace)| {
            let ttl = self.bound(&format!("keyspaces[{n}].ttl"), &keyspace.ttl);
            Keyspace {
                name: keyspace.name.clone(),
                pattern: keyspace.pattern.clone(),
                cache: keyspace.cache,
                mode: keyspace.mode,
                ttl,
                negative_ttl: self.bound(&format!("keyspaces[{n}].negativeTtl"), &keyspace.negative_ttl).or(ttl),
                compression: match &keyspace.compression {
                    Some(own) => self.compression(&format!("keyspaces[{n}].compression"), own),
                    None => Self::default().compression("", compression),
                },
            }
        };
        raw.iter().enumerate().map(parsed).collect()
    }
}
