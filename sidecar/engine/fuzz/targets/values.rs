//! Arbitrary payloads under a sound checksum: an error, or a value exactly as long as declared and within the limit;
//! with and without a dictionary. Arbitrary values come back.

use std::sync::{Arc, LazyLock};

use caddy_engine::codec::envelope::{self, Body, Encoding, Header};
use caddy_engine::codec::{CodecConfig, CompressionAlgorithm, Dictionaries, Dictionary, DictionaryId, KeyspaceCodec};

const LIMIT: usize = 1 << 16;

static CODECS: LazyLock<[KeyspaceCodec; 2]> = LazyLock::new(|| {
    let dictionaries = Arc::new(Dictionaries::default());
    let dictionary = Dictionary::new(include_bytes!("../../golden/values/dictionary")).expect("a sound dictionary");
    let dictionary = dictionaries.insert(dictionary);
    [CompressionAlgorithm::Lz4, CompressionAlgorithm::Zstd { level: 1 }].map(|algorithm| {
        let config = CodecConfig {
            algorithm,
            min_bytes: 0,
            min_bytes_with_dictionary: 0,
            min_saving_percent: 0,
            max_decoded_bytes: LIMIT,
        };
        let codec = KeyspaceCodec::new(config, dictionaries.clone());
        codec.adopt(dictionary.clone()).expect("a sound dictionary");
        codec
    })
});

pub(crate) fn check(input: &[u8]) {
    let Some((&[which, a, b, c], payload)) = input.split_first_chunk() else { return };
    let declared = u32::from_le_bytes([a, b, c, 0]);
    let declared = declared as usize % (2 * LIMIT);
    let known = DictionaryId::of(include_bytes!("../../golden/values/dictionary"));
    let encoding = match which % 4 {
        0 => Encoding::Lz4,
        1 => Encoding::Zstd,
        2 => Encoding::ZstdDictionary(known),
        _ => Encoding::ZstdDictionary(DictionaryId::of(payload)),
    };
    let stored = envelope::seal(b"key", &Header::default(), Body::compressed(encoding, declared, payload));
    if let Ok(opened) = CODECS[0].open(b"key", &stored) {
        assert!(opened.value.len() == declared && declared <= LIMIT);
    }
    for codec in CODECS.iter() {
        let stored = codec.store(b"key", &Header::default(), payload);
        let opened = codec.open(b"key", stored.as_bytes()).expect("what was stored opens");
        assert_eq!(*opened.value, *payload);
        if let Ok(compressed) = codec.compress(payload) {
            assert_eq!(compressed.decompress().expect("what was compressed decompresses"), payload);
        }
    }
}
