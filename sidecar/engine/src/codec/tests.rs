//! The whole way: values through compression, dictionaries, envelopes and typed codecs, sound and damaged.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::envelope::{Body, Encoding, SoftExpiry, seal};
use super::training::{TrainingConfig, TrainingError};
use super::*;
use crate::{BootClock, ManualClock};

#[path = "../../benches/support/records.rs"]
mod records;
use records::Records;

const KEY: &[u8] = b"user:1";

/// L3 as far as dictionaries are concerned.
#[derive(Default)]
struct Store(RefCell<HashMap<DictionaryId, Vec<u8>>>);

impl DictionaryStore for Store {
    type Error = Infallible;

    async fn store(&self, id: DictionaryId, content: &[u8]) -> Result<(), Infallible> {
        self.0.borrow_mut().insert(id, content.to_vec());
        Ok(())
    }

    async fn load(&self, id: DictionaryId) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.borrow().get(&id).cloned())
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the store never waits"),
    }
}

fn zstd(min_bytes: usize) -> CodecConfig {
    CodecConfig { algorithm: CompressionAlgorithm::Zstd { level: 1 }, min_bytes, ..CodecConfig::default() }
}

fn lz4() -> CodecConfig {
    CodecConfig { algorithm: CompressionAlgorithm::Lz4, ..CodecConfig::default() }
}

/// A codec trained on `training`, its dictionary known and not stored.
fn trained(training: impl Iterator<Item = Vec<u8>>) -> (KeyspaceCodec, Arc<Dictionaries>, Arc<Dictionary>) {
    let dictionaries = Arc::new(Dictionaries::default());
    let codec = KeyspaceCodec::with_training(zstd(1024), dictionaries.clone(), TrainingConfig::default(), 3);
    for value in training {
        let _ = codec.compress(&value);
    }
    let dictionary = codec.train().expect("records have much in common");
    (codec, dictionaries, dictionary)
}

fn sessions(seed: u64, count: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut records = Records::new(seed);
    (0..count).map(move |_| records.session())
}

fn orders(seed: u64, count: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut records = Records::new(seed);
    (0..count).map(move |_| records.one_order())
}

#[test]
fn a_trained_dictionary_halves_small_records_and_makes_a_third_of_larger_ones() {
    let ratio = |codec: &KeyspaceCodec, values: &mut dyn Iterator<Item = Vec<u8>>| {
        let (mut original, mut payload) = (0, 0);
        for value in values {
            original += value.len();
            payload += codec.compress(&value).map_or(value.len(), |compressed| compressed.payload_bytes());
        }
        original as f64 / payload as f64
    };
    let (codec, _, _) = trained(sessions(1, 3000));
    let small = ratio(&codec, &mut sessions(2, 1000));
    let (codec, _, _) = trained(orders(1, 2000));
    let large = ratio(&codec, &mut orders(2, 300));
    assert!(small >= 2.0, "{small}");
    assert!(large >= 3.0, "{large}");
}

#[test]
fn a_dictionary_serves_here_at_once_and_l3_only_when_stored_there() {
    let (codec, dictionaries, dictionary) = trained(sessions(1, 1500));
    let elsewhere = KeyspaceCodec::new(zstd(1024), Arc::new(Dictionaries::default()));
    let store = Store::default();
    let value = Records::new(5).session();

    // zstd's own number, which every frame would carry besides the id, is taken out.
    assert_eq!(dictionary.content()[4..8], [0; 4]);

    // Here: at once. L3: as it is.
    let compressed = codec.compress(&value).expect("it pays");
    assert!(compressed.payload_bytes() * 3 < value.len() * 2);
    assert_eq!(compressed.decompress(), Ok(value.clone()));
    assert_eq!(codec.store(KEY, &Header::default(), &value).as_bytes(), value);

    // Stored, and read back: now L3 too.
    assert_eq!(now(dictionaries.publish(&store)).expect("stored"), 1);
    assert_eq!(now(dictionaries.publish(&store)).expect("nothing to do"), 0);
    let stored = codec.store(KEY, &Header::default(), &value);
    assert_eq!(stored.outcome(), Ok(Encoding::ZstdDictionary(dictionary.id())));
    assert!(stored.compression_ratio() > 1.5 && stored.stored_bytes() < value.len());
    assert_eq!(codec.open(KEY, stored.as_bytes()).expect("sound").value, value);

    // Elsewhere: a miss, until it was fetched.
    let unknown = CompressionError::UnknownDictionary { id: dictionary.id() };
    assert_eq!(elsewhere.open(KEY, stored.as_bytes()), Err(unknown.into()));
    assert_eq!(elsewhere.stats().failures(FailureCause::UnknownDictionary), 1);
    assert!(elsewhere.dictionaries().has_wanted());
    assert_eq!(now(elsewhere.dictionaries().fetch_wanted(&store)).expect("sound"), 1);
    assert_eq!(elsewhere.open(KEY, stored.as_bytes()).expect("known now").value, value);

    // L3 was emptied: as before, until it is stored again. What stays in this process is untouched.
    dictionaries.forget_stored();
    assert_eq!(codec.store(KEY, &Header::default(), &value).as_bytes(), value);
    assert!(codec.compress(&value).is_ok());
    assert_eq!(compressed.decompress(), Ok(value));
}

