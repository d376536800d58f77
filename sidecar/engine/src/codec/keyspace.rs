//! The values of one keyspace: compressed by its rules, enveloped where needed, and back.
//!
//! Owns the choice of the dictionary: the newest for what stays in this process, for L3 the newest that is stored there.
//! Never waits: training and publishing are called from elsewhere. Fails with one [`ValueError`]; to a cache a miss.

use std::borrow::Cow;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::compression::{self, CompressionError, Kept};
use super::config::{CodecConfig, CompressionAlgorithm};
use super::dictionary::{Dictionaries, Dictionary, DictionaryError, PreparedEncoder};
use super::encoded::EncodedData;
use super::envelope::{self, Body, Encoding, EnvelopeError, Header, PLAIN_HEADER_BYTES, Stored};
use super::stats::{CodecStats, Counters, FailureCause};
use super::training::{Reservoir, TrainingConfig, TrainingError};

/// What a length and a dictionary's id add to an envelope, at most.
const COMPRESSED_HEADER_BYTES: usize = 12;

/// Why a stored value cannot be read. A cache counts it and treats the value as a miss.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The envelope.
    #[error(transparent)]
    Open(#[from] EnvelopeError),
    /// The payload.
    #[error(transparent)]
    Decompress(#[from] CompressionError),
}

impl From<&ValueError> for FailureCause {
    fn from(error: &ValueError) -> Self {
        match error {
            ValueError::Open(error) => error.into(),
            ValueError::Decompress(error) => error.into(),
        }
    }
}

/// A value as it was read, with its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// The metadata; `None` for a plain value.
    pub header: Option<Header<'a>>,
    /// The value; borrowed where it was not compressed.
    pub value: Cow<'a, [u8]>,
}

/// A compressed value that stays in this process. Keeps its dictionary alive. 32 bytes beside its payload.
#[derive(Clone, Debug)]
pub struct Compressed {
    payload: Box<[u8]>,
    dictionary: Option<Arc<Dictionary>>,
    /// CRC32C of the payload: LZ4 has none of its own, and turns one flipped bit into another value.
    checksum: u32,
    /// Bytes of the value; the highest bit says that it is ZSTD.
    length: u32,
}

const ZSTD: u32 = 1 << 31;

impl Compressed {
    /// Bytes of the payload.
    pub fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Bytes of the value.
    pub fn original_bytes(&self) -> usize {
        (self.length & !ZSTD) as usize
    }

    /// The value.
    ///
    /// # Errors
    ///
    /// The memory it lay in is damaged.
    pub fn decompress(&self) -> Result<Vec<u8>, CompressionError> {
        if crc32c::crc32c(&self.payload) != self.checksum {
            return Err(CompressionError::Checksum);
        }
        let encoding = match &self.dictionary {
            Some(dictionary) => Encoding::ZstdDictionary(dictionary.id()),
            None if self.length & ZSTD != 0 => Encoding::Zstd,
            None => Encoding::Lz4,
        };
        let body = Body::compressed(encoding, self.original_bytes(), &self.payload);
        compression::decompress(self.original_bytes(), &body, |_| self.dictionary.clone()).map(Cow::into_owned)
    }

    /// Flips one bit of the payload; only for tests of what damage comes to.
    #[cfg(any(test, feature = "mutations"))]
    pub fn damage(&mut self, bit: usize) {
        if let Some(byte) = self.payload.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }
}

/// The codec of one keyspace. Shared by all its readers and writers.
///
/// ```
/// use caddy_engine::codec::{CodecConfig, CompressionAlgorithm, Dictionaries, Header, KeyspaceCodec};
///
/// let config = CodecConfig { algorithm: CompressionAlgorithm::Zstd { level: 1 }, ..CodecConfig::default() };
/// let users = KeyspaceCodec::new(config, Dictionaries::default().into());
///
/// // What does not pay and has no metadata is stored as it is: any client can read it.
/// let small = users.store(b"user:1", &Header::default(), b"Ada");
/// assert_eq!(small.as_bytes(), b"Ada");
///
/// let long = "analytical engine ".repeat(100);
/// let stored = users.store(b"user:2", &Header::default(), long.as_bytes());
/// assert!(stored.stored_bytes() < 100);
/// assert_eq!(*users.open(b"user:2", stored.as_bytes())?.value, *long.as_bytes());
/// # Ok::<(), caddy_engine::codec::ValueError>(())
/// ```
pub struct KeyspaceCodec {
    config: CodecConfig,
    dictionaries: Arc<Dictionaries>,
    encoders: RwLock<Encoders>,
    reservoir: Option<Mutex<Reservoir>>,
    counters: Counters,
}

