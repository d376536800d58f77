//! Reads that the tiers may answer: GET, MGET and the common reads of one key of any type fill them; EXISTS, STRLEN, TTL
//! and PTTL are derived from what GET left.
//!
//! A hit touches nothing but the worker's own L1 and the shared L2. A miss becomes a flight on the tracked connection,
//! or joins one; where there is no tracked connection, or the key's rule says `cache: Off`, the read is relayed.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_contract::OnUncertain;
use caddy_engine::{Counter, KeyHash, Lookup, Moment};
use caddy_remote::{LaneHandle, LaneState};
use caddy_resp::{Protocol, encode};
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream, effect},
    gather::{Gathering, Group, groups},
    routing::{Home, effect_of_part},
    under_way::OwnRead,
};
use crate::{
    cache::{Cached, KeyRef, Read, TierKey, Waiter, request_name},
    commands::{Merge, Row},
    fills::{self, FillMany, fill_many_request, keep},
    guards::{Guard, hold},
    mailbox::ReplyTo,
    nodes::{Node, Tracked},
    probe::probe_if_due,
    shared::L3,
    shown::Shown,
    tally::Count,
    upstream::{Effect, Tag, integer},
};

/// MGETs of more keys are relayed: their fills would crowd out what single reads keep warm.
const MAX_FILL_KEYS: usize = 256;
/// Thirty years after boot: the tiers keep deadlines exactly to a little beyond that, and later ones as that.
const EXACT_UNTIL: Moment = Moment::from_nanos(30 * 365 * 24 * 3600 * 1_000_000_000);

/// Where a miss is read.
enum FillPath {
    /// On the tracked connection of its node.
    Lane(Arc<Node>, Tracked),
    /// There, once what is under way elsewhere is answered.
    Hold,
    /// In this process.
    Embedded,
    /// Over the relay, leaving no copy.
    None,
}

/// Where misses of several keys are read.
enum FillPaths<'a> {
    /// Each group on its node's tracked connection.
    Lanes(Vec<(Group<'a>, Arc<Node>, Tracked)>),
    /// There, once what is under way elsewhere is answered.
    Hold,
    /// Over the relay, leaving no copy.
    None,
}

/// What is to be told from a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Value,
    /// When the key expires.
    Expiry,
}

/// What the tiers say about one key.
pub(super) enum Found<R> {
    /// A current copy, already rendered.
    Answered(R),
    /// A copy that nothing proves current.
    Unproven(Cached),
    /// A current copy that its keyspace's rule keeps from being served.
    Observed,
    Absent,
}

/// What a read that no copy answers brings along.
struct Missed {
    /// A copy that is there and nothing proves current.
    unproven: Option<Cached>,
    /// Whether what L3 answers may become a copy.
    keep: bool,
}

impl Missed {
    fn new() -> Self {
        Self { unproven: None, keep: true }
    }
}

impl Conversation {
    /// A command of the class `Fill`.
    pub(super) fn read(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        if self.is_behind_relay() {
            if self.is_loading_read(row, args) {
                return Flow::Hold;
            }
            return self.relay(row, args, effect(row, args), Pending::Relayed);
        }
        let database = self.client.database;
        match row.name {
            "get" => self.read_one(row, args, KeyRef { database, read: Read::Get, name: args.get(1) }),
            "mget" => self.mget(row, args),
            // Its two protocols do not differ in writing alone.
            _ if args.from(2).any(|arg| arg.eq_ignore_ascii_case(b"WITHSCORES")) => {
                self.relay(row, args, effect(row, args), Pending::Relayed)
            }
            name => {
                let mut request = SmallVec::new();
                request_name(name, args.from(1), &mut request);
                self.read_one(row, args, KeyRef { database, read: Read::Request, name: &request })
            }
        }
    }

