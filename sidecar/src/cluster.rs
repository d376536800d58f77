//! Which node of a Redis Cluster has which keys: the slot map in force, and the task that keeps it.
//!
//! The map is asked for at the start and whenever something contradicts it: a redirection, a probe that tells of other
//! slots, a connection that is lost or refused. Nothing is asked while nothing happens. Before a new map is used, the
//! copies of every node whose slots differ die: what such a node told of a slot that is now another's cannot be proved
//! by anybody. While no node answers, the old map stays, and requests fail or succeed at its nodes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use caddy_engine::Kernel;
use caddy_remote::{
    Endpoint, LaneState, Target,
    cluster::{DiscoverError, SLOTS, SlotMap, discover},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    guards::{Guard, hold},
    mailbox::Mailbox,
    nodes::{Node, NodeId},
    shared::{L3, Shared},
};

/// The least pause between two rounds of asking.
const PAUSE: Duration = Duration::from_millis(20);
/// The pause after a round in which nobody knew; doubled up to [`PAUSE_MAX`].
const PAUSE_FAILED: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A slot that nobody has.
const NOBODY: u16 = u16::MAX;

/// See the module.
pub(crate) struct Cluster {
    /// Where to ask first, in order.
    seeds: Vec<Arc<Target>>,
    map: ArcSwapOption<Map>,
    /// The version of the map in force.
    version: watch::Sender<u64>,
    wanted: Notify,
    next_node: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Sessions that wait for the first map.
    waiting: Vec<Arc<Mailbox>>,
    /// Why the last round of asking brought nothing.
    failure: Option<String>,
    /// Nodes that redirections named and the map does not.
    strangers: HashMap<Endpoint, Arc<Node>>,
}

/// The owners of all slots at one time.
pub(crate) struct Map {
    /// Counts changes.
    pub(crate) version: u64,
    told: SlotMap,
    /// By slot, an index into `nodes`.
    owners: Box<[u16]>,
    nodes: Vec<Arc<Node>>,
}

impl Map {
    /// Whose a slot is; `None`: nobody's.
    pub(crate) fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        self.nodes.get(usize::from(*self.owners.get(usize::from(slot))?))
    }

    /// The first slot of a node; `None`: it has none, or is not of the cluster any more.
    pub(crate) fn first_slot(&self, node: NodeId) -> Option<u16> {
        let place = self.nodes.iter().position(|there| there.id == node)?;
        let slot = self.owners.iter().position(|owner| usize::from(*owner) == place)?;
        u16::try_from(slot).ok()
    }

    /// In the order of their first slots.
    pub(crate) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }
}

impl Cluster {
    pub(crate) fn new(seeds: Vec<Arc<Target>>) -> Self {
        Self {
            seeds,
            map: ArcSwapOption::empty(),
            version: watch::Sender::default(),
            wanted: Notify::new(),
            next_node: AtomicU32::new(0),
            state: Mutex::default(),
        }
    }

    /// The map in force; `None` before the first.
    pub(crate) fn map(&self) -> Option<Arc<Map>> {
        self.map.load_full()
    }