#[derive(Clone, Default)]
struct Encoders {
    newest: Option<Arc<PreparedEncoder>>,
    /// The one before, for L3 as long as the newest is not stored there.
    previous: Option<Arc<PreparedEncoder>>,
}

impl KeyspaceCodec {
    /// A codec that uses the dictionaries it is given ([`KeyspaceCodec::adopt`]) and trains none.
    pub fn new(config: CodecConfig, dictionaries: Arc<Dictionaries>) -> Self {
        Self { config, dictionaries, encoders: RwLock::default(), reservoir: None, counters: Counters::default() }
    }

    /// A codec that samples what it encodes, for [`KeyspaceCodec::train`]. Only ZSTD knows dictionaries.
    pub fn with_training(
        config: CodecConfig,
        dictionaries: Arc<Dictionaries>,
        training: TrainingConfig,
        seed: u64,
    ) -> Self {
        let reservoir = matches!(config.algorithm, CompressionAlgorithm::Zstd { .. })
            .then(|| Mutex::new(Reservoir::new(training, seed)));
        Self { reservoir, ..Self::new(config, dictionaries) }
    }

    /// The rules.
    pub fn config(&self) -> &CodecConfig {
        &self.config
    }

    /// The dictionaries it decodes with.
    pub fn dictionaries(&self) -> &Arc<Dictionaries> {
        &self.dictionaries
    }

    /// The form in which `value` is stored in L3 under `key`: plain when nothing asks for an envelope.
    pub fn store(&self, key: &[u8], header: &Header<'_>, value: &[u8]) -> EncodedData {
        let needed = !header.is_plain() || envelope::needs_envelope(value);
        self.encode(key, header, value, if needed { Form::Envelope } else { Form::Plain })
    }

    /// The same, always as an envelope: checked when read, whatever the value.
    pub fn seal(&self, key: &[u8], header: &Header<'_>, value: &[u8]) -> EncodedData {
        self.encode(key, header, value, Form::Envelope)
    }

