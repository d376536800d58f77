//! Arbitrary stored bytes are a plain value, an error, or an envelope that sealed again is the same bytes; also when
//! the checksum was made to fit.

use caddy_engine::codec::envelope::{self, MAGIC, PLAIN_HEADER_BYTES, Stored};

const KEY: &[u8] = b"key";

pub(crate) fn check(input: &[u8]) {
    open(input);
    let Some((head, rest)) = input.split_at_checked(PLAIN_HEADER_BYTES) else { return };
    let head = [MAGIC[0], MAGIC[1], head[2], head[3]];
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&head), KEY), rest);
    open(&[&head, &sum.to_le_bytes(), rest].concat());
}

fn open(stored: &[u8]) {
    match envelope::open(KEY, stored) {
        Ok(Stored::Plain(value)) => assert_eq!(value, stored),
        Ok(Stored::Enveloped(opened)) => {
            let _ = opened.header.generations.iter().count();
            assert_eq!(envelope::seal(KEY, &opened.header, opened.body), stored);
        }
        Err(_) => {}
    }
}
