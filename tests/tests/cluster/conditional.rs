//! Conditional writes in a cluster: a key, its lease and its fence share a slot; its groups and its lock are elsewhere.

use std::time::Duration;

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    guard_scenarios::{acquire, token},
    redis_cluster::RedisCluster,
    sidecar::Sidecar,
    world::{Client, SOON},
};

use super::Shop;

const BOUND: Duration = Duration::from_millis(300);

/// Keys of all nodes, and such whose hash tags are odd.
fn keys(cluster: &RedisCluster) -> Vec<String> {
    let mut keys: Vec<String> = (0..6).map(|n| cluster.key_of(n % 3, n)).collect();
    keys.extend(["{tag}rest", "a}b", "{}x"].map(str::to_owned));
    keys
}

fn ready(sidecar: &Sidecar) -> Result<Client> {
    let mut client = Client(sidecar.connect()?);
    eventually("the slot map is known", SOON, || {
        let told = client.ask("SET ready yes")?;
        ensure!(told == "OK", "SET answers {told}");
        Ok(())
    })?;
    Ok(client)
}

#[test]
fn tokens_fill_keys_of_all_slots_and_late_ones_do_not() -> Result<()> {
    let shop = Shop::with(RedisCluster::start(3)?, BOUND)?;
    let (mut app, mut other) = (ready(&shop.sidecar)?, ready(&shop.sidecar)?);
    for key in keys(&shop.cluster) {
        let tags = ["TAGS", "2", "news", "sport"];
        let request = [&[&*key], &tags[..]].concat();
        let late = token(&mut app, &request)?;
        ensure!(other.ask(&format!("DEL {key}"))? == "0", "DEL {key}");
        let reply = app.ask(&format!("CACHE.SET {key} late TOKEN {late}"))?;
        ensure!(reply.starts_with("(error) STALE"), "behind a DEL of {key}: {reply}");
        let good = token(&mut app, &request)?;
        ensure!(app.ask(&format!("CACHE.SET {key} v TOKEN {good}"))? == "OK", "a fill of {key}");
        ensure!(other.ask(&format!("GET {key}"))? == "v", "{key} is filled");
        ensure!(other.ask("CACHE.INVALIDATE TAG sport")? == "1", "its tag ends");
        ensure!(app.ask(&format!("GET {key}"))? == "(nil)", "{key} belongs to its tag");
        let late = token(&mut app, &request)?;
        ensure!(other.ask("CACHE.INVALIDATE TAG news")? == "1", "its tag ends");
        let reply = app.ask(&format!("CACHE.SET {key} late TOKEN {late}"))?;
        ensure!(reply.starts_with("(error) STALE"), "behind the end of a tag of {key}: {reply}");
    }
    Ok(())
}

#[test]
fn old_holders_are_fenced_in_all_slots() -> Result<()> {
    let shop = Shop::with(RedisCluster::start(3)?, BOUND)?;
    let (mut old, mut new) = (ready(&shop.sidecar)?, ready(&shop.sidecar)?);
    let first = acquire(&mut old, "l")?;
    let keys = keys(&shop.cluster);
    let (half, rest) = keys.split_at(keys.len() / 2);
    for key in half {
        let reply = old.ask(&format!("CACHE.SET {key} v1 FENCE l {first}"))?;
        ensure!(reply == "OK", "{key}: {reply}");
    }
    ensure!(old.ask(&format!("LOCK.RELEASE l {first}"))? == "0", "RELEASE");
    let second = acquire(&mut new, "l")?;
    for key in &keys {
        let reply = new.ask(&format!("CACHE.SET {key} v2 FENCE l {second}"))?;
        ensure!(reply == "OK", "{key}: {reply}");
        ensure!(new.ask(&format!("DEL {key}"))? == "1", "DEL {key}");
        let reply = old.ask(&format!("CACHE.SET {key} late FENCE l {first}"))?;
        ensure!(reply.starts_with("(error) FENCED"), "{key}: {reply}");
    }
    // The node of some keys loses what it has noted of them.
    ensure!(shop.cluster.nodes[0].server.command(&["FLUSHALL"]).is_ok(), "FLUSHALL of one node");
    for key in rest {
        let reply = old.ask(&format!("CACHE.SET {key} late FENCE l {first}"))?;
        ensure!(reply.starts_with("(error) FENCED"), "behind the FLUSHALL, {key}: {reply}");
    }
    Ok(())
}
