//! How invalidations by pattern stand in Redis: names of keys, records, scripts. Pure: it sends nothing.
//!
//! A domain has one *index*, a hash that is there since the first pattern: a random version, and a record for each pattern
//! that is being swept. Everybody reads it under tracking. That it is absent later, or has another version than before,
//! means that it was lost: never that there are no patterns. What was written since a pattern took effect is in the set of its slot
//! ([`Names::written`]), so that neither a reader nor the sweep takes it for older than it is. Each script declares its
//! keys, and all of them are in one slot.

use std::sync::OnceLock;

use bytes::Bytes;
use caddy_engine::invalidation::{KeyPattern, PatternKind};
use caddy_resp::{Value, encode};

use crate::{
    cluster::{SLOTS, slot_of},
    leases,
};

/// Patterns that may be active at a time: each costs every request a match.
pub const MAX_ACTIVE: usize = 64;
/// What all keys of the product begin with: no pattern has them.
pub const RESERVED: &[u8] = b"caddy:";
/// The pattern of a *marker*: a record that no key matches, and by which sidecars acknowledge what came before it.
pub const MARKER: &[u8] = b"caddy:marker";
/// What the ids of markers begin with.
const MARKER_PREFIX: &str = "marker-";
/// How long acknowledgements of a marker are kept, seconds.
const ACKNOWLEDGED_SECONDS: &[u8] = b"86400";
/// The index's field that tells its incarnations apart.
const VERSION: &[u8] = b"version";
/// What the names of fields of patterns that have ended begin with, and for how many seconds these are kept: longer than a
/// sidecar doubts, behind a lost connection, whether a pattern has ended or was lost.
const DONE: &[u8] = b"done:";
const DONE_SECONDS: &[u8] = b"120";
/// What the names of fields of keyspaces begin with in which fill tokens were given out.
const TOKENS: &[u8] = b"tokens:";
/// How long a set of written keys outlives the last write to it, milliseconds: longer than any sweep pauses.
const WRITTEN_MILLIS: &[u8] = b"3600000";

/// Names of the keys of one domain.
#[derive(Debug, Clone)]
pub struct Names {
    /// The index.
    pub index: Bytes,
    /// Who sweeps at the moment; it expires.
    pub sweeper: Bytes,
    /// The stream of events, and the channel of the same name.
    pub events: Bytes,
    prefix: String,
    domain: String,
    /// In a cluster, where keys and what belongs to them have to be in one slot.
    by_slot: bool,
}

impl Names {
    /// Of this domain, in a cluster or not.
    pub fn new(domain: &str, by_slot: bool) -> Self {
        let prefix = format!("caddy:{domain}");
        let named = |kind: &str| Bytes::from(format!("{prefix}:{kind}"));
        Self {
            index: named("ranges"),
            sweeper: named("sweeper"),
            events: named("events"),
            prefix,
            domain: domain.to_owned(),
            by_slot,
        }
    }

    /// The key that a name is the fill lease of, if it is one's.
    pub fn leased<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        leases::key_of(&self.domain, name, self.by_slot)
    }

    /// How far the sweep for a pattern is.
    pub fn progress(&self, id: &str) -> Bytes {
        format!("{}:sweep:{id}", self.prefix).into()
    }

    /// Who has read a marker.
    pub fn acknowledgements(&self, id: &str) -> Bytes {
        format!("{}:acknowledged:{id}", self.prefix).into()
    }

    /// The set of keys, in a cluster those in the same slot as `key`, that were written since a pattern took effect.
    pub fn written(&self, id: &str, key: &[u8]) -> Bytes {
        if !self.by_slot {
            return format!("{}:written:{id}", self.prefix).into();
        }
        format!("{}:{{{}}}:written:{id}", self.prefix, tag_of(slot_of(key))).into()
    }
}