    /// A read of the one key that is the first argument.
    fn read_one(&mut self, row: &'static Row, args: Args<'_>, name: KeyRef<'_>) -> Flow {
        let key = KeyHash::of(args.get(1));
        match self.own_read_of(key, args) {
            None => {}
            // A copy may be older than what the session is about to be shown; that flight, or a newer one, is not.
            Some(OwnRead::Same) => {
                let missed = self.behind_own_read(name, key);
                return self.miss(row, args, name, key, missed);
            }
            Some(OwnRead::Other) => return Flow::Hold,
        }
        // Straight into the output if nothing is in front of it: the hit path copies once and allocates nothing.
        let found = if self.replies.is_empty() {
            let mut out = std::mem::take(&mut self.out);
            let found = self.look_up(name, key, Wanted::Value, |value, _, protocol| value.encode(protocol, &mut out));
            self.out = out;
            found
        } else {
            let found = self.look_up(name, key, Wanted::Value, |value, _, protocol| {
                let mut out = Vec::new();
                value.encode(protocol, &mut out);
                Bytes::from(out)
            });
            match found {
                Found::Answered(bytes) => {
                    self.replies.append(bytes);
                    Found::Answered(())
                }
                Found::Unproven(copy) => Found::Unproven(copy),
                Found::Observed => Found::Observed,
                Found::Absent => Found::Absent,
            }
        };
        let missed = match found {
            Found::Answered(()) => return Flow::Done,
            Found::Unproven(copy) => Missed { unproven: Some(copy), ..Missed::new() },
            // The copy stays as it is, with the life it has left.
            Found::Observed => Missed { keep: false, ..Missed::new() },
            Found::Absent => Missed::new(),
        };
        self.miss(row, args, name, key, missed)
    }

    /// Counts a read that follows another of the session on the tracked connection, whatever the tiers hold.
    fn behind_own_read(&self, name: KeyRef<'_>, key: KeyHash) -> Missed {
        if !self.worker.shared.keyspaces().rule(name.key()).observes() {
            self.count_miss(name);
            return Missed::new();
        }
        let found = self.look_up(name, key, Wanted::Value, |_, _, _| ());
        Missed { keep: !matches!(found, Found::Observed), ..Missed::new() }
    }

    fn miss(&mut self, row: &'static Row, args: Args<'_>, name: KeyRef<'_>, key: KeyHash, missed: Missed) -> Flow {
        match self.fill_path(&[args.get(1)]) {
            FillPath::Lane(node, lane) => self.fill(&node, &lane, args, name, key, missed),
            FillPath::Hold => Flow::Hold,
            FillPath::Embedded if name.read == Read::Get => self.fill_embedded(args.get(1), key, missed.keep),
            FillPath::Embedded | FillPath::None => self.read_unfilled(row, args, missed.unproven),
        }
    }

    /// As [`look_up`](Self::look_up), for what GET left.
    pub(super) fn look_up_value<R>(&self, key: &[u8], render: impl FnOnce(&Cached, Protocol) -> R) -> Found<R> {
        let render = |value: &Cached, _: Moment, protocol| render(value, protocol);
        self.look_up(self.name_of_get(key), KeyHash::of(key), Wanted::Value, render)
    }

