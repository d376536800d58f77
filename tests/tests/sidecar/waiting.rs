//! Commands that wait. WAIT: what it counts is what the session wrote, over whichever connection that went; BLPOP and its
//! kin: who is gone is handed nothing.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    guard_scenarios::token,
    redis::{self, RedisServer},
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, SOON},
};

use crate::session;

fn wait_counts_what_was_written(program: &Path) -> Result<()> {
    let (primary, replica) = RedisServer::start_pair(program)?;
    let sidecar = Sidecar::start(&primary)?;
    let mut app = session(&sidecar)?;
    ensure!(app.ask("SET k 1")? == "OK");
    ensure!(app.ask("WAIT 1 20000")? == "1");
    ensure!(String::from_utf8(replica.command(&["GET", "k"])?)?.contains('1'), "it is there");

    replica.sigstop()?;
    ensure!(app.ask("SET k 2")? == "OK");
    ensure!(app.ask("WAIT 1 50")? == "0", "a replica that hangs has not got it");
    ensure!(app.ask("WAIT 1 50")? == "0");
    // Others are not held up by one who waits.
    let mut other = session(&sidecar)?;
    app.send("WAIT 1 0")?;
    ensure!(other.ask("SET other 1")? == "OK");
    ensure!(other.ask("EXISTS caddy:wait")? == "0", "and nothing is left of what WAIT writes");
    replica.sigcont()?;
    ensure!(app.reply()? == "1");

    // What a lost connection took along cannot be waited for.
    ensure!(app.ask("SET k 3")? == "OK");
    primary.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])?;
    eventually("the loss is noticed", SOON, || {
        ensure!(sidecar.metric("caddy_lost_connections_total")? > 0);
        Ok(())
    })?;
    let reply = app.ask("WAIT 1 20000")?;
    ensure!(reply.starts_with("(error) NOTREADY a connection to Redis was lost since"), "{reply}");
    eventually("the sidecar is back", SOON, || {
        ensure!(app.ask("SET k 4")? == "OK");
        let reply = app.ask("WAIT 1 20000")?;
        ensure!(reply == "1", "{reply}");
        Ok(())
    })?;

    primary.command(&["ACL", "SETUSER", "default", "resetkeys", "~k"])?;
    let reply = app.ask("WAIT 1 100")?;
    ensure!(reply.contains("NOPERM") && reply.contains("caddy:wait"), "{reply}");
    Ok(())
}

#[test]
fn redis_waits_for_what_the_session_wrote() -> Result<()> {
    wait_counts_what_was_written(&redis::program()?)
}

#[test]
fn valkey_waits_for_what_the_session_wrote() -> Result<()> {
    let Some(program) = redis::valkey() else {
        println!("skipped: {}", redis::NO_VALKEY);
        return Ok(());
    };
    wait_counts_what_was_written(&program)
}

/// Whether so many clients wait at the server.
fn waiting(redis: &RedisServer, count: usize) -> Result<()> {
    eventually(format!("{count} client(s) wait"), SOON, || {
        let clients = String::from_utf8(redis.command(&["INFO", "clients"])?)?;
        ensure!(clients.contains(&format!("blocked_clients:{count}\r")), "{clients}");
        Ok(())
    })?;
    Ok(())
}

/// Requests behind the one that waits, which are not taken before it is answered, do not hide the end of the app.
#[test]
fn who_is_gone_waits_for_nothing() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    for requests in
        [&["BLPOP list 0"][..], &["BLPOP list 0", "RESET"], &["PING", "BLMOVE list other LEFT LEFT 0", "HELLO 3"]]
    {
        let mut app = session(&sidecar)?;
        app.send_all(requests)?;
        waiting(&redis, 1)?;
        drop(app);
        waiting(&redis, 0)?;
    }
    redis.command(&["RPUSH", "list", "for somebody who is there"])?;
    let left = redis.command(&["LLEN", "list"])?;
    ensure!(left == b":1\r\n", "what was pushed went to somebody who was gone: {}", left.escape_ascii());
    Ok(())
}