/// A short text for each slot of a cluster that, in braces, puts a key there.
fn tag_of(slot: u16) -> u32 {
    static TAGS: OnceLock<Box<[u32]>> = OnceLock::new();
    let tags = TAGS.get_or_init(|| {
        let mut tags = vec![u32::MAX; usize::from(SLOTS)];
        // Each slot is hit by one of these; a test counts them.
        for n in 0..300_000 {
            let tag = &mut tags[usize::from(slot_of(n.to_string().as_bytes()))];
            *tag = (*tag).min(n);
        }
        tags.into()
    });
    tags[usize::from(slot)]
}

/// A pattern that took effect and is being swept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Tells it from every other one.
    pub id: String,
    /// What it is about.
    pub pattern: KeyPattern,
    /// In which database.
    pub database: u32,
    /// When it took effect, on the clock of whoever entered it: milliseconds since 1970.
    pub entered: u64,
    /// Who entered it.
    pub origin: String,
    /// Why, in somebody's words.
    pub note: String,
}

/// What an index says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Which incarnation of it this is.
    pub version: Bytes,
    /// The active patterns, by the time of their entry.
    pub records: Vec<Record>,
    /// The ids of those that have ended lately.
    pub done: Vec<String>,
    /// Keyspaces in which fill tokens were given out.
    pub tokens: Vec<String>,
}

impl Record {
    /// Whether it is about no key.
    pub fn is_marker(&self) -> bool {
        self.id.starts_with(MARKER_PREFIX) && self.pattern.text() == MARKER
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (database, entered) = (self.database.to_string(), self.entered.to_string());
        let words: [&[u8]; 6] = [
            self.pattern.kind().word().as_bytes(),
            self.pattern.text(),
            database.as_bytes(),
            entered.as_bytes(),
            self.origin.as_bytes(),
            self.note.as_bytes(),
        ];
        encode::command(&mut out, words);
        out
    }

    /// A record that cannot be read is of a newer version of this program: it may be about any key.
    fn decode(id: &[u8], bytes: &[u8]) -> Option<Self> {
        let value = Value::decode(bytes).ok().map(|(value, _)| value);
        let words: Vec<&[u8]> =
            value.iter().filter_map(Value::as_elements).flatten().filter_map(Value::as_bytes).collect();
        let text =
            |at: usize| words.get(at).map_or_else(String::new, |word| String::from_utf8_lossy(word).into_owned());
        let kind = match words.first() {
            Some(&b"regex") => PatternKind::Regex,
            _ => PatternKind::Glob,
        };
        let known = words.get(1).and_then(|pattern| KeyPattern::new(kind, pattern).ok());
        Some(Self {
            id: String::from_utf8_lossy(id).into_owned(),
            pattern: known.or_else(|| KeyPattern::glob(b"*").ok())?,
            database: text(2).parse().unwrap_or(0),
            entered: text(3).parse().unwrap_or(0),
            origin: text(4),
            note: text(5),
        })
    }
}

impl Index {
    /// What a reply to [`read`] says; `Ok(None)`: there is no index.
    pub fn parse(reply: &[u8]) -> Result<Option<Self>, String> {
        let unreadable = || String::from_utf8_lossy(&reply[..reply.len().min(200)]).trim_end().to_owned();
        let (value, _) = Value::decode(reply).map_err(|_| unreadable())?;
        let pairs: Vec<(&[u8], &[u8])> = match &value {
            Value::Map(pairs) => pairs.iter().filter_map(|(name, of)| name.as_bytes().zip(of.as_bytes())).collect(),
            _ => return Err(unreadable()),
        };
        let Some((_, version)) = pairs.iter().find(|(name, _)| *name == VERSION) else { return Ok(None) };
        let version = Bytes::copy_from_slice(version);
        let behind = |prefix: &[u8]| {
            let names = pairs.iter().filter_map(|(name, _)| name.strip_prefix(prefix));
            names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        };
        let (done, tokens) = (behind(DONE), behind(TOKENS));
        let is_record = |name: &[u8]| name != VERSION && !name.starts_with(DONE) && !name.starts_with(TOKENS);
        let records = pairs.iter().filter(|(name, _)| is_record(name));
        let mut records: Vec<_> = records.filter_map(|(id, record)| Record::decode(id, record)).collect();
        records.sort_by(|a, b| (a.entered, &a.id).cmp(&(b.entered, &b.id)));
        Ok(Some(Self { version, records, done, tokens }))
    }
}

