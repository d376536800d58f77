//! What encoding gives.

use super::compression::Kept;
use super::envelope::Encoding;

/// A value's stored form, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedData {
    pub(super) bytes: Vec<u8>,
    pub(super) original_bytes: usize,
    pub(super) payload_bytes: usize,
    pub(super) outcome: Result<Encoding, Kept>,
}

impl EncodedData {
    /// What is to be stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What is to be stored.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes to be stored, header included.
    pub fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the value before compression.
    pub fn original_bytes(&self) -> usize {
        self.original_bytes
    }

    /// Bytes of the payload: what is stored, less the header.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// How many times smaller the payload is than the value; 1 when it was stored as it is.
    pub fn compression_ratio(&self) -> f64 {
        if self.payload_bytes == 0 { 1.0 } else { self.original_bytes as f64 / self.payload_bytes as f64 }
    }

    /// How the payload was compressed, or why it was not.
    pub fn outcome(&self) -> Result<Encoding, Kept> {
        self.outcome
    }
}

impl AsRef<[u8]> for EncodedData {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}
