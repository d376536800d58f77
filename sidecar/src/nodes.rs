//! The Redis servers behind a sidecar, and the tracked connections to them.
//!
//! A standalone Redis is one [`Node`] for ever; of a cluster there are as many as own slots, and [`Cluster`] says which
//! keys are whose. Everything that belongs to one server is kept here, per database: its tracked connection, the source
//! of its copies in the kernel, and how it is probed. Never reads or routes a request.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use caddy_contract::{Consistency, RedisMode};
use caddy_engine::{Kernel, SourceId, SourceKind};
use caddy_remote::{LaneHandle, LaneState, Setup, Target, Tracking, cluster::slot_of, lane};
use caddy_resp::{Protocol, encode};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

use crate::{
    beyond,
    cluster::Cluster,
    hub::Addition,
    shared::Shared,
    upstream::{Purpose, Tag, Upstream},
};

/// Databases of a node that may be cached at a time; reads of further ones are relayed.
const MAX_TRACKED: usize = 16;

/// The Redis behind the sidecar.
pub(crate) struct RedisL3 {
    servers: Servers,
    tracking: Tracking,
    /// Worker 0, which owns the tracked connections.
    hub: mpsc::UnboundedSender<Addition>,
}

enum Servers {
    One(Arc<Node>),
    Cluster(Box<Cluster>),
}

/// Tells nodes apart, also those that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

/// One server.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) target: Arc<Target>,
    tracked: RwLock<BTreeMap<u32, Tracked>>,
    /// By database: the connections of the sidecar's own requests.
    errands: Mutex<BTreeMap<u32, LaneHandle<Tag>>>,
    /// By database: what writes that also go to a store travel on.
    writers: RwLock<BTreeMap<u32, LaneHandle<Tag>>>,
    probe: ArcSwap<Probing>,
}

/// The tracked connection of one database.
#[derive(Clone)]
pub(crate) struct Tracked {
    pub(crate) lane: LaneHandle<Tag>,
    pub(crate) source: SourceId,
}

/// The connection on which a server announces every write to keys with some prefixes, with its probe and its source.
pub(crate) struct Announcing {
    pub(crate) node: Arc<Node>,
    pub(crate) tracked: Tracked,
}

impl std::fmt::Debug for Announcing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announcing").field("source", &self.tracked.source).finish_non_exhaustive()
    }
}

impl NodeId {
    /// Of the connection of negative filters, whose troubles are not those of copies.
    pub(crate) const ANNOUNCING: Self = Self(u32::MAX);
}

/// What a node is asked to prove that its copies are current.
#[derive(Debug, Clone)]
pub(crate) struct Probing {
    pub(crate) bytes: Bytes,
    pub(crate) replies: u16,
}

// === impl RedisL3 ===

impl RedisL3 {
    pub(crate) fn new(
        redis: &caddy_contract::Redis,
        consistency: &Consistency,
        password: Option<&String>,
        hub: mpsc::UnboundedSender<Addition>,
    ) -> Self {
        let (target, sentinels) = beyond::target(redis, consistency, password);
        if let Some(watch) = sentinels {
            // Without a hub the worker is ending.
            let _ = hub.send(Addition::Sentinels(watch));
        }
        let tracking = target.tracking.clone();
        let servers = match redis.mode {
            RedisMode::Standalone | RedisMode::Sentinel => Servers::One(Arc::new(Node::new(NodeId(0), target))),
            RedisMode::Cluster => {
                let seed = |endpoint| Arc::new(target.at(beyond::endpoint(endpoint)));
                Servers::Cluster(Box::new(Cluster::new(redis.endpoints.iter().map(seed).collect())))
            }
        };
        Self { servers, tracking, hub }
    }