// === commands ===

/// Reads the index. RESP3 only.
pub fn read(names: &Names) -> Vec<u8> {
    command(&[b"HGETALL", &names.index])
}

/// Lets a pattern take effect; `version` is random, and the index's if it makes it. Answers 1, or 0 if it has already; an error if there are [`MAX_ACTIVE`].
pub fn enter(names: &Names, version: &str, record: &Record) -> Vec<u8> {
    const SCRIPT: &str = "redis.call('HSETNX', KEYS[1], 'version', ARGV[1]) \
         if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then return 0 end \
         local active = -1 \
         for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do \
           if string.sub(name, 1, 5) ~= 'done:' and string.sub(name, 1, 7) ~= 'tokens:' then active = active + 1 end end \
         if active >= tonumber(ARGV[4]) then \
           return redis.error_reply('LIMIT ' .. ARGV[4] .. ' patterns are being swept already; try again when one is done, or use a tag') end \
         redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) return 1";
    let max = MAX_ACTIVE.to_string();
    eval(SCRIPT, &[&names.index], &[version.as_bytes(), record.id.as_bytes(), &record.encode(), max.as_bytes()])
}

/// Announces that fill tokens are given out in a keyspace; `version` as in [`enter`].
pub fn announce_tokens(names: &Names, version: &str, keyspace: &str) -> Vec<u8> {
    const SCRIPT: &str = "redis.call('HSETNX', KEYS[1], 'version', ARGV[1]) return redis.call('HSETNX', KEYS[1], 'tokens:' .. ARGV[2], '1')";
    eval(SCRIPT, &[&names.index], &[version.as_bytes(), keyspace.as_bytes()])
}

/// Ends a pattern: everything that it had is gone from L3. That it ended is told for a while.
pub fn finish(names: &Names, id: &str) -> Vec<u8> {
    const SCRIPT: &str = "local now = tonumber(redis.call('TIME')[1]) \
         if redis.call('HDEL', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[1], 'done:' .. ARGV[1], now) end \
         local fields = redis.call('HGETALL', KEYS[1]) \
         for i = 1, #fields, 2 do \
           if string.sub(fields[i], 1, 5) == 'done:' and tonumber(fields[i + 1]) + tonumber(ARGV[2]) < now then \
             redis.call('HDEL', KEYS[1], fields[i]) end end return 1";
    eval(SCRIPT, &[&names.index], &[id.as_bytes(), DONE_SECONDS])
}

/// The id of the marker that belongs to something with an id of its own.
pub fn marker_id(of: &str) -> String {
    format!("{MARKER_PREFIX}{of}")
}

/// Acknowledges a marker, as `member`. Two commands.
pub fn acknowledge(names: &Names, id: &str, member: &str) -> Vec<u8> {
    let key = names.acknowledgements(id);
    [command(&[b"SADD", &key, member.as_bytes()]), command(&[b"EXPIRE", &key, ACKNOWLEDGED_SECONDS])].concat()
}

/// What a command is about to do to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Only read it.
    Read,
    /// Write it.
    Write,
}

