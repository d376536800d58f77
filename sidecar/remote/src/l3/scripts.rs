//! What Redis does in one step for a lease: Lua, sent whole with each call (short, and no state to keep in step).
//!
//! A lease is a key of its own beside the key that is loaded. It is given once at a time, runs out by itself, and every
//! write, removal and expiry through a [`RedisRemote`](super::RedisRemote) removes it in the same transaction.

use std::hash::{BuildHasher, RandomState};

use caddy_resp::encode;

/// A script; its keys are the key and its lease, in that order.
pub(super) struct Script(&'static str);

/// `ARGV`: the lease's id, its milliseconds. Answers 1 and what is stored, or 0: somebody has it.
pub(super) const CLAIM: Script = Script(
    "if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {1, redis.call('GET', KEYS[1])} end \
     return {0}",
);

/// `ARGV`: the lease's id, whether something was stored when it was given, that, the value, its milliseconds or nothing.
/// A write by somebody who knows nothing of leases shows in that the key is not as it was.
pub(super) const STORE: Script = Script(
    "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end \
     local present = redis.call('GET', KEYS[1]) \
     if ARGV[2] == '0' then if present then return 0 end elseif present ~= ARGV[3] then return 0 end \
     if ARGV[5] == '' then redis.call('SET', KEYS[1], ARGV[4]) else redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5]) end \
     redis.call('DEL', KEYS[2]) return 1",
);

/// `ARGV`: what is stored, for how many milliseconds it may stay.
pub(super) const EXPIRE: Script = Script(
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
     redis.call('PEXPIRE', KEYS[1], ARGV[2]) redis.call('DEL', KEYS[2]) return 1",
);

/// Its only key is the lease. `ARGV`: its id.
pub(super) const RELEASE: Script =
    Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0");

impl Script {
    pub(super) fn write(&self, out: &mut Vec<u8>, keys: &[&[u8]], arguments: &[&[u8]]) {
        let count = keys.len().to_string();
        let mut command: Vec<&[u8]> = vec![b"EVAL", self.0.as_bytes(), count.as_bytes()];
        command.extend_from_slice(keys);
        command.extend_from_slice(arguments);
        encode::command(out, command);
    }
}

/// 128 random bits.
pub(super) fn unique() -> u128 {
    // Each `RandomState` has a key of its own, made from random bits; the hash of a constant under it is as random.
    let half = || u128::from(RandomState::new().hash_one(0));
    half() << 64 | half()
}

pub(super) fn hex(id: u128) -> String {
    format!("{id:032x}")
}

/// A pattern that matches what begins with `prefix`, whatever characters are in it.
pub(super) fn literal(prefix: &str) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for byte in prefix.bytes() {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_do_not_repeat() {
        let ids: std::collections::HashSet<u128> = (0..10_000).map(|_| unique()).collect();
        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn a_prefix_is_matched_literally() {
        assert_eq!(literal("a*b[c]:"), b"a\\*b\\[c\\]:*");
    }
}
