//! The envelope: how a value that needs metadata lies in L3.
//!
//! Owns the bytes: magic, version, flags, checksum, the optional sections, and what counts as damaged. Never
//! decompresses, never allocates while reading. Fails with one [`EnvelopeError`]; to a cache each of them is a miss.
//!
//! ```text
//! 0  magic     C1 CA          begins no UTF-8 text and no MessagePack value
//! 2  version   high 4 bits: 1;  low 4 bits, codec: 0 none, 1 LZ4 block, 2 ZSTD, 3 ZSTD with a dictionary
//! 3  flags     1 schema, 2 soft expiry, 4 generations, 8 fence, 16 length (exactly when the codec is not 0)
//! 4  checksum  CRC32C, little-endian, over bytes 0 to 3, then the key, then everything from byte 8 on
//! 8  schema       varint, at most 32 bits
//!    soft expiry  varint, milliseconds
//!    generations  varint: bytes that follow; then the items
//!    fence        epoch, counter: 8 bytes each, little-endian
//!    length       varint: bytes of the decoded value
//!    dictionary   XXH3-64 of its content, 8 bytes, little-endian (codec 3 only)
//!    payload      the rest. ZSTD frames are without their magic number and without dictionary id
//! ```
//!
//! A section is there when its flag is, in this order. Varints are LEB128 in their shortest form: whatever opens is,
//! sealed again, the same bytes. `golden/` holds one file per kind; a released version is never written differently.
//!
//! A plain value that begins with the magic has to be enveloped ([`needs_envelope`]); so a reader can tell the two
//! apart by the first two bytes. An envelope with one of these two damaged is still found out: a value that shares the
//! other one is checked as if it had both.

mod generations;
#[cfg(test)]
mod tests;
mod wire;

pub use generations::{Generation, GenerationList, GenerationName, GenerationValue, Generations, MAX_GENERATION_BYTES};
use std::time::Duration;

use super::dictionary::DictionaryId;
use wire::{Cursor, put_varint};

/// What every envelope begins with.
pub const MAGIC: [u8; 2] = [0xc1, 0xca];
/// Bytes of an envelope without optional sections.
pub const PLAIN_HEADER_BYTES: usize = 8;

const VERSION: u8 = 1;
const CHECKED_FROM: usize = 4;

const FLAG_SCHEMA: u8 = 1;
const FLAG_SOFT_EXPIRY: u8 = 2;
const FLAG_GENERATIONS: u8 = 4;
const FLAG_FENCE: u8 = 8;
const FLAG_LENGTH: u8 = 16;
const KNOWN_FLAGS: u8 = FLAG_SCHEMA | FLAG_SOFT_EXPIRY | FLAG_GENERATIONS | FLAG_FENCE | FLAG_LENGTH;

/// Why bytes are no readable envelope. A cache counts it and treats the value as a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Shorter than its header.
    #[error("the envelope ends inside its header: the value is treated as absent; write it again")]
    Truncated,
    /// Written by a newer build.
    #[error("envelope version {version} is unknown to this build: the value is treated as absent; upgrade this reader")]
    UnknownVersion {
        /// What it says it is.
        version: u8,
    },
    /// Damaged, or stored under another key than the one it was sealed for.
    #[error("the envelope's checksum does not fit its key and content: the value is treated as absent; write it again")]
    Checksum,
    /// Written by a newer build.
    #[error("envelope codec {codec} is unknown to this build: the value is treated as absent; upgrade this reader")]
    UnknownCodec {
        /// What it says.
        codec: u8,
    },
    /// Written by a newer build.
    #[error(
        "envelope flags {flags:#04x} are unknown to this build: the value is treated as absent; upgrade this reader"
    )]
    UnknownFlags {
        /// Those that are unknown.
        flags: u8,
    },
    /// Written by a newer build.
    #[error(
        "a generation of kind {kind} is unknown to this build: the value is treated as absent; upgrade this reader"
    )]
    UnknownGenerationKind {
        /// What it says.
        kind: u8,
    },
    /// The checksum fits, the content does not: a writer's bug.
    #[error("the envelope's {part} cannot be read: the value is treated as absent; report the writer's version")]
    Malformed {
        /// Which section.
        part: &'static str,
    },
    /// A list of generations that is too long to be stored.
    #[error("more than {MAX_GENERATION_BYTES} bytes of generations: give the entry fewer tags or parents")]
    TooManyGenerations,
}

/// When a value becomes stale although it may still be kept: the life it has left *in L3* at that moment.
///
/// A remaining time, not a point in time: the TTL that L3 counts down is the only clock that all sidecars share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SoftExpiry {
    millis: u64,
}

