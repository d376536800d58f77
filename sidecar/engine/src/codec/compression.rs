//! Whether, and how, a value is compressed; and the way back within bounds.
//!
//! Owns the decision: nothing below a threshold, nothing whose sample does not shrink, nothing that saves too little.
//! Decompression allocates what the envelope declares, after that was held against the configured limit and against
//! what the payload can yield at most; output that is not exactly as long as declared is an error.

use std::borrow::Cow;

use super::config::{CodecConfig, CompressionAlgorithm};
use super::dictionary::{Dictionary, DictionaryId, PreparedEncoder};
use super::envelope::{Body, Encoding};
use super::workspace::{self, Workspace, Zstd};

/// From here on a sample is tried first; below, it would cost more than it saves.
const SAMPLED_FROM_BYTES: usize = 8 * 1024;
/// Taken from the middle, where a value is least like its neighbours' headers.
const SAMPLE_BYTES: usize = 1024;
/// A sample shrinks when this share of it is saved, as a divisor: less is the noise of a format's own overhead.
const SAMPLE_SAVING: usize = 32;

/// The quickest and the smallest ZSTD that make sense in a cache; above 19 a context takes hundreds of megabytes.
const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;
/// An LZ4 sequence yields at most 255 bytes per byte.
const LZ4_MAX_RATIO: u64 = 255;
/// A ZSTD block has a header of 3 bytes and yields at most 128 KiB.
const ZSTD_BLOCK_HEADER: u64 = 3;
const ZSTD_BLOCK_YIELD: u64 = 128 * 1024;

/// Why a value was stored as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// The keyspace compresses nothing.
    Disabled,
    /// Smaller than the threshold.
    BelowThreshold,
    /// Larger than a reader would decompress.
    AboveLimit,
    /// A sample of it did not shrink.
    SampleDidNotShrink,
    /// Compressed, it would have saved too little.
    SavedTooLittle,
}

/// Why a payload cannot be decompressed. A cache counts it and treats the value as a miss.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// More than the configured limit.
    #[error(
        "the value declares {declared} bytes, the limit is {limit}: it is treated as absent; raise maxDecodedBytes if it is genuine"
    )]
    TooLarge {
        /// What the envelope says.
        declared: u64,
        /// What is configured.
        limit: usize,
    },
    /// More than the payload can yield.
    #[error(
        "the value declares {declared} bytes, its payload of {payload} cannot yield so many: it is treated as absent"
    )]
    Impossible {
        /// What the envelope says.
        declared: u64,
        /// Bytes of the payload.
        payload: usize,
    },
    /// The dictionary is not known here.
    #[error("the dictionary {id} is not known here: the value is treated as absent until it was fetched")]
    UnknownDictionary {
        /// Which.
        id: DictionaryId,
    },
    /// The payload is damaged.
    #[error("failed to decompress the payload ({reason}): the value is treated as absent; write it again")]
    Decompress {
        /// The library's words.
        reason: String,
    },
    /// The memory that the payload lies in is damaged.
    #[error(
        "the payload in memory does not have its checksum: the value is treated as absent; check the machine's memory"
    )]
    Checksum,
    /// The payload yields another length than declared.
    #[error("the payload yields {found} bytes instead of {declared}: the value is treated as absent; write it again")]
    Length {
        /// What the envelope says.
        declared: u64,
        /// What came out.
        found: usize,
    },
}

pub(super) fn clamp_level(level: i32) -> i32 {
    level.clamp(*LEVELS.start(), *LEVELS.end())
}

