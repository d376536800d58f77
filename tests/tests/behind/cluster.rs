//! In front of a Redis Cluster: writes of all slots reach the store, in the order of each key, also while slots move.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use caddy_remote::cluster::slot_of;
use caddy_tests::{
    e2e::eventually,
    postgres::PostgresServer,
    redis_cluster::RedisCluster,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON},
};

use super::world::{client, history_is_in_order, section, stat_becomes, table};

/// Slots that move.
const MOVES: usize = 10;

struct World {
    cluster: RedisCluster,
    postgres: PostgresServer,
}

impl World {
    fn start(cluster: RedisCluster) -> Result<Self> {
        let postgres = PostgresServer::start()?;
        table(&postgres)?;
        Ok(Self { cluster, postgres })
    }

    /// One that knows the slot map.
    fn sidecar(&self, keyspace: &str) -> Result<Sidecar> {
        let section = section(&self.postgres, keyspace);
        let options = SidecarOptions::l3_redis(&self.cluster.l3()).max_staleness(LONG).section(&section);
        let sidecar = options.start()?;
        let mut app = client(&sidecar)?;
        eventually("the slot map is known", SOON, || {
            let read = app.ask("EXISTS elsewhere")?;
            ensure!(read == "0", "{read}");
            Ok(())
        })?;
        Ok(sidecar)
    }

    /// A key of the keyspace that one node has.
    fn key(&self, node: usize, n: usize) -> String {
        format!("user:{{{}}}", self.cluster.key_of(node, n))
    }

