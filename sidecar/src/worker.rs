//! One worker: a thread with a runtime, an L1 and relays of its own. Sessions live and die on it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    rc::Rc,
    sync::Arc,
};

use caddy_engine::{Moment, TierHash, hot::Sampler};
use caddy_remote::{Lane, LaneHandle, Setup, lane};
use caddy_resp::Protocol;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    cache::{KeyRef, TierKey},
    commands::Row,
    heat::HotRead,
    hub::Addition,
    mailbox::Mailbox,
    nodes::{Node, NodeId},
    shared::{L3, Shared},
    stored::Stored,
    supervisor::Supervisor,
    tally::WorkerTally,
    upstream::{Purpose, Tag, Upstream},
};

/// What one read from a socket may bring; shared by all sessions of the worker, so that idle ones hold no buffer.
pub(crate) const READ_BUFFER: usize = 64 << 10;
/// The largest output buffer that is kept for the next session.
const MAX_KEPT_OUTPUT: usize = 1 << 20;
/// Connections of their own that pinned sessions of one worker may have.
const MAX_PINNED: usize = 512;
/// Clean ones kept for the next session.
const MAX_IDLE_PINNED: usize = 8;

/// See the module.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tiers: RefCell<caddy_engine::Worker<TierKey, Stored>>,
    /// What becomes of the reads, by keyspace.
    pub(crate) tally: WorkerTally,
    /// Which reads are looked at for what is read most.
    pub(crate) sampler: Sampler,
    pub(crate) supervisor: Supervisor,
    /// Lent to the session that is reading.
    pub(crate) read_buffer: RefCell<Vec<u8>>,
    /// Lent to the session that has something to write.
    output: RefCell<Vec<u8>>,
    /// The last command of the session whose requests are being taken.
    pub(crate) last: Cell<Option<&'static Row>>,
    relays: RefCell<HashMap<(NodeId, u32, Protocol), LaneHandle<Tag>>>,
    hub: mpsc::UnboundedSender<Addition>,
    idle: RefCell<Vec<PinnedLane>>,
    pinned: Rc<Cell<usize>>,
}

/// A connection that serves one session at a time.
#[derive(Debug)]
pub(crate) struct PinnedLane {
    handle: LaneHandle<Tag>,
    owner: Arc<Mutex<Option<Arc<Mailbox>>>>,
    pub(crate) node: NodeId,
    database: u32,
    protocol: Protocol,
    _count: PinnedCount,
}

/// Counts a pinned connection while it exists.
#[derive(Debug)]
struct PinnedCount(Rc<Cell<usize>>);

impl Drop for PinnedCount {
    fn drop(&mut self) {
        self.0.update(|count| count - 1);
    }
}

impl PinnedLane {
    pub(crate) fn handle(&self) -> &LaneHandle<Tag> {
        &self.handle
    }

    /// The server at its other end.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, hub: mpsc::UnboundedSender<Addition>, supervisor: Supervisor) -> Rc<Self> {
        Rc::new(Self {
            tiers: RefCell::new(shared.cache.worker()),
            tally: shared.tally.worker(),
            sampler: Sampler::new(RandomState::new().hash_one(0)),
            shared,
            supervisor,
            read_buffer: RefCell::new(vec![0; READ_BUFFER]),
            output: RefCell::default(),
            last: Cell::default(),
            relays: RefCell::default(),
            hub,
            idle: RefCell::default(),
            pinned: Rc::default(),
        })
    }

    /// Looks at a read that the sampler has chosen. Apart from the way of a hit, which it is seldom on.
    #[cold]
    pub(crate) fn sample(&self, hash: TierHash, name: KeyRef<'_>, now: Moment) {
        let weight = self.sampler.take(now);
        if HotRead::fits(name) {
            self.shared.heat.record(hash, weight, now, || HotRead::new(name));
        }
    }

    /// A buffer for a session that has none.
    pub(crate) fn lend_output(&self, out: &mut Vec<u8>) {
        if out.capacity() == 0 {
            *out = self.output.take();
        }
    }

    /// Takes back a buffer whose bytes have all been written; an unusually large one is given up.
    pub(crate) fn return_output(&self, out: &mut Vec<u8>) {
        out.clear();
        let returned = std::mem::take(out);
        if returned.capacity() <= MAX_KEPT_OUTPUT {
            *self.output.borrow_mut() = returned;
        }
    }

    /// The shared connection of this worker to a node, for a database and protocol; it connects when first used.
    pub(crate) fn relay(&self, node: &Arc<Node>, database: u32, protocol: Protocol) -> LaneHandle<Tag> {
        let mut relays = self.relays.borrow_mut();
        if let Some(relay) = relays.get(&(node.id, database, protocol)) {
            return relay.clone();
        }
        // Seldom enough to look for those to nodes that have left.
        relays.retain(|(node, ..), _| self.is_there(*node));
        let setup = Setup { protocol, database, tracked: false, timed: true };
        let (handle, lane) = self.lane(node, setup, Purpose::Relay);
        // Without a hub the worker is ending, and the handle says so at the first submit.
        let _ = self.hub.send(Addition::Relay(lane));
        relays.insert((node.id, database, protocol), handle.clone());
        handle
    }

    fn lane(&self, node: &Arc<Node>, setup: Setup, purpose: Purpose) -> (LaneHandle<Tag>, Lane<Upstream>) {
        lane(node.target.clone(), setup, Upstream::new(&self.shared, node, purpose))
    }

    fn is_there(&self, node: NodeId) -> bool {
        match &self.shared.l3 {
            L3::Embedded(_) => false,
            L3::Redis(redis) => redis.nodes().iter().any(|there| there.id == node),
        }
    }

    /// A connection for one session alone: a clean one from the pool, or a new one.
    pub(crate) fn pin(
        &self,
        node: &Arc<Node>,
        database: u32,
        protocol: Protocol,
        mailbox: &Arc<Mailbox>,
    ) -> Result<PinnedLane, String> {
        let mut idle = self.idle.borrow_mut();
        let fits = |lane: &PinnedLane| lane.node == node.id && lane.database == database && lane.protocol == protocol;
        if let Some(at) = idle.iter().position(fits) {
            let lane = idle.swap_remove(at);
            *lane.owner.lock() = Some(mailbox.clone());
            return Ok(lane);
        }
        if self.pinned.get() >= MAX_PINNED && idle.pop().is_none() {
            return Err(format!(
                "LIMIT {MAX_PINNED} sessions already hold a connection to Redis of their own (MULTI, blocking commands, subscriptions); close some"
            ));
        }
        drop(idle);
        self.pinned.update(|count| count + 1);
        let count = PinnedCount(self.pinned.clone());
        let owner = Arc::new(Mutex::new(Some(mailbox.clone())));
        let setup = Setup { protocol, database, tracked: false, timed: false };
        let (handle, mut lane) = self.lane(node, setup, Purpose::Pinned(owner.clone()));
        self.supervisor.spawn_local("pinned connection", async move { std::future::poll_fn(|cx| lane.poll(cx)).await });
        Ok(PinnedLane { handle, owner, node: node.id, database, protocol, _count: count })
    }

    /// Takes back a connection that holds no state of its session.
    pub(crate) fn unpin(&self, lane: PinnedLane, database: u32) {
        let mut idle = self.idle.borrow_mut();
        if lane.database == database && idle.len() < MAX_IDLE_PINNED && self.is_there(lane.node) {
            *lane.owner.lock() = None;
            idle.push(lane);
        }
    }
}
