//! The Redis user of the sidecar: passwords that rotate, and the least that it must be allowed.

use std::fs;

use anyhow::{Result, ensure};
use caddy_tests::{
    certificates::replace,
    e2e::eventually,
    redis::RedisServer,
    scenarios,
    sidecar::SidecarOptions,
    world::{SOON, Subject},
};

use crate::session;

fn refused_or(told: &str, expected: &str) -> Result<()> {
    ensure!(told == expected, "{told}");
    Ok(())
}

#[test]
fn a_password_rotates_without_a_restart_and_without_losing_a_live_connection() -> Result<()> {
    let redis = RedisServer::start()?;
    redis.command(&["ACL", "SETUSER", "app", "on", ">old", "~*", "&*", "+@all", "-swapdb"])?;
    let directory = tempfile::tempdir()?;
    let (user, password) = (directory.path().join("user"), directory.path().join("password"));
    fs::write(&user, "app\n")?;
    fs::write(&password, "old\n")?;
    let fields = format!(
        "endpoints: [\"unix:{}\"], usernameFile: {}, passwordFile: {}",
        redis.socket().display(),
        user.display(),
        password.display()
    );
    let sidecar = SidecarOptions::l3_redis(&fields).start()?;
    let mut client = session(&sidecar)?;
    eventually("it serves", SOON, || refused_or(&client.ask("SET k v0")?, "OK"))?;
    client.hold("k", "v0")?;
    let connections = |redis: &RedisServer| -> Result<usize> {
        Ok(String::from_utf8(redis.command(&["CLIENT", "LIST"])?)?.matches("user=app").count())
    };
    let before = connections(&redis)?;
    // Both are taken for a while, then the old one is not: who is in stays in.
    redis.command(&["ACL", "SETUSER", "app", ">new"])?;
    redis.command(&["ACL", "SETUSER", "app", "<old"])?;
    ensure!(client.pipeline(&["SET k v1", "GET k"])? == ["OK", "v1"], "live connections go on");
    ensure!(connections(&redis)? == before, "a live connection was lost");
    // Cut off before the new one is mounted: nothing works, and it is said why.
    redis.command(&["CLIENT", "KILL", "USER", "app"])?;
    eventually("the login is refused", SOON, || {
        let why = client.why("k", "coherence")?;
        ensure!(why.contains("WRONGPASS") && why.contains("check username and password"), "CACHE.WHY says {why}");
        Ok(())
    })?;
    replace(&password, "new\n")?;
    eventually("the new password is used", SOON, || refused_or(&client.ask("SET k v2")?, "OK"))?;
    client.hold("k", "v2")?;
    // Another user altogether.
    redis.command(&["ACL", "SETUSER", "app2", "on", ">third", "~*", "&*", "+@all"])?;
    replace(&user, "app2")?;
    replace(&password, "third")?;
    redis.command(&["ACL", "DELUSER", "app"])?;
    eventually("the new user is used", SOON, || refused_or(&client.ask("SET k v3")?, "OK"))?;
    ensure!(String::from_utf8(redis.command(&["CLIENT", "LIST"])?)?.contains("user=app2"), "as the new user");
    ensure!(!sidecar.log().contains("third"), "no password is logged");
    Ok(())
}

/// The rule in `docs/configuration.md`.
fn documented_rule() -> Vec<&'static str> {
    let doc = include_str!("../../../docs/configuration.md");
    let line = doc.lines().map(str::trim).find(|line| line.starts_with("ACL SETUSER caddy ")).unwrap_or_default();
    line.split_whitespace().collect()
}

#[test]
fn the_documented_user_is_allowed_all_that_the_sidecar_does_and_no_swapdb() -> Result<()> {
    let rule = documented_rule();
    ensure!(rule.len() > 5, "docs/configuration.md has no line `ACL SETUSER caddy …`: {rule:?}");
    let redis = RedisServer::start()?;
    ensure!(redis.command(&rule)? == b"+OK\r\n", "the documented rule is none: {rule:?}");
    let sidecar = SidecarOptions::redis(redis.socket()).login("caddy", "password").start()?;
    let mut client = session(&sidecar)?;
    eventually("it serves", SOON, || refused_or(&client.ask("SET k v0")?, "OK"))?;
    client.hold("k", "v0")?;
    redis.command(&["SET", "k", "v1"])?;
    client.hold("k", "v1")?;
    let swaps = redis.command(&["ACL", "DRYRUN", "caddy", "SWAPDB", "0", "1"])?;
    ensure!(String::from_utf8_lossy(&swaps).contains("no permissions"), "it may SWAPDB");
    for scenario in [
        scenarios::writes_are_seen_by_the_other_worker,
        scenarios::own_write_is_read_back,
        scenarios::no_step_back_after_a_relayed_read,
        scenarios::no_step_back_after_a_read_in_a_transaction,
        scenarios::a_write_while_watching_is_read_back,
        scenarios::a_script_write_is_read_back,
        scenarios::pipelined_read_follows_the_read_of_many,
        scenarios::a_loss_kills_every_copy,
        scenarios::a_half_open_link_keeps_the_bound,
    ] {
        scenario(&Subject::good().as_user(&rule))?;
    }
    let log = String::from_utf8_lossy(&redis.command(&["ACL", "LOG"])?).into_owned();
    ensure!(log.matches("reason").count() <= 1, "the sidecar asked for what it may not: {log}");
    Ok(())
}