    /// Changes with the map in force.
    pub(crate) fn maps(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The seeds, for people.
    pub(crate) fn seeds(&self) -> String {
        self.seeds.iter().map(|seed| seed.endpoint.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Something contradicts the map: asks anew, soon.
    pub(crate) fn refresh(&self) {
        self.wanted.notify_one();
    }

    /// Wakes `mailbox` when there is a map, or says why there is none.
    pub(crate) fn wait(&self, mailbox: &Arc<Mailbox>) -> Result<(), String> {
        let mut state = self.state.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.waiting.push(mailbox.clone());
        drop(state);
        // It may have come in between.
        if self.map.load().is_some() {
            mailbox.wake();
        }
        Ok(())
    }

    /// The node at an address that a redirection names.
    pub(crate) fn node_at(&self, endpoint: &Endpoint) -> Option<Arc<Node>> {
        let is_there = |node: &&Arc<Node>| node.target.endpoint == *endpoint;
        if let Some(node) = self.map.load().as_ref().and_then(|map| map.nodes.iter().find(is_there)) {
            return Some(node.clone());
        }
        let mut state = self.state.lock();
        if let Some(node) = state.strangers.get(endpoint) {
            return Some(node.clone());
        }
        let node = self.node(endpoint.clone())?;
        state.strangers.insert(endpoint.clone(), node.clone());
        Some(node)
    }

    fn node(&self, endpoint: Endpoint) -> Option<Arc<Node>> {
        let id = NodeId(self.next_node.fetch_add(1, Ordering::Relaxed));
        let target = self.seeds.first()?.at(endpoint);
        Some(Arc::new(Node::new(id, target)))
    }

    // === keeping the map ===

    /// Asks for the map whenever it is wanted, until the sidecar ends.
    pub(crate) async fn keep(shared: Arc<Shared>) {
        let L3::Redis(redis) = &shared.l3 else { return };
        let Some(cluster) = redis.cluster() else { return };
        let mut pause = PAUSE_FAILED;
        loop {
            match cluster.ask().await {
                Ok(told) => {
                    cluster.install(&shared, told);
                    pause = PAUSE_FAILED;
                    tokio::time::sleep(PAUSE).await;
                    cluster.wanted.notified().await;
                }
                Err(error) => {
                    let reason = format!("no node of the cluster tells its slots: {error}");
                    shared.status.unreachable(&reason);
                    cluster.tell(Some(reason));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    // With a map, only what contradicts it is a reason to ask on.
                }
            }
        }
    }

    /// The first answer: of the nodes that are known, those with a connection first, then of the seeds.
    async fn ask(&self) -> Result<SlotMap, DiscoverError> {
        let mut known = self.map().map_or_else(Vec::new, |map| map.nodes.clone());
        known.sort_by_key(|node| node.tracked(0).is_none_or(|tracked| tracked.lane.state() != LaneState::Ready));
        let mut first_error = None;
        for target in known.iter().map(|node| &node.target).chain(&self.seeds) {
            match discover(target.clone()).await {
                Ok(told) => return Ok(told),
                Err(error) => {
                    tracing::debug!(%error, "a node does not tell the slot map");
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| DiscoverError::Down { endpoint: self.seeds() }))
    }

    fn install(&self, shared: &Shared, told: SlotMap) {
        let old = self.map();
        if old.as_ref().is_none_or(|old| old.told != told) {
            let map = Arc::new(self.draw(old.as_deref(), told));
            let lapse = || {
                if let Some(old) = &old
                    && hold(Guard::SlotsMoveAway)
                {
                    lapse_changed(shared.kernel(), old, &map);
                }
                shared.absences.moved(shared.kernel());
            };
            // Before, so that nothing older is put beside what the new owner tells; and after, for what was still asked
            // of the old one.
            lapse();
            self.map.store(Some(map.clone()));
            shared.ranges.moved();
            lapse();
            self.version.send_replace(map.version);
            let primaries = map.nodes.len();
            tracing::info!(version = map.version, primaries, "the cluster's slot map is in force");
        }
        // Of a map that is as it was, too: one that left may have told of its trouble after it had left.
        if let Some(map) = self.map() {
            shared.status.nodes_are(&map.nodes.iter().map(|node| node.id).collect::<Vec<_>>());
        }
        shared.metrics.slot_map_reads.inc();
        self.state.lock().strangers.clear();
        self.tell(None);
    }

    fn draw(&self, old: Option<&Map>, told: SlotMap) -> Map {
        let mut owners = vec![NOBODY; usize::from(SLOTS)].into_boxed_slice();
        let mut nodes = Vec::with_capacity(told.shards.len());
        for shard in &told.shards {
            let Some(node) = self.node_at(&shard.primary) else { continue };
            let index = u16::try_from(nodes.len()).unwrap_or(NOBODY);
            for slot in shard.slots.iter().cloned().flatten() {
                owners[usize::from(slot)] = index;
            }
            node.owns(&shard.slots);
            nodes.push(node);
        }
        Map { version: old.map_or(1, |old| old.version + 1), told, owners, nodes }
    }

    fn tell(&self, failure: Option<String>) {
        let mut state = self.state.lock();
        state.failure = failure;
        state.waiting.drain(..).for_each(|mailbox| mailbox.wake());
    }
}

/// Kills the copies of nodes whose slots are not the same in both maps.
fn lapse_changed(kernel: &Kernel, old: &Map, new: &Map) {
    for (shard, node) in old.told.shards.iter().zip(&old.nodes) {
        if !new.told.shards.contains(shard) {
            node.lapse(kernel);
        }
    }
}

#[cfg(test)]
mod tests {
    use caddy_remote::{Mode, cluster::Shard};

    use super::*;

    fn tcp(port: u16) -> Endpoint {
        Endpoint::Tcp { host: "127.0.0.1".into(), port }
    }

    fn cluster() -> Cluster {
        let seed = Target { mode: Mode::Cluster, ..Target::new(tcp(1)) };
        Cluster::new(vec![Arc::new(seed)])
    }

    fn told(shards: &[(u16, u16, u16)]) -> SlotMap {
        let shard = |(port, first, last): &(u16, u16, u16)| Shard { primary: tcp(*port), slots: vec![*first..=*last] };
        SlotMap { shards: shards.iter().map(shard).collect() }
    }

    #[test]
    fn a_map_knows_owners_and_keeps_the_nodes_it_had() {
        let cluster = cluster();
        let first = cluster.draw(None, told(&[(7000, 0, 99), (7001, 200, 299)]));
        let port = |map: &Map, slot| map.owner(slot).map(|node| node.target.endpoint.clone());
        assert_eq!([port(&first, 0), port(&first, 250), port(&first, 150)], [Some(tcp(7000)), Some(tcp(7001)), None]);
        let nodes: Vec<_> = first.nodes().iter().map(|node| node.id).collect();
        cluster.map.store(Some(Arc::new(first)));
        let old = cluster.map().unwrap();
        let second = cluster.draw(Some(&old), told(&[(7001, 0, 299), (7002, 300, 400)]));
        assert_eq!((second.version, second.nodes()[0].id), (2, nodes[1]));
        assert!(!nodes.contains(&second.nodes()[1].id));
    }
}
