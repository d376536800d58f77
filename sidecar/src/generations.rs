//! Generations in L3: what they are called, and how they are read, made and kept alive.
//!
//! A generation is a key `caddy:<domain>:g:<name>` of 128 random bits, what is beside them (a parent's own parents), and a
//! time to live. It is renewed by deleting it, which any client can do. Whoever needs one reads it on the tracked
//! connection, and only what was read there counts: also whoever makes one (`SET NX`) reads it behind that. A generation
//! that copies here depend on is read again as soon as Redis says that something happened to it.
//!
//! Never decides what an entry depends on. Fails where a generation cannot be read: whoever waits is told why.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::{
    FillToken, Moment, SourceId,
    codec::envelope::GenerationValue,
    generations::{GenerationCell, Generations, Reading},
};
use caddy_remote::{LaneHandle, LaneState, Request, cluster};
use caddy_resp::{Protocol, Value, encode};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::{
    fills::{self, FillLanded, FillMany},
    guards::{Guard, hold},
    mailbox::{Delivery, Mailbox},
    nodes::Node,
    ranges::FAILOVER_WINDOW,
    shared::{L3, Shared},
    shown::RelayedStrings,
    upstream::Tag,
};

/// A generation lives for so long behind the last entry without an end of its own that carries it.
pub(crate) const LIFE: Duration = Duration::from_hours(24 * 7);
/// Generations of which something is known, at most: some 200 bytes each.
const MAX_CELLS: usize = 100_000;
const VALUE_BYTES: usize = 16;
/// So many invalidations are remembered each by itself.
const MAX_RECENT: usize = 10_000;

/// The generations of a domain.
pub(crate) struct Domain {
    /// `caddy:<domain>:`
    prefix: String,
    in_cluster: bool,
    cells: Generations,
    recent: Mutex<Vec<Recent>>,
}

/// What is to become known of a generation.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    /// Its key.
    pub(crate) name: Bytes,
    pub(crate) how: How,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum How {
    /// What it is.
    Read,
    /// The same, made for so long if there is none.
    Create(Duration),
    /// The same, made anew unless just this is beside its value.
    With(Bytes, Duration),
}

/// A generation and what was read of it.
#[derive(Debug, Clone)]
pub(crate) struct Learned {
    pub(crate) cell: Arc<GenerationCell>,
    pub(crate) reading: Reading,
}

/// Who waits until generations are known, and is told either way.
#[derive(Debug)]
pub(crate) enum Then {
    /// Nobody.
    Nothing,
    /// A session that holds a request back.
    Session(Arc<Mailbox>),
    /// A read that fills the tiers.
    Fill(Box<FillLanded>),
    FillMany(Box<FillMany>),
    /// A read that was relayed.
    Relayed(Box<RelayedStrings>),
    /// A task.
    Task(oneshot::Sender<Result<Vec<Learned>, String>>),
}

/// What a request on a tracked connection reads of generations.
#[derive(Debug)]
pub(crate) struct Learn {
    asked: Vec<Asked>,
    pub(crate) replies: Vec<Bytes>,
    learning: Arc<Learning>,
}

#[derive(Debug)]
struct Asked {
    cell: Arc<GenerationCell>,
    token: FillToken,
    /// How many replies come before its value and its time to live.
    before: usize,
}

/// What is asked on one connection.
struct Batch {
    source: SourceId,
    lane: LaneHandle<Tag>,
    bytes: Vec<u8>,
    asked: Vec<Asked>,
}

/// Collects what several nodes answer; tells who waits when the last one has, or is lost.
pub(crate) struct Learning {
    shared: Arc<Shared>,
    collected: Mutex<Result<Vec<Learned>, String>>,
    then: Mutex<Then>,
}

impl std::fmt::Debug for Learning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learning").field("then", &self.then).finish_non_exhaustive()
    }
}

// === impl Domain ===

impl Domain {
    pub(crate) fn new(domain: &str, in_cluster: bool) -> Self {
        Self {
            prefix: format!("caddy:{domain}:"),
            in_cluster,
            cells: Generations::new(MAX_CELLS),
            recent: Mutex::default(),
        }
    }

    /// The key of what is called so within the domain. In a cluster the generation of a parent is in the slot of the
    /// parent, so that one step can be about both.
    pub(crate) fn key(&self, name: &[u8]) -> Bytes {
        match name.strip_prefix(PARENT).filter(|_| self.in_cluster) {
            Some(parent) => {
                let slot = cluster::tag_of(cluster::slot_of(parent)).to_string();
                [self.prefix.as_bytes(), b"{", slot.as_bytes(), b"}:g:", name].concat().into()
            }
            None => [self.prefix.as_bytes(), b"g:", name].concat().into(),
        }
    }

