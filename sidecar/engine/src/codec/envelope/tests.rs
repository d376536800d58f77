//! The envelope held to golden vectors, to damage of every byte, and to arbitrary bytes.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

const KEY: &[u8] = b"user:1";

/// One of every kind. The names are those of the golden files; what is here never changes once it was released.
fn kinds(mut check: impl FnMut(&str, &Header<'_>, Body<'_>)) {
    let plain = Header::default();
    let mut list = GenerationList::default();
    for (name, byte) in [(GenerationName::Name(b"t:news"), 1), (GenerationName::Id(513), 2)] {
        list.push(Generation { name, value: GenerationValue([byte; 16]) }).expect("a short list");
    }
    let soft_expiry = Some(SoftExpiry::at_remaining(Duration::from_mins(1)));
    let fence = Some(Fence { epoch: 7, counter: 1_760_000_000_000_001 });
    let full = Header { schema: Some(300), soft_expiry, generations: list.generations(), fence };
    let text = b"to be, or not to be";

    check("plain", &plain, Body::plain(text));
    check("empty", &plain, Body::plain(b""));
    check("magic", &plain, Body::plain(&[0xc1, 0xca, 0x10]));
    check("schema", &Header { schema: Some(1), ..plain }, Body::plain(text));
    check("soft-expiry", &Header { soft_expiry, ..plain }, Body::plain(text));
    check("generations", &Header { generations: list.generations(), ..plain }, Body::plain(text));
    check("fence", &Header { fence, ..plain }, Body::plain(text));
    check("full", &full, Body::plain(text));
    // Of these the payload is only carried here; that it can be decoded is the business of `codec::tests`.
    check("lz4", &plain, Body::compressed(Encoding::Lz4, 40, b"\x14abcd\x04\x00\x0f"));
    check("zstd", &full, Body::compressed(Encoding::Zstd, 300, b"frame"));
    let id = DictionaryId::from_bytes(*b"\x01\x02\x03\x04\x05\x06\x07\x08");
    check("dictionary", &plain, Body::compressed(Encoding::ZstdDictionary(id), 100, b"frame"));
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/envelope").join(name).with_extension("hex")
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(32).fold(String::new(), |mut text, line| {
        for byte in line {
            let _ = write!(text, "{byte:02x}");
        }
        text + "\n"
    })
}

#[test]
fn every_kind_is_written_as_its_golden_file_has_it() {
    let mut names = Vec::new();
    kinds(|name, header, body| {
        let sealed = seal(KEY, header, body);
        let path = golden(name);
        if std::env::var_os("CADDY_NEW_GOLDEN").is_some() && !path.exists() {
            fs::write(&path, hex(&sealed)).expect("the golden directory can be written");
        }
        let expected = fs::read_to_string(&path).expect("a golden file, made with CADDY_NEW_GOLDEN=1");
        assert_eq!(hex(&sealed), expected, "{name}");
        assert_eq!(open(KEY, &sealed), Ok(Stored::Enveloped(Envelope { header: *header, body })), "{name}");
        names.push(path);
    });
    let directory = golden("plain");
    let files = fs::read_dir(directory.parent().expect("a directory")).expect("a directory").count();
    assert_eq!(files, names.len(), "a golden file without its kind");
}

#[test]
fn the_plain_header_takes_eight_bytes_and_a_full_one_says_what_went_in() {
    assert_eq!(seal(KEY, &Header::default(), Body::plain(b"")).len(), PLAIN_HEADER_BYTES);
    assert_eq!(PLAIN_HEADER_BYTES, 8);
}

#[test]
fn no_byte_of_any_kind_can_be_changed_without_being_noticed() {
    kinds(|name, header, body| {
        let sealed = seal(KEY, header, body);
        for position in 0..sealed.len() {
            for change in 1..=u8::MAX {
                let mut damaged = sealed.clone();
                damaged[position] ^= change;
                let opened = open(KEY, &damaged);
                assert!(opened.is_err(), "{name}: byte {position} ^ {change:#x} gives {opened:?}");
            }
        }
    });
}

#[test]
fn no_kind_can_be_cut_or_lengthened_or_moved_to_another_key() {
    kinds(|name, header, body| {
        let sealed = seal(KEY, header, body);
        for length in MAGIC.len()..sealed.len() {
            assert!(open(KEY, &sealed[..length]).is_err(), "{name} cut to {length}");
        }
        for more in [&b"\0"[..], b"x", &sealed] {
            assert!(open(KEY, &[&sealed, more].concat()).is_err(), "{name} lengthened");
        }
        for key in [&b""[..], b"user:2", b"user:", b"user:11"] {
            assert_eq!(open(key, &sealed), Err(EnvelopeError::Checksum), "{name} under {key:?}");
        }
    });
}

/// An envelope with a sound checksum, whatever it says.
fn forged(version_and_codec: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
    let head = [MAGIC[0], MAGIC[1], version_and_codec, flags];
    [&head, &checksum(KEY, head, rest).to_le_bytes()[..], rest].concat()
}