impl SoftExpiry {
    /// Stale from when `remaining` of the key's TTL in L3 is left; whole milliseconds, rounded down.
    pub fn at_remaining(remaining: Duration) -> Self {
        Self { millis: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX) }
    }

    /// The remaining TTL at which it becomes stale.
    pub fn remaining(self) -> Duration {
        Duration::from_millis(self.millis)
    }

    /// Whether a value whose key has `remaining` left (`None`: no TTL) is stale.
    pub fn is_past(self, remaining: Option<Duration>) -> bool {
        remaining.is_some_and(|remaining| remaining <= self.remaining())
    }
}

/// The greatest fencing token that wrote this key; ordered by epoch, then counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    /// One incarnation of the L3 data.
    pub epoch: u64,
    /// Increases within an epoch.
    pub counter: u64,
}

/// A value's metadata. The default has none and costs [`PLAIN_HEADER_BYTES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// Which version of its type the value is.
    pub schema: Option<u32>,
    /// When it becomes stale.
    pub soft_expiry: Option<SoftExpiry>,
    /// What it depends on.
    pub generations: Generations<'a>,
    /// What wrote it.
    pub fence: Option<Fence>,
}

impl Header<'_> {
    /// Whether there is nothing that only an envelope could say.
    pub fn is_plain(&self) -> bool {
        *self == Header::default()
    }
}

/// How a payload becomes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// It is the value.
    None,
    /// An LZ4 block.
    Lz4,
    /// A ZSTD frame without its magic number.
    Zstd,
    /// The same, for which the dictionary is needed.
    ZstdDictionary(DictionaryId),
}

impl Encoding {
    fn codec(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
            Self::ZstdDictionary(_) => 3,
        }
    }
}

/// A payload, and how it becomes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body<'a> {
    encoding: Encoding,
    length: u64,
    payload: &'a [u8],
}

impl<'a> Body<'a> {
    /// A value as it is.
    pub fn plain(value: &'a [u8]) -> Self {
        Self { encoding: Encoding::None, length: value.len() as u64, payload: value }
    }

    /// A compressed value of `length` bytes.
    pub fn compressed(encoding: Encoding, length: usize, payload: &'a [u8]) -> Self {
        let length = if encoding == Encoding::None { payload.len() } else { length };
        Self { encoding, length: length as u64, payload }
    }

    /// How the payload becomes the value.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Bytes of the value, as the envelope declares it.
    pub fn declared_length(&self) -> u64 {
        self.length
    }

    /// The bytes as stored.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// An opened envelope: what it says, borrowed from the stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The metadata.
    pub header: Header<'a>,
    /// The payload, not decompressed.
    pub body: Body<'a>,
}