#[test]
fn until_a_new_dictionary_is_stored_l3_gets_values_under_the_one_before() {
    let (codec, dictionaries, first) = trained(sessions(1, 1500));
    let (store, value) = (Store::default(), Records::new(5).session());
    now(dictionaries.publish(&store)).expect("stored");
    for value in sessions(7, 1500) {
        let _ = codec.compress(&value);
    }
    let second = codec.train().expect("records have much in common");
    assert_ne!(first.id(), second.id());
    let used = || codec.store(KEY, &Header::default(), &value).outcome();
    assert_eq!(used(), Ok(Encoding::ZstdDictionary(first.id())));
    now(dictionaries.publish(&store)).expect("stored");
    assert_eq!(used(), Ok(Encoding::ZstdDictionary(second.id())));
}

#[test]
fn a_dictionary_that_l3_lost_or_mixed_up_is_refused() {
    struct Lossy(Option<Vec<u8>>);
    impl DictionaryStore for Lossy {
        type Error = std::io::Error;
        async fn store(&self, _: DictionaryId, _: &[u8]) -> Result<(), std::io::Error> {
            Ok(())
        }
        async fn load(&self, _: DictionaryId) -> Result<Option<Vec<u8>>, std::io::Error> {
            Ok(self.0.clone())
        }
    }
    let (_, dictionaries, dictionary) = trained(sessions(1, 1500));
    let mut altered = dictionary.content().to_vec();
    altered[5000] ^= 1;

    let lost = now(dictionaries.publish(&Lossy(None)));
    assert!(matches!(lost, Err(DictionaryError::Vanished { id }) if id == dictionary.id()), "{lost:?}");
    let mixed_up = now(dictionaries.publish(&Lossy(Some(altered.clone()))));
    assert!(matches!(mixed_up, Err(DictionaryError::Altered { expected, .. }) if expected == dictionary.id()));
    assert!(!dictionaries.is_stored(dictionary.id()));

    let elsewhere = Dictionaries::default();
    assert!(elsewhere.get(dictionary.id()).is_none());
    assert!(now(elsewhere.fetch_wanted(&Lossy(Some(altered)))).is_err());
    assert!(elsewhere.get(dictionary.id()).is_none());

    for content in [&b""[..], b"7\xa40\xec", b"no dictionary at all", &vec![0; dictionary::MAX_DICTIONARY_BYTES + 1]] {
        assert!(Dictionary::new(content).is_err());
    }
    assert!(matches!(Dictionary::new(&dictionary.content()[..60]), Err(DictionaryError::Prepare { .. })));
}

