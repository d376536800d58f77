//! Trained ZSTD dictionaries, by the hash of their content.
//!
//! Owns the prepared dictionaries of a process, which of them L3 is known to hold, and which are wanted because a value
//! named them. Never does I/O itself: [`Dictionaries::publish`] and [`Dictionaries::fetch_wanted`] drive the caller's
//! [`DictionaryStore`]. A dictionary's identity is its content, so one that was altered or mixed up is refused, and two
//! sidecars that train the same one share it.

mod registry;

pub use registry::Dictionaries;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use xxhash_rust::xxh3::xxh3_64;
use zstd::dict::{DecoderDictionary, EncoderDictionary};

use super::config::CompressionAlgorithm;

/// The largest dictionary that is accepted.
pub const MAX_DICTIONARY_BYTES: usize = 256 * 1024;
/// What a trained dictionary begins with.
const MAGIC: [u8; 4] = 0xec30_a437_u32.to_le_bytes();
/// Where zstd keeps its own number for a dictionary.
const NUMBER: std::ops::Range<usize> = 4..8;

/// Why a dictionary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DictionaryError {
    /// Not made by training, or larger than [`MAX_DICTIONARY_BYTES`].
    #[error("{bytes} bytes are no trained dictionary of at most {MAX_DICTIONARY_BYTES} bytes: train it anew")]
    NotTrained {
        /// How many.
        bytes: usize,
    },
    /// zstd refuses it.
    #[error("failed to prepare the dictionary {id}: train it anew")]
    Prepare {
        /// Which.
        id: DictionaryId,
        /// zstd's words.
        source: std::io::Error,
    },
    /// What is stored under the id is something else.
    #[error("what is stored as dictionary {expected} has the hash {found}: delete it, it is stored again when needed")]
    Altered {
        /// The id that was asked for.
        expected: DictionaryId,
        /// The hash of what was there.
        found: DictionaryId,
    },
    /// It was stored, and is not there.
    #[error("dictionary {id} is not there after it was stored: see whether L3 evicts it")]
    Vanished {
        /// Which.
        id: DictionaryId,
    },
    /// The store failed.
    #[error("failed to {step} the dictionary {id}: see whether L3 is reachable")]
    Store {
        /// Which.
        id: DictionaryId,
        /// `store` or `load`.
        step: &'static str,
        /// The store's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A dictionary's identity: the XXH3-64 hash of its content. Printed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DictionaryId(u64);

impl DictionaryId {
    /// The identity of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(xxh3_64(content))
    }

    /// As it stands in an envelope.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }

    /// As it stands in an envelope.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
}

impl fmt::Display for DictionaryId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// A dictionary, ready to decode with.
pub struct Dictionary {
    id: DictionaryId,
    content: Box<[u8]>,
    decoder: DecoderDictionary<'static>,
    /// Whether L3 holds it; maintained by the registry.
    stored: AtomicBool,
}

impl Dictionary {
    /// Prepares a dictionary that training made, here or elsewhere.
    ///
    /// # Errors
    ///
    /// It is none, is too large, or zstd refuses it.
    pub fn new(content: &[u8]) -> Result<Self, DictionaryError> {
        if content.len() < NUMBER.end || content.len() > MAX_DICTIONARY_BYTES || !content.starts_with(&MAGIC) {
            return Err(DictionaryError::NotTrained { bytes: content.len() });
        }
        let id = DictionaryId::of(content);
        let decoder = DecoderDictionary::try_copy(content).map_err(|source| DictionaryError::Prepare { id, source })?;
        Ok(Self { id, content: content.into(), decoder, stored: AtomicBool::new(false) })
    }

    /// The same for a dictionary fresh from training: takes zstd's own number out of it, which would cost four bytes
    /// in every frame to say less than the id does.
    pub(super) fn from_training(mut content: Vec<u8>) -> Result<Self, DictionaryError> {
        if let Some(number) = content.get_mut(NUMBER) {
            number.fill(0);
        }
        Self::new(&content)
    }

    /// The hash of its content.
    pub fn id(&self) -> DictionaryId {
        self.id
    }

    /// What is stored, and hashed.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// Whether L3 is known to hold it: only then may a value stored there name it.
    pub fn is_stored(&self) -> bool {
        self.stored.load(Ordering::Acquire)
    }

    fn set_stored(&self, stored: bool) {
        self.stored.store(stored, Ordering::Release);
    }

    pub(super) fn decoder(&self) -> &DecoderDictionary<'static> {
        &self.decoder
    }
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Dictionary({}, {} bytes)", self.id, self.content.len())
    }
}

/// A dictionary, ready to encode with at one level.
pub(super) struct PreparedEncoder {
    pub(super) dictionary: Arc<Dictionary>,
    pub(super) encoder: EncoderDictionary<'static>,
}

impl PreparedEncoder {
    pub(super) fn new(dictionary: Arc<Dictionary>, algorithm: CompressionAlgorithm) -> Result<Self, DictionaryError> {
        let level = match algorithm {
            CompressionAlgorithm::Zstd { level } => super::compression::clamp_level(level),
            CompressionAlgorithm::None | CompressionAlgorithm::Lz4 => 1,
        };
        let encoder = EncoderDictionary::try_copy(&dictionary.content, level)
            .map_err(|source| DictionaryError::Prepare { id: dictionary.id, source })?;
        Ok(Self { dictionary, encoder })
    }
}

/// Where the cluster's dictionaries lie: in L3, under a name made of the id.
///
/// The futures need not be `Send`: they are run where their caller runs.
pub trait DictionaryStore {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Stores `content` under `id`, for good: without a TTL, where eviction does not take it if that can be had.
    /// Storing what is there already is no error.
    fn store(&self, id: DictionaryId, content: &[u8]) -> impl Future<Output = Result<(), Self::Error>>;

    /// What is stored under `id`, if anything.
    fn load(&self, id: DictionaryId) -> impl Future<Output = Result<Option<Vec<u8>>, Self::Error>>;
}