/// What stored bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored<'a> {
    /// The value itself.
    Plain(&'a [u8]),
    /// A value with metadata.
    Enveloped(Envelope<'a>),
}

/// Whether a plain value has to be enveloped because a reader would take it for an envelope.
pub fn needs_envelope(value: &[u8]) -> bool {
    value.starts_with(&MAGIC)
}

/// The envelope of a value, to be stored under `key` and no other.
///
/// ```
/// use caddy_engine::codec::envelope::{self, Body, Header, Stored};
///
/// let stored = envelope::seal(b"user:1", &Header { schema: Some(3), ..Header::default() }, Body::plain(b"Ada"));
/// let Stored::Enveloped(opened) = envelope::open(b"user:1", &stored)? else { unreachable!() };
/// assert_eq!((opened.header.schema, opened.body.payload()), (Some(3), b"Ada".as_slice()));
///
/// assert_eq!(envelope::open(b"user:1", b"plain")?, Stored::Plain(b"plain"));
/// assert!(envelope::open(b"user:2", &stored).is_err());
/// # Ok::<(), caddy_engine::codec::EnvelopeError>(())
/// ```
pub fn seal(key: &[u8], header: &Header<'_>, body: Body<'_>) -> Vec<u8> {
    let optional = header.generations.as_bytes();
    let mut out = Vec::with_capacity(PLAIN_HEADER_BYTES + 64 + optional.len() + body.payload.len());
    out.extend_from_slice(&MAGIC);
    out.push(VERSION << 4 | body.encoding.codec());
    out.extend_from_slice(&[0; 5]);

    let mut flags = 0;
    if let Some(schema) = header.schema {
        flags |= FLAG_SCHEMA;
        put_varint(&mut out, schema.into());
    }
    if let Some(SoftExpiry { millis }) = header.soft_expiry {
        flags |= FLAG_SOFT_EXPIRY;
        put_varint(&mut out, millis);
    }
    if !optional.is_empty() {
        flags |= FLAG_GENERATIONS;
        put_varint(&mut out, optional.len() as u64);
        out.extend_from_slice(optional);
    }
    if let Some(Fence { epoch, counter }) = header.fence {
        flags |= FLAG_FENCE;
        out.extend_from_slice(&epoch.to_le_bytes());
        out.extend_from_slice(&counter.to_le_bytes());
    }
    if body.encoding != Encoding::None {
        flags |= FLAG_LENGTH;
        put_varint(&mut out, body.length);
    }
    if let Encoding::ZstdDictionary(id) = body.encoding {
        out.extend_from_slice(&id.to_bytes());
    }
    out.extend_from_slice(body.payload);

    out[3] = flags;
    let checksum = checksum(key, [MAGIC[0], MAGIC[1], out[2], flags], &out[PLAIN_HEADER_BYTES..]);
    out[CHECKED_FROM..PLAIN_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// Reads what is stored under `key`, in place.
///
/// # Errors
///
/// Every [`EnvelopeError`] but `TooManyGenerations`. The value is to be treated as absent.
pub fn open<'a>(key: &[u8], stored: &'a [u8]) -> Result<Stored<'a>, EnvelopeError> {
    let Some((head, rest)) = stored.split_first_chunk::<PLAIN_HEADER_BYTES>() else {
        return if needs_envelope(stored) { Err(EnvelopeError::Truncated) } else { Ok(Stored::Plain(stored)) };
    };
    let [first, second, version_and_codec, flags, sum @ ..] = *head;
    let intact = (first == MAGIC[0], second == MAGIC[1]);
    if intact == (false, false) {
        return Ok(Stored::Plain(stored));
    }
    let checked = || checksum(key, [MAGIC[0], MAGIC[1], version_and_codec, flags], rest) == u32::from_le_bytes(sum);
    if intact != (true, true) {
        // Either a plain value that shares a byte with the magic, or an envelope that lost the other.
        return if checked() { Err(EnvelopeError::Checksum) } else { Ok(Stored::Plain(stored)) };
    }
    // The version first: what a checksum covers is the version's to say.
    match version_and_codec >> 4 {
        VERSION if checked() => sections(version_and_codec & 0x0f, flags, rest).map(Stored::Enveloped),
        VERSION => Err(EnvelopeError::Checksum),
        version => Err(EnvelopeError::UnknownVersion { version }),
    }
}

fn sections(codec: u8, flags: u8, rest: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    if flags & !KNOWN_FLAGS != 0 {
        return Err(EnvelopeError::UnknownFlags { flags: flags & !KNOWN_FLAGS });
    }
    let malformed = |part| move || EnvelopeError::Malformed { part };
    let mut cursor = Cursor(rest);
    let mut header = Header::default();
    if flags & FLAG_SCHEMA != 0 {
        let schema = cursor.varint().and_then(|schema| u32::try_from(schema).ok());
        header.schema = Some(schema.ok_or_else(malformed("schema version"))?);
    }
    if flags & FLAG_SOFT_EXPIRY != 0 {
        let millis = cursor.varint().ok_or_else(malformed("soft expiry"))?;
        header.soft_expiry = Some(SoftExpiry { millis });
    }
    if flags & FLAG_GENERATIONS != 0 {
        let length = cursor.varint().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| (1..=MAX_GENERATION_BYTES).contains(length));
        let items = length.and_then(|length| cursor.take(length)).ok_or_else(malformed("generations"))?;
        header.generations = Generations::parse(items)?;
    }
    if flags & FLAG_FENCE != 0 {
        let fence = cursor.u64().zip(cursor.u64()).map(|(epoch, counter)| Fence { epoch, counter });
        header.fence = Some(fence.ok_or_else(malformed("fence"))?);
    }
    if (codec != 0) != (flags & FLAG_LENGTH != 0) {
        return Err(malformed("length")());
    }
    let length = if codec == 0 { 0 } else { cursor.varint().ok_or_else(malformed("length"))? };
    let encoding = match codec {
        0 => return Ok(Envelope { header, body: Body::plain(cursor.0) }),
        1 => Encoding::Lz4,
        2 => Encoding::Zstd,
        3 => {
            let id = cursor.array().ok_or_else(malformed("dictionary id"))?;
            Encoding::ZstdDictionary(DictionaryId::from_bytes(id))
        }
        codec => return Err(EnvelopeError::UnknownCodec { codec }),
    };
    Ok(Envelope { header, body: Body { encoding, length, payload: cursor.0 } })
}

fn checksum(key: &[u8], head: [u8; CHECKED_FROM], rest: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head), key);
    crc32c::crc32c_append(sum, rest)
}