#[test]
fn a_dictionary_stored_or_read_while_l3_is_emptied_does_not_count_as_stored() {
    struct EmptiedMeanwhile<'a>(&'a Dictionaries, Store);
    impl DictionaryStore for EmptiedMeanwhile<'_> {
        type Error = Infallible;
        async fn store(&self, id: DictionaryId, content: &[u8]) -> Result<(), Infallible> {
            self.1.store(id, content).await
        }
        async fn load(&self, id: DictionaryId) -> Result<Option<Vec<u8>>, Infallible> {
            let content = self.1.load(id).await;
            self.0.forget_stored();
            content
        }
    }
    let (_, dictionaries, dictionary) = trained(sessions(1, 1500));
    let store = EmptiedMeanwhile(&dictionaries, Store::default());
    now(dictionaries.publish(&store)).expect("nothing failed");
    assert!(!dictionaries.is_stored(dictionary.id()));

    let elsewhere = Dictionaries::default();
    let store = EmptiedMeanwhile(&elsewhere, store.1);
    assert!(elsewhere.get(dictionary.id()).is_none());
    assert_eq!(now(elsewhere.fetch_wanted(&store)).expect("sound"), 1);
    assert!(elsewhere.get(dictionary.id()).is_some());
    assert!(!elsewhere.is_stored(dictionary.id()));

    // Once more, undisturbed.
    assert_eq!(now(dictionaries.publish(&store.1)).expect("stored"), 1);
    assert!(dictionaries.is_stored(dictionary.id()));
}

#[test]
fn known_dictionaries_are_bounded_and_the_least_used_goes() {
    let (_, _, one) = trained(sessions(1, 500));
    let (_, _, two) = trained(sessions(2, 500));
    let (_, _, three) = trained(sessions(3, 500));
    let copy = |dictionary: &Dictionary| Dictionary::new(dictionary.content()).expect("sound");
    let known = Dictionaries::with_capacity(2);
    known.insert(copy(&one));
    known.insert(copy(&two));
    assert!(known.get(one.id()).is_some());
    known.insert(copy(&three));
    assert!(known.get(one.id()).is_some());
    assert!(known.get(two.id()).is_none());
}

#[test]
fn nothing_is_compressed_in_vain() {
    let noise = Records::new(1).noise(16 * 1024);
    for config in [zstd(1024), lz4()] {
        let codec = KeyspaceCodec::new(config, Arc::default());
        assert_eq!(codec.compress(&noise).err(), Some(Kept::SampleDidNotShrink));
        assert_eq!(codec.compress(&noise[..2000]).err(), Some(Kept::SavedTooLittle));
        assert_eq!(codec.compress(&[b'x'; 1023]).err(), Some(Kept::BelowThreshold));
        assert!(codec.compress(&[b'x'; 1024]).is_ok());
        for bytes in [1024, 16 * 1024, 100_000] {
            let json = Records::new(1).orders(bytes);
            let compressed = codec.compress(&json).expect("JSON shrinks");
            assert_eq!(compressed.decompress(), Ok(json));
        }
        // A plain value that looks like an envelope is one, and comes back as it was.
        let stored = codec.store(KEY, &Header::default(), &envelope::MAGIC);
        assert_eq!(stored.stored_bytes(), 10);
        assert_eq!(codec.open(KEY, stored.as_bytes()).expect("sound").value, envelope::MAGIC.as_slice());
        assert_eq!((codec.stats().encoded, codec.stats().kept_by_rule, codec.stats().decoded), (1, 1, 1));
    }
    let off = CodecConfig { algorithm: CompressionAlgorithm::None, ..CodecConfig::default() };
    assert_eq!(KeyspaceCodec::new(off, Arc::default()).compress(&[0; 9999]).err(), Some(Kept::Disabled));
    let small = CodecConfig { max_decoded_bytes: 5000, ..lz4() };
    assert_eq!(KeyspaceCodec::new(small, Arc::default()).compress(&[0; 5001]).err(), Some(Kept::AboveLimit));
}