/// Compresses `value` if that pays, and hands the payload to `take`. `overhead` is what the compressed form costs
/// besides its payload.
pub(super) fn compress<T>(
    config: &CodecConfig,
    encoder: Option<&PreparedEncoder>,
    overhead: usize,
    value: &[u8],
    take: impl FnOnce(Encoding, &[u8]) -> T,
) -> Result<T, Kept> {
    let (method, encoding, threshold) = match (config.algorithm, encoder) {
        (CompressionAlgorithm::None, _) => return Err(Kept::Disabled),
        (CompressionAlgorithm::Lz4, _) => (Method::Lz4, Encoding::Lz4, config.min_bytes),
        (CompressionAlgorithm::Zstd { .. }, Some(prepared)) => (
            Method::Zstd(Zstd::Dictionary(prepared.encoder.as_cdict())),
            Encoding::ZstdDictionary(prepared.dictionary.id()),
            config.min_bytes_with_dictionary,
        ),
        (CompressionAlgorithm::Zstd { level }, None) => {
            (Method::Zstd(Zstd::Level(clamp_level(level))), Encoding::Zstd, config.min_bytes)
        }
    };
    if value.len() < threshold {
        return Err(Kept::BelowThreshold);
    }
    if value.len() > config.max_decoded_bytes {
        return Err(Kept::AboveLimit);
    }
    let saving = value.len() * usize::from(config.min_saving_percent.min(100)) / 100;
    workspace::with(|workspace| {
        if let Some(sample) = sample(value) {
            let shrunk = method.run(workspace, sample).map_or(usize::MAX, <[u8]>::len);
            if shrunk > sample.len() - sample.len() / SAMPLE_SAVING {
                return Err(Kept::SampleDidNotShrink);
            }
        }
        match method.run(workspace, value) {
            Some(payload) if payload.len() + overhead + saving.max(1) <= value.len() => Ok(take(encoding, payload)),
            _ => Err(Kept::SavedTooLittle),
        }
    })
}

#[derive(Clone, Copy)]
enum Method<'a> {
    Lz4,
    Zstd(Zstd<'a>),
}

impl Method<'_> {
    fn run<'w>(&self, workspace: &'w mut Workspace, value: &[u8]) -> Option<&'w [u8]> {
        match self {
            Self::Lz4 => workspace.lz4_compress(value),
            Self::Zstd(how) => workspace.zstd_compress(*how, value),
        }
    }
}

fn sample(value: &[u8]) -> Option<&[u8]> {
    if value.len() < SAMPLED_FROM_BYTES {
        return None;
    }
    let begin = (value.len() - SAMPLE_BYTES) / 2;
    value.get(begin..begin + SAMPLE_BYTES)
}

/// The value of `body`; borrowed where it was stored as it is.
pub(super) fn decompress<'a>(
    limit: usize,
    body: &Body<'a>,
    dictionary: impl FnOnce(DictionaryId) -> Option<std::sync::Arc<Dictionary>>,
) -> Result<Cow<'a, [u8]>, CompressionError> {
    let (payload, declared) = (body.payload(), body.declared_length());
    let at_most = match body.encoding() {
        Encoding::None => return Ok(Cow::Borrowed(payload)),
        Encoding::Lz4 => (payload.len() as u64).saturating_mul(LZ4_MAX_RATIO),
        Encoding::Zstd | Encoding::ZstdDictionary(_) => {
            (payload.len() as u64 / ZSTD_BLOCK_HEADER).saturating_mul(ZSTD_BLOCK_YIELD)
        }
    };
    let length = usize::try_from(declared).ok().filter(|length| *length <= limit);
    let length = length.ok_or(CompressionError::TooLarge { declared, limit })?;
    if declared > at_most {
        return Err(CompressionError::Impossible { declared, payload: payload.len() });
    }
    let mut value = Vec::new();
    let found = if body.encoding() == Encoding::Lz4 {
        value.resize(length, 0);
        Workspace::lz4_decompress(payload, &mut value)
    } else {
        let dictionary = match body.encoding() {
            Encoding::ZstdDictionary(id) => Some(dictionary(id).ok_or(CompressionError::UnknownDictionary { id })?),
            _ => None,
        };
        let decoder = dictionary.as_ref().map(|dictionary| dictionary.decoder().as_ddict());
        value.reserve_exact(length);
        workspace::with(|workspace| workspace.zstd_decompress(payload, decoder, &mut value))
    };
    let found = found.map_err(|reason| CompressionError::Decompress { reason })?;
    if found == length { Ok(Cow::Owned(value)) } else { Err(CompressionError::Length { declared, found }) }
}