    fn rows(&self) -> Result<BTreeMap<String, String>> {
        let rows = self.postgres.execute("SELECT key || '=' || value FROM users")?;
        Ok(rows.lines().filter_map(|row| row.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect())
    }
}

/// What every strategy does with keys of three nodes.
fn writes_of_all_nodes(world: &World, app: &mut Client) -> Result<BTreeMap<String, String>> {
    let keys: Vec<String> = (0..9).map(|n| world.key(n % 3, n)).collect();
    for (n, key) in keys.iter().enumerate() {
        let answer = app.ask(&format!("SET {key} {n}"))?;
        ensure!(answer == "OK", "SET {key}: {answer}");
    }
    let answer = app.ask(&format!("GETSET {} new", keys[0]))?;
    ensure!(answer == "0", "GETSET: {answer}");
    let answer = app.ask(&format!("MSET {0} a {0} b", keys[1]))?;
    ensure!(answer == "OK", "MSET: {answer}");
    let refused = app.ask(&format!("MSET {} a {} b", keys[1], keys[2]))?;
    ensure!(refused.contains("several slots") && refused.contains("{hash tag}"), "{refused}");
    let deleted = app.ask(&format!("DEL {} {} {} user:absent", keys[6], keys[7], keys[8]))?;
    ensure!(deleted == "3", "DEL of keys of three nodes: {deleted}");
    ensure!(app.ask(&format!("GET {}", keys[6]))? == "(nil)");
    ensure!(app.ask(&format!("GET {}", keys[0]))? == "new");
    let mut expected: BTreeMap<String, String> =
        keys.into_iter().take(6).enumerate().map(|(n, key)| (key, n.to_string())).collect();
    for (key, value) in [(world.key(0, 0), "new"), (world.key(1, 1), "b")] {
        let _ = expected.insert(key, value.to_owned());
    }
    Ok(expected)
}

#[test]
fn writes_through_reach_the_store_from_all_nodes() -> Result<()> {
    let world = World::start(RedisCluster::start(3)?)?;
    let sidecar = world.sidecar("strategy: WriteThrough")?;
    let mut app = client(&sidecar)?;
    let expected = writes_of_all_nodes(&world, &mut app)?;
    ensure!(world.rows()? == expected, "{:?}", world.rows()?);
    Ok(())
}

#[test]
fn writes_behind_reach_the_store_from_all_nodes() -> Result<()> {
    let world = World::start(RedisCluster::start(3)?)?;
    let sidecars = ["Memory", "Replicated, replicas: 0"].map(|durability| {
        world.sidecar(&format!("strategy: WriteBehind, writeBehind: {{durability: {durability}, flushInterval: 5ms}}"))
    });
    for sidecar in sidecars {
        let sidecar = sidecar?;
        let mut app = client(&sidecar)?;
        let mut expected = writes_of_all_nodes(&world, &mut app)?;
        let key = world.key(2, 77);
        for (command, answer) in [
            (format!("INCR {key}"), "1"),
            (format!("INCRBY {key} 9007199254740993"), "9007199254740994"),
            (format!("SET {key} x NX"), "(nil)"),
            (format!("SET {key} y XX GET"), "9007199254740994"),
            (format!("SETNX {key} z"), "0"),
        ] {
            let found = app.ask(&command)?;
            ensure!(found == answer, "{command}: {found}");
        }
        let _ = expected.insert(key, "y".to_owned());
        stat_becomes(&mut app, "behind_records", 0)?;
        ensure!(world.rows()? == expected, "{:?}", world.rows()?);
        let all: Vec<String> = expected.into_keys().collect();
        let deleted = app.ask(&format!("DEL {}", all.join(" ")))?;
        ensure!(deleted == all.len().to_string(), "{deleted}");
        stat_becomes(&mut app, "behind_records", 0)?;
        ensure!(world.rows()?.is_empty(), "{:?}", world.rows()?);
    }
    Ok(())
}

/// Counts up under keys of a slot while it moves, slot after slot; every key's row is the last number that was taken. What is
/// recorded concerns several keys, and has to be repeated while a part of them is on its way.
fn counts_while_slots_move(keyspace: &str, may_wait: bool) -> Result<()> {
    let world = World::start(RedisCluster::start(2)?)?;
    let sidecar = world.sidecar(keyspace)?;
    let tags: Vec<String> = (0..MOVES).map(|n| world.cluster.key_of(0, n)).collect();
    let (now, batches, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let expected = std::thread::scope(|scope| -> Result<BTreeMap<String, String>> {
        let apps: Vec<_> = (0..4)
            .map(|app| {
                let (sidecar, tags, now, batches, stop) = (&sidecar, &tags, &now, &batches, &stop);
                scope.spawn(move || -> Result<BTreeMap<String, u64>> {
                    let (mut session, mut taken) = (client(sidecar)?, BTreeMap::new());
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("user:{app}:{{{}}}", tags[now.load(Ordering::Relaxed)]);
                        let batch = vec![format!("INCR {key}"); 8];
                        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
                        let last = taken.entry(key.clone()).or_insert(0);
                        for answer in session.pipeline(&batch)? {
                            if answer.contains("NOTREADY") && answer.contains("on its way") && may_wait {
                                continue;
                            }
                            let number = answer.parse::<u64>().with_context(|| format!("INCR {key}: {answer}"))?;
                            ensure!(number == *last + 1, "{key} went from {last} to {number}");
                            *last = number;
                        }
                        batches.fetch_add(1, Ordering::Relaxed);
                    }
                    taken.retain(|_, last| *last > 0);
                    Ok(taken)
                })
            })
            .collect();
        let moved = tags.iter().enumerate().try_for_each(|(n, tag)| {
            now.store(n, Ordering::Relaxed);
            let written = || {
                let enough = batches.load(Ordering::Relaxed) + 8;
                eventually("apps go on writing", SOON, || {
                    ensure!(
                        batches.load(Ordering::Relaxed) >= enough
                            || apps.iter().any(std::thread::ScopedJoinHandle::is_finished)
                    );
                    Ok(())
                })
            };
            let slot = slot_of(tag.as_bytes());
            written()?;
            world.cluster.begin_move(slot, 0, 1)?;
            written()?;
            while world.cluster.move_keys(slot, 0, 1)? > 0 {}
            written()?;
            world.cluster.end_move(slot, 1)
        });
        stop.store(true, Ordering::Relaxed);
        let mut expected = BTreeMap::new();
        for app in apps {
            let taken = app.join().map_err(|_| anyhow::anyhow!("an app panicked"))??;
            expected.extend(taken.into_iter().map(|(key, last)| (key, last.to_string())));
        }
        moved.map(|()| expected)
    })?;
    ensure!(sidecar.metric("caddy_redirections_total")? > MOVES as u64, "hardly a write met a move");
    let mut app = client(&sidecar)?;
    stat_becomes(&mut app, "behind_records", 0)?;
    ensure!(world.rows()? == expected, "the table has {:?}, acknowledged was {expected:?}", world.rows()?);
    history_is_in_order(&world.postgres)
}

#[test]
fn while_a_slot_moves_the_order_of_each_key_is_kept() -> Result<()> {
    counts_while_slots_move("strategy: WriteBehind, writeBehind: {flushInterval: 1ms, batchSize: 3}", false)
}

#[test]
fn while_a_slot_moves_its_stream_moves_along() -> Result<()> {
    counts_while_slots_move(
        "strategy: WriteBehind, writeBehind: {durability: Replicated, replicas: 0, flushInterval: 1ms, batchSize: 3}",
        true,
    )
}

#[test]
fn what_a_dead_pod_left_on_all_nodes_is_adopted() -> Result<()> {
    let mut world = World::start(RedisCluster::with_replicas(3)?)?;
    let keyspace = "strategy: WriteBehind, writeBehind: {durability: Replicated, adoptAfter: 2s, flushInterval: 5ms}";
    let mut dead = world.sidecar(keyspace)?;
    world.postgres.stop()?;
    let mut app = client(&dead)?;
    let mut expected = BTreeMap::new();
    for n in 0..30 {
        let key = world.key(n % 3, n % 12);
        let answer = app.ask(&format!("SET {key} {n}"))?;
        ensure!(answer == "OK", "SET {key}: {answer}");
        let _ = expected.insert(key, n.to_string());
    }
    dead.kill()?;
    let other = world.sidecar(keyspace)?;
    world.postgres.restart()?;
    eventually("the other sidecar has stored what was left", SOON, || {
        ensure!(world.rows()? == expected, "{:?}", world.rows()?);
        Ok(())
    })?;
    stat_becomes(&mut client(&other)?, "behind_adopted", 12)
}