#[test]
fn what_a_newer_build_wrote_is_told_by_name() {
    use EnvelopeError::{Malformed, UnknownCodec, UnknownFlags, UnknownGenerationKind, UnknownVersion};
    for (stored, expected) in [
        (forged(0x20, 0, b""), UnknownVersion { version: 2 }),
        (forged(0x00, 0, b""), UnknownVersion { version: 0 }),
        (forged(0x10, 0x40, b""), UnknownFlags { flags: 0x40 }),
        (forged(0x14, FLAG_LENGTH, b"\x05"), UnknownCodec { codec: 4 }),
        (forged(0x10, FLAG_GENERATIONS, b"\x02\x09\x00"), UnknownGenerationKind { kind: 9 }),
        (forged(0x10, FLAG_GENERATIONS, b"\x00"), Malformed { part: "generations" }),
        (forged(0x10, FLAG_GENERATIONS, b"\x02\x00\x10"), Malformed { part: "generations" }),
        (forged(0x10, FLAG_GENERATIONS, b"\xff\xff\xff\xff\x0f"), Malformed { part: "generations" }),
        (forged(0x10, FLAG_SCHEMA, b"\x80\x00"), Malformed { part: "schema version" }),
        (forged(0x10, FLAG_SCHEMA, b"\xff\xff\xff\xff\x1f"), Malformed { part: "schema version" }),
        (forged(0x10, FLAG_SOFT_EXPIRY, b""), Malformed { part: "soft expiry" }),
        (forged(0x10, FLAG_FENCE, &[0; 15]), Malformed { part: "fence" }),
        (forged(0x10, FLAG_LENGTH, b"\x05"), Malformed { part: "length" }),
        (forged(0x11, 0, b"\x05"), Malformed { part: "length" }),
        (forged(0x13, FLAG_LENGTH, &[5; 8]), Malformed { part: "dictionary id" }),
    ] {
        assert_eq!(open(KEY, &stored), Err(expected), "{stored:x?}");
    }
}

#[test]
fn a_plain_value_is_plain_even_if_it_shares_a_byte_with_the_magic() {
    for value in [&b""[..], b"\xc1", b"\xc1x", b"\xc1\xc1\xc1\xc1\xc1\xc1\xc1\xc1\xc1", b"x\xca1234567890", b"12345678"]
    {
        assert!(!needs_envelope(value));
        assert_eq!(open(KEY, value), Ok(Stored::Plain(value)));
    }
    assert!(needs_envelope(&MAGIC));
    assert_eq!(open(KEY, &MAGIC), Err(EnvelopeError::Truncated));
}

#[test]
fn a_list_of_generations_is_bounded_and_unharmed_by_what_does_not_fit() {
    let mut list = GenerationList::default();
    let generation = |name| Generation { name: GenerationName::Name(name), value: GenerationValue([9; 16]) };
    let long = vec![b'x'; MAX_GENERATION_BYTES];
    assert_eq!(list.push(generation(&long)), Err(EnvelopeError::TooManyGenerations));
    while list.push(generation(b"t:some-tag")).is_ok() {}
    let count = list.generations().iter().count();
    assert_eq!(count, MAX_GENERATION_BYTES / 28);
    let sealed = seal(KEY, &Header { generations: list.generations(), ..Header::default() }, Body::plain(b"v"));
    let Ok(Stored::Enveloped(opened)) = open(KEY, &sealed) else { panic!("a full list can be read") };
    assert_eq!(opened.header.generations.iter().count(), count);
}

#[test]
fn a_value_is_stale_by_the_life_it_has_left() {
    let expiry = SoftExpiry::at_remaining(Duration::from_mins(1));
    assert!(!expiry.is_past(Some(Duration::from_millis(60_001))));
    assert!(expiry.is_past(Some(Duration::from_mins(1))));
    assert!(!expiry.is_past(None));
    assert_eq!(SoftExpiry::at_remaining(Duration::MAX).remaining(), Duration::from_millis(u64::MAX));
}

prop_compose! {
    fn names()(names in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<Option<u64>>(), any::<[u8; 16]>()), 0..5)) -> GenerationList {
        let mut list = GenerationList::default();
        for (name, id, value) in &names {
            let name = id.map_or(GenerationName::Name(name), GenerationName::Id);
            list.push(Generation { name, value: GenerationValue(*value) }).expect("a short list");
        }
        list
    }
}

proptest! {
    #[test]
    fn whatever_goes_in_comes_out(
        key: Vec<u8>, schema: Option<u32>, millis: Option<u64>, list in names(), fence: Option<(u64, u64)>,
        payload: Vec<u8>, length: usize, codec in 0..4_u8, id: [u8; 8],
    ) {
        let fence = fence.map(|(epoch, counter)| Fence { epoch, counter });
        let soft_expiry = millis.map(|millis| SoftExpiry { millis });
        let header = Header { schema, soft_expiry, generations: list.generations(), fence };
        let id = DictionaryId::from_bytes(id);
        let encoding =
            [Encoding::None, Encoding::Lz4, Encoding::Zstd, Encoding::ZstdDictionary(id)][usize::from(codec)];
        let body = Body::compressed(encoding, length, &payload);
        let sealed = seal(&key, &header, body);
        prop_assert_eq!(open(&key, &sealed), Ok(Stored::Enveloped(Envelope { header, body })));
    }

    #[test]
    fn arbitrary_bytes_are_plain_or_an_error(key: Vec<u8>, bytes: Vec<u8>, as_envelope: bool) {
        let bytes = if as_envelope { [&MAGIC[..], &bytes].concat() } else { bytes };
        match open(&key, &bytes) {
            Ok(Stored::Plain(value)) => prop_assert_eq!(value, &bytes[..]),
            Ok(Stored::Enveloped(envelope)) => prop_assert_eq!(seal(&key, &envelope.header, envelope.body), bytes),
            Err(_) => {}
        }
    }

    #[test]
    fn sections_of_arbitrary_bytes_have_one_form(codec in 0..5_u8, flags in 0..64_u8, rest: Vec<u8>) {
        let bytes = forged(0x10 | codec, flags, &rest);
        match open(KEY, &bytes) {
            Ok(Stored::Enveloped(envelope)) => prop_assert_eq!(seal(KEY, &envelope.header, envelope.body), bytes),
            Ok(Stored::Plain(_)) => prop_assert!(false, "an envelope is not plain"),
            Err(_) => {}
        }
    }
}
