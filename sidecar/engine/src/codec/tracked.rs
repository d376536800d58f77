//! Any codec, with its work counted and timed.

use std::marker::PhantomData;

use crate::clock::{BootClock, Clock};

use super::encoded::EncodedData;
use super::envelope::Header;
use super::stats::{CodecStats, Counters};
use super::typed::{BinaryCodec, Codec, CodecError};

/// Wraps a codec and counts what it does: values, bytes, failures by cause, time.
///
/// ```
/// use caddy_engine::codec::{BinaryCodec, Codec, CodecConfig, FailureCause, TrackedCodec};
///
/// let codec = TrackedCodec::new(BinaryCodec::<String>::new(CodecConfig::default()));
/// let mut stored = codec.encode(b"greeting", &"hello ".repeat(1000))?.into_bytes();
/// codec.decode(b"greeting", &stored)?;
/// stored[20] ^= 1;
/// assert!(codec.decode(b"greeting", &stored).is_err());
///
/// let stats = codec.stats();
/// assert_eq!((stats.encoded, stats.decoded, stats.failures(FailureCause::Checksum)), (1, 1, 1));
/// assert!(stats.compression_ratio() > 10.0);
/// # Ok::<(), caddy_engine::codec::CodecError>(())
/// ```
pub struct TrackedCodec<T, C = BinaryCodec<T>, K = BootClock> {
    codec: C,
    clock: K,
    counters: Counters,
    of: PhantomData<fn(T) -> T>,
}

impl<T, C: Codec<T>> TrackedCodec<T, C> {
    /// Times with the machine's clock.
    pub fn new(codec: C) -> Self {
        Self::with_clock(codec, BootClock)
    }
}

impl<T, C: Codec<T>, K: Clock> TrackedCodec<T, C, K> {
    /// Times with `clock`.
    pub fn with_clock(codec: C, clock: K) -> Self {
        Self { codec, clock, counters: Counters::default(), of: PhantomData }
    }

    /// What was counted so far.
    pub fn stats(&self) -> CodecStats {
        self.counters.snapshot()
    }

    /// The codec within.
    pub fn inner(&self) -> &C {
        &self.codec
    }
}

impl<T, C: Codec<T>, K: Clock> Codec<T> for TrackedCodec<T, C, K> {
    fn encode_with(&self, key: &[u8], header: &Header<'_>, value: &T) -> Result<EncodedData, CodecError> {
        let begun = self.clock.now();
        let encoded = self.codec.encode_with(key, header, value);
        self.counters.spent_encoding(self.clock.now().since(begun));
        match &encoded {
            Ok(data) => self.counters.encoded(data),
            Err(error) => self.counters.failed(error.into()),
        }
        encoded
    }

    fn decode_with<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<(T, Header<'a>), CodecError> {
        let begun = self.clock.now();
        let decoded = self.codec.decode_with(key, stored);
        self.counters.spent_decoding(self.clock.now().since(begun));
        match &decoded {
            Ok(_) => self.counters.decoded(),
            Err(error) => self.counters.failed(error.into()),
        }
        decoded
    }
}
