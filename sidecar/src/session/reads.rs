//! Reads of one key that the tiers may answer: GET, and the common reads of a key of any type.
//!
//! A hit touches nothing but the worker's own L1 and the shared L2. A miss becomes a flight on the tracked connection,
//! or joins one; where there is no tracked connection, or the key's rule says `cache: Off`, the read is relayed.

use std::sync::Arc;

use bytes::Bytes;
use caddy_contract::OnUncertain;
use caddy_engine::KeyHash;
use caddy_remote::{LaneHandle, LaneState};
use caddy_resp::{Protocol, encode};
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    lookup::{Found, Wanted},
    relaying::effect,
    routing::Home,
    under_way::OwnRead,
};
use crate::{
    answers::integer,
    cache::{Cached, KeyRef, Read, TierKey, Waiter, request_name},
    commands::Row,
    fills::{self, keep},
    guards::{Guard, hold},
    mailbox::ReplyTo,
    nodes::{Node, Tracked},
    probe::probe_if_due,
    shared::L3,
    upstream::Tag,
};

/// Whether the two protocols do not differ in writing alone: scores stand in pairs or not, and a null is an array's or not.
fn differs_in_resp2(args: Args<'_>) -> bool {
    (2..args.len()).any(|at| args.is(at, "WITHSCORES") || args.is(at, "WITHSCORE"))
}

/// Where a miss is read.
pub(super) enum FillPath {
    /// On the tracked connection of its node.
    Lane(Arc<Node>, Tracked),
    /// There, once what is under way elsewhere is answered.
    Hold,
    /// In this process.
    Embedded,
    /// Over the relay, leaving no copy.
    None,
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
            _ if differs_in_resp2(args) => self.relay(row, args, effect(row, args), Pending::Relayed),
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

    // === misses ===

    /// How a miss of these keys, which are of one node, may be filled now.
    pub(super) fn fill_path(&mut self, keys: &[&[u8]]) -> FillPath {
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
        let request = args.to_bytes();
        self.under_way.add(key, &request);
        let pending = Pending::Filling { request: request.clone(), key, unproven: missed.unproven };
        self.stream = Stream::Tracked(self.client.database);
        let waiter = self.waiter(pending);
        let wanted = caddy_engine::Wanted { source: tracked.source, key_hash: key, hash: name.tier_hash(), key: &name };
        let lane = self.fill_lane(node, tracked);
        fills::read_for(&shared, &wanted, &request, &lane, waiter, missed.keep, self.now);
        Flow::Done
    }

    pub(super) fn waiter(&mut self, pending: Pending) -> Waiter {
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
        if let Ok(value) = Cached::from_reply(Read::Get, Bytes::copy_from_slice(&reply)) {
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
}
