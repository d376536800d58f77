//! What stands in L3 under a generation's key: 128 random bits, the parents of the key that it is about, and the values that it
//! had before it was expired.
//!
//! Owns that form, and the scripts that change it in one step. Sends nothing. What is cut off is left out, never an error.

use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use caddy_engine::codec::envelope::GenerationValue;

use super::Domain;

pub(super) const VALUE_BYTES: usize = 16;

/// The parents of a key, as they stand beside its generation's value: each behind its length.
pub(crate) fn parents_to_bytes<'a>(parents: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
    let mut out = Vec::new();
    for parent in parents {
        out.extend_from_slice(&(parent.len() as u32).to_le_bytes());
        out.extend_from_slice(parent);
    }
    out.into()
}

/// The way back; what is cut off is left out.
pub(crate) fn parents_of_bytes(bytes: &[u8]) -> Vec<&[u8]> {
    split(bytes).0
}

/// What stands beside a generation's value of parents alone, as [`parents_to_bytes`] writes it.
pub(crate) fn parents_within(detail: &[u8]) -> &[u8] {
    &detail[..split(detail).1]
}

/// Whether a generation had this value before it was expired: what carries it is stale, and not gone.
pub(crate) fn was(detail: &[u8], value: &GenerationValue) -> bool {
    let former = detail.get(split(detail).1 + FORMER.len()..).unwrap_or_default();
    former.chunks_exact(VALUE_BYTES).any(|before| before == value.0)
}

/// The parents, and where they end.
fn split(detail: &[u8]) -> (Vec<&[u8]>, usize) {
    let (mut parents, mut bytes) = (Vec::new(), detail);
    while let Some((length, rest)) = bytes.split_first_chunk()
        && *length != FORMER
        && let Some((parent, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)
    {
        parents.push(parent);
        bytes = rest;
    }
    (parents, detail.len() - bytes.len())
}

/// Behind it stand the values that a generation had before it was expired, the last one first. It is no length of a parent.
const FORMER: [u8; 4] = [0xff; 4];

/// What is done to keys whose values are to be stale: `ARGV` has a new value for each that is a generation, and nothing for
/// the others. A value without a time of staleness is removed; so are all that somebody's own bytes are. Answers how many
/// there were.
const EXPIRE: &str = "local function varint(v, at) local n, unit = 0, 1 repeat \
     local b = string.byte(v, at) or 0 n = n + (b % 128) * unit unit = unit * 128 at = at + 1 until b < 128 return n, at end \
     local count = 0 \
     for i = 1, #KEYS do if ARGV[i] ~= '' then \
     local v = redis.call('GET', KEYS[i]) \
     if v then local at = 17 \
     while at + 3 <= #v do local a, b, c, d = string.byte(v, at, at + 3) \
     if a + b + c + d == 1020 then break end at = at + 4 + a + b * 256 + c * 65536 + d * 16777216 end \
     redis.call('SET', KEYS[i], ARGV[i] .. string.sub(v, 17, at - 1) .. '\\255\\255\\255\\255' .. string.sub(v, 1, 16) \
     .. string.sub(v, at + 4, at + 3 + 16 * 7), 'KEEPTTL') count = count + 1 end \
     else local v, stale = redis.pcall('GETRANGE', KEYS[i], 0, 31), 0 \
     if type(v) == 'string' and #v > 8 and string.sub(v, 1, 2) == '\\193\\202' then \
     local flags, at = string.byte(v, 4), 9 \
     if flags % 2 == 1 then stale, at = varint(v, at) end \
     stale = flags % 4 >= 2 and varint(v, at) or 0 end \
     if stale == 0 then count = count + redis.call('UNLINK', KEYS[i]) else local left = redis.call('PTTL', KEYS[i]) \
     if left == -1 or left > stale then redis.call('PEXPIRE', KEYS[i], stale) count = count + 1 end end end end \
     return count";

/// Another value for a generation, `ARGV`, if it is there, with the same parents beside it.
pub(super) const RENEW: &str = "local v = redis.call('GET', KEYS[1]) if not v then return 0 end local at = 17 \
     while at + 3 <= #v do local a, b, c, d = string.byte(v, at, at + 3) \
     if a + b + c + d == 1020 then break end at = at + 4 + a + b * 256 + c * 65536 + d * 16777216 end \
     redis.call('SET', KEYS[1], ARGV[1] .. string.sub(v, 17, at - 1), 'KEEPTTL') return 1";

/// What is sent to make the values of keys stale, and whatever carries those among them that are generations.
pub(crate) fn expiring(domain: &Domain, keys: &[&[u8]]) -> Vec<Bytes> {
    let mut words = vec![Bytes::from_static(b"EVAL"), Bytes::from_static(EXPIRE.as_bytes())];
    words.push(Bytes::from(keys.len().to_string()));
    words.extend(keys.iter().map(|key| Bytes::copy_from_slice(key)));
    let value = |key: &&[u8]| if domain.name(key).is_some() { random().to_vec().into() } else { Bytes::new() };
    words.extend(keys.iter().map(value));
    words
}

/// What a generation is made anew, with this beside its value.
pub(crate) fn fresh_value(detail: &[u8]) -> Bytes {
    [&random()[..], detail].concat().into()
}

/// The value at the front of what is stored of a generation.
pub(crate) fn value_of(stored: &[u8]) -> Option<GenerationValue> {
    stored.first_chunk::<VALUE_BYTES>().copied().map(GenerationValue)
}

pub(super) fn random() -> [u8; VALUE_BYTES] {
    // Each `RandomState` has a key of its own, made from random bits; the hash of a constant under it is as random.
    let half = || u128::from(RandomState::new().hash_one(0));
    (half() << 64 | half()).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_back_as_they_were_written() {
        let parents: [&[u8]; 3] = [b"a", b"", b"user:1"];
        assert_eq!(parents_of_bytes(&parents_to_bytes(parents)), parents);
        assert!(parents_of_bytes(b"").is_empty() && parents_of_bytes(b"\x09\0\0\0ab").is_empty());
    }

    #[test]
    fn what_a_generation_was_before_it_was_expired_stands_behind_its_parents() {
        let parents = parents_to_bytes([&b"a"[..], b"\xff\xff\xff\xff"]);
        let detail = [&parents[..], &FORMER, &[7; 16], &[8; 16]].concat();
        assert_eq!(parents_of_bytes(&detail).len(), 2);
        assert_eq!(parents_within(&detail), &parents[..]);
        let was = |byte| was(&detail, &GenerationValue([byte; 16]));
        assert!(was(7) && was(8) && !was(9));
        assert!(!super::was(&parents, &GenerationValue([7; 16])));
    }
}
