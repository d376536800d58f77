//! How generations become known: read, made and kept alive, and who waits for that.
//!
//! Whoever needs one reads it on the tracked connection, and only what was read there counts: also whoever makes one
//! (`SET NX`) reads it behind that. A generation that copies here depend on is read again as soon as Redis says that
//! something happened to it. Fails where a generation cannot be read: whoever waits is told why.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_engine::{
    FillToken, Moment, SourceId,
    codec::envelope::GenerationValue,
    generations::{GenerationCell, Reading},
};
use caddy_remote::{LaneHandle, LaneState, Request};
use caddy_resp::{Protocol, Value, encode};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{
    ALL, Mode, PARENT, generation_life,
    value::{RENEW, VALUE_BYTES, expiring, fresh_value, random},
};
use crate::{
    fills::{self, FillLanded, FillMany},
    guards::{Guard, hold},
    mailbox::{Delivery, Mailbox},
    nodes::Node,
    shared::{L3, Shared},
    shown::RelayedStrings,
    upstream::Tag,
};

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

/// What stands where a generation is to be made, and what to do about it.
fn not_a_generation(key: &[u8], what: &str) -> String {
    format!(
        "{FOREIGN}the key '{}' in Redis is {what} that no sidecar wrote, and not the generation that its name is for; nothing \
         was written: DEL it, which invalidates what depends on it, and keep other data under other names",
        key.escape_ascii()
    )
}

/// What an error begins with that trying again does not mend.
pub(crate) const FOREIGN: &str = "ERR ";

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
        let is_other = |error: &&[u8]| error.starts_with(b"WRONGTYPE");
        let foreign_type = decoded.iter().filter_map(Value::as_error).find(is_other).is_some();
        if let Some(error) = decoded.iter().filter_map(Value::as_error).find(|error| !is_other(error)) {
            // MOVED, READONLY, NOPERM and the like.
            self.shared.doubt_slots();
            return self.fail(String::from_utf8_lossy(error).into_owned());
        }
        let [.., value, pttl] = decoded.as_slice() else { return self.fail("replies cannot be read".to_owned()) };
        let now = self.shared.now();
        let stored = value.as_bytes();
        let found = stored.and_then(|bytes| bytes.split_first_chunk::<VALUE_BYTES>());
        let found = found.map(|(value, detail)| (GenerationValue(*value), Bytes::copy_from_slice(detail)));
        // For who reads there is none, so that what carries it is invalid. Nobody makes one over what is somebody else's.
        let foreign = match stored.filter(|_| found.is_none()) {
            Some(bytes) => Some(format!("{} bytes", bytes.len())),
            None => foreign_type.then(|| "no string".to_owned()),
        };
        if let Some(what) = foreign.filter(|_| asked.before > 0) {
            return self.fail(not_a_generation(asked.cell.name(), &what));
        }
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
    use super::{super::LIFE, *};

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
}
