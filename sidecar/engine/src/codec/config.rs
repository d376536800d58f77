//! How values are compressed, and within which bounds.

/// How payloads are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CompressionAlgorithm {
    /// Not at all.
    None,
    /// LZ4 blocks: quick; saves little below some KiB.
    #[default]
    Lz4,
    /// ZSTD frames; with a trained dictionary small records become small too.
    Zstd {
        /// From −7 (quickest) to 19; outside of that, the nearest. 1 is meant for caches: what higher levels gain on
        /// records is little, what they cost is not.
        level: i32,
    },
}

impl CompressionAlgorithm {
    /// Its name in lower case: metrics are labelled with it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd { .. } => "zstd",
        }
    }
}

/// The rules for one keyspace's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodecConfig {
    /// How payloads are compressed.
    pub algorithm: CompressionAlgorithm,
    /// Values below this stay as they are where no dictionary is at hand. Default 1 KiB.
    pub min_bytes: usize,
    /// Values below this stay as they are even with a dictionary. Default 64 bytes.
    pub min_bytes_with_dictionary: usize,
    /// Compressed only if it saves at least this share of the value, in percent, the header included. Default 10.
    pub min_saving_percent: u8,
    /// The largest value that is decompressed, whatever an envelope declares; larger ones are not compressed. Default
    /// 16 MiB.
    pub max_decoded_bytes: usize,
}

impl Default for CodecConfig {
    fn default() -> Self {
        Self {
            algorithm: CompressionAlgorithm::default(),
            min_bytes: 1024,
            min_bytes_with_dictionary: 64,
            min_saving_percent: 10,
            max_decoded_bytes: 16 * 1024 * 1024,
        }
    }
}