    /// What a key is called within the domain.
    pub(crate) fn name<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let rest = match rest.first() {
            Some(b'{') => rest.get(rest.iter().position(|byte| *byte == b'}')? + 2..)?,
            _ => rest,
        };
        rest.strip_prefix(b"g:")
    }

    /// How many are known of.
    pub(crate) fn count(&self) -> usize {
        self.cells.len()
    }

    /// These were invalidated by this sidecar, which answers for it should L3 lose that.
    pub(crate) fn remember(&self, now: Moment, database: u32, keys: impl Iterator<Item = Bytes>, mode: Mode) {
        let mut recent = self.recent.lock();
        recent.retain(|one| one.at + FAILOVER_WINDOW > now);
        recent.extend(keys.map(|key| Recent { at: now, database, key, mode }));
        if recent.len() > MAX_RECENT {
            // Everything then, which is more than was asked for, and little to remember.
            let databases: std::collections::BTreeSet<u32> = recent.iter().map(|one| one.database).collect();
            let all = |database| Recent { at: now, database, key: self.key(ALL), mode: Mode::Remove };
            *recent = databases.into_iter().map(all).collect();
        }
    }

    /// What was invalidated lately in a database.
    fn recent(&self, now: Moment, database: u32) -> Vec<(Bytes, Mode)> {
        let recent = self.recent.lock();
        let is_recent = |one: &&Recent| one.database == database && one.at + FAILOVER_WINDOW > now;
        recent.iter().filter(is_recent).map(|one| (one.key.clone(), one.mode)).collect()
    }
}

/// What becomes of what is invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// It is gone.
    #[default]
    Remove,
    /// It is stale: answered only where nothing better can be had.
    Expire,
}

/// An invalidation of a generation by this sidecar.
struct Recent {
    at: Moment,
    database: u32,
    key: Bytes,
    mode: Mode,
}

/// The generation of everything.
pub(crate) const ALL: &[u8] = b"a";

/// The generation of a keyspace.
pub(crate) fn of_keyspace(name: &str) -> Vec<u8> {
    [b"s:", name.as_bytes()].concat()
}

/// The generation of a tag.
pub(crate) fn of_tag(tag: &[u8]) -> Vec<u8> {
    [b"t:", tag].concat()
}

const PARENT: &[u8] = b"k:";

/// The generation that what depends on a key carries.
pub(crate) fn of_parent(key: &[u8]) -> Vec<u8> {
    [PARENT, key].concat()
}

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
const RENEW: &str = "local v = redis.call('GET', KEYS[1]) if not v then return 0 end local at = 17 \
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

fn random() -> [u8; VALUE_BYTES] {
    // Each `RandomState` has a key of its own, made from random bits; the hash of a constant under it is as random.
    let half = || u128::from(RandomState::new().hash_one(0));
    (half() << 64 | half()).to_le_bytes()
}

// === what is known ===

impl Shared {
    /// The cell of a generation in a database, and the connection that it is read on; without one, the embedded L3.
    fn generation(
        self: &Arc<Self>,
        database: u32,
        key: &[u8],
    ) -> Result<(Arc<GenerationCell>, Option<LaneHandle<Tag>>), String> {
        let redis = match &self.l3 {
            L3::Embedded(_) => {
                let cell = self.domain.cells.cell(self.kernel(), self.embedded_source, key);
                return Ok((cell, None));
            }
            L3::Redis(redis) => redis,
        };
        let node = redis.owner(key).ok_or("the slot map of the cluster is not known yet; try again")?;
        let tracked = redis
            .tracked_or_open(self, &node, database)
            .ok_or("no more databases can be tracked (16 are), so that generations cannot be read in this one")?;
        // What is asked of a connection that is being made waits for it.
        if tracked.lane.state() == LaneState::Failed {
            return Err(format!("Redis cannot be read coherently: {}", self.status.get().reason));
        }
        Ok((self.domain.cells.cell(self.kernel(), tracked.source, key), Some(tracked.lane)))
    }

    /// What is in force of a generation, if that is known.
    pub(crate) fn in_force(self: &Arc<Self>, database: u32, key: &[u8]) -> Option<Learned> {
        let (cell, _) = self.generation(database, key).ok()?;
        let reading = cell.in_force(self.kernel(), self.now())?;
        Some(Learned { cell, reading })
    }