#[test]
fn a_payload_cannot_take_more_memory_than_declared_nor_more_than_configured() {
    let config = CodecConfig { max_decoded_bytes: 100_000, ..lz4() };
    let codec = KeyspaceCodec::new(config, Arc::default());
    let value = vec![b'x'; 50_000];
    let good = KeyspaceCodec::new(lz4(), Arc::default()).seal(KEY, &Header::default(), &value);
    let Ok(Stored::Enveloped(good)) = envelope::open(KEY, good.as_bytes()) else { panic!("an envelope") };
    let open = |encoding, declared, payload: &[u8]| {
        let stored = seal(KEY, &Header::default(), Body::compressed(encoding, declared, payload));
        codec.open(KEY, &stored).map(|opened| opened.value.into_owned())
    };
    let payload = good.body.payload();
    assert_eq!(open(Encoding::Lz4, 50_000, payload), Ok(value.clone()));
    // Declares less or more than it yields.
    for wrong in [0, 1, 49_999, 50_001] {
        assert!(open(Encoding::Lz4, wrong, payload).is_err(), "{wrong}");
    }
    // Declares more than is allowed, and more than it could yield.
    let limit = 100_000;
    for declared in [100_001, usize::MAX] {
        let refused = CompressionError::TooLarge { declared: declared as u64, limit };
        assert_eq!(open(Encoding::Lz4, declared, payload), Err(refused.clone().into()));
        assert_eq!(open(Encoding::Zstd, declared, payload), Err(refused.into()));
    }
    let refused = CompressionError::Impossible { declared: 90_000, payload: 5 };
    assert_eq!(open(Encoding::Lz4, 90_000, b"tiny!"), Err(refused.into()));
    assert!(matches!(
        open(Encoding::Zstd, 90_000, b"no"),
        Err(ValueError::Decompress(CompressionError::Impossible { .. }))
    ));

    // The same for ZSTD: a frame that yields more than declared stops at the declared length.
    let good = KeyspaceCodec::new(zstd(0), Arc::default()).seal(KEY, &Header::default(), &value);
    let Ok(Stored::Enveloped(good)) = envelope::open(KEY, good.as_bytes()) else { panic!("an envelope") };
    assert_eq!(open(Encoding::Zstd, 50_000, good.body.payload()), Ok(value));
    for wrong in [0, 1, 49_999, 50_001] {
        assert!(open(Encoding::Zstd, wrong, good.body.payload()).is_err(), "{wrong}");
    }
}

/// Stored forms of every kind that the codecs write, with the value they stand for.
fn stored_kinds() -> Vec<(&'static str, KeyspaceCodec, Vec<u8>, Vec<u8>)> {
    let (with_dictionary, dictionaries, _) = trained(sessions(1, 1500));
    now(dictionaries.publish(&Store::default())).expect("stored");
    let header = Header {
        schema: Some(2),
        soft_expiry: Some(SoftExpiry::at_remaining(Duration::from_secs(9))),
        ..Header::default()
    };
    let order = Records::new(4).one_order();
    let none = CodecConfig { algorithm: CompressionAlgorithm::None, ..CodecConfig::default() };
    let codec = |config| KeyspaceCodec::new(config, Arc::default());
    [
        ("plain", codec(none), b"a value".to_vec()),
        ("lz4", codec(CodecConfig { min_bytes: 0, min_saving_percent: 0, ..lz4() }), order.clone()),
        ("zstd", codec(zstd(0)), order),
        ("dictionary", with_dictionary, Records::new(4).session()),
    ]
    .into_iter()
    .map(|(name, codec, value)| {
        let stored = codec.seal(KEY, &header, &value);
        assert_eq!(stored.outcome().is_ok(), name != "plain", "{name}: {:?}", stored.outcome());
        assert_eq!(codec.open(KEY, stored.as_bytes()).expect("sound").value, value, "{name}");
        (name, codec, stored.into_bytes(), value)
    })
    .collect()
}

#[test]
fn no_bit_of_any_stored_form_can_flip_without_being_a_miss() {
    for (name, codec, stored, _) in stored_kinds() {
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let opened = codec.open(KEY, &damaged);
            assert!(opened.is_err(), "{name}: bit {bit} gives {opened:?}");
        }
    }
}

#[test]
fn a_damaged_payload_under_a_sound_checksum_does_no_harm() {
    // What a checksum of 32 bits lets through once in four billion: the decompressors must stand it alone.
    for (name, codec, stored, value) in stored_kinds() {
        let Ok(Stored::Enveloped(envelope)) = envelope::open(KEY, &stored) else { panic!("an envelope") };
        let length = usize::try_from(envelope.body.declared_length()).expect("small");
        for bit in 0..envelope.body.payload().len() * 8 {
            let mut payload = envelope.body.payload().to_vec();
            payload[bit / 8] ^= 1 << (bit % 8);
            let body = Body::compressed(envelope.body.encoding(), length, &payload);
            if let Ok(opened) = codec.open(KEY, &seal(KEY, &envelope.header, body)) {
                assert_eq!(opened.value.len(), value.len(), "{name}: bit {bit}");
            }
        }
    }
}