    /// Reads what L3 holds under `key`.
    ///
    /// # Errors
    ///
    /// To be treated as a miss. A dictionary that is unknown is noted: see [`Dictionaries::fetch_wanted`].
    pub fn open<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<Opened<'a>, ValueError> {
        let opened = self.try_open(key, stored);
        match &opened {
            Ok(_) => self.counters.decoded(),
            Err(error) => self.counters.failed(error.into()),
        }
        opened
    }

    /// Compresses a value that stays in this process, if that pays: no envelope, no checksum, the newest dictionary.
    ///
    /// # Errors
    ///
    /// Why it is better kept as it is.
    pub fn compress(&self, value: &[u8]) -> Result<Compressed, Kept> {
        self.sample(value);
        let length = u32::try_from(value.len()).ok().filter(|length| *length < ZSTD).ok_or(Kept::AboveLimit)?;
        let prepared = self.encoders.read().newest.clone();
        compression::compress(&self.config, prepared.as_deref(), 0, value, |encoding, payload| Compressed {
            payload: payload.into(),
            checksum: crc32c::crc32c(payload),
            length: if encoding == Encoding::Lz4 { length } else { length | ZSTD },
            dictionary: match encoding {
                Encoding::ZstdDictionary(_) => prepared.as_ref().map(|prepared| prepared.dictionary.clone()),
                _ => None,
            },
        })
    }

    /// Trains a dictionary from the samples taken so far and uses it, here at once, in L3 once
    /// [`Dictionaries::publish`] has stored it. Takes tenths of a second: not for a thread that serves.
    ///
    /// # Errors
    ///
    /// There is none, and the one in use stays.
    pub fn train(&self) -> Result<Arc<Dictionary>, TrainingError> {
        let reservoir = self.reservoir.as_ref().ok_or(TrainingError::NotConfigured)?;
        let CompressionAlgorithm::Zstd { level } = self.config.algorithm else {
            return Err(TrainingError::NotConfigured);
        };
        let samples = {
            let mut reservoir = reservoir.lock();
            if reservoir.len() < super::training::MIN_SAMPLES {
                return Err(TrainingError::TooFewSamples { samples: reservoir.len() });
            }
            reservoir.take()
        };
        let dictionary = self.dictionaries.insert(samples.train(level)?.dictionary);
        self.adopt(dictionary.clone())?;
        Ok(dictionary)
    }

    /// Uses a dictionary that comes from elsewhere: another sidecar's, or the one of the last run.
    ///
    /// # Errors
    ///
    /// zstd refuses it; the one in use stays.
    pub fn adopt(&self, dictionary: Arc<Dictionary>) -> Result<(), DictionaryError> {
        let prepared = Arc::new(PreparedEncoder::new(dictionary, self.config.algorithm)?);
        let mut encoders = self.encoders.write();
        if let Some(old) = encoders.newest.replace(prepared)
            && (old.dictionary.is_stored() || encoders.previous.is_none())
        {
            encoders.previous = Some(old);
        }
        Ok(())
    }

    /// How many values there are to train from; `None`: it does not sample.
    pub fn samples(&self) -> Option<usize> {
        self.reservoir.as_ref().map(|reservoir| reservoir.lock().len())
    }

    /// The dictionary that values which stay in this process are compressed with.
    pub fn dictionary(&self) -> Option<Arc<Dictionary>> {
        self.encoders.read().newest.as_ref().map(|prepared| prepared.dictionary.clone())
    }

    /// What was counted.
    pub fn stats(&self) -> CodecStats {
        self.counters.snapshot()
    }

    fn try_open<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<Opened<'a>, ValueError> {
        let envelope = match envelope::open(key, stored)? {
            Stored::Plain(value) => return Ok(Opened { header: None, value: Cow::Borrowed(value) }),
            Stored::Enveloped(envelope) => envelope,
        };
        let limit = self.config.max_decoded_bytes;
        let value = compression::decompress(limit, &envelope.body, |id| self.dictionaries.get(id))?;
        Ok(Opened { header: Some(envelope.header), value })
    }

    fn encode(&self, key: &[u8], header: &Header<'_>, value: &[u8], form: Form) -> EncodedData {
        self.sample(value);
        let prepared = self.encoders.read().stored();
        let overhead = match form {
            Form::Plain => PLAIN_HEADER_BYTES + COMPRESSED_HEADER_BYTES,
            Form::Envelope => COMPRESSED_HEADER_BYTES,
        };
        let compressed =
            compression::compress(&self.config, prepared.as_deref(), overhead, value, |encoding, payload| {
                let body = Body::compressed(encoding, value.len(), payload);
                (envelope::seal(key, header, body), payload.len(), encoding)
            });
        let (bytes, payload_bytes, outcome) = match (compressed, form) {
            (Ok((bytes, payload_bytes, encoding)), _) => (bytes, payload_bytes, Ok(encoding)),
            (Err(kept), Form::Plain) => (value.to_vec(), value.len(), Err(kept)),
            (Err(kept), Form::Envelope) => (envelope::seal(key, header, Body::plain(value)), value.len(), Err(kept)),
        };
        let data = EncodedData { bytes, original_bytes: value.len(), payload_bytes, outcome };
        self.counters.encoded(&data);
        data
    }

    /// Nobody waits for a sample: while another thread has the reservoir the value goes unseen.
    fn sample(&self, value: &[u8]) {
        if value.len() >= self.config.min_bytes_with_dictionary
            && let Some(mut reservoir) = self.reservoir.as_ref().and_then(Mutex::try_lock)
        {
            reservoir.offer(value);
        }
    }
}

/// What is written when compression does not pay.
#[derive(Clone, Copy)]
enum Form {
    Plain,
    Envelope,
}

impl Encoders {
    /// The newest that L3 holds.
    fn stored(&self) -> Option<Arc<PreparedEncoder>> {
        [&self.newest, &self.previous].into_iter().flatten().find(|prepared| prepared.dictionary.is_stored()).cloned()
    }
}
