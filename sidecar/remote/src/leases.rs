//! Fill leases: the scripts by which exactly one of many may store what it loads, and only if nothing came between.
//!
//! A lease is a key of its own beside the key that is loaded: it is given once at a time, runs out by itself, and whoever
//! writes or removes the key removes it in the same step. Owns what Redis does in one step, as Lua sent whole with each
//! call (short, and no state to keep in step), and the names of leases. Sends nothing.

use std::hash::{BuildHasher, RandomState};

use caddy_resp::encode;

use crate::cluster;

/// A script; its keys are the key and its lease, in that order.
#[derive(Debug, Clone, Copy)]
pub struct Script(&'static str);

/// `ARGV`: the lease's id, its milliseconds. Answers whether it was given (1) or somebody has it (0), what is stored (or
/// nil), and its PTTL.
pub const CLAIM: Script = Script(
    "local given = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0 \
     return {given, redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}",
);

/// `ARGV`: the lease's id, whether something was stored when it was given, that, the value, its milliseconds or nothing.
/// A write by somebody who knows nothing of leases shows in that the key is not as it was. Answers 1, or why it did not
/// store: 0, there is another value now; -1, there is none.
pub const STORE: Script = Script(
    "local present = redis.call('GET', KEYS[1]) \
     local refused = present and 0 or -1 \
     if redis.call('GET', KEYS[2]) ~= ARGV[1] then return refused end \
     if ARGV[2] == '0' then if present then return refused end elseif present ~= ARGV[3] then return refused end \
     if ARGV[5] == '' then redis.call('SET', KEYS[1], ARGV[4]) else redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5]) end \
     redis.call('DEL', KEYS[2]) return 1",
);

/// `ARGV`: the lease's id, what was stored when it was given. Removes that; answers as [`STORE`].
pub const REMOVE: Script = Script(
    "local present = redis.call('GET', KEYS[1]) \
     if redis.call('GET', KEYS[2]) ~= ARGV[1] or present ~= ARGV[2] then return present and 0 or -1 end \
     redis.call('DEL', KEYS[1], KEYS[2]) return 1",
);

/// `ARGV`: the lease's id. Gives it back; answers what is stored.
pub const END: Script = Script(
    "if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end return redis.call('GET', KEYS[1])",
);

/// Answers what is stored and its PTTL.
pub const READ: Script = Script("return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}");

/// `ARGV`: what is stored, for how many milliseconds it may stay.
pub(crate) const EXPIRE: Script = Script(
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
     redis.call('PEXPIRE', KEYS[1], ARGV[2]) redis.call('DEL', KEYS[2]) return 1",
);

/// Its only key is the lease. `ARGV`: its id.
pub const RELEASE: Script =
    Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0");

impl Script {
    pub(crate) const fn new(source: &'static str) -> Self {
        Self(source)
    }

    /// Appends the call.
    pub fn write(&self, out: &mut Vec<u8>, keys: &[&[u8]], arguments: &[&[u8]]) {
        let count = keys.len().to_string();
        let mut command: Vec<&[u8]> = vec![b"EVAL", self.0.as_bytes(), count.as_bytes()];
        command.extend_from_slice(keys);
        command.extend_from_slice(arguments);
        encode::command(out, command);
    }
}

/// What is between a domain and a key in the name of the key's lease.
const LEASE: &str = "lease:";

/// The name of a key's lease in a domain. In a cluster it is in the key's slot, whatever the key's own hash tag is.
pub fn name(domain: &str, key: &[u8], in_cluster: bool) -> Vec<u8> {
    beside(domain, LEASE, key, in_cluster)
}

/// The name of something of this kind that belongs to a key, in the key's slot.
pub(crate) fn beside(domain: &str, kind: &str, key: &[u8], in_cluster: bool) -> Vec<u8> {
    let mut name = format!("caddy:{domain}:").into_bytes();
    if in_cluster {
        name.extend_from_slice(format!("{{{}}}:", cluster::tag_of(cluster::slot_of(key))).as_bytes());
    }
    name.extend_from_slice(kind.as_bytes());
    name.extend_from_slice(key);
    name
}

/// The key that a lease of a domain is for; `None`: the name is no lease's.
pub fn key_of<'a>(domain: &str, name: &'a [u8], in_cluster: bool) -> Option<&'a [u8]> {
    let mut rest = name.strip_prefix(b"caddy:")?.strip_prefix(domain.as_bytes())?.strip_prefix(b":")?;
    if in_cluster {
        let end = rest.strip_prefix(b"{")?.iter().position(|byte| *byte == b'}')?;
        rest = rest.get(end + 2..)?.strip_prefix(b":")?;
    }
    rest.strip_prefix(LEASE.as_bytes())
}

/// 128 random bits.
pub fn unique() -> u128 {
    // Each `RandomState` has a key of its own, made from random bits; the hash of a constant under it is as random.
    let half = || u128::from(RandomState::new().hash_one(0));
    half() << 64 | half()
}

/// As text, as it is stored.
pub fn hex(id: u128) -> String {
    format!("{id:032x}")
}

/// A pattern that matches what begins with `prefix`, whatever characters are in it.
pub(crate) fn literal(prefix: &str) -> Vec<u8> {
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
    fn a_lease_is_in_the_slot_of_its_key() {
        for key in ["plain", "{tag}rest", "a}b", "{}x", "{", "user:{7}:name"] {
            let name = name("shop.web", key.as_bytes(), true);
            assert_eq!(cluster::slot_of(&name), cluster::slot_of(key.as_bytes()), "{key}");
            assert_eq!(key_of("shop.web", &name, true), Some(key.as_bytes()));
            assert_eq!(
                key_of("shop.web", &super::name("shop.web", key.as_bytes(), false), false),
                Some(key.as_bytes())
            );
        }
        assert_eq!(name("d", b"k", false), b"caddy:d:lease:k");
        for other in [&b"k"[..], b"caddy:d:g:a", b"caddy:e:lease:k", b"caddy:d:{7}:lease:k"] {
            assert_eq!(key_of("d", other, false), None, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_prefix_is_matched_literally() {
        assert_eq!(literal("a*b[c]:"), b"a\\*b\\[c\\]:*");
    }
}
