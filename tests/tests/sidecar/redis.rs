//! A Redis that is missing, refuses the login or tracking, or is a replica; and what is never cached.

use anyhow::{Context as _, Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::session;

#[test]
fn a_missing_redis_is_said_to_be_missing_until_it_is_there() -> Result<()> {
    let place = tempfile::tempdir()?;
    let socket = place.path().join("redis.sock");
    let sidecar = SidecarOptions::redis(&socket).start()?;
    let mut client = session(&sidecar)?;
    ensure!(client.pipeline(&["PING", "ECHO hello"])? == ["PONG", "hello"], "the socket works at once");
    for command in ["GET k", "SET k v", "INCR k", "EVAL 'return 1' 0"] {
        let told = client.ask(command)?;
        let helps =
            told.contains("is it running, and is the address right?") && told.contains(&*socket.to_string_lossy());
        ensure!(told.starts_with("(error) NOTREADY") && helps, "{command} answers {told}");
    }
    ensure!(client.why("k", "coherence")?.contains("cannot reach Redis"), "CACHE.WHY says why");
    ensure!(sidecar.metric("caddy_l3_reachable")? == 0 && sidecar.metric("caddy_coherent")? == 0, "so do the metrics");
    for path in ["/healthz", "/readyz"] {
        sidecar.http(path).context("an outage of Redis is none of the sidecar")?;
    }
    let warnings = sidecar.log().lines().filter(|line| line.contains("WARN")).count();
    ensure!(warnings <= 2, "it is logged once, not at each try:\n{}", sidecar.log());
    let _redis = RedisServer::start_on(&socket)?;
    eventually("it serves as soon as Redis is there", SOON, || {
        ensure!(client.ask("SET k v")? == "OK", "SET");
        Ok(())
    })?;
    client.hold("k", "v")?;
    ensure!(sidecar.metric("caddy_l3_reachable")? == 1 && sidecar.metric("caddy_coherent")? == 1, "the metrics follow");
    Ok(())
}

#[test]
fn what_redis_does_when_its_memory_is_full_is_asked_and_told() -> Result<()> {
    let redis = RedisServer::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"])?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    eventually("INFO says it", SOON, || {
        let info = client.ask("INFO caddy")?;
        ensure!(info.contains("caddy_l3_eviction:allkeys-lru"), "{info}");
        ensure!(sidecar.log().contains("the server evicts keys when its memory is full"), "{}", sidecar.log());
        Ok(())
    })?;
    ensure!(sidecar.metric("caddy_l3_facts{fact=\"eviction\",state=\"endangers\"}")? == 1, "the metric says it");
    Ok(())
}

