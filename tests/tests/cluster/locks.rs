//! Locks over a cluster: all in one slot, which the sidecars follow wherever it goes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddy_remote::cluster::slot_of;
use caddy_tests::{e2e::eventually, redis_cluster::RedisCluster, world::SOON};

use super::Shop;

const LOCKS: &str = "caddy:{default.local}:locks";

/// `[token, ms]`, as the client shows it.
fn token(reply: &str) -> Result<String> {
    let digits = |word: &&str| word.len() == 41 && word.as_bytes()[20] == b'-';
    let mut words = reply.split(|letter: char| !(letter.is_ascii_digit() || letter == '-'));
    Ok(words.find(digits).with_context(|| format!("no token: {reply}"))?.to_owned())
}

fn epoch(token: &str) -> &str {
    &token[..20]
}

#[test]
fn locks_exclude_each_other_at_one_node_of_the_cluster() -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    let other = Shop::with(cluster, Duration::from_secs(1))?;
    let (mut a, mut b) = (other.connect()?, other.connect()?);
    let first = token(&a.ask("LOCK.ACQUIRE orders:1")?)?;
    ensure!(b.ask("LOCK.ACQUIRE orders:1 WAIT 0")?.contains("LOCKTIMEOUT"), "two holders");
    let other_lock = token(&b.ask("LOCK.ACQUIRE orders:2")?)?;
    ensure!(a.ask("LOCK.LIST")?.contains("orders:2"), "both are told");
    ensure!(a.ask(&format!("LOCK.RELEASE orders:1 {first}"))?.contains('0'), "let go");
    let second = token(&b.ask("LOCK.ACQUIRE orders:1")?)?;
    ensure!(second > first && epoch(&second) == epoch(&other_lock), "{first} then {second}");
    Ok(())
}

#[test]
fn a_slot_that_moves_takes_the_locks_along_under_a_new_epoch() -> Result<()> {
    let shop = Shop::open()?;
    let mut client = shop.connect()?;
    let first = token(&client.ask("LOCK.ACQUIRE l OWNER ann")?)?;
    let from = shop.cluster.owner(LOCKS)?;
    shop.cluster.move_slot(slot_of(LOCKS.as_bytes()), from, (from + 1) % 3)?;
    let mut second = String::new();
    eventually("the locks are found at the other node", SOON, || {
        let reply = shop.connect()?.ask("LOCK.ACQUIRE l OWNER bea WAIT 0")?;
        second = token(&reply)?;
        Ok(())
    })?;
    ensure!(epoch(&second) > epoch(&first), "{first} then {second}");
    let told = client.ask(&format!("LOCK.RELEASE l {first} OWNER ann"))?;
    ensure!(told.contains("FENCED"), "the first holder is told: {told}");
    Ok(())
}

#[test]
fn a_replica_that_takes_over_begins_a_new_epoch() -> Result<()> {
    let mut shop = Shop::with(RedisCluster::with_replicas(3)?, Duration::from_secs(1))?;
    let first = token(&shop.connect()?.ask("LOCK.ACQUIRE l OWNER ann")?)?;
    let owner = shop.cluster.owner(LOCKS)?;
    shop.cluster.nodes[owner].server.kill()?;
    let mut second = String::new();
    eventually("the replica has the locks", Duration::from_mins(1), || {
        second = token(&shop.connect()?.ask("LOCK.ACQUIRE l OWNER bea WAIT 0")?)?;
        Ok(())
    })?;
    ensure!(epoch(&second) > epoch(&first), "{first} then {second}");
    Ok(())
}