    /// What is said of copies that are kept.
    pub(crate) fn coherence(&self) -> &'static str {
        match self.tracking {
            Tracking::Keys => "tracked",
            Tracking::Broadcast(_) => "every write is announced",
            Tracking::Nothing => "untracked: copies live at most consistency.maxStaleness",
        }
    }

    /// Whether Redis tells of writes to a key, or need not.
    pub(crate) fn announces(&self, key: &[u8]) -> bool {
        match &self.tracking {
            Tracking::Broadcast(prefixes) if !prefixes.is_empty() => {
                prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
            }
            _ => true,
        }
    }

    /// Whether Redis tells of writes at all.
    pub(crate) fn tracks(&self) -> bool {
        self.tracking != Tracking::Nothing
    }

    /// How often Sentinels have named another primary.
    pub(crate) fn switches(&self) -> u64 {
        self.only().and_then(|node| node.target.sentinels.as_ref()).map_or(0, |sentinels| sentinels.version())
    }

    /// The cluster, if it is one.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        match &self.servers {
            Servers::One(_) => None,
            Servers::Cluster(cluster) => Some(cluster),
        }
    }

    /// Which of a cluster's slot maps is in force, counted.
    pub(crate) fn map_version(&self) -> Option<u64> {
        Some(self.cluster()?.map()?.version)
    }

    /// The only server, if there is only one.
    pub(crate) fn only(&self) -> Option<&Arc<Node>> {
        match &self.servers {
            Servers::One(node) => Some(node),
            Servers::Cluster(_) => None,
        }
    }

    /// The node that a key belongs to; `None`: that is not known yet.
    pub(crate) fn owner(&self, key: &[u8]) -> Option<Arc<Node>> {
        match &self.servers {
            Servers::One(node) => Some(node.clone()),
            Servers::Cluster(cluster) => cluster.map()?.owner(slot_of(key)).cloned(),
        }
    }

    /// The nodes there are now.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        match &self.servers {
            Servers::One(node) => vec![node.clone()],
            Servers::Cluster(cluster) => cluster.map().map_or_else(Vec::new, |map| map.nodes().to_vec()),
        }
    }

    /// Where it is, for people.
    pub(crate) fn address(&self) -> String {
        match &self.servers {
            Servers::One(node) => match &node.target.sentinels {
                Some(sentinels) => format!("{} by its Sentinels", sentinels.name()),
                None => node.target.endpoint.to_string(),
            },
            Servers::Cluster(cluster) => format!("cluster by {}", cluster.seeds()),
        }
    }

    /// The tracked connection of a node's database; opened at the first read of it.
    pub(crate) fn tracked_or_open(&self, shared: &Arc<Shared>, node: &Arc<Node>, database: u32) -> Option<Tracked> {
        if let Some(tracked) = node.tracked(database) {
            return Some(tracked);
        }
        let mut all = node.tracked.write();
        if let Some(tracked) = all.get(&database) {
            return Some(tracked.clone());
        }
        if all.len() >= MAX_TRACKED {
            return None;
        }
        let kind = match self.tracking {
            Tracking::Nothing => SourceKind::Timed,
            _ => SourceKind::Tracked,
        };
        let source = shared.kernel().register(kind).ok()?;
        let setup = Setup { protocol: Protocol::Resp3, database, tracked: true, timed: true };
        let handler = Upstream::new(shared, node, Purpose::tracked(source, database));
        let (handle, lane) = lane(node.target.clone(), setup, handler);
        self.hub.send(Addition::Tracked(lane)).ok()?;
        let tracked = Tracked { lane: handle, source };
        all.insert(database, tracked.clone());
        Some(tracked)
    }

    /// A connection to a server on which writes to keys with these prefixes are announced; it connects when it is asked
    /// something. `None`: the kernel has no room for it.
    pub(crate) fn announce(
        &self,
        shared: &Arc<Shared>,
        server: &Node,
        prefixes: Vec<String>,
    ) -> Option<Arc<Announcing>> {
        let target = Target { tracking: Tracking::Broadcast(prefixes), ..(*server.target).clone() };
        let node = Arc::new(Node::new(NodeId::ANNOUNCING, target));
        let source = shared.kernel().register(SourceKind::Tracked).ok()?;
        let setup = Setup { protocol: Protocol::Resp3, database: 0, tracked: true, timed: true };
        let handler = Upstream::new(shared, &node, Purpose::announcing(source));
        let (handle, lane) = lane(node.target.clone(), setup, handler);
        self.hub.send(Addition::Tracked(lane)).ok()?;
        let tracked = Tracked { lane: handle, source };
        node.tracked.write().insert(0, tracked.clone());
        Some(Arc::new(Announcing { node, tracked }))
    }

    /// The connection for the sidecar's own requests about a node's database.
    pub(crate) fn errand_lane(&self, shared: &Arc<Shared>, node: &Arc<Node>, database: u32) -> LaneHandle<Tag> {
        let mut all = node.errands.lock();
        let made = all.entry(database).or_insert_with(|| {
            let setup = Setup { protocol: Protocol::Resp3, database, tracked: false, timed: true };
            let (handle, lane) = lane(node.target.clone(), setup, Upstream::new(shared, node, Purpose::Relay));
            // Without a hub the sidecar is ending, and the handle says so at the first request.
            let _ = self.hub.send(Addition::Relay(lane));
            handle
        });
        made.clone()
    }

    /// The one connection to a node's database on which the sidecar's writes travel that also go to a store: its replies
    /// are in the order in which Redis executed them.
    pub(crate) fn writer(&self, shared: &Arc<Shared>, node: &Arc<Node>, database: u32) -> Option<LaneHandle<Tag>> {
        if let Some(writer) = node.writers.read().get(&database) {
            return Some(writer.clone());
        }
        let mut all = node.writers.write();
        if let Some(writer) = all.get(&database) {
            return Some(writer.clone());
        }
        let setup = Setup { protocol: Protocol::Resp2, database, tracked: false, timed: true };
        let (handle, lane) = lane(node.target.clone(), setup, Upstream::new(shared, node, Purpose::Relay));
        self.hub.send(Addition::Relay(lane)).ok()?;
        all.insert(database, handle.clone());
        Some(handle)
    }
}

