//! What a `CacheInvalidation` does in Redis: its sidecar is real, the API server is the test's own. What executing means step
//! by step, with everything away that may be, is shown beside the code; that it is one object to people, in a real cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddy_tests::{
    e2e::eventually,
    guard_scenarios::token,
    lease_server::LeaseServer,
    redis::RedisServer,
    redis_cluster::RedisCluster,
    sidecar::SidecarOptions,
    world::{Client, SOON},
};
use serde_json::{Value, json};

use crate::session;

const BOUND: Duration = Duration::from_millis(200);
/// One of the pods takes the duties within some seconds, then looks every three.
const PATIENCE: Duration = Duration::from_mins(1);
const RULES: &str = "keyspaces: [{name: items, match: \"*item*\", parents: true}]";

/// What there is of it when it has ended.
fn ended(api: &LeaseServer, name: &str) -> Result<Value> {
    let (status, _) = eventually(format!("{name} has ended"), PATIENCE, || {
        let status = api.invalidation(name).context("it is gone")?["status"].clone();
        ensure!(status["finishedAt"].is_string(), "its status is {status}");
        Ok(status)
    })?;
    Ok(status)
}

/// Of each of `places`, a part of a key that is at one node: an item that others depend on, and a key that somebody is about
/// to fill, are removed through an object; then what was computed from before is stored no more, and what depends on the item
/// is gone, in both pods.
fn keys_are_removed_as_by_a_write(options: impl Fn() -> SidecarOptions, places: &[String]) -> Result<()> {
    let api = LeaseServer::start()?;
    let start = |name| api.start_pod(options().section(RULES).max_staleness(BOUND).workers(2), name);
    let pods = [start("web-1")?, start("web-2")?];
    let (mut here, mut there) = (session(&pods[0])?, session(&pods[1])?);
    for client in [&mut here, &mut there] {
        eventually("Redis is known", SOON, || {
            let told = client.ask("SET ready yes")?;
            ensure!(told == "OK", "SET answers {told}");
            Ok(())
        })?;
    }
    let mut late = Vec::new();
    let mut removed = vec!["nothing".to_owned()];
    for place in places {
        let (item, page, filled) = (format!("{place}:item"), format!("{place}:page"), format!("{place}:filled"));
        for command in [format!("SET {item} v"), format!("CACHE.SET {page} v TAGS 1 t DEPENDS 1 {item}")] {
            let told = here.ask(&command)?;
            ensure!(told == "OK", "{command}: {told}");
        }
        for client in [&mut here, &mut there] {
            becomes(client, &item, "v")?;
            becomes(client, &page, "v")?;
        }
        late.push((filled.clone(), token(&mut here, &[&filled])?));
        removed.extend([item, filled]);
    }
    api.invalidate("keys", json!({"keys": removed, "reason": "new prices"}))?;
    let status = ended(&api, "keys")?;
    ensure!(status["phase"] == "Succeeded", "{status}");
    // What was absent is nothing that was removed.
    ensure!(status["removed"] == places.len() && status["acknowledged"] == 2 && status["members"] == 2, "{status}");
    for (key, token) in late {
        let told = here.ask(&format!("CACHE.SET {key} late TOKEN {token}"))?;
        ensure!(told.starts_with("(error) STALE"), "{key}: a token from before is answered {told}");
    }
    for place in places {
        for client in [&mut here, &mut there] {
            let read = client.pipeline(&[&format!("GET {place}:item"), &format!("GET {place}:page")])?;
            ensure!(read == ["(nil)", "(nil)"], "{place}: the item, and what depends on it: {read:?}");
        }
    }
    Ok(())
}

fn becomes(client: &mut Client, key: &str, value: &str) -> Result<()> {
    eventually(format!("{key} is {value}"), SOON, || {
        let read = client.ask(&format!("GET {key}"))?;
        ensure!(read == value, "{read}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn keys_of_an_object_end_fills_and_what_depends_on_them() -> Result<()> {
    let redis = RedisServer::start()?;
    keys_are_removed_as_by_a_write(|| SidecarOptions::redis(redis.socket()), &["a".to_owned(), "b".to_owned()])
}

#[test]
fn keys_of_an_object_end_fills_and_what_depends_on_them_in_every_slot_of_a_cluster() -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    let places: Vec<String> = (0..3).map(|node| format!("{{{}}}", cluster.key_of(node, node))).collect();
    keys_are_removed_as_by_a_write(|| SidecarOptions::l3_redis(&cluster.l3()), &places)
}
