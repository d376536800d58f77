//! Slots move, primaries die and are replaced: the promises are kept, and the sidecar finds its way by itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use caddy_remote::cluster::slot_of;
use caddy_tests::{e2e::eventually, redis_cluster::RedisCluster, world::SOON};

use super::Shop;

#[test]
fn a_killed_primary_is_replaced_and_its_keys_are_served_again() -> Result<()> {
    let mut shop = Shop::with(RedisCluster::with_replicas(3)?, Duration::from_millis(400))?;
    let mut client = shop.connect()?;
    let keys = [0, 1, 2].map(|node| shop.cluster.key_of(node, 0));
    for key in &keys {
        ensure!(client.ask(&format!("SET {key} v0"))? == "OK", "SET {key}");
        client.hold(key, "v0")?;
    }
    // What its replica does not have is lost with a primary.
    eventually("the replica has the key", SOON, || {
        let offsets = [0, 3].map(|node| shop.cluster.nodes[node].ask("INFO replication"));
        let offset = |info: &str| info.lines().find(|line| line.starts_with("master_repl_offset")).map(str::to_owned);
        let [primary, replica] = offsets.map(|info| info.map(|info| offset(&info)).unwrap_or_default());
        ensure!(primary.is_some() && primary == replica, "{primary:?}, {replica:?}");
        Ok(())
    })?;
    shop.cluster.nodes[0].server.kill()?;
    for key in &keys {
        eventually("reads and writes are answered again", SOON, || {
            let read = client.ask(&format!("GET {key}"))?;
            ensure!(read == "v0", "GET {key} answers {read}");
            let write = client.ask(&format!("SET {key} v0"))?;
            ensure!(write == "OK", "SET {key} answers {write}");
            Ok(())
        })?;
        client.hold(key, "v0")?;
    }
    ensure!(shop.cluster.nodes[3].ask(&format!("SET {} v1", keys[0]))? == "OK", "the replica has taken over");
    eventually("its writes are announced", SOON, || {
        let read = client.ask(&format!("GET {}", keys[0]))?;
        ensure!(read == "v1", "GET answers {read}");
        Ok(())
    })?;
    eventually("nothing is wrong any more", SOON, || {
        ensure!(shop.sidecar.metric("caddy_coherent")? == 1, "caddy_coherent");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_sidecar_that_starts_without_its_cluster_says_so_and_comes_up_with_it() -> Result<()> {
    let mut shop = Shop::open()?;
    let key = shop.cluster.key_of(1, 0);
    for node in &mut shop.cluster.nodes {
        node.server.kill()?;
    }
    shop.sidecar.restart()?;
    let mut client = shop.connect()?;
    ensure!(client.ask("PING")? == "PONG", "PING");
    for command in
        [format!("GET {key}"), format!("SET {key} v"), "MULTI".into(), "DBSIZE".into(), format!("MGET {key} other")]
    {
        let mut client = shop.connect()?;
        let replies =
            if command == "MULTI" { client.pipeline(&["MULTI", "INCR k"])? } else { vec![client.ask(&command)?] };
        let refusal = replies.last().cloned().unwrap_or_default();
        ensure!(refusal.starts_with("(error) NOTREADY no node of the cluster tells its slots"), "{command}: {refusal}");
        ensure!(refusal.contains("is it running, and is the address right?"), "{command} does not help: {refusal}");
    }
    for node in &mut shop.cluster.nodes {
        node.server.restart()?;
    }
    client.hold(&key, "(nil)")
}

#[test]
fn a_slot_that_moves_back_and_forth_is_followed() -> Result<()> {
    let shop = Shop::open()?;
    let mut client = shop.connect()?;
    let key = shop.cluster.key_of(0, 0);
    let slot = slot_of(key.as_bytes());
    ensure!(client.ask(&format!("SET {key} 0"))? == "OK", "SET");
    for round in 1..6 {
        let (from, to) = if round % 2 == 1 { (0, 1) } else { (1, 0) };
        shop.cluster.begin_move(slot, from, to)?;
        let half = [format!("INCR {key}"), format!("GET {{{key}}}"), format!("INCR {{{key}}}:n"), format!("GET {key}")];
        let replies = client.pipeline(&half.iter().map(String::as_str).collect::<Vec<_>>())?;
        let round = round.to_string();
        ensure!(replies == [&round, "(nil)", &round, &round], "while the slot moves: {replies:?}");
        while shop.cluster.move_keys(slot, from, to)? > 0 {}
        let read = client.ask(&format!("GET {key}"))?;
        ensure!(read == round, "behind its keys: {read}");
        shop.cluster.end_move(slot, to)?;
        let replies = client.pipeline(&[&format!("GET {key}"), &format!("EXISTS {key} {{{key}}}:n"), "MULTI"])?;
        ensure!(replies == [&round, "2", "OK"], "behind the slot: {replies:?}");
        ensure!(client.ask("DISCARD")? == "OK", "DISCARD");
        client.hold(&key, &round)?;
    }
    ensure!(shop.sidecar.metric("caddy_redirections_total")? > 0, "nothing was redirected");
    Ok(())
}
