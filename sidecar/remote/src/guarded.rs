//! Conditional writes of an app's own: a value is stored only by who may still store it.
//!
//! Two conditions, each of which may be absent. A *fill token* was given out with the key's fill lease (`leases.rs`): the
//! lease must be there and be that one's, and the key as it was then. A *fencing token* must not be older than the
//! greatest that the key has seen. That one stands in a *record* beside the key, together with the id of the history of
//! the data (`master_replid`, another one behind every failover and restart): a record that another history has handed
//! down may lack what was lost, and counts as none. Without a record, because there never was one or because it was
//! evicted or flushed, nobody can say which tokens the key has seen; then the holder has to be *proved* to be one, where
//! the lock is. A mark is set before, and has to be there still afterwards, so that nobody writes unnoticed in between.
//!
//! Owns what Redis does in one step, as Lua sent whole with each call. A key and what belongs to it share a slot, and
//! every script declares all its keys. Sends nothing.

use std::time::Duration;

use caddy_resp::Value;

use crate::leases::{self, Script};

/// How long a record outlives the last write under it, milliseconds: a week. It may go at any time.
const RECORD_MILLIS: &str = "604800000";
/// How long a proof may take, milliseconds.
const MARK_MILLIS: &str = "60000";
/// What [`State`] is of an absent key.
const ABSENT: &str = "-";

/// `ARGV`: the lease's id, its milliseconds. Answers whether it was given (1) or somebody has it (0), what is stored (or
/// nil), its PTTL, the lease's PTTL, and the state of the key.
const ISSUE: Script = Script::new(
    "local present = redis.call('GET', KEYS[1]) \
     local given = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0 \
     return {given, present, redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2]), \
       present and redis.sha1hex(present) or '-'}",
);

/// `ARGV`: the lease's id or nothing, the state of the key or nothing, the fencing token or nothing, the mark that was
/// proved or nothing, a new mark, the value, its milliseconds or nothing, `NX`, `XX` or nothing, the record's milliseconds,
/// a mark's milliseconds; if there is a fourth key, a generation, what it is to be and its milliseconds, or nothing.
const STORE: Script = Script::new(
    "if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return {'lease'} end \
     if ARGV[2] ~= '' then \
       local present = redis.call('GET', KEYS[1]) \
       if (present and redis.sha1hex(present) or '-') ~= ARGV[2] then return {'changed'} end \
     end \
     local history = '' \
     if ARGV[3] ~= '' then \
       local info = redis.pcall('INFO', 'replication') \
       history = (type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or '') .. ' ' \
       local record = redis.call('GET', KEYS[3]) \
       local seen = record and string.sub(record, 1, #history) == history and string.sub(record, #history + 1) \
       if not seen then \
         redis.call('SET', KEYS[3], history .. '?' .. ARGV[5], 'PX', ARGV[10]) return {'unproved', ARGV[5]} \
       elseif string.sub(seen, 1, 1) == '?' then \
         if seen ~= '?' .. ARGV[4] then return {'unproved', string.sub(seen, 2)} end \
       elseif seen > ARGV[3] then return {'older', seen} end \
     end \
     local set = {'SET', KEYS[1], ARGV[6]} \
     if ARGV[7] ~= '' then set[4] = 'PX' set[5] = ARGV[7] end \
     if ARGV[8] ~= '' then set[#set + 1] = ARGV[8] end \
     if not redis.call(unpack(set)) then return {'kept'} end \
     redis.call('DEL', KEYS[2]) \
     if ARGV[3] ~= '' then redis.call('SET', KEYS[3], history .. ARGV[3], 'PX', ARGV[9]) end \
     if not KEYS[4] then return {'stored'} end \
     if ARGV[11] ~= '' then redis.call('SET', KEYS[4], ARGV[11], 'PX', ARGV[12]) else redis.call('DEL', KEYS[4]) end \
     return {'stored'}",
);

/// The keys of the scripts about one key: itself, its lease, its record.
#[derive(Debug, Clone)]
pub struct Keys([Vec<u8>; 3]);

/// What a key was: absent, or the digest of what was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State(String);

/// What Redis says to one who wants to fill a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Whether the lease was given.
    pub is_given: bool,
    /// What is stored.
    pub present: Option<Vec<u8>>,
    /// Its PTTL.
    pub pttl: i64,
    /// How long the lease lives, whoever has it.
    pub lease: Duration,
    /// The state of the key.
    pub state: State,
}

/// A value and on which conditions it is stored.
#[derive(Debug, Clone, Copy)]
pub struct Guarded<'a> {
    /// The value, as it is stored.
    pub value: &'a [u8],
    /// How long; `None`: for ever.
    pub life: Option<Duration>,
    /// `NX` or `XX`.
    pub condition: Option<&'static [u8]>,
    /// The lease that has to be there, by its id.
    pub lease: Option<u128>,
    /// What the key has to be.
    pub state: Option<&'a State>,
    /// The fencing token.
    pub fence: Option<&'a str>,
    /// The mark since which its holder was proved to be one.
    pub proof: Option<&'a str>,
    /// What depends on the key ends in the same step.
    pub renews: Option<Renewed<'a>>,
}

/// The generation that what depends on a key carries, and what is to become of it.
#[derive(Debug, Clone, Copy)]
pub struct Renewed<'a> {
    /// Its key, in the slot of the other.
    pub generation: &'a [u8],
    /// What it is to be, and for how long; `None`: it goes.
    pub made: Option<(&'a [u8], Duration)>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored.
    Stored,
    /// `NX` or `XX` did not hold: nothing has changed.
    Kept,
    /// The lease is another's, or nobody's.
    LeaseEnded,
    /// The key is not what it was.
    Changed,
    /// The key has seen this fencing token, which is greater.
    Older(String),
    /// Redis does not know what the key has seen: who holds the lock has to be looked at, and then this mark given.
    Unproved(String),
}

