//! What coherence promises in front of a Redis Cluster, each as a short story that ends in a
//! [`Violation`](crate::world::Violation) when the promise is broken.
//!
//! Slots change hands here in the ways in which servers announce least: absent keys push nothing when their slot moves, and
//! Redis 7.0 pushes nothing for keys that it drops with a slot. `tests/cluster` runs the stories on the sidecar,
//! `tests/mutations.rs` on sidecars that lack a guard.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use caddy_remote::cluster::slot_of;

use crate::{
    e2e::eventually,
    redis_cluster::RedisCluster,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON, Subject, must},
};

/// A bound within which a sidecar has to learn of everything.
const BOUND: Duration = Duration::from_millis(400);

/// Three primaries, a sidecar in front of them, and a key of the first that the sidecar holds a copy of.
struct Story {
    cluster: RedisCluster,
    sidecar: Sidecar,
    client: Client,
    key: String,
    slot: u16,
}

impl Story {
    /// `value` may be `(nil)`: then the key is absent.
    fn begin(subject: &Subject, value: &str, options: impl FnOnce(SidecarOptions) -> SidecarOptions) -> Result<Self> {
        let cluster = RedisCluster::start(3)?;
        let key = cluster.key_of(0, 0);
        if value != "(nil)" {
            ensure!(cluster.ask(&format!("SET {key} {value}"))? == "OK", "SET");
        }
        let sidecar = options(subject.cluster_options(&cluster)).start()?;
        let mut client = Client(sidecar.connect()?);
        client.hold(&key, value)?;
        let slot = slot_of(key.as_bytes());
        Ok(Self { cluster, sidecar, client, key, slot })
    }

    fn read(&mut self) -> Result<String> {
        self.client.ask(&format!("GET {}", self.key))
    }

    /// Somebody reads all the time, so that proofs go on, for longer than the bound.
    fn read_beyond_the_bound(&mut self) -> Result<()> {
        for _ in 0..8 {
            self.read()?;
            thread::sleep(BOUND / 5);
        }
        Ok(())
    }

    fn foreign_write(&self) -> Result<()> {
        let reply = self.cluster.ask(&format!("SET {} v1", self.key))?;
        ensure!(reply == "OK", "SET answers {reply}");
        Ok(())
    }
}

/// An absent key is written at the new owner of its slot while that is on its way: nothing is pushed, and the old owner
/// proves itself current.
pub fn an_absent_key_is_found_where_its_slot_goes(subject: &Subject) -> Result<()> {
    let mut story = Story::begin(subject, "(nil)", |options| options.max_staleness(BOUND))?;
    story.cluster.begin_move(story.slot, 0, 1)?;
    story.foreign_write()?;
    story.read_beyond_the_bound()?;
    let read = story.read()?;
    must(read == "v1", format!("the key had been v1 for longer than {BOUND:?} when GET was asked and answered {read}"))
}

/// The same where nobody has asked for the key, and a negative filter knows the node's others.
pub fn a_filter_knows_that_a_slot_leaves(subject: &Subject) -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    let filtered = "keyspaces: [{name: filtered, match: \"key:*\", negativeFilter: {maxKeys: 10000}}]";
    let sidecar = subject.cluster_options(&cluster).max_staleness(BOUND).section(filtered).start()?;
    let mut client = Client(sidecar.connect()?);
    // Keys of all three nodes, which the filter is asked about; of the first one's slot another.
    let name = |n: usize| format!("key:{n}");
    filter_answers(&sidecar, &mut client, &cluster)?;
    let key = (0..1000).map(name).find(|key| cluster.owner(key).is_ok_and(|owner| owner == 0)).unwrap_or_default();
    let slot = slot_of(key.as_bytes());
    cluster.begin_move(slot, 0, 1)?;
    ensure!(cluster.ask(&format!("SET {key} v1"))? == "OK", "SET");
    // Proofs of that node go on, by questions about others of its keys.
    let others = (1000..2000).map(name).filter(|other| cluster.owner(other).is_ok_and(|owner| owner == 0));
    for other in others.take(12) {
        client.ask(&format!("GET {other}"))?;
        thread::sleep(BOUND / 8);
    }
    let read = client.ask(&format!("GET {key}"))?;
    must(read == "v1", format!("{key} had been v1 for longer than {BOUND:?} when GET was asked and answered {read}"))?;
    cluster.move_keys(slot, 0, 1)?;
    cluster.end_move(slot, 1)?;
    filter_answers(&sidecar, &mut client, &cluster)?;
    let read = client.ask(&format!("GET {key}"))?;
    must(read == "v1", format!("{key} is there, its slot has moved, and GET answered {read}"))
}