    /// Finds out about generations, and tells `then`.
    pub(crate) fn learn(self: &Arc<Self>, database: u32, wants: Vec<Want>, then: Then) {
        let learning = Arc::new(Learning {
            shared: self.clone(),
            collected: Mutex::new(Ok(Vec::with_capacity(wants.len()))),
            then: Mutex::new(then),
        });
        let mut batches: Vec<Batch> = Vec::new();
        for want in wants {
            let (cell, lane) = match self.generation(database, &want.name) {
                Ok(found) => found,
                Err(reason) => return learning.fail(reason),
            };
            let token = cell.begin_read(self.kernel(), self.now());
            let commands = commands(&want);
            let asked = Asked { cell, token, before: commands.len() - 2 };
            match lane {
                Some(lane) => {
                    let source = asked.cell.source();
                    let at = batches.iter().position(|batch| batch.source == source).unwrap_or_else(|| {
                        batches.push(Batch { source, lane, bytes: Vec::new(), asked: Vec::new() });
                        batches.len() - 1
                    });
                    let batch = &mut batches[at];
                    for command in commands {
                        encode::command(&mut batch.bytes, command.iter().map(|word| &**word));
                    }
                    batch.asked.push(asked);
                }
                None => self.learn_embedded(database, &commands, &asked, &learning),
            }
        }
        for Batch { lane, bytes, asked, .. } in batches {
            let replies = asked.iter().map(|asked| asked.before + 2).sum::<usize>();
            let learn = Learn { asked, replies: Vec::with_capacity(replies), learning: learning.clone() };
            let request = Request {
                bytes: bytes.into(),
                replies: u16::try_from(replies).unwrap_or(u16::MAX),
                tag: Tag::Learn(Box::new(learn)),
            };
            if lane.submit(request).is_err() {
                learning.fail("the sidecar is shutting down".to_owned());
            }
        }
    }

    /// The same, for who waits for it.
    pub(crate) async fn learned(self: &Arc<Self>, database: u32, wants: Vec<Want>) -> Result<Vec<Learned>, String> {
        let (task, learned) = oneshot::channel();
        self.learn(database, wants, Then::Task(task));
        learned.await.unwrap_or_else(|_| Err("the sidecar is shutting down".to_owned()))
    }

    fn learn_embedded(&self, database: u32, commands: &Commands, asked: &Asked, learning: &Learning) {
        let L3::Embedded(store) = &self.l3 else { return };
        let mut replies = Vec::new();
        for command in commands {
            let words: Vec<&[u8]> = command.iter().map(|word| &**word).collect();
            let mut reply = Vec::new();
            store.execute(database, Protocol::Resp3, &words, &mut reply);
            replies.push(Bytes::from(reply));
        }
        learning.take(asked, &replies);
    }

    /// What comes first on a new tracked connection to a node: what this sidecar invalidated lately is invalidated again,
    /// since a failover may have lost it; and whether the domain has envelopes is looked at.
    pub(crate) fn first_on_tracked(
        self: &Arc<Self>,
        node: &Node,
        source: SourceId,
        database: u32,
    ) -> Option<Request<Tag>> {
        let L3::Redis(redis) = &self.l3 else { return None };
        let is_here = |key: &[u8]| redis.owner(key).is_some_and(|owner| owner.id == node.id);
        let recent = self.domain.recent(self.now(), database);
        let (mut bytes, mut repeated) = (Vec::new(), 0);
        for (key, mode) in recent.iter().filter(|(key, _)| is_here(key) && hold(Guard::GroupsRepeated)) {
            match mode {
                // Who depends on what was written since, and stands beside the value, is not to be lost.
                Mode::Remove if self.domain.name(key).is_some_and(|name| name.starts_with(PARENT)) => {
                    let words: [&[u8]; 5] = [b"EVAL", RENEW.as_bytes(), b"1", key, &random()];
                    encode::command(&mut bytes, words);
                }
                Mode::Remove => encode::command(&mut bytes, [b"UNLINK" as &[u8], key]),
                Mode::Expire => {
                    let words = expiring(&self.domain, &[key]);
                    encode::command(&mut bytes, words.iter().map(|word| &word[..]));
                }
            }
            repeated += 1;
        }
        if repeated > 0 {
            tracing::info!(repeated, "what was invalidated lately is invalidated again: a failover may have lost it");
        }
        let all = self.domain.key(ALL);
        let mut asked = Vec::new();
        if !self.envelopes.are_there() && is_here(&all) {
            let cell = self.domain.cells.cell(self.kernel(), source, &all);
            let token = cell.begin_read(self.kernel(), self.now());
            for command in commands(&Want { name: all, how: How::Read }) {
                encode::command(&mut bytes, command.iter().map(|word| &**word));
            }
            asked.push(Asked { cell, token, before: repeated });
        }
        if bytes.is_empty() {
            return None;
        }
        let replies = repeated + 2 * asked.len();
        let learning =
            Learning { shared: self.clone(), collected: Mutex::new(Ok(Vec::new())), then: Mutex::new(Then::Nothing) };
        let learn = Learn { asked, replies: Vec::with_capacity(replies), learning: Arc::new(learning) };
        let replies = u16::try_from(replies).unwrap_or(u16::MAX);
        Some(Request { bytes: bytes.into(), replies, tag: Tag::Learn(Box::new(learn)) })
    }