fn store_for_good(directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let (with_dictionary, dictionaries, dictionary) = {
        let dictionaries = Arc::new(Dictionaries::default());
        let small = TrainingConfig { dictionary_bytes: 2048, ..TrainingConfig::default() };
        let codec = KeyspaceCodec::with_training(zstd(0), dictionaries.clone(), small, 3);
        sessions(1, 1500).for_each(|value| drop(codec.compress(&value)));
        let dictionary = codec.train().expect("records have much in common");
        (codec, dictionaries, dictionary)
    };
    now(dictionaries.publish(&Store::default())).expect("stored");
    // Some sessions: long enough that every algorithm finds something.
    let value = sessions(9, 8).collect::<Vec<_>>().join(&b'\n');
    fs::write(directory.join("value.jsonl"), &value)?;
    fs::write(directory.join("dictionary"), dictionary.content())?;
    let none = CodecConfig { algorithm: CompressionAlgorithm::None, ..CodecConfig::default() };
    for (name, codec) in [
        ("none", KeyspaceCodec::new(none, Arc::default())),
        ("lz4", KeyspaceCodec::new(CodecConfig { min_bytes: 0, min_saving_percent: 0, ..lz4() }, Arc::default())),
        ("zstd", KeyspaceCodec::new(zstd(0), Arc::default())),
        ("zstd-dictionary", with_dictionary),
    ] {
        fs::write(directory.join(name), codec.seal(KEY, &Header::default(), &value).as_bytes())?;
    }
    Ok(())
}

/// A value that no build may ever fail to read: one file per codec, and the dictionary.
#[test]
fn what_released_builds_stored_can_be_read() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/values");
    if std::env::var_os("CADDY_NEW_GOLDEN").is_some() && !directory.exists() {
        store_for_good(&directory).expect("the golden directory can be written");
    }
    let value = fs::read(directory.join("value.jsonl")).expect("golden");
    let dictionaries = Arc::new(Dictionaries::default());
    let dictionary = fs::read(directory.join("dictionary")).expect("golden");
    let dictionary = dictionaries.insert(Dictionary::new(&dictionary).expect("a sound dictionary"));
    let codec = KeyspaceCodec::new(zstd(0), dictionaries);
    for (name, encoding) in [
        ("none", Encoding::None),
        ("lz4", Encoding::Lz4),
        ("zstd", Encoding::Zstd),
        ("zstd-dictionary", Encoding::ZstdDictionary(dictionary.id())),
    ] {
        let stored = fs::read(directory.join(name)).expect("golden");
        let Ok(Stored::Enveloped(envelope)) = envelope::open(KEY, &stored) else { panic!("{name}: no envelope") };
        assert_eq!(envelope.body.encoding(), encoding, "{name}");
        assert_eq!(codec.open(KEY, &stored).expect("sound").value, value, "{name}");
    }
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
struct User {
    id: u64,
    name: String,
    tags: Vec<String>,
}

fn ada() -> User {
    User { id: 1, name: "Ada".into(), tags: vec!["maths".into(), "poetry".into()] }
}

#[test]
fn typed_values_come_back_with_their_metadata_or_not_at_all() {
    let codec = BinaryCodec::<User>::new(CodecConfig::default());
    let fence = Some(envelope::Fence { epoch: 1, counter: 2 });
    let stored = codec.encode_with(KEY, &Header { fence, ..Header::default() }, &ada()).expect("encodes");
    let (user, header) = codec.decode_with(KEY, stored.as_bytes()).expect("sound");
    assert_eq!((user, header.fence), (ada(), fence));

    assert_eq!(codec.decode(KEY, b"plain"), Err(CodecError::NotEnveloped));
    let longer = BinaryCodec::<(User, u8)>::new(CodecConfig::default()).encode(KEY, &(ada(), 7)).expect("encodes");
    assert_eq!(codec.decode(KEY, longer.as_bytes()), Err(CodecError::TrailingBytes { bytes: 1 }));
    let shorter = BinaryCodec::<u64>::new(CodecConfig::default()).encode(KEY, &7).expect("encodes");
    assert!(matches!(codec.decode(KEY, shorter.as_bytes()), Err(CodecError::Deserialize { .. })));
    let versioned = VersionedCodec::<User>::new(3, CodecConfig::default()).encode(KEY, &ada()).expect("encodes");
    assert_eq!(codec.decode(KEY, versioned.as_bytes()), Err(CodecError::UnexpectedSchema { schema: 3 }));
}

