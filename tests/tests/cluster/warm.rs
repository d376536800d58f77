//! Warming in front of a cluster: keys of all nodes, by request and from what other sidecars are asked for.

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis_cluster::RedisCluster,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON},
};

const WARMING: &str = "warming: {enabled: true, ratePerSecond: 1000, startupShare: 100, startupDeadline: 10m}";
/// Keys of each node.
const EACH: usize = 20;

/// One that knows the slot map.
fn start(cluster: &RedisCluster, section: &str) -> Result<Sidecar> {
    let sidecar = SidecarOptions::l3_redis(&cluster.l3()).max_staleness(LONG).section(section).start()?;
    let mut app = Client(sidecar.connect()?);
    eventually("the slot map is known", SOON, || {
        ensure!(app.ask("EXISTS elsewhere")? == "0");
        Ok(())
    })?;
    Ok(sidecar)
}

fn written(cluster: &RedisCluster) -> Result<Vec<String>> {
    let keys: Vec<String> = (0..3 * EACH).map(|n| cluster.key_of(n % 3, n)).collect();
    for key in &keys {
        ensure!(cluster.ask(&format!("SET {key} value"))? == "OK", "SET {key}");
    }
    Ok(keys)
}

fn are_hits(sidecar: &Sidecar, keys: &[String]) -> Result<()> {
    let (mut app, misses) = (Client(sidecar.connect()?), sidecar.metric("caddy_misses_total")?);
    for key in keys {
        let value = app.ask(&format!("GET {key}"))?;
        ensure!(value == "value", "{key}: {value}");
    }
    ensure!(sidecar.metric("caddy_misses_total")? == misses, "all of them are hits");
    Ok(())
}

#[test]
fn keys_of_all_nodes_are_warmed_when_somebody_asks_for_it() -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    let keys = written(&cluster)?;
    let sidecar = start(&cluster, "")?;
    let warmed = Client(sidecar.connect()?).ask(&format!("CACHE.WARM {}", keys.join(" ")))?;
    ensure!(warmed == keys.len().to_string(), "{warmed}");
    are_hits(&sidecar, &keys)
}

#[test]
fn a_new_sidecar_has_what_others_are_asked_for_of_all_nodes() -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    let keys = written(&cluster)?;
    let mut old = start(&cluster, WARMING)?;
    let mut app = Client(old.connect()?);
    for key in keys.iter().cycle().take(3 * keys.len()) {
        ensure!(app.ask(&format!("GET {key}"))? == "value", "{key}");
    }
    drop(app);
    // At its end it tells what it was asked for.
    old.terminate()?;
    eventually("it ends", SOON, || {
        ensure!(old.exited()?.is_some());
        Ok(())
    })?;
    let new = start(&cluster, WARMING)?;
    eventually("warming is over", SOON, || {
        ensure!(new.metric("caddy_warming_percent")? == 100, "{}", new.metrics()?);
        Ok(())
    })?;
    are_hits(&new, &keys)
}