    /// A generation's key was pushed: where copies depend on it, what it is now is found out at once.
    pub(crate) fn relearn(self: &Arc<Self>, source: SourceId, database: u32, key: &[u8]) {
        let Some(name) = self.domain.name(key) else { return };
        let is_news = name == ALL && !self.envelopes.are_there();
        if is_news || self.domain.cells.used(source, key).is_some() {
            let want = Want { name: Bytes::copy_from_slice(key), how: How::Read };
            self.learn(database, vec![want], Then::Nothing);
        }
    }

    /// Sees to it that generations outlive an entry that carries them and lives for `life`.
    pub(crate) fn extend<'a>(
        self: &Arc<Self>,
        database: u32,
        cells: impl Iterator<Item = &'a Arc<GenerationCell>>,
        life: Option<Duration>,
    ) {
        let whole = generation_life(life);
        let now = self.now();
        for cell in cells.filter(|cell| cell.needs_extension(whole / 2, now)) {
            let millis = whole.as_millis().to_string();
            // GT, so that it never shortens. It is pushed, and then read again.
            let words: [&[u8]; 4] = [b"PEXPIRE", cell.name(), millis.as_bytes(), b"GT"];
            match self.generation(database, cell.name()) {
                Ok((_, Some(lane))) => {
                    let mut bytes = Vec::new();
                    encode::command(&mut bytes, words);
                    let _ = lane.submit(Request { bytes: bytes.into(), replies: 1, tag: Tag::Forward });
                }
                Ok((_, None)) => {
                    if let L3::Embedded(store) = &self.l3 {
                        store.execute(database, Protocol::Resp3, &words, &mut Vec::new());
                    }
                }
                Err(_) => {}
            }
        }
    }
}

/// How long a generation is to live that an entry carries which lives for `life`.
pub(crate) fn generation_life(life: Option<Duration>) -> Duration {
    life.map_or(LIFE, |life| life * 2)
}

type Commands = SmallVec<[SmallVec<[Bytes; 5]>; 3]>;

/// What is sent for one generation; the last two replies are its value and its time to live.
fn commands(want: &Want) -> Commands {
    let word = Bytes::from_static;
    let make = |detail: &Bytes, life: &Duration, condition: Option<&'static [u8]>| {
        let value = fresh_value(detail);
        let millis = Bytes::from(life.as_millis().max(1).to_string());
        let mut words = SmallVec::<[Bytes; 5]>::new();
        words.extend([word(b"SET"), want.name.clone(), value, word(b"PX"), millis]);
        words.extend(condition.map(word));
        words
    };
    let mut commands = Commands::new();
    match &want.how {
        How::Read => {}
        How::Create(life) => commands.push(make(&Bytes::new(), life, Some(b"NX"))),
        How::With(detail, life) => commands.push(make(detail, life, None)),
    }
    commands.push(SmallVec::from_iter([word(b"GET"), want.name.clone()]));
    commands.push(SmallVec::from_iter([word(b"PTTL"), want.name.clone()]));
    commands
}

// === impl Learn ===

impl Learn {
    /// All replies are in.
    pub(crate) fn finish(self) {
        let mut at = 0;
        for asked in &self.asked {
            let end = at + asked.before + 2;
            match self.replies.get(at..end) {
                Some(replies) => self.learning.take(asked, replies),
                None => self.learning.fail("replies are missing".to_owned()),
            }
            at = end;
        }
    }

    /// They will not come.
    pub(crate) fn lost(self, reason: &str) {
        self.learning.fail(reason.to_owned());
    }
}

// === impl Learning ===

impl Learning {
    fn fail(&self, reason: String) {
        *self.collected.lock() = Err(reason);
    }

