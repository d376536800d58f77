//! Which invalidations by pattern are in force, and whether that is known.
//!
//! A pattern takes effect when its record is in the index in L3 ([`caddy_remote::ranges`]); every sidecar reads the index
//! on its tracked connection, so that a change is pushed to it. While a pattern is in force, a request that names one of
//! its keys first has that key *cleared* (`session/patterns.rs`): what it had when the pattern took effect is removed
//! from L3, and so from every tier. So nothing from before is served, what is written afterwards stays, and the sweep
//! (`ranges/sweep.rs`) only has to find what nobody asks for.
//!
//! The knowledge is as current as a copy must be: older than `maxStaleness`, requests wait for another look. There is an
//! index since the first pattern: if it is absent later it was lost, copies die, and whoever knows patterns enters them
//! again. If the index cannot be read, what is known stays in force, and no copy is served as proven. It never decides
//! about copies: those die by their stamps.
//!
//! The index also says in which keyspaces fill tokens were given out ([`tokens`]).

mod active;
mod enter;
mod sweep;
mod tokens;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use caddy_engine::{FlushCause, Moment, SourceId};
use caddy_remote::{
    LaneState, Request, Tracking,
    ranges::{self as wire, Index, Names, Record},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

pub(crate) use active::ActiveRange;
pub(crate) use enter::{EnterError, enter, enter_as, unique};
pub(crate) use sweep::{read_progress, sweep};
use tokens::Tokens;

use crate::{
    barrier::{HeldBack, HeldRequest, barrier},
    guards::{Guard, hold},
    mailbox::ReplyTo,
    shared::{L3, Shared},
    upstream::Tag,
};

/// For so long a sidecar repeats what it entered, should a failover have lost it.
pub(crate) const FAILOVER_WINDOW: Duration = Duration::from_secs(30);
/// For how long a look is waited for before another one is sent.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
/// How often one look may be followed by another, because patterns had to be entered again.
const MAX_ROUNDS: u8 = 3;

/// See the module.
pub(crate) struct Ranges {
    pub(crate) names: Names,
    /// Who enters patterns here, for people.
    pub(crate) origin: String,
    /// This process, by a name that no other one has.
    member: String,
    /// Until then nothing is in force and that is known well: the one thing that most requests look at.
    quiet_until: AtomicU64,
    /// What the table says was so at this moment; zero: nothing is known.
    known_at: AtomicU64,
    table: ArcSwap<Vec<Arc<ActiveRange>>>,
    tokens: Tokens,
    held: Mutex<Held>,
    /// A pattern has come into force.
    pub(crate) entered: Notify,
}

#[derive(Default)]
struct Held {
    version: Option<Bytes>,
    /// Changes of the index are pushed on the tracked connection of this source.
    follows: Option<SourceId>,
    /// What was asked before says too little.
    floor: Moment,
    /// Since when a look is under way that waiters wait for.
    looking: Option<Moment>,
    waiters: Vec<ReplyTo>,
    /// What this sidecar entered lately.
    recent: Vec<(Moment, Record)>,
    /// The connection that was followed is gone: a failover may have been the reason.
    was_lost: bool,
    /// Since the last look somebody wrote to the index.
    was_pushed: bool,
}

/// A look at the index that is under way.
#[derive(Debug)]
pub(crate) struct Look {
    sent: Moment,
    follows: Option<SourceId>,
    round: u8,
    pub(crate) reply: Option<Bytes>,
    /// Somebody who waits for this one, and not for an older one.
    then: Option<oneshot::Sender<Result<(), String>>>,
}

/// What is known at a moment.
pub(crate) enum Known {
    /// These are in force.
    Active(Arc<Vec<Arc<ActiveRange>>>),
    /// Nobody can tell before the index was looked at again; these were.
    Stale(Arc<Vec<Arc<ActiveRange>>>),
}

// === what requests ask ===

impl Ranges {
    /// Nothing is known yet; with an embedded L3 there is nothing to know.
    pub(crate) fn new(config: &caddy_contract::Config) -> Self {
        let (is_embedded, is_cluster) = match &config.l3 {
            caddy_contract::L3::Embedded => (true, false),
            caddy_contract::L3::Redis(redis) => (false, redis.mode == caddy_contract::RedisMode::Cluster),
        };
        let pod = std::env::var(caddy_contract::coordination::POD_NAME_ENV).or_else(|_| std::env::var("HOSTNAME"));
        Self {
            names: Names::new(&config.cluster.domain, is_cluster),
            origin: pod.unwrap_or_else(|_| "sidecar".to_owned()),
            member: unique(),
            quiet_until: AtomicU64::new(if is_embedded { u64::MAX } else { 0 }),
            known_at: AtomicU64::new(0),
            table: ArcSwap::default(),
            tokens: Tokens::default(),
            held: Mutex::default(),
            entered: Notify::new(),
        }
    }

    /// Whether no pattern is in force, as far as anybody has to know at `now`. One load.
    #[inline]
    pub(crate) fn is_quiet(&self, now: Moment) -> bool {
        now.as_nanos() <= self.quiet_until.load(Ordering::Acquire)
    }

    /// Whether what is known is as current as a copy must be.
    fn is_fresh(&self, shared: &Shared, now: Moment) -> bool {
        let known_at = Moment::from_nanos(self.known_at.load(Ordering::Acquire));
        known_at != Moment::ZERO && known_at + shared.kernel().max_staleness() >= now
    }

    /// What is known at `now`; looks again when that has become half as old as it may.
    pub(crate) fn known(&self, shared: &Arc<Shared>, now: Moment) -> Known {
        let bound = shared.kernel().max_staleness();
        let known_at = Moment::from_nanos(self.known_at.load(Ordering::Acquire));
        let table = self.table.load_full();
        if !self.is_fresh(shared, now) && hold(Guard::RangesKnown) {
            return Known::Stale(table);
        }
        if known_at + bound / 2 < now {
            self.look_if_nobody_does(shared);
        }
        Known::Active(table)
    }

    /// Those in force, as far as is known.
    pub(crate) fn active(&self) -> Arc<Vec<Arc<ActiveRange>>> {
        self.table.load_full()
    }

    /// Whether changes of the index are pushed, or none ever are, or there is none.
    fn is_followed(&self, shared: &Shared) -> bool {
        match &shared.l3 {
            L3::Embedded(_) => true,
            L3::Redis(redis) => !redis.announces(&self.names.index) || self.held.lock().follows.is_some(),
        }
    }

    /// Replies, with nothing or an error, when the index was looked at.
    pub(crate) fn wait(&self, shared: &Arc<Shared>, to: ReplyTo) {
        self.held.lock().waiters.push(to);
        self.look_if_nobody_does(shared);
    }
}

// === looking at the index ===

impl Ranges {
    /// Looks at the index, unless a look is under way.
    pub(crate) fn look_if_nobody_does(&self, shared: &Arc<Shared>) {
        let now = shared.now();
        let mut held = self.held.lock();
        // One whose connection ended with its node is never answered.
        if held.looking.is_none_or(|since| since + LOOK_PATIENCE < now) {
            held.looking = Some(now);
            drop(held);
            self.look(shared, None);
        }
    }

    /// Looks at the index as it is from now on; tells `then` when what it says is in force.
    pub(crate) fn look(&self, shared: &Arc<Shared>, then: Option<oneshot::Sender<Result<(), String>>>) {
        let look = Look { sent: shared.now(), follows: None, round: 0, reply: None, then };
        self.ask(shared, look, &[]);
    }

    /// Sees to it that these records are in the index, and reads it. The read comes last: what is written before it is not
    /// pushed to this connection.
    fn ask(&self, shared: &Arc<Shared>, mut look: Look, records: &[Record]) {
        let version = unique();
        let mut bytes = Vec::new();
        for record in records {
            tracing::warn!(id = record.id, "an invalidation by pattern was lost in L3; it is entered again");
            bytes.extend(wire::enter(&self.names, &version, record));
        }
        bytes.extend(wire::read(&self.names));
        let replies = u16::try_from(records.len() + 1).unwrap_or(u16::MAX);
        let L3::Redis(redis) = &shared.l3 else { return };
        let Some(node) = redis.owner(&self.names.index) else {
            return self.failed(look, "the cluster's slot map is not known yet");
        };
        let tracked = redis.tracked_or_open(shared, &node, 0).filter(|them| them.lane.state() != LaneState::Failed);
        let lane = match tracked {
            Some(tracked) => {
                let is_told = node.target.tracking != Tracking::Nothing && redis.announces(&self.names.index);
                look.follows = is_told.then_some(tracked.source);
                tracked.lane
            }
            // Without tracking it can still be asked.
            None => redis.errand_lane(shared, &node, 0),
        };
        let request = Request { bytes: bytes.into(), replies, tag: Tag::Look(Box::new(look)) };
        if let Err(Request { tag: Tag::Look(look), .. }) = lane.submit(request) {
            self.failed(*look, "the sidecar is shutting down");
        }
    }

    /// A look is over. Called by the connection's own thread, in the order of its stream.
    pub(crate) fn answered(&self, shared: &Arc<Shared>, look: Look) {
        match look.reply.as_deref().map_or(Err("no reply".to_owned()), Index::parse) {
            Ok(index) => match self.missing(&look, index.as_ref(), shared.now()) {
                Some(lost) if look.round < MAX_ROUNDS => {
                    let look = Look { sent: shared.now(), round: look.round + 1, reply: None, ..look };
                    self.ask(shared, look, &lost);
                }
                Some(_) => self.failed(look, "the index of patterns is lost again and again; does L3 evict keys?"),
                None => self.install(shared, look, index),
            },
            Err(reason) => {
                if reason.starts_with("-MOVED") {
                    shared.doubt_slots();
                }
                self.failed(look, &reason);
            }
        }
    }

    /// What has to be entered before the index is whole.
    fn missing(&self, look: &Look, index: Option<&Index>, now: Moment) -> Option<Vec<Record>> {
        let mut held = self.held.lock();
        held.recent.retain(|(at, _)| *at + FAILOVER_WINDOW > now);
        let is_another = index.is_none_or(|index| held.version.as_ref().is_some_and(|known| *known != index.version));
        let is_there = |record: &Record| index.is_some_and(|index| index.records.iter().any(|r| r.id == record.id));
        let is_done = |record: &Record| index.is_some_and(|index| index.done.contains(&record.id));
        let mut missing: Vec<Record> = Vec::new();
        if !hold(Guard::RangesRepeated) {
            return None;
        }
        if held.was_lost && look.follows.is_some() {
            let recent = held.recent.iter().map(|(_, record)| record);
            missing.extend(recent.filter(|record| !is_there(record) && !is_done(record)).cloned());
        }
        if is_another {
            let table = self.table.load();
            let known = table.iter().map(|range| &range.record).filter(|record| !is_there(record));
            missing.extend(known.filter(|record| !missing.contains(record)).cloned().collect::<Vec<_>>());
        }
        (!missing.is_empty()).then_some(missing)
    }

    fn install(&self, shared: &Arc<Shared>, look: Look, index: Option<Index>) {
        let (version, records, tokens) = match index {
            Some(Index { version, records, tokens, .. }) => (Some(version), records, tokens),
            None => (None, Vec::new(), Vec::new()),
        };
        let mut held = self.held.lock();
        if look.sent < held.floor {
            // Something newer is known, or was announced: whoever waits is served by the look that follows that.
            let again = held.looking.is_none() && !held.waiters.is_empty() || look.then.is_some();
            drop(held);
            if again {
                self.look(shared, look.then);
            }
            return;
        }
        held.floor = look.sent;
        self.tokens.are_in(&tokens, &shared.names, shared.now());
        let before = self.table.load_full();
        // Before the first pattern there is no index. That there was one in between shows in that it was pushed.
        let is_another = held.version != version && held.version.is_some() || version.is_none() && held.was_pushed;
        let forgets = is_another || held.was_lost && look.follows.is_some();
        let known = if forgets { Vec::new() } else { before.to_vec() };
        let table: Vec<_> = records.into_iter().map(|record| ActiveRange::of(record, &known)).collect();
        if is_another {
            // Nobody knows what was in the one before, beside what was entered again.
            shared.kernel().flush_all(FlushCause::Uncertain);
        }
        let is_new = |range: &&Arc<ActiveRange>| !before.iter().any(|known| known.record == range.record);
        let begun = table.iter().filter(is_new).count();
        if before.len() + begun > table.len() && !is_told(shared) {
            // No push tells of what the sweep removed.
            shared.kernel().flush_all(FlushCause::Overwritten);
        }
        for range in table.iter().filter(is_new) {
            let Record { id, origin, .. } = &range.record;
            if range.record.is_marker() {
                self.acknowledge(shared, id);
            } else {
                let kind = range.record.pattern.kind().word();
                tracing::info!(id, origin, kind, "an invalidation by pattern is in force");
            }
        }
        held.version = version;
        held.was_pushed = false;
        held.follows = look.follows;
        held.was_lost &= look.follows.is_none();
        held.looking = None;
        let waiters = std::mem::take(&mut held.waiters);
        self.table.store(Arc::new(table));
        self.known_since(shared, look.sent);
        drop(held);
        if begun > 0 {
            self.entered.notify_one();
        }
        for to in &waiters {
            to.reply(Bytes::new());
        }
        if let Some(then) = look.then {
            let _ = then.send(Ok(()));
        }
    }

    /// Says that all that came before a marker is applied here, when it is: of other nodes than the index's, whose pushes
    /// come over other connections, behind a barrier. What is not heard is reported as missing.
    fn acknowledge(&self, shared: &Arc<Shared>, marker: &str) {
        let L3::Redis(redis) = &shared.l3 else { return };
        let Some(owner) = redis.owner(&self.names.acknowledgements(marker)) else { return };
        let bytes = wire::acknowledge(&self.names, marker, &self.member).into();
        let held: HeldBack = Arc::new(HeldRequest { lane: redis.errand_lane(shared, &owner, 0), bytes, replies: 2 });
        redis.nodes().iter().for_each(|node| barrier(shared, node, &held));
    }

    /// The table is known to be right at `at`. Only under the lock.
    fn known_since(&self, shared: &Shared, at: Moment) {
        let bound = shared.kernel().max_staleness();
        let quiet = if self.table.load().is_empty() { (at + bound / 2).as_nanos() } else { 0 };
        self.known_at.store(at.as_nanos(), Ordering::Release);
        self.quiet_until.store(quiet, Ordering::Release);
    }

    /// A look came to nothing: what was known stays in force.
    pub(crate) fn failed(&self, look: Look, reason: &str) {
        let mut held = self.held.lock();
        held.looking = None;
        let waiters = std::mem::take(&mut held.waiters);
        drop(held);
        let error = format!("-NOTREADY the index of invalidations cannot be read: {reason}\r\n");
        for to in &waiters {
            to.reply(error.clone());
        }
        if let Some(then) = look.then {
            let _ = then.send(Err(reason.to_owned()));
        }
    }
}

// === what connections tell ===

impl Ranges {
    /// The index was changed: what is known of it ends here, and it is looked at again.
    pub(crate) fn told(&self, shared: &Arc<Shared>) {
        self.held.lock().was_pushed = true;
        self.doubt(shared);
    }

    fn doubt(&self, shared: &Arc<Shared>) {
        if !hold(Guard::RangesFollow) {
            return;
        }
        let mut held = self.held.lock();
        held.floor = shared.now();
        held.follows = None;
        held.looking = Some(held.floor);
        self.known_at.store(0, Ordering::Release);
        self.quiet_until.store(0, Ordering::Release);
        drop(held);
        self.look(shared, None);
    }

    /// A database was emptied, perhaps the index with it, and what Redis has noted of written keys: they are cleared, and
    /// noted, once more.
    pub(crate) fn told_of_a_flush(&self, shared: &Arc<Shared>) {
        let held = self.held.lock();
        let known = self.table.load_full();
        let afresh = known.iter().map(|range| ActiveRange::of(range.record.clone(), &[])).collect();
        self.table.store(Arc::new(afresh));
        drop(held);
        self.doubt(shared);
    }

    /// Whether a key that was pushed on the connection of `source` is the index.
    pub(crate) fn is_index(&self, key: &[u8]) -> bool {
        key == self.names.index
    }

    /// The tracked connection of `source` is gone: nothing is pushed on it any more.
    pub(crate) fn lost(&self, source: SourceId) {
        let mut held = self.held.lock();
        if held.follows == Some(source) {
            held.follows = None;
            held.was_lost = true;
        }
    }

    /// The slots of a cluster have other owners: the index may, too.
    pub(crate) fn moved(&self) {
        self.held.lock().follows = None;
    }

    /// Whatever was written before `sent` has been announced on the connection of `source`.
    pub(crate) fn proved(&self, shared: &Shared, source: SourceId, sent: Moment) {
        let held = self.held.lock();
        if held.follows == Some(source) && sent.as_nanos() > self.known_at.load(Ordering::Acquire) {
            self.known_since(shared, sent);
        }
    }

    /// This sidecar entered a pattern, and answers for it should L3 lose it.
    fn remember(&self, now: Moment, record: Record) {
        self.held.lock().recent.push((now, record));
    }
}

/// Whether L3 tells of what is removed.
fn is_told(shared: &Shared) -> bool {
    matches!(&shared.l3, L3::Redis(redis) if redis.tracks())
}