#[test]
fn a_length_that_a_value_only_claims_is_not_believed() {
    let claims = super::typed::serialize(&(u64::MAX >> 1)).expect("encodes");
    let sealed = KeyspaceCodec::new(lz4(), Arc::default()).seal(KEY, &Header::default(), &claims).into_bytes();
    assert!(BinaryCodec::<Vec<[u64; 32]>>::new(lz4()).decode(KEY, &sealed).is_err());
    assert!(BinaryCodec::<String>::new(lz4()).decode(KEY, &sealed).is_err());
    assert!(BinaryCodec::<HashMap<u64, u64>>::new(lz4()).decode(KEY, &sealed).is_err());
}

#[test]
fn every_version_with_an_upgrade_is_read_and_no_other() {
    let config = CodecConfig::default();
    let bare = BinaryCodec::<u64>::new(config).encode(KEY, &1).expect("encodes");
    let first = VersionedCodec::<(u64, String)>::new(1, config).encode(KEY, &(1, "Ada".into())).expect("encodes");
    let refused = VersionedCodec::<u8>::new(2, config).encode(KEY, &7).expect("encodes");
    let newer = VersionedCodec::<User>::new(4, config).encode(KEY, &ada()).expect("encodes");
    let user = |id, name| User { id, name, tags: vec![] };
    let codec = VersionedCodec::<User>::new(3, config)
        .upgrade_unversioned(move |id: u64| user(id, String::new()))
        .and_then(|codec| codec.upgrade(1, move |(id, name): (u64, String)| user(id, name)))
        .and_then(|codec| codec.try_upgrade(2, |code: u8| Err(format!("no user has code {code}"))))
        .expect("each once");

    assert_eq!(codec.decode(KEY, bare.as_bytes()), Ok(user(1, String::new())));
    assert_eq!(codec.decode(KEY, first.as_bytes()), Ok(user(1, "Ada".into())));
    let reason = "no user has code 7".to_owned();
    assert_eq!(codec.decode(KEY, refused.as_bytes()), Err(CodecError::Upgrade { schema: Some(2), reason }));
    let unknown = CodecError::UnknownSchema { schema: Some(4), current: 3 };
    assert_eq!(codec.decode(KEY, newer.as_bytes()), Err(unknown));
    let own = codec.encode(KEY, &ada()).expect("encodes");
    assert_eq!(codec.decode(KEY, own.as_bytes()), Ok(ada()));

    let twice = codec.upgrade(1, |_: u8| ada()).err();
    assert_eq!(twice, Some(CodecError::DuplicateSchema { schema: Some(1) }));
    assert!(VersionedCodec::<User>::new(3, config).upgrade(3, |_: u8| ada()).is_err());
}

#[test]
fn tracking_counts_values_bytes_failures_and_time() {
    /// A codec that takes a second.
    struct Slow(Arc<ManualClock>, BinaryCodec<User>);
    impl Codec<User> for Slow {
        fn encode_with(&self, key: &[u8], header: &Header<'_>, value: &User) -> Result<EncodedData, CodecError> {
            self.0.advance(Duration::from_secs(1));
            self.1.encode_with(key, header, value)
        }
        fn decode_with<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<(User, Header<'a>), CodecError> {
            self.0.advance(Duration::from_secs(2));
            self.1.decode_with(key, stored)
        }
    }
    let clock = Arc::new(ManualClock::default());
    let slow = Slow(clock.clone(), BinaryCodec::new(CodecConfig::default()));
    let codec = TrackedCodec::with_clock(slow, clock);
    let stored = codec.encode(KEY, &ada()).expect("encodes");
    let _ = codec.decode(KEY, stored.as_bytes());
    let _ = codec.decode(b"other", stored.as_bytes());
    let _ = codec.decode(KEY, b"plain");

    let stats = codec.stats();
    assert_eq!((stats.encoded, stats.decoded, stats.kept_by_rule, stats.compressed), (1, 1, 1, 0));
    assert_eq!(stats.stored_bytes, stats.payload_bytes + 8);
    assert_eq!((stats.encoding, stats.decoding), (Duration::from_secs(1), Duration::from_secs(6)));
    let failures: Vec<u64> = FailureCause::ALL.iter().map(|cause| stats.failures(*cause)).collect();
    assert_eq!(failures, [1, 0, 0, 0, 0, 1, 0]);
    let _ = TrackedCodec::<User, _, BootClock>::new(BinaryCodec::<User>::new(CodecConfig::default()));
}

