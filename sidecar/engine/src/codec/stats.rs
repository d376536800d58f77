//! What codecs count. Any thread adds; a snapshot is taken without stopping them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::compression::{CompressionError, Kept};
use super::encoded::EncodedData;
use super::envelope::EnvelopeError;

macro_rules! causes {
    ($($(#[doc = $doc:literal])* $variant:ident => $name:literal,)*) => {
        /// Why a stored value could not be decoded, or a value not encoded. The names are stable: metrics are made of
        /// them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FailureCause {
            $($(#[doc = $doc])* $variant,)*
        }

        impl FailureCause {
            /// Every cause, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in snake case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

causes! {
    /// Damaged, or under another key than its own.
    Checksum => "checksum",
    /// Envelope version, codec, flag or kind of generation of a newer build.
    UnknownFormat => "unknown_format",
    /// Compressed with a dictionary that is not known here.
    UnknownDictionary => "unknown_dictionary",
    /// A schema version for which no upgrade is known.
    UnknownSchema => "unknown_schema",
    /// Declares more than the limit.
    TooLarge => "too_large",
    /// No envelope, or one whose content cannot be read.
    Undecodable => "undecodable",
    /// The value could not be serialised.
    Unencodable => "unencodable",
}

impl From<&EnvelopeError> for FailureCause {
    fn from(error: &EnvelopeError) -> Self {
        match error {
            EnvelopeError::Checksum => Self::Checksum,
            EnvelopeError::UnknownVersion { .. }
            | EnvelopeError::UnknownCodec { .. }
            | EnvelopeError::UnknownFlags { .. }
            | EnvelopeError::UnknownGenerationKind { .. } => Self::UnknownFormat,
            EnvelopeError::Truncated | EnvelopeError::Malformed { .. } => Self::Undecodable,
            EnvelopeError::TooManyGenerations => Self::Unencodable,
        }
    }
}

impl From<&CompressionError> for FailureCause {
    fn from(error: &CompressionError) -> Self {
        match error {
            CompressionError::UnknownDictionary { .. } => Self::UnknownDictionary,
            CompressionError::TooLarge { .. } => Self::TooLarge,
            CompressionError::Checksum => Self::Checksum,
            CompressionError::Impossible { .. }
            | CompressionError::Decompress { .. }
            | CompressionError::Length { .. } => Self::Undecodable,
        }
    }
}

/// A snapshot of what a codec did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodecStats {
    /// Values encoded.
    pub encoded: u64,
    /// Values decoded.
    pub decoded: u64,
    /// Of those encoded: compressed.
    pub compressed: u64,
    /// Stored as they are: below the threshold, above the limit, or compression is off.
    pub kept_by_rule: u64,
    /// Stored as they are: a sample did not shrink.
    pub kept_by_sample: u64,
    /// Stored as they are: compressed, they would have saved too little.
    pub kept_by_saving: u64,
    /// Bytes of the values encoded, before compression.
    pub original_bytes: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Bytes of their stored forms, headers included.
    pub stored_bytes: u64,
    /// Time spent encoding; zero where no clock was given.
    pub encoding: Duration,
    /// Time spent decoding, failures included; zero where no clock was given.
    pub decoding: Duration,
    failures: [u64; FailureCause::ALL.len()],
}

impl CodecStats {
    /// Failures by cause.
    pub fn failures(&self, cause: FailureCause) -> u64 {
        self.failures[cause as usize]
    }

    /// How many times smaller the payloads are than the values; 1 before the first.
    pub fn compression_ratio(&self) -> f64 {
        if self.payload_bytes == 0 { 1.0 } else { self.original_bytes as f64 / self.payload_bytes as f64 }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    encoded: AtomicU64,
    decoded: AtomicU64,
    compressed: AtomicU64,
    kept_by_rule: AtomicU64,
    kept_by_sample: AtomicU64,
    kept_by_saving: AtomicU64,
    original_bytes: AtomicU64,
    payload_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    encoding_nanos: AtomicU64,
    decoding_nanos: AtomicU64,
    failures: [AtomicU64; FailureCause::ALL.len()],
}

impl Counters {
    pub(super) fn encoded(&self, data: &EncodedData) {
        let outcome = match data.outcome() {
            Ok(_) => &self.compressed,
            Err(Kept::Disabled | Kept::BelowThreshold | Kept::AboveLimit) => &self.kept_by_rule,
            Err(Kept::SampleDidNotShrink) => &self.kept_by_sample,
            Err(Kept::SavedTooLittle) => &self.kept_by_saving,
        };
        add(outcome, 1);
        add(&self.encoded, 1);
        add(&self.original_bytes, data.original_bytes() as u64);
        add(&self.payload_bytes, data.payload_bytes() as u64);
        add(&self.stored_bytes, data.stored_bytes() as u64);
    }

    pub(super) fn decoded(&self) {
        add(&self.decoded, 1);
    }

    pub(super) fn failed(&self, cause: FailureCause) {
        add(&self.failures[cause as usize], 1);
    }

    pub(super) fn spent_encoding(&self, time: Duration) {
        add(&self.encoding_nanos, crate::clock::span_nanos(time));
    }

    pub(super) fn spent_decoding(&self, time: Duration) {
        add(&self.decoding_nanos, crate::clock::span_nanos(time));
    }

    pub(super) fn snapshot(&self) -> CodecStats {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        CodecStats {
            encoded: read(&self.encoded),
            decoded: read(&self.decoded),
            compressed: read(&self.compressed),
            kept_by_rule: read(&self.kept_by_rule),
            kept_by_sample: read(&self.kept_by_sample),
            kept_by_saving: read(&self.kept_by_saving),
            original_bytes: read(&self.original_bytes),
            payload_bytes: read(&self.payload_bytes),
            stored_bytes: read(&self.stored_bytes),
            encoding: Duration::from_nanos(read(&self.encoding_nanos)),
            decoding: Duration::from_nanos(read(&self.decoding_nanos)),
            failures: std::array::from_fn(|cause| read(&self.failures[cause])),
        }
    }
}

fn add(cell: &AtomicU64, count: u64) {
    cell.fetch_add(count, Ordering::Relaxed);
}