impl Keys {
    /// Of this key in a domain.
    pub fn new(domain: &str, key: &[u8], in_cluster: bool) -> Self {
        let record = leases::beside(domain, "fence:", key, in_cluster);
        Self([key.to_vec(), leases::name(domain, key, in_cluster), record])
    }

    fn all(&self) -> [&[u8]; 3] {
        self.0.each_ref().map(Vec::as_slice)
    }

    /// Asks for the right to fill the key for `span`.
    pub fn issue(&self, lease: u128, span: Duration) -> Vec<u8> {
        let mut out = Vec::new();
        let millis = span.as_millis().max(1).to_string();
        ISSUE.write(&mut out, &self.all()[..2], &[leases::hex(lease).as_bytes(), millis.as_bytes()]);
        out
    }

    /// Reads the key: what is stored, and its PTTL.
    pub fn read(&self) -> Vec<u8> {
        let mut out = Vec::new();
        leases::READ.write(&mut out, &self.all()[..2], &[]);
        out
    }

    /// Gives that right back.
    pub fn release(&self, lease: u128) -> Vec<u8> {
        let mut out = Vec::new();
        leases::RELEASE.write(&mut out, &self.all()[1..2], &[leases::hex(lease).as_bytes()]);
        out
    }

    /// Stores, if all conditions hold.
    pub fn store(&self, guarded: &Guarded<'_>) -> Vec<u8> {
        let lease = guarded.lease.map(leases::hex).unwrap_or_default();
        let life = guarded.life.map(|life| life.as_millis().max(1).to_string()).unwrap_or_default();
        let mark = leases::hex(leases::unique());
        let made = guarded.renews.and_then(|renewed| renewed.made);
        let made_life = made.map(|(_, life)| life.as_millis().max(1).to_string()).unwrap_or_default();
        let arguments: [&[u8]; 12] = [
            lease.as_bytes(),
            guarded.state.map_or(b"", |state| state.0.as_bytes()),
            guarded.fence.unwrap_or_default().as_bytes(),
            guarded.proof.unwrap_or_default().as_bytes(),
            mark.as_bytes(),
            guarded.value,
            life.as_bytes(),
            guarded.condition.unwrap_or_default(),
            RECORD_MILLIS.as_bytes(),
            MARK_MILLIS.as_bytes(),
            made.map_or(b"", |(value, _)| value),
            made_life.as_bytes(),
        ];
        let generation = guarded.renews.map(|renewed| renewed.generation);
        let keys: Vec<&[u8]> = self.all().into_iter().chain(generation).collect();
        let mut out = Vec::with_capacity(guarded.value.len() + 2048);
        STORE.write(&mut out, &keys, &arguments);
        out
    }
}

impl State {
    /// Of an absent key.
    pub fn absent() -> Self {
        Self(ABSENT.to_owned())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From its text.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let is_digest = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_digest || text == ABSENT).then(|| Self(text.to_owned()))
    }
}

impl Issued {
    /// From the reply to [`Keys::issue`].
    pub fn parse(reply: &[u8]) -> Option<Self> {
        let (value, _) = Value::decode(reply).ok()?;
        let [given, present, pttl, lease, state] = value.as_elements()? else { return None };
        Some(Self {
            is_given: given.as_integer()? == 1,
            present: present.as_bytes().map(<[u8]>::to_vec),
            pttl: pttl.as_integer()?,
            lease: Duration::from_millis(u64::try_from(lease.as_integer()?).unwrap_or(0)),
            state: State::parse(state.as_bytes()?)?,
        })
    }
}

impl Outcome {
    /// From the reply to [`Keys::store`].
    pub fn parse(reply: &[u8]) -> Option<Self> {
        let (value, _) = Value::decode(reply).ok()?;
        let (kind, rest) = value.as_elements()?.split_first()?;
        let text = || Some(String::from_utf8_lossy(rest.first()?.as_bytes()?).into_owned());
        Some(match kind.as_bytes()? {
            b"stored" => Self::Stored,
            b"kept" => Self::Kept,
            b"lease" => Self::LeaseEnded,
            b"changed" => Self::Changed,
            b"older" => Self::Older(text()?),
            b"unproved" => Self::Unproved(text()?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::slot_of;

    #[test]
    fn all_keys_of_a_script_share_a_slot() {
        for key in ["plain", "{tag}rest", "a}b", "{}x"] {
            let keys = Keys::new("shop.web", key.as_bytes(), true);
            let slots = keys.all().map(slot_of);
            assert!(slots.iter().all(|slot| *slot == slots[0]), "{key}: {slots:?}");
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let digest = "0123456789abcdef0123456789abcdef01234567";
        for text in ["-", digest] {
            assert_eq!(State::parse(text.as_bytes()).unwrap().as_str(), text);
        }
        assert_eq!(State::parse(b"-"), Some(State::absent()));
        assert_eq!((State::parse(b""), State::parse(b"0123")), (None, None));
    }

    #[test]
    fn replies_that_make_no_sense_are_none() {
        for reply in
            [&b"$2\r\nok\r\n"[..], b"*0\r\n", b"*1\r\n$5\r\nolder\r\n", b"*1\r\n$4\r\nwhat\r\n", b":1\r\n", b""]
        {
            assert_eq!(Outcome::parse(reply), None, "{}", reply.escape_ascii());
            assert_eq!(Issued::parse(reply), None, "{}", reply.escape_ascii());
        }
        assert_eq!(Outcome::parse(b"*1\r\n$6\r\nstored\r\n"), Some(Outcome::Stored));
    }
}