#[test]
fn what_endangers_copies_is_asked_at_the_start_and_warned_of() -> Result<()> {
    let redis = RedisServer::start_with(&["--tracking-table-max-keys", "5000"])?;
    redis.command(&["ACL", "SETUSER", "careful", "on", ">password", "~*", "&*", "+@all", "-swapdb"])?;
    redis.command(&["ACL", "SETUSER", "silent", "on", ">password", "~*", "&*", "+@all", "-acl", "-config"])?;
    for (user, table, swapdb) in
        [("default", "5000", "allowed"), ("careful", "5000", "denied"), ("silent", "unknown", "unknown")]
    {
        let options = SidecarOptions::redis(redis.socket());
        let options = if user == "default" { options } else { options.login(user, "password") };
        let sidecar = options.start()?;
        let mut client = session(&sidecar)?;
        eventually("INFO says it", SOON, || {
            let info = client.ask("INFO caddy")?;
            ensure!(info.contains(&format!("caddy_l3_tracking_table:{table}")), "{user}: {info}");
            ensure!(info.contains(&format!("caddy_l3_swapdb:{swapdb}")), "{user}: {info}");
            ensure!(info.contains("caddy_l3_eviction:none"), "{user}: {info}");
            Ok(())
        })?;
        eventually("the log warns of it", SOON, || {
            let log = sidecar.log();
            ensure!(log.contains("(tracking-table-max-keys)") == (table == "5000"), "{user}: {log}");
            ensure!(log.contains("ACL SETUSER <user> -swapdb") == (swapdb == "allowed"), "{user}: {log}");
            Ok(())
        })?;
        let table = if table == "5000" { "endangers" } else { "unknown" };
        let swapdb = match swapdb {
            "allowed" => "endangers",
            "denied" => "confirmed",
            _ => "unknown",
        };
        for (fact, state) in [("eviction", "confirmed"), ("tracking_table", table), ("swapdb", swapdb)] {
            for other in ["confirmed", "endangers", "unknown"] {
                let series = format!("caddy_l3_facts{{fact=\"{fact}\",state=\"{other}\"}}");
                let value = sidecar.metric(&series)?;
                ensure!(value == u64::from(other == state), "{user}: {series} is {value}, and it is {state}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_redis_that_hangs_from_the_start_is_said_to_hang() -> Result<()> {
    let redis = RedisServer::start()?;
    redis.sigstop()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("PING")? == "PONG", "the socket works at once");
    let told = client.ask("GET k")?;
    ensure!(
        told.starts_with("(error) NOTREADY")
            && told.contains("did not answer within")
            && told.contains("see whether Redis answers"),
        "GET k answers {told}"
    );
    redis.sigcont()?;
    client.hold("k", "(nil)")
}

#[test]
fn a_wrong_password_is_said_to_be_wrong() -> Result<()> {
    let redis = RedisServer::start()?;
    redis.command(&["CONFIG", "SET", "requirepass", "right"])?;
    for (login, expected) in [(Some("wrong"), "WRONGPASS"), (None, "NOAUTH")] {
        let options = SidecarOptions::redis(redis.socket());
        let sidecar = match login {
            Some(password) => options.login("default", password).start()?,
            None => options.start()?,
        };
        let mut client = session(&sidecar)?;
        ensure!(client.ask("PING")? == "PONG", "the socket works");
        for protocol in ["HELLO 2", "HELLO 3"] {
            client.ask(protocol)?;
            let told = client.ask("GET k")?;
            let helps = told.contains("check username and password") || told.contains("NOAUTH");
            ensure!(told.starts_with("(error) ") && told.contains(expected) && helps, "GET k answers {told}");
        }
        ensure!(sidecar.metric("caddy_coherent")? == 0, "nothing is cached");
        ensure!(!sidecar.log().contains("\"wrong\""), "no password is logged");
    }
    let sidecar = SidecarOptions::redis(redis.socket()).login("default", "right").start()?;
    let mut client = session(&sidecar)?;
    eventually("the right one opens", SOON, || {
        ensure!(client.ask("SET k v")? == "OK", "SET");
        Ok(())
    })?;
    client.hold("k", "v")
}

#[test]
fn without_the_right_to_track_nothing_is_cached_and_everything_says_so() -> Result<()> {
    let redis = RedisServer::start()?;
    redis.command(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-client"])?;
    let sidecar = SidecarOptions::redis(redis.socket()).login("app", "pw").start()?;
    let mut client = session(&sidecar)?;
    ensure!(client.pipeline(&["SET k v0", "GET k", "GET k"])? == ["OK", "v0", "v0"], "reads and writes work");
    redis.command(&["SET", "k", "v1"])?;
    ensure!(client.ask("GET k")? == "v1", "each read asks Redis");
    ensure!(sidecar.metric("caddy_hits_total")? == 0 && sidecar.metric("caddy_fills_total")? == 0, "nothing is cached");
    let why = client.why("k", "coherence")?;
    ensure!(why.contains("refused CLIENT TRACKING") && why.contains("+client"), "CACHE.WHY says {why}");
    let info = client.ask("INFO caddy")?;
    ensure!(info.contains("caddy_coherent:0") && info.contains("refused CLIENT TRACKING"), "INFO says {info}");
    ensure!(sidecar.metric("caddy_coherent")? == 0 && sidecar.metric("caddy_l3_reachable")? == 1, "so do the metrics");
    ensure!(sidecar.log().contains("refused CLIENT TRACKING"), "so does the log: {}", sidecar.log());
    // Granted later, it is used without a restart.
    redis.command(&["ACL", "SETUSER", "app", "+client"])?;
    client.hold("k", "v1")
}

#[test]
fn from_a_replica_nothing_is_cached() -> Result<()> {
    let redis = RedisServer::start_with(&["--replicaof", "127.0.0.1", "1"])?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.pipeline(&["GET k", "GET k"])? == ["(nil)", "(nil)"], "reads work");
    eventually("it is said why nothing is cached", SOON, || {
        let why = client.why("k", "coherence")?;
        ensure!(why.contains("is a replica") && why.contains("Point the endpoint at the primary"), "CACHE.WHY: {why}");
        Ok(())
    })?;
    let told = client.ask("SET k v")?;
    ensure!(told.starts_with("(error) READONLY"), "a write is answered as Redis does: {told}");
    ensure!(sidecar.metric("caddy_fills_total")? == 0, "nothing is cached");
    Ok(())
}

#[test]
fn values_above_the_limit_and_keys_of_an_off_rule_are_never_cached() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .section("limits: {maxValueBytes: 1Ki}")
        .section("keyspaces: [{name: private, match: \"private:*\", cache: \"Off\"}]")
        .start()?;
    let mut client = session(&sidecar)?;
    redis.command(&["MSET", "small", &"x".repeat(1000), "large", &"x".repeat(1100), "private:k", "v"])?;
    client.hold("small", &"x".repeat(1000))?;
    for _ in 0..3 {
        ensure!(client.ask("GET large")?.len() == 1100 && client.ask("GET private:k")? == "v", "they are read");
    }
    ensure!(client.why("large", "served")? == "no", "large values are not kept");
    let why = client.why("private:k", "reason")?;
    ensure!(why.contains("cache: Off"), "CACHE.WHY says {why}");
    Ok(())
}
