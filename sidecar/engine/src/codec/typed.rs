//! Rust values as envelopes: the [`Codec`] trait and its plainest implementation.
//!
//! Fails with one [`CodecError`]; to a cache every failure to decode is a miss.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::CodecConfig;
use super::dictionary::Dictionaries;
use super::encoded::EncodedData;
use super::envelope::Header;
use super::keyspace::{KeyspaceCodec, ValueError};
use super::stats::FailureCause;

/// Why a value could not be encoded, or bytes are no value of the type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// serde or postcard refused the value.
    #[error("failed to serialise the value: postcard needs sequences of known length and no `#[serde(flatten)]`")]
    Serialize {
        /// postcard's words.
        source: postcard::Error,
    },
    /// Envelope or compression.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Stored by something else than a typed codec.
    #[error("a plain value where an envelope was expected: it is treated as absent; write it through the codec")]
    NotEnveloped,
    /// The bytes are no value of this type.
    #[error(
        "failed to deserialise the value: it is treated as absent; give each shape of the type its own schema version"
    )]
    Deserialize {
        /// postcard's words.
        source: postcard::Error,
    },
    /// The value ends before its bytes do.
    #[error(
        "{bytes} bytes are left behind the value: it is treated as absent; give each shape of the type its own schema version"
    )]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// Written by a [`VersionedCodec`](super::VersionedCodec).
    #[error(
        "the value has schema version {schema}, this codec knows none: it is treated as absent; read it with a VersionedCodec"
    )]
    UnexpectedSchema {
        /// What it says.
        schema: u32,
    },
    /// Of a version for which no upgrade is known, or of none (`None`).
    #[error("no upgrade is known from schema version {schema:?} to {current}: the value is treated as absent")]
    UnknownSchema {
        /// What it says.
        schema: Option<u32>,
        /// What the codec writes.
        current: u32,
    },
    /// An upgrade's own refusal.
    #[error("failed to upgrade a value of schema version {schema:?}: it is treated as absent ({reason})")]
    Upgrade {
        /// Where from.
        schema: Option<u32>,
        /// The upgrade's words.
        reason: String,
    },
    /// Two upgrades from one version.
    #[error("schema version {schema:?} is declared twice: declare each once, the current one not at all")]
    DuplicateSchema {
        /// Which.
        schema: Option<u32>,
    },
}

impl From<&CodecError> for FailureCause {
    fn from(error: &CodecError) -> Self {
        match error {
            CodecError::Serialize { .. } | CodecError::DuplicateSchema { .. } => Self::Unencodable,
            CodecError::Value(error) => error.into(),
            CodecError::UnexpectedSchema { .. } | CodecError::UnknownSchema { .. } => Self::UnknownSchema,
            CodecError::NotEnveloped
            | CodecError::Deserialize { .. }
            | CodecError::TrailingBytes { .. }
            | CodecError::Upgrade { .. } => Self::Undecodable,
        }
    }
}

/// Values of one type as bytes to be stored under a key, and back.
pub trait Codec<T> {
    /// Encodes with metadata.
    ///
    /// # Errors
    ///
    /// The value cannot be serialised.
    fn encode_with(&self, key: &[u8], header: &Header<'_>, value: &T) -> Result<EncodedData, CodecError>;

    /// Decodes, metadata included.
    ///
    /// # Errors
    ///
    /// To be treated as a miss.
    fn decode_with<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<(T, Header<'a>), CodecError>;

    /// Encodes without metadata.
    ///
    /// # Errors
    ///
    /// The value cannot be serialised.
    fn encode(&self, key: &[u8], value: &T) -> Result<EncodedData, CodecError> {
        self.encode_with(key, &Header::default(), value)
    }

    /// Decodes; what the metadata says is not looked at.
    ///
    /// # Errors
    ///
    /// To be treated as a miss.
    fn decode(&self, key: &[u8], stored: &[u8]) -> Result<T, CodecError> {
        self.decode_with(key, stored).map(|(value, _)| value)
    }
}

/// postcard (<https://postcard.jamesmunns.com>, a stable wire format) in an envelope.
///
/// The bytes do not say which type they are of: a type that may ever change belongs in a
/// [`VersionedCodec`](super::VersionedCodec).
pub struct BinaryCodec<T> {
    values: Arc<KeyspaceCodec>,
    // A codec owns no `T`: it is `Send` and `Sync` whatever `T` is.
    of: PhantomData<fn(T) -> T>,
}

impl<T> BinaryCodec<T> {
    /// A codec with rules of its own and no dictionary.
    pub fn new(config: CodecConfig) -> Self {
        Self::within(Arc::new(KeyspaceCodec::new(config, Arc::new(Dictionaries::default()))))
    }

    /// A codec for the values of a keyspace: its rules, its dictionaries, its counters.
    pub fn within(values: Arc<KeyspaceCodec>) -> Self {
        Self { values, of: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> for BinaryCodec<T> {
    fn encode_with(&self, key: &[u8], header: &Header<'_>, value: &T) -> Result<EncodedData, CodecError> {
        let bytes = serialize(value)?;
        Ok(self.values.seal(key, &Header { schema: None, ..*header }, &bytes))
    }

    fn decode_with<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<(T, Header<'a>), CodecError> {
        let (header, bytes) = open(&self.values, key, stored)?;
        match header.schema {
            Some(schema) => Err(CodecError::UnexpectedSchema { schema }),
            None => deserialize(&bytes).map(|value| (value, header)),
        }
    }
}

pub(super) fn open<'a>(
    values: &KeyspaceCodec,
    key: &[u8],
    stored: &'a [u8],
) -> Result<(Header<'a>, Cow<'a, [u8]>), CodecError> {
    let opened = values.open(key, stored)?;
    opened.header.map(|header| (header, opened.value)).ok_or(CodecError::NotEnveloped)
}

pub(super) fn serialize<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_stdvec(value).map_err(|source| CodecError::Serialize { source })
}

/// postcard itself would let bytes behind the value pass: those of another shape of the type.
pub(super) fn deserialize<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match postcard::take_from_bytes(bytes).map_err(|source| CodecError::Deserialize { source })? {
        (value, []) => Ok(value),
        (_, rest) => Err(CodecError::TrailingBytes { bytes: rest.len() }),
    }
}
