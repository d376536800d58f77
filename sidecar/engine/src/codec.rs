//! Values as bytes: envelope, compression, trained dictionaries, typed codecs.
//!
//! Owns the form of what is stored below the tiers. From the inside out: [`compression`] makes payloads small,
//! [`dictionary`] and [`training`] make that work for small records, [`envelope`] wraps a payload with its metadata and
//! a checksum, [`KeyspaceCodec`] applies all of it to the values of one keyspace, and the typed codecs
//! ([`BinaryCodec`], [`VersionedCodec`], [`TrackedCodec`]) put Rust types on top. No I/O anywhere: where dictionaries
//! are stored is the caller's [`DictionaryStore`].
//!
//! Whatever cannot be decoded (damaged, from a newer build, under an unknown dictionary) is a typed error that a
//! cache treats as a miss: never a wrong value, a panic, or more memory than configured.
//!
//! ```
//! use caddy_engine::codec::{BinaryCodec, Codec, CodecConfig, CompressionAlgorithm};
//!
//! #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
//! struct User { name: String, languages: Vec<String> }
//!
//! let codec = BinaryCodec::<User>::new(CodecConfig {
//!     algorithm: CompressionAlgorithm::Zstd { level: 1 },
//!     min_bytes: 128,
//!     ..CodecConfig::default()
//! });
//! let ada = User { name: "Ada".into(), languages: vec!["analytical engine".into(); 100] };
//!
//! let encoded = codec.encode(b"user:1", &ada)?;
//! assert!(encoded.compression_ratio() > 10.0);
//! assert_eq!(codec.decode(b"user:1", encoded.as_bytes())?, ada);
//!
//! // The checksum covers the key: a value that strayed to another one is no value.
//! assert!(codec.decode(b"user:2", encoded.as_bytes()).is_err());
//! # Ok::<(), caddy_engine::codec::CodecError>(())
//! ```

pub mod compression;
mod config;
pub mod dictionary;
mod encoded;
pub mod envelope;
mod keyspace;
mod stats;
#[cfg(test)]
mod tests;
mod tracked;
pub mod training;
mod typed;
mod versioned;
mod workspace;

pub use compression::{CompressionError, Kept};
pub use config::{CodecConfig, CompressionAlgorithm};
pub use dictionary::{Dictionaries, Dictionary, DictionaryError, DictionaryId, DictionaryStore};
pub use encoded::EncodedData;
pub use envelope::{Envelope, EnvelopeError, Header, Stored};
pub use keyspace::{Compressed, KeyspaceCodec, Opened, ValueError};
pub use stats::{CodecStats, FailureCause};
pub use tracked::TrackedCodec;
pub use typed::{BinaryCodec, Codec, CodecError};
pub use versioned::VersionedCodec;