/// Waits until the filter answers about absent keys of every node.
fn filter_answers(sidecar: &Sidecar, client: &mut Client, cluster: &RedisCluster) -> Result<()> {
    let mut n = 0;
    for node in 0..3 {
        eventually("the filter answers", SOON, || {
            let before = sidecar.metric("caddy_filtered_total")?;
            let is_there = |n: &usize| cluster.owner(&format!("key:nobody:{n}")).is_ok_and(|owner| owner == node);
            n = (n + 1..n + 1000).find(is_there).unwrap_or_default();
            ensure!(client.ask(&format!("GET key:nobody:{n}"))? == "(nil)", "an absent key");
            let after = sidecar.metric("caddy_filtered_total")?;
            ensure!(after > before, "{}", client.ask("CACHE.STATS filtered")?);
            Ok(())
        })?;
    }
    Ok(())
}

/// A node loses a slot to another and drops its keys.
pub fn a_dropped_slot_is_read_at_its_new_owner(subject: &Subject) -> Result<()> {
    let mut story = Story::begin(subject, "v0", |options| options.max_staleness(BOUND))?;
    story.cluster.take_slot(story.slot, 1)?;
    story.foreign_write()?;
    story.read_beyond_the_bound()?;
    let read = story.read()?;
    must(read == "v1", format!("the key had been v1 for longer than {BOUND:?} when GET was asked and answered {read}"))
}

/// A node that has lost its cluster proves nothing, though it answers PING and HELLO.
pub fn a_node_without_its_cluster_proves_nothing(subject: &Subject) -> Result<()> {
    let mut story = Story::begin(subject, "v0", |options| options.max_staleness(BOUND))?;
    story.cluster.be_impatient()?;
    story.cluster.nodes[2].server.kill()?;
    let get = format!("GET {}", story.key);
    eventually("the cluster is down", SOON, || {
        let reply = story.cluster.nodes[0].ask(&get)?;
        ensure!(reply.starts_with("(error) CLUSTERDOWN"), "GET answers {reply}");
        Ok(())
    })?;
    story.read_beyond_the_bound()?;
    let served = story.client.why(&story.key, "served")?;
    must(served == "no", format!("the cluster is down, but CACHE.WHY says served: {served}"))
}

/// Two reads of one key, of which only the second is a copy: the first has shown what the new owner of the slot holds.
pub fn no_step_back_behind_a_new_slot_map(subject: &Subject) -> Result<()> {
    // Long: nothing but the new map can tell that the copy is old.
    let mut story = Story::begin(subject, "v0", |options| options.max_staleness(LONG).timeout(LONG))?;
    let beside = story.cluster.key_of(1, 1);
    story.client.hold(&beside, "(nil)")?;
    story.cluster.take_slot(story.slot, 1)?;
    story.foreign_write()?;
    let before = story.sidecar.metric("caddy_slot_map_reads_total")?;
    // Another key of the slot is not where it was, so that the map is asked for anew.
    ensure!(story.client.ask(&format!("GET {{{}}}", story.key))? == "(nil)", "another key of the slot");
    eventually("a new slot map is read", SOON, || {
        ensure!(story.sidecar.metric("caddy_slot_map_reads_total")? > before, "it was not read again");
        Ok(())
    })?;
    let first = story.client.ask(&format!("GETRANGE {} 0 -1", story.key))?;
    let second = story.read()?;
    must(!(first == "v1" && second == "v0"), format!("GETRANGE was answered {first}, then GET {second}"))?;
    ensure!(first == "v1", "GETRANGE answers {first}");
    Ok(())
}
