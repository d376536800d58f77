//! In front of a Redis Cluster: a key and its lease share a slot, whatever the key looks like.

use anyhow::{Context, Result, ensure};
use caddy_tests::{
    e2e::eventually,
    origin::Origin,
    redis_cluster::RedisCluster,
    sidecar::SidecarOptions,
    world::{Client, LONG, SOON},
};
use tokio::runtime::Runtime;

#[test]
fn keys_of_all_slots_are_loaded_stored_and_removed() -> Result<()> {
    let runtime = Runtime::new().context("start a runtime")?;
    let origin = runtime.block_on(Origin::start())?;
    let cluster = RedisCluster::start(3)?;
    let store = format!("stores: [{{name: users, http: {{url: \"{}/{{key}}\", timeout: 20s}}}}]", origin.url());
    let rule =
        "keyspaces: [{name: users, match: \"*\", strategy: ReadThrough, store: users, ttl: 1h, hardTimeout: 1m}]";
    let sidecar = SidecarOptions::l3_redis(&cluster.l3()).max_staleness(LONG).section(&store).section(rule).start()?;
    let mut client = Client(sidecar.connect()?);
    let mut keys: Vec<String> = (0..9).map(|n| cluster.key_of(n % 3, n)).collect();
    keys.extend(["{tag}rest", "a}b", "{}x"].map(str::to_owned));
    for key in &keys {
        let path: String = key
            .bytes()
            .map(|byte| match byte {
                b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        origin.set(&format!("/{path}"), "loaded");
    }
    let all = format!("[{}]", vec!["loaded"; keys.len()].join(", "));
    eventually("the slot map is known, and all are loaded", SOON, || {
        let read = client.ask(&format!("MGET {}", keys.join(" ")))?;
        ensure!(read == all, "{read}");
        Ok(())
    })?;
    for key in &keys {
        ensure!(cluster.ask(&format!("GET {key}"))? == "loaded", "{key} is in Redis");
    }
    let removed = client.ask(&format!("DEL {}", keys.join(" ")))?;
    ensure!(removed == keys.len().to_string(), "DEL answers {removed}");
    ensure!(client.ask(&format!("SET {} own", keys[0]))? == "OK");
    ensure!(client.ask(&format!("GET {}", keys[0]))? == "own");
    Ok(())
}