// === impl Node ===

impl Node {
    pub(crate) fn new(id: NodeId, target: Target) -> Self {
        Self {
            id,
            target: Arc::new(target),
            tracked: RwLock::default(),
            errands: Mutex::default(),
            writers: RwLock::default(),
            probe: ArcSwap::from_pointee(Probing::of_one()),
        }
    }

    /// The tracked connection of a database, if it was opened before.
    pub(crate) fn tracked(&self, database: u32) -> Option<Tracked> {
        self.tracked.read().get(&database).cloned()
    }

    /// All that were opened.
    pub(crate) fn all_tracked(&self) -> Vec<Tracked> {
        self.tracked.read().values().cloned().collect()
    }

    /// The tracked connection that a source's copies come from.
    pub(crate) fn lane_of(&self, source: SourceId) -> Option<LaneHandle<Tag>> {
        self.tracked.read().values().find(|tracked| tracked.source == source).map(|tracked| tracked.lane.clone())
    }

    /// Calls `visit` for every tracked connection that is up.
    pub(crate) fn for_each_tracked(&self, visit: impl FnMut(&LaneHandle<Tag>)) {
        let tracked = self.tracked.read();
        tracked.values().map(|tracked| &tracked.lane).filter(|lane| lane.state() == LaneState::Ready).for_each(visit);
    }

    /// Its right to answer for its keys is in doubt: copies from it die, and are served again only when it was probed.
    pub(crate) fn lapse(&self, kernel: &Kernel) {
        self.tracked.read().values().for_each(|tracked| kernel.lapse(tracked.source));
    }

    pub(crate) fn probing(&self) -> arc_swap::Guard<Arc<Probing>> {
        self.probe.load()
    }

    /// It is another connection's end of that server.
    pub(crate) fn is_probed_as(&self, server: &Self) {
        self.probe.store(server.probe.load_full());
    }

    /// Which slots it has, for its probe.
    pub(crate) fn owns(&self, slots: &[RangeInclusive<u16>]) {
        self.probe.store(Arc::new(Probing::of_slots(slots)));
    }
}

// === impl Probing ===

impl Probing {
    /// HELLO tells the role; a PONG would say nothing of it.
    fn of_one() -> Self {
        Self { bytes: Bytes::from_static(b"*1\r\n$5\r\nHELLO\r\n"), replies: 1 }
    }

    /// Besides, whether it answers at all for a key of its own (it does not while the cluster is down), and what it
    /// believes its slots to be.
    fn of_slots(slots: &[RangeInclusive<u16>]) -> Self {
        let mut out = Self::of_one().bytes.to_vec();
        encode::command(&mut out, ["GET", &canary(slots)]);
        encode::command(&mut out, ["CLUSTER", "NODES"]);
        Self { bytes: out.into(), replies: 3 }
    }
}

/// A key in one of the slots that nobody writes.
fn canary(slots: &[RangeInclusive<u16>]) -> String {
    let name = |n: u32| format!("caddy:canary:{{{n}}}");
    let is_own = |name: &String| slots.iter().any(|range| range.contains(&slot_of(name.as_bytes())));
    // Every slot is hit by one of these; a test counts them.
    (0..300_000).map(name).find(is_own).unwrap_or_else(|| name(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_canary() {
        let mut seen = vec![false; usize::from(caddy_remote::cluster::SLOTS)];
        (0..300_000).for_each(|n| seen[usize::from(slot_of(format!("{n}").as_bytes()))] = true);
        assert!(seen.iter().all(|seen| *seen));
        for slot in [0, 8191, 16383] {
            assert_eq!(slot_of(canary(&[slot..=slot]).as_bytes()), slot);
        }
    }
}