#[test]
fn a_codec_without_samples_says_so() {
    let codec = KeyspaceCodec::new(zstd(0), Arc::default());
    assert!(matches!(codec.train(), Err(TrainingError::NotConfigured)));
    let codec = KeyspaceCodec::with_training(zstd(0), Arc::default(), TrainingConfig::default(), 1);
    let _ = codec.compress(&[b'x'; 500]);
    // Asked too early, it keeps what it has.
    for _ in 0..2 {
        assert!(matches!(codec.train(), Err(TrainingError::TooFewSamples { samples: 1 })));
    }
}

proptest! {
    #[test]
    fn any_value_under_any_rules_comes_back(
        key: Vec<u8>, seed: u64, bytes in 0..20_000_usize, noisy: bool, level in -9..25_i32, use_lz4: bool,
    ) {
        let algorithm = if use_lz4 { CompressionAlgorithm::Lz4 } else { CompressionAlgorithm::Zstd { level } };
        let config = CodecConfig { algorithm, min_bytes: 0, min_saving_percent: 0, ..CodecConfig::default() };
        let codec = KeyspaceCodec::new(config, Arc::default());
        let mut records = Records::new(seed);
        let mut value = if noisy { records.noise(bytes) } else { records.orders(bytes) };
        value.truncate(bytes);
        for stored in [codec.store(&key, &Header::default(), &value), codec.seal(&key, &Header::default(), &value)] {
            prop_assert_eq!(&*codec.open(&key, stored.as_bytes()).expect("sound").value, &value[..]);
        }
        if let Ok(compressed) = codec.compress(&value) {
            prop_assert!(compressed.payload_bytes() < value.len());
            prop_assert_eq!(compressed.decompress(), Ok(value));
        }
    }

    #[test]
    fn arbitrary_payloads_are_an_error_or_as_long_as_declared(
        payload: Vec<u8>, declared in 0..5000_usize, which in 0..3_usize, id: [u8; 8],
    ) {
        let encoding = [Encoding::Lz4, Encoding::Zstd, Encoding::ZstdDictionary(DictionaryId::from_bytes(id))][which];
        let codec = KeyspaceCodec::new(CodecConfig { max_decoded_bytes: 4000, ..lz4() }, Arc::default());
        let stored = seal(KEY, &Header::default(), Body::compressed(encoding, declared, &payload));
        if let Ok(opened) = codec.open(KEY, &stored) {
            prop_assert!(opened.value.len() == declared && declared <= 4000);
        }
    }
}

#[test]
fn a_value_in_memory_with_any_bit_flipped_is_no_value() {
    let value = "{\"name\":\"Ada\",\"language\":\"analytical engine\"}".repeat(20);
    for algorithm in [CompressionAlgorithm::Lz4, CompressionAlgorithm::Zstd { level: 1 }] {
        let codec = KeyspaceCodec::new(
            CodecConfig { algorithm, min_bytes: 64, ..CodecConfig::default() },
            Arc::new(Dictionaries::default()),
        );
        let compressed = codec.compress(value.as_bytes()).unwrap();
        assert_eq!(compressed.decompress().unwrap(), value.as_bytes());
        for bit in 0..compressed.payload_bytes() * 8 {
            let mut damaged = compressed.clone();
            damaged.damage(bit);
            assert_eq!(damaged.decompress(), Err(CompressionError::Checksum), "{algorithm:?}, bit {bit}");
        }
    }
}