    fn name_of_get<'a>(&self, key: &'a [u8]) -> KeyRef<'a> {
        KeyRef { database: self.client.database, read: Read::Get, name: key }
    }

    /// Looks a copy up in the tiers and renders it if it is current; sends a probe if one is due. `key` is the hash of the
    /// bare key.
    pub(super) fn look_up<R>(
        &self,
        name: KeyRef<'_>,
        key: KeyHash,
        wanted: Wanted,
        render: impl FnOnce(&Cached, Moment, Protocol) -> R,
    ) -> Found<R> {
        let hash = match name.read {
            Read::Get => name.tier_hash_of(key),
            Read::Request => name.tier_hash(),
        };
        let worker = &self.worker;
        if worker.sampler.is_due() {
            worker.sample(hash, name, self.now);
        }
        let mut tiers = worker.tiers.borrow_mut();
        let (found, probe_due) = match tiers.lookup(hash, &name, self.now) {
            Lookup::Hit(hit) => {
                let (key, probe_due, tier) = (hit.entry.key(), hit.probe_due, hit.tier);
                let keyspace = key.keyspace;
                let stored = hit.entry.value();
                let reuse = &worker.shared.reuse;
                if reuse.takes(hash) && !reuse.repeated(hash, hit.entry.bytes(), hit.idle) {
                    reuse.hit(hash, keyspace.index(), hit.entry.bytes());
                }
                if key.refresh_within > 0
                    && hit.deadline.since(self.now) <= Duration::from_millis(u64::from(key.refresh_within))
                {
                    worker.shared.loading.refresh(name.database, name.name, hash, key.refresh_within, self.now);
                }
                let is_exact = !key.is_bounded && (hit.deadline == Moment::NEVER || hit.deadline < EXACT_UNTIL);
                if wanted == Wanted::Expiry && !is_exact && stored.exists() {
                    worker.tally.add(keyspace, Count::Miss);
                    tiers.recount(tier.counter(), Counter::MissUnusable);
                    (Found::Absent, probe_due)
                } else if key.is_observed {
                    worker.tally.add(keyspace, Count::WouldHit);
                    tiers.recount(tier.counter(), Counter::Observed);
                    (Found::Observed, probe_due)
                } else if self.patterns.is_blind {
                    // A pattern that nobody here could look up may have it.
                    let copy = stored.open().map(Cow::into_owned);
                    worker.tally.add(keyspace, Count::Miss);
                    tiers.recount(tier.counter(), Counter::UncertainLapsed);
                    (copy.map_or(Found::Absent, Found::Unproven), probe_due)
                } else if let Some(value) = stored.ready() {
                    worker.tally.add(keyspace, Count::hit(tier));
                    (Found::Answered(render(value, hit.deadline, self.client.protocol)), probe_due)
                } else if let Some(value) = self.unpack(hash, hit.entry, tier) {
                    worker.tally.add(keyspace, Count::hit(tier));
                    (Found::Answered(render(&value, hit.deadline, self.client.protocol)), probe_due)
                } else {
                    worker.tally.add(keyspace, Count::Miss);
                    tiers.recount(tier.counter(), Counter::MissUnusable);
                    (Found::Absent, probe_due)
                }
            }
            Lookup::Uncertain(copy) => {
                let value = copy.entry.value().open().map(Cow::into_owned);
                let counter = copy.doubt.counter();
                match self.count_miss(name) {
                    Count::WouldMiss => {
                        tiers.recount(counter, Counter::Observed);
                        (Found::Absent, true)
                    }
                    _ => (value.map_or(Found::Absent, Found::Unproven), true),
                }
            }
            Lookup::Miss(miss) if name.read == Read::Get && self.is_known_absent(name.name, key) => {
                tiers.recount(miss.counter(), Counter::Filtered);
                (Found::Answered(render(&Cached::Nil, Moment::NEVER, self.client.protocol)), false)
            }
            Lookup::Miss(miss) => {
                if self.count_miss(name) == Count::WouldMiss {
                    tiers.recount(miss.counter(), Counter::Observed);
                }
                (Found::Absent, false)
            }
        };
        drop(tiers);
        if probe_due {
            self.send_probe(name.key());
        }
        found
    }

    /// Whether the negative filter of the key's keyspace knows that there is no such key; counted.
    fn is_known_absent(&self, key: &[u8], hash: KeyHash) -> bool {
        let shared = &self.worker.shared;
        let keyspaces = shared.keyspaces();
        let rule = keyspaces.rule(key);
        let knows = |filter| !self.patterns.is_blind && shared.absences.is_absent(shared, filter, key, hash, self.now);
        let is_absent = rule.filter.as_deref().is_some_and(knows);
        if is_absent {
            self.worker.tally.add(rule.id, Count::Filtered);
        }
        is_absent
    }

    /// Counts a read that no copy answers, as what its keyspace's rule makes of it.
    fn count_miss(&self, name: KeyRef<'_>) -> Count {
        let keyspaces = self.worker.shared.keyspaces();
        let rule = keyspaces.rule(name.key());
        let count = match (rule.caches(), rule.observes()) {
            (false, _) => Count::Off,
            (true, true) => Count::WouldMiss,
            (true, false) => Count::Miss,
        };
        self.worker.tally.add(rule.id, count);
        count
    }

    fn send_probe(&self, key: &[u8]) {
        let L3::Redis(redis) = &self.worker.shared.l3 else { return };
        if let Some(node) = redis.owner(key)
            && let Some(tracked) = node.tracked(self.client.database)
            && tracked.lane.state() == LaneState::Ready
        {
            probe_if_due(&self.worker.shared, &node, &tracked, self.now);
        }
    }

    // === misses ===

    /// How a miss of these keys, which are of one node, may be filled now.
    fn fill_path(&mut self, keys: &[&[u8]]) -> FillPath {
        let worker = self.worker.clone();
        let shared = &worker.shared;
        let redis = match &shared.l3 {
            L3::Embedded(_) => return FillPath::Embedded,
            L3::Redis(redis) => redis,
        };
        if !shared.keyspaces().may_cache(keys) {
            return FillPath::None;
        }
        let node = match self.home(redis, keys.first().copied()) {
            Home::Node(node) => node,
            Home::Hold => return FillPath::Hold,
            Home::Unknown(_) => return FillPath::None,
        };
        match redis.tracked_or_open(shared, &node, self.client.database) {
            Some(tracked) if tracked.lane.state() == LaneState::Ready => {
                if self.is_under_way_elsewhere(Stream::Tracked(self.client.database)) {
                    FillPath::Hold
                } else {
                    FillPath::Lane(node, tracked)
                }
            }
            _ => FillPath::None,
        }
    }

    fn fill(
        &mut self,
        node: &Arc<Node>,
        tracked: &Tracked,
        args: Args<'_>,
        name: KeyRef<'_>,
        key: KeyHash,
        missed: Missed,
    ) -> Flow {
        let shared = self.worker.shared.clone();
        // In front of the fill: what it brings can then be served at once.
        probe_if_due(&shared, node, tracked, self.now);
        let shown = (name.read == Read::Get).then(|| Shown::value_of(args.get(1)));
        let effect =
            Effect { keys: SmallVec::from_slice(&[key]), shows: shown.into_iter().collect(), ..Effect::default() };
        let request = args.to_bytes();
        self.under_way.add(key, &request);
        let pending = Pending::Filling { request: request.clone(), effect, unproven: missed.unproven };
        self.stream = Stream::Tracked(self.client.database);
        let waiter = self.waiter(pending);
        let wanted = caddy_engine::Wanted { source: tracked.source, key_hash: key, hash: name.tier_hash(), key: &name };
        let lane = self.fill_lane(node, tracked);
        fills::read_for(&shared, &wanted, &request, &lane, waiter, missed.keep, self.now);
        Flow::Done
    }

    fn waiter(&mut self, pending: Pending) -> Waiter {
        let to = ReplyTo { mailbox: self.mailbox.clone(), place: self.expect(pending) };
        Waiter { to, protocol: self.client.protocol }
    }

    /// The tracked connection, always.
    fn fill_lane(&self, node: &Arc<Node>, tracked: &Tracked) -> LaneHandle<Tag> {
        if hold(Guard::TrackedFill) {
            tracked.lane.clone()
        } else {
            self.worker.relay(node, self.client.database, Protocol::Resp3)
        }
    }

    /// No fill is possible: an unproven copy by its rule, everything else over the relay.
    fn read_unfilled(&mut self, row: &'static Row, args: Args<'_>, unproven: Option<Cached>) -> Flow {
        match unproven.and_then(|copy| self.answer_unproven(&copy)) {
            Some(answer) => {
                self.reply(|out| out.extend_from_slice(&answer));
                Flow::Done
            }
            None if self.is_loading_read(row, args) => self.load_unfilled(row, args),
            None => self.relay(row, args, effect(row, args), Pending::Relayed),
        }
    }

    /// The answer that `onUncertain` gives from a copy that cannot be proved current; `None`: ask L3.
    pub(super) fn answer_unproven(&self, copy: &Cached) -> Option<Bytes> {
        let config = self.worker.shared.config();
        let consistency = &config.consistency;
        let mut out = Vec::new();
        match consistency.on_uncertain {
            OnUncertain::Bypass => return None,
            OnUncertain::Fail => encode::error(
                &mut out,
                "STALE the copy cannot be proved current and consistency.onUncertain is Fail; retry when Redis answers",
            ),
            OnUncertain::ServeStale => match self.client.protocol {
                Protocol::Resp3 => {
                    encode::attribute_header(&mut out, 1);
                    encode::simple(&mut out, "stale");
                    encode::boolean(&mut out, Protocol::Resp3, true);
                    copy.encode(Protocol::Resp3, &mut out);
                }
                Protocol::Resp2 if consistency.allow_unmarked => copy.encode(Protocol::Resp2, &mut out),
                Protocol::Resp2 => return None,
            },
        }
        self.worker.shared.metrics.served_unproven.inc();
        Some(out.into())
    }

    fn fill_embedded(&mut self, key: &[u8], hash: KeyHash, may_keep: bool) -> Flow {
        let shared = self.worker.shared.clone();
        let L3::Embedded(store) = &shared.l3 else { return Flow::Done };
        let token = shared.kernel().begin_fill(shared.embedded_source, hash, self.now);
        let (mut reply, mut pttl) = (Vec::new(), Vec::new());
        store.execute(self.client.database, self.client.protocol, &[b"GET", key], &mut reply);
        store.execute(self.client.database, self.client.protocol, &[b"PTTL", key], &mut pttl);
        if let Some(value) = Cached::from_reply(Read::Get, &reply) {
            let (database, pttl) = (self.client.database, integer(&pttl));
            let decoded = shared.decode_embedded(database, key, value, pttl);
            let protocol = self.client.protocol;
            self.reply(|out| decoded.value.encode(protocol, out));
            if may_keep {
                keep(&shared, TierKey::get(database, key), &token, decoded);
            }
        } else {
            self.reply(|out| out.extend_from_slice(&reply));
        }
        Flow::Done
    }

    // === several keys ===

    /// Local only if every key hits; else all are read together, so that the answer is of one moment.
    fn mget(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let keys: SmallVec<[&[u8]; 16]> = args.from(1).collect();
        if keys.iter().any(|key| self.own_read_of(KeyHash::of(key), args).is_some()) {
            return Flow::Hold;
        }
        let (mut values, mut observed) = (Vec::new(), false);
        let all_hit = keys.iter().all(|key| {
            let render = |value: &Cached, _, protocol| value.encode(protocol, &mut values);
            let found = self.look_up(self.name_of_get(key), KeyHash::of(key), Wanted::Value, render);
            observed |= matches!(found, Found::Observed);
            matches!(found, Found::Answered(()) | Found::Observed)
        });
        if all_hit && !observed {
            self.reply(|out| {
                encode::array_header(out, keys.len());
                out.extend_from_slice(&values);
            });
            return Flow::Done;
        }
        let path = if keys.len() <= MAX_FILL_KEYS { self.fill_paths(&keys) } else { FillPaths::None };
        match path {
            FillPaths::Hold => Flow::Hold,
            FillPaths::Lanes(lanes) => self.fill_many(&lanes, row, args, !all_hit),
            FillPaths::None if self.is_loading_read(row, args) => self.load_unfilled(row, args),
            FillPaths::None => self.relay(row, args, effect(row, args), Pending::Relayed),
        }
    }

    /// How misses of these keys may be filled now, together: for each slot of a cluster apart.
    fn fill_paths<'a>(&mut self, keys: &[&'a [u8]]) -> FillPaths<'a> {
        let is_cluster = matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.cluster().is_some());
        let groups = if is_cluster { groups(keys.iter().copied()) } else { vec![Group::all(keys)] };
        let mut lanes = Vec::with_capacity(groups.len());
        for group in groups {
            match self.fill_path(&group.keys) {
                FillPath::Hold => return FillPaths::Hold,
                FillPath::Embedded | FillPath::None => return FillPaths::None,
                FillPath::Lane(node, tracked) => lanes.push((group, node, tracked)),
            }
        }
        FillPaths::Lanes(lanes)
    }

    fn fill_many(
        &mut self,
        lanes: &[(Group<'_>, Arc<Node>, Tracked)],
        row: &'static Row,
        args: Args<'_>,
        keep: bool,
    ) -> Flow {
        let whole = effect(row, args);
        self.stream = Stream::Tracked(self.client.database);
        self.under_way.add_many(&whole.keys);
        let pending = if lanes.len() == 1 {
            Pending::FillingMany { request: args.to_bytes(), effect: whole }
        } else {
            let fallback = |group: &Group<'_>| (group.request(args.get(0)), effect_of_part(&whole, &group.keys));
            let fallbacks = lanes.iter().map(|(group, ..)| fallback(group)).collect();
            let places = lanes.iter().map(|(group, ..)| group.places.clone()).collect();
            let gathering = Gathering::new(Merge::InOrder, self.client.protocol, places);
            Pending::Gathering(Box::new(gathering.filling(&whole.keys, fallbacks)))
        };
        let waiter = self.waiter(pending);
        for (part, (group, node, tracked)) in (0..).zip(lanes) {
            let mut waiter = waiter.clone();
            waiter.to.place.part = part;
            let fill = FillMany {
                database: self.client.database,
                keys: Vec::new(),
                keep,
                waiter,
                reply: None,
                pttls: Vec::with_capacity(group.keys.len()),
            };
            self.fill_group(group, node, tracked, fill);
        }
        Flow::Done
    }

    fn fill_group(&self, group: &Group<'_>, node: &Node, tracked: &Tracked, mut many: FillMany) {
        probe_if_due(&self.worker.shared, node, tracked, self.now);
        let kernel = self.worker.shared.kernel();
        let token = |key: &&[u8]| {
            let token = kernel.begin_fill(tracked.source, KeyHash::of(key), self.now);
            (TierKey::get(self.client.database, key), token)
        };
        many.keys = group.keys.iter().map(token).collect();
        let request = fill_many_request(group.keys.iter().copied(), Tag::FillMany(Box::new(many)));
        if let Err(request) = tracked.lane.submit(request)
            && let Tag::FillMany(many) = request.tag
        {
            many.waiter.to.bypass();
        }
    }

    // === derived reads ===

    /// EXISTS, STRLEN, TTL, PTTL: from the copy that a GET left, else over the relay.
    pub(super) fn derived(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        if !self.is_behind_relay() {
            if args.from(1).any(|key| self.own_read_of(KeyHash::of(key), args).is_some())
                || self.would_hold_observed(args)
            {
                return Flow::Hold;
            }
            let (mut sum, mut observed) = (0, false);
            let (wanted, render) = derivation(row.name);
            let now = self.now;
            let all_hit = args.from(1).all(|key| {
                let render = |value: &Cached, deadline, _| sum += render(value, deadline, now);
                let found = self.look_up(self.name_of_get(key), KeyHash::of(key), wanted, render);
                observed |= matches!(found, Found::Observed);
                matches!(found, Found::Answered(()) | Found::Observed)
            });
            if all_hit && !observed {
                self.reply(|out| encode::integer(out, sum));
                return Flow::Done;
            }
            if observed {
                return self.relay_observed(row, args);
            }
        }
        self.relay(row, args, effect(row, args), Pending::Relayed)
    }

    /// Whether the read is relayed in any case and has to wait for that: it is to be counted once, and so later.
    pub(super) fn would_hold_observed(&self, args: Args<'_>) -> bool {
        let keyspaces = self.worker.shared.keyspaces();
        self.is_under_way_elsewhere(Stream::Relay(self.client.database, self.client.protocol))
            && args.from(1).any(|key| keyspaces.rule(key).observes())
    }

    /// Copies of observed keyspaces are served to nobody, so that nobody can step back to one behind this reply: they stay,
    /// as if they had answered.
    pub(super) fn relay_observed(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let mut effect = effect(row, args);
        let shared = self.worker.shared.clone();
        let keyspaces = shared.keyspaces();
        let observed: SmallVec<[KeyHash; 2]> =
            args.from(1).filter(|key| keyspaces.rule(key).observes()).map(KeyHash::of).collect();
        effect.keys.retain(|key| !observed.contains(key));
        self.relay(row, args, effect, Pending::Relayed)
    }
}

type Derivation = fn(&Cached, Moment, Moment) -> i64;

/// How a derived command reads a copy: value, deadline, now.
fn derivation(name: &str) -> (Wanted, Derivation) {
    let millis = |value: &Cached, deadline: Moment, now: Moment| match (value.exists(), deadline) {
        (false, _) => -2,
        (true, Moment::NEVER) => -1,
        (true, deadline) => i64::try_from(deadline.since(now).as_millis()).unwrap_or(i64::MAX),
    };
    match name {
        "exists" => (Wanted::Value, |value, _, _| i64::from(value.exists())),
        "strlen" => (Wanted::Value, |value, _, _| i64::try_from(value.len()).unwrap_or(i64::MAX)),
        "pttl" => (Wanted::Expiry, millis),
        // Rounded to the nearest second, as Redis does.
        _ => (Wanted::Expiry, |value, deadline, now| match (value.exists(), deadline) {
            (false, _) => -2,
            (true, Moment::NEVER) => -1,
            (true, deadline) => i64::try_from((deadline.since(now).as_millis() + 500) / 1000).unwrap_or(i64::MAX),
        }),
    }
}