    fn take(&self, asked: &Asked, replies: &[Bytes]) {
        let decoded: Vec<Value<'_>> = replies.iter().filter_map(|reply| Some(Value::decode(reply).ok()?.0)).collect();
        if let Some(error) = decoded.iter().find_map(Value::as_error) {
            // MOVED, READONLY, NOPERM and the like.
            self.shared.doubt_slots();
            return self.fail(String::from_utf8_lossy(error).into_owned());
        }
        let [.., value, pttl] = decoded.as_slice() else { return self.fail("replies cannot be read".to_owned()) };
        let now = self.shared.now();
        let found = value.as_bytes().and_then(|bytes| bytes.split_first_chunk::<VALUE_BYTES>());
        let found = found.map(|(value, detail)| (GenerationValue(*value), Bytes::copy_from_slice(detail)));
        if found.is_some() {
            // Nobody makes a generation but for an envelope.
            self.shared.envelopes.note();
        }
        let expires = match pttl.as_integer() {
            Some(left @ 0..) => now + Duration::from_millis(left.unsigned_abs()),
            _ => Moment::NEVER,
        };
        let reading = asked.cell.report(self.shared.kernel(), &asked.token, found, expires);
        if let Ok(learned) = &mut *self.collected.lock() {
            learned.push(Learned { cell: asked.cell.clone(), reading });
        }
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        let collected = std::mem::replace(&mut *self.collected.lock(), Ok(Vec::new()));
        match std::mem::replace(&mut *self.then.lock(), Then::Nothing) {
            Then::Nothing => {}
            Then::Session(mailbox) => mailbox.deliver(Delivery::Learned(collected)),
            Then::Fill(fill) => fills::resume_fill(&self.shared, *fill, collected),
            Then::FillMany(many) => fills::resume_fill_many(&self.shared, *many, collected),
            Then::Relayed(relayed) => relayed.hand_on(&self.shared, collected),
            // Who does not wait any more is not told.
            Then::Task(task) => drop(task.send(collected)),
        }
    }
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
    fn a_generation_is_read_behind_whatever_makes_it() {
        let want = |how| Want { name: Bytes::from_static(b"g"), how };
        let names = |how| commands(&want(how)).iter().map(|words| words[0].clone()).collect::<Vec<_>>();
        assert_eq!(names(How::Read), ["GET", "PTTL"]);
        assert_eq!(names(How::Create(LIFE)), ["SET", "GET", "PTTL"]);
        let made = commands(&want(How::With(Bytes::from_static(b"detail"), LIFE)));
        assert!(made[0][2].ends_with(b"detail") && made[0].len() == 5);
        assert_ne!(made[0][2], commands(&want(How::With(Bytes::from_static(b"detail"), LIFE)))[0][2]);
    }

    #[test]
    fn a_parents_generation_is_in_the_slot_of_the_parent() {
        for key in ["plain", "{tag}rest", "a}b", "k:{x}"] {
            for in_cluster in [false, true] {
                let domain = Domain::new("shop.web", in_cluster);
                let generation = domain.key(&of_parent(key.as_bytes()));
                assert_eq!(domain.name(&generation), Some(&of_parent(key.as_bytes())[..]), "{key}");
                if in_cluster {
                    assert_eq!(cluster::slot_of(&generation), cluster::slot_of(key.as_bytes()), "{key}");
                }
            }
        }
        let domain = Domain::new("shop.web", true);
        assert_eq!(&domain.key(&of_tag(b"{x}"))[..], b"caddy:shop.web:g:t:{x}");
        assert_eq!(domain.name(b"caddy:shop.web:events"), None);
        assert_eq!(domain.name(b"caddy:shop.web:{a"), None);
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

    #[test]
    fn more_invalidations_than_are_remembered_become_one_of_everything() {
        let domain = Domain::new("d", false);
        let keys = |count: usize| (0..count).map(|n| Bytes::from(n.to_string()));
        let at = |seconds| Moment::ZERO + Duration::from_secs(seconds);
        domain.remember(at(1), 3, keys(2), Mode::Expire);
        domain.remember(at(2), 0, keys(MAX_RECENT - 2), Mode::Remove);
        assert_eq!((domain.recent(at(3), 3).len(), domain.recent(at(3), 0).len()), (2, MAX_RECENT - 2));
        domain.remember(at(4), 0, keys(1), Mode::Remove);
        for database in [0, 3] {
            assert_eq!(domain.recent(at(5), database), [(domain.key(ALL), Mode::Remove)]);
        }
        assert!(domain.recent(at(60), 0).is_empty(), "a failover that long ago has lost nothing of it");
    }
}
