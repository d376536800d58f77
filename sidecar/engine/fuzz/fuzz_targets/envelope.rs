//! Arbitrary stored bytes are a plain value, an error, or an envelope that sealed again is the same bytes; also when
//! the checksum was made to fit.
#![no_main]

use caddy_engine::codec::envelope::{self, MAGIC, Stored};
use libfuzzer_sys::fuzz_target;

fn check(key: &[u8], stored: &[u8]) {
    match envelope::open(key, stored) {
        Ok(Stored::Plain(value)) => assert_eq!(value, stored),
        Ok(Stored::Enveloped(opened)) => {
            let _ = opened.header.generations.iter().count();
            assert_eq!(envelope::seal(key, &opened.header, opened.body), stored);
        }
        Err(_) => {}
    }
}

fuzz_target!(|input: (&[u8], u8, u8, &[u8])| {
    let (key, version_and_codec, flags, rest) = input;
    check(key, rest);
    let head = [MAGIC[0], MAGIC[1], version_and_codec, flags];
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&head), key), rest);
    check(key, &[&head, &sum.to_le_bytes(), rest].concat());
});
