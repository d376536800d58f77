//! Records as bytes: length, checksum, body. Pure.
//!
//! ```text
//! segment  records; its salt stands in its file's name
//! record   length of the body (4), CRC-32C over salt, length and body (4), body; all little-endian
//! body     1 seq(8) key length(4) key value   a value for a key
//!          2 seq(8) key length(4) key         no value for a key
//!          3 seq(8)…                          these are stored
//! ```

use bytes::{BufMut, Bytes};
use caddy_engine::strategy::behind::{Record, Write};

const RECORD_HEADER: usize = 8;
/// A longer body is damage. Values of apps are bounded well below.
const MAX_BODY: usize = 1 << 30;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const SETTLED: u8 = 3;

/// What stands in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Record(Record<Bytes, Bytes>),
    Settled(Vec<u64>),
}

pub(super) fn write_record(out: &mut Vec<u8>, salt: u64, record: &Record<Bytes, Bytes>) {
    framed(out, salt, |out| {
        let (kind, value): (u8, &[u8]) = match &record.write {
            Write::Put(value) => (PUT, value),
            Write::Delete => (DELETE, b""),
        };
        out.put_u8(kind);
        out.put_u64_le(record.seq);
        // Keys are parts of requests, whose length is bounded by 32 bits.
        out.put_u32_le(record.key.len() as u32);
        out.put_slice(&record.key);
        out.put_slice(value);
    });
}

pub(super) fn write_settled(out: &mut Vec<u8>, salt: u64, seqs: &[u64]) {
    framed(out, salt, |out| {
        out.put_u8(SETTLED);
        for seq in seqs {
            out.put_u64_le(*seq);
        }
    });
}

fn framed(out: &mut Vec<u8>, salt: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER]);
    body(out);
    let length = (out.len() - start - RECORD_HEADER) as u32;
    let sum = checksum(salt, length.to_le_bytes(), &out[start + RECORD_HEADER..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
}

fn checksum(salt: u64, length: [u8; 4], body: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &length);
    crc32c::crc32c_append(head, body)
}

/// The item at the front of `bytes`, and its length; `None`: there is none that can be read.
pub(super) fn read(bytes: &Bytes, salt: u64) -> Option<(Item, usize)> {
    let length = u32::from_le_bytes(*bytes.first_chunk::<4>()?);
    let body_end = RECORD_HEADER + usize::try_from(length).ok().filter(|length| (9..=MAX_BODY).contains(length))?;
    let sum = u32::from_le_bytes(*bytes.get(4..8)?.first_chunk::<4>()?);
    let body = bytes.get(RECORD_HEADER..body_end)?;
    if checksum(salt, length.to_le_bytes(), body) != sum {
        return None;
    }
    let item = match body[0] {
        SETTLED => {
            let seqs = body[1..].chunks_exact(8).filter_map(|seq| seq.first_chunk::<8>());
            Item::Settled(seqs.map(|seq| u64::from_le_bytes(*seq)).collect())
        }
        kind @ (PUT | DELETE) => {
            let seq = u64::from_le_bytes(*body.get(1..9)?.first_chunk::<8>()?);
            let key_length = u32::from_le_bytes(*body.get(9..13)?.first_chunk::<4>()?) as usize;
            let key_start = RECORD_HEADER + 13;
            let key_end = key_start.checked_add(key_length).filter(|end| *end <= body_end)?;
            let key = bytes.slice(key_start..key_end);
            let write = if kind == PUT { Write::Put(bytes.slice(key_end..body_end)) } else { Write::Delete };
            Item::Record(Record { seq, key, write })
        }
        _ => return None,
    };
    Some((item, body_end))
}
