//! `consistency.coherence`: what `Broadcast` and `Ttl` keep, and for how long.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use caddy_tests::{redis::RedisServer, sidecar::SidecarOptions, world::LONG};

use crate::session;

#[test]
fn under_broadcast_foreign_writes_kill_copies_and_only_announced_keys_are_kept() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .max_staleness(LONG)
        .consistency("coherence: Broadcast, broadcastPrefixes: [\"shop:\"]")
        .start()?;
    let mut client = session(&sidecar)?;
    ensure!(client.pipeline(&["SET shop:a v0", "SET other v0"])? == ["OK", "OK"], "SET");
    client.hold("shop:a", "v0")?;
    for value in ["v1", "v2", "v3"] {
        redis.command(&["SET", "shop:a", value])?;
        client.hold("shop:a", value)?;
    }
    for _ in 0..5 {
        ensure!(client.ask("GET other")? == "v0", "it is read");
        ensure!(client.why("other", "served")? == "no", "nobody would tell of writes to it");
    }
    ensure!(client.ask("EVAL 'return redis.call(\"SET\", \"shop:a\", \"v4\")' 0")? == "OK", "EVAL");
    ensure!(client.ask("GET shop:a")? == "v4", "a script's write is read back");
    let list = String::from_utf8(redis.command(&["CLIENT", "LIST"])?)?;
    ensure!(list.contains("flags=tB") || list.contains("flags=Bt"), "no connection is told of everything: {list}");
    Ok(())
}

#[test]
fn under_ttl_copies_live_as_long_as_the_bound_and_no_longer() -> Result<()> {
    let redis = RedisServer::start()?;
    // Whoever may not track is told of this mode.
    redis.command(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-client"])?;
    let bound = Duration::from_millis(600);
    let sidecar = SidecarOptions::redis(redis.socket())
        .login("app", "pw")
        .max_staleness(bound)
        .consistency("coherence: Ttl")
        .start()?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("SET k v0")? == "OK", "SET");
    client.hold("k", "v0")?;
    client.hold("absent", "(nil)")?;
    redis.command(&["MSET", "k", "v1", "absent", "v1"])?;
    thread::sleep(bound);
    ensure!(client.pipeline(&["GET k", "GET absent"])? == ["v1", "v1"], "an old state is served after the bound");
    client.hold("k", "v1")?;
    ensure!(client.ask("PTTL k")? == "-1", "what PTTL says is Redis's");
    ensure!(client.ask("SET k v2")? == "OK" && client.ask("GET k")? == "v2", "an own write is read back at once");
    client.hold("k", "v2")?;
    ensure!(client.ask("EVAL 'return redis.call(\"SET\", \"k\", \"v3\")' 0")? == "OK", "EVAL");
    ensure!(client.ask("GET k")? == "v3", "so is a script's");
    let why = client.why("k", "coherence")?;
    ensure!(why.contains("untracked: copies live at most"), "CACHE.WHY says {why}");
    ensure!(sidecar.metric("caddy_hits_total")? > 0, "copies were served");
    Ok(())
}