/// Removes what a key had when a pattern took effect, before `access`; what was written since stays. Where a value is
/// about to be written, or was just removed, the key is noted: a reader who finds nothing leaves nothing behind. A write
/// ends the fill lease, too: what was computed before the pattern is not stored behind it.
pub fn clear(names: &Names, id: &str, key: &[u8], access: Access) -> Vec<u8> {
    const SCRIPT: &str = "if redis.call('SISMEMBER', KEYS[2], KEYS[1]) == 1 then return 0 end \
         if ARGV[1] == '1' or redis.call('EXISTS', KEYS[1]) == 1 then \
           redis.pcall('SADD', KEYS[2], KEYS[1]) redis.pcall('PEXPIRE', KEYS[2], ARGV[2]) \
           redis.pcall('UNLINK', KEYS[3]) end \
         return redis.call('UNLINK', KEYS[1])";
    let writes: &[u8] = if access == Access::Write { b"1" } else { b"0" };
    let lease = leases::name(&names.domain, key, names.by_slot);
    eval(SCRIPT, &[key, &names.written(id, key), &lease], &[writes, WRITTEN_MILLIS])
}

/// Removes those of `keys`, which are of one slot, that were not written since a pattern took effect; answers how many.
pub fn sweep(names: &Names, id: &str, keys: &[&[u8]]) -> Vec<u8> {
    const SCRIPT: &str = "local n = 0 local any = redis.call('EXISTS', KEYS[1]) == 1 \
         for i = 2, #KEYS do if not any or redis.call('SISMEMBER', KEYS[1], KEYS[i]) == 0 then \
           n = n + redis.call('UNLINK', KEYS[i]) end end return n";
    let written = names.written(id, keys.first().copied().unwrap_or_default());
    let all: Vec<&[u8]> = std::iter::once(&written[..]).chain(keys.iter().copied()).collect();
    eval(SCRIPT, &all, &[])
}

fn eval(script: &str, keys: &[&[u8]], arguments: &[&[u8]]) -> Vec<u8> {
    let count = keys.len().to_string();
    let head: [&[u8]; 3] = [b"EVAL", script.as_bytes(), count.as_bytes()];
    command(&[&head, keys, arguments].concat())
}

/// One encoded command.
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::command(&mut out, words.iter().copied());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pattern: KeyPattern) -> Record {
        Record { id: "7".into(), pattern, database: 3, entered: 17, origin: "a pod".into(), note: "why".into() }
    }

    fn index(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        encode::map_header(&mut out, caddy_resp::Protocol::Resp3, fields.len());
        for (name, value) in fields {
            encode::bulk(&mut out, name);
            encode::bulk(&mut out, value);
        }
        out
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for pattern in [KeyPattern::glob(b"a\xff\r\n*").unwrap(), KeyPattern::regex(b"^a$").unwrap()] {
            let wanted = record(pattern);
            let told = Index::parse(&index(&[
                (b"7", &wanted.encode()),
                (b"version", b"v"),
                (b"done:6", b"17"),
                (b"tokens:pages", b"1"),
            ]))
            .unwrap()
            .unwrap();
            let (done, tokens) = (vec!["6".to_owned()], vec!["pages".to_owned()]);
            assert_eq!(told, Index { version: "v".into(), records: vec![wanted], done, tokens });
        }
    }

    #[test]
    fn no_version_is_no_index_and_an_error_is_no_answer() {
        assert_eq!(Index::parse(&index(&[])), Ok(None));
        assert_eq!(Index::parse(b"-NOPERM no\r\n"), Err("-NOPERM no".to_owned()));
    }

    #[test]
    fn a_record_that_nobody_can_read_is_about_every_key() {
        let told = Index::parse(&index(&[(b"version", b"v"), (b"8", b"\x01newer")])).unwrap().unwrap();
        assert_eq!(told.records[0].pattern, KeyPattern::glob(b"*").unwrap());
    }

    #[test]
    fn the_set_of_written_keys_is_in_its_keys_slot() {
        let names = Names::new("shop.shop", true);
        for slot in 0..SLOTS {
            assert_eq!(slot_of(format!("x{{{}}}y", tag_of(slot)).as_bytes()), slot);
        }
        for key in [&b"plain"[..], b"a{b}c", b"odd}{", b"{}", b"\xff\x00"] {
            assert_eq!(slot_of(&names.written("7", key)), slot_of(key));
        }
    }
}