/// What a write ends in the same step (the generation of a parent, fill leases) takes a transaction, in which nothing
/// waits: behind a command that does, it is ended when that has got something, and before the app is answered.
#[test]
fn a_command_waits_also_where_it_ends_something() -> Result<()> {
    let redis = RedisServer::start()?;
    let rules = "keyspaces: [{name: lists, match: \"list*\", parents: true}]";
    let sidecar = SidecarOptions::redis(redis.socket()).section(rules).start()?;
    let (mut app, mut other) = (session(&sidecar)?, session(&sidecar)?);
    let mut foreign = Client(redis.connect()?);
    ensure!(foreign.ask("XGROUP CREATE list:s g $ MKSTREAM")? == "OK");
    for (list, waits, push, got) in [
        ("list:a", "BLPOP none list:a 0", "RPUSH list:a x", "[list:a, x]"),
        ("list:b", "BLMOVE list:b away LEFT LEFT 0", "RPUSH list:b x", "x"),
        ("list:z", "BZPOPMIN list:z 0", "ZADD list:z 1 m", "[list:z, m, 1]"),
        (
            "list:s",
            "XREADGROUP GROUP g c BLOCK 0 STREAMS list:s >",
            "XADD list:s 1-1 f v",
            "[[list:s, [[1-1, [f, v]]]]]",
        ),
    ] {
        ensure!(other.ask(&format!("CACHE.SET child v DEPENDS 1 {list}"))? == "OK", "{list}");
        app.send(waits)?;
        waiting(&redis, 1)?;
        ensure!(other.ask("GET child")? == "v", "{waits}: nothing has changed yet");
        ensure!(!foreign.ask(push)?.contains("error"), "{push}");
        let reply = app.reply()?;
        ensure!(reply == got, "{waits}: {reply}");
        ensure!(other.ask("GET child")? == "(nil)", "{waits}: what depends on the key is gone");
    }
    // Within the app's own transaction nothing waits, as in Redis.
    let answers = app.pipeline(&["MULTI", "BLPOP list:a 0", "EXEC"])?;
    ensure!(answers[2] == "[(nil)]", "{answers:?}");

    let permit = token(&mut other, &["list:t"])?;
    app.send("BRPOP list:t 0")?;
    waiting(&redis, 1)?;
    foreign.ask("RPUSH list:t x")?;
    ensure!(app.reply()? == "[list:t, x]");
    let reply = other.ask(&format!("CACHE.SET list:t late TOKEN {permit}"))?;
    ensure!(reply.starts_with("(error) STALE"), "a fill from before the key was there: {reply}");
    Ok(())
}

/// On the connection that runs the script, Redis would not read what is to end it.
#[test]
fn a_script_that_runs_for_ever_is_ended_through_the_same_worker() -> Result<()> {
    let redis = RedisServer::start()?;
    redis.command(&["CONFIG", "SET", "busy-reply-threshold", "10"])?;
    let patient = Duration::from_mins(1);
    let sidecar = SidecarOptions::redis(redis.socket()).workers(1).timeout(patient).start()?;
    let (mut app, mut other) = (session(&sidecar)?, session(&sidecar)?);
    ensure!(other.ask("SCRIPT KILL")?.starts_with("(error) NOTBUSY"), "nothing runs");
    let spin = "#!lua name=spin\nredis.register_function('spin', function() while true do end end)";
    redis.command(&["FUNCTION", "LOAD", spin])?;
    for (database, runs, kill) in [
        ("0", "EVAL while(true)do--[[spin]]end 0", "SCRIPT KILL"),
        ("9", "EVAL while(true)do--[[spin]]end 0", "SCRIPT KILL"),
        ("9", "FCALL spin 0", "FUNCTION KILL"),
    ] {
        for it in [&mut app, &mut other] {
            ensure!(it.ask(&format!("SELECT {database}"))? == "OK");
        }
        app.send(runs)?;
        if kill == "FUNCTION KILL" {
            eventually("it is seen", SOON, || {
                let stats = other.ask("FUNCTION STATS")?;
                ensure!(stats.contains("[name, spin,"), "{stats}");
                Ok(())
            })?;
        }
        eventually("it is ended", SOON, || {
            let reply = other.ask(kill)?;
            ensure!(reply == "OK", "{reply}");
            Ok(())
        })?;
        let reply = app.reply()?;
        ensure!(reply.starts_with("(error)") && reply.contains("kill"), "whoever ran it is told: {reply}");
        // What is sent behind it goes to the session's own database again.
        let replies = other.pipeline(&[kill, "SET k 1", "MULTI", "INCR k", "EXEC", "GET k"])?;
        ensure!(replies[1..] == ["OK", "OK", "QUEUED", "[2]", "2"], "{replies:?}");
        let mut direct = Client(redis.connect()?);
        direct.ask(&format!("SELECT {database}"))?;
        ensure!(direct.ask("GETDEL k")? == "2", "database {database}");
    }
    Ok(())
}
