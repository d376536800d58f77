//! `limits`: idle connections, long pipelines and the file's own bounds; the others are in [`super::clients`].

use std::time::Duration;

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::session;

fn limited(redis: &RedisServer, limits: &str) -> Result<Sidecar> {
    SidecarOptions::redis(redis.socket()).section(&format!("limits: {{{limits}}}")).start()
}

#[test]
fn a_connection_that_sends_nothing_is_closed_and_one_that_waits_or_subscribes_is_not() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = limited(&redis, "idleTimeout: 2s")?;
    let (mut idle, mut busy) = (sidecar.connect()?, session(&sidecar)?);
    let (mut waits, mut subscribed) = (sidecar.connect()?, sidecar.connect()?);
    idle.request(&["PING"])?;
    waits.send(&["BLPOP", "list", "2.4"])?;
    subscribed.request(&["SUBSCRIBE", "news"])?;
    for _ in 0..24 {
        ensure!(busy.ask("PING")? == "PONG", "who talks now and then stays");
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(idle.is_closed()?, "who says nothing does not");
    ensure!(waits.reply()? == b"*-1\r\n", "who waits for an answer gets it");
    redis.command(&["PUBLISH", "news", "x"])?;
    ensure!(String::from_utf8(subscribed.reply()?)?.contains("message"), "and subscribers get their messages");
    eventually("it is counted", SOON, || {
        ensure!(sidecar.metric("caddy_idle_closed_total")? >= 1, "it is not");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_pipeline_beyond_the_limit_is_answered_all_the_same_bit_by_bit() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = limited(&redis, "maxPipeline: 4")?;
    let mut client = session(&sidecar)?;
    let lines: Vec<String> = (0..500).map(|n| format!("INCRBY n {}", n % 3)).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    ensure!(client.pipeline(&lines)?.last().is_some_and(|last| last == "499"), "in order, and all of them");
    Ok(())
}

/// What each of them has sent is some bytes; what it says that it will send is 60 MB.
#[test]
fn what_is_announced_and_not_sent_takes_no_memory() -> Result<()> {
    const APPS: u64 = 200;
    let redis = RedisServer::start()?;
    let sidecar = limited(&redis, "maxFrameBytes: 64Mi")?;
    let before = sidecar.resident()?;
    let mut apps = Vec::new();
    for _ in 0..APPS {
        let mut app = sidecar.connect()?;
        app.send_raw(b"PING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$60000000\r\nvalue")?;
        ensure!(app.reply()? == b"+PONG\r\n", "the request in front is answered, and so the rest has been read");
        apps.push(app);
    }
    let each = sidecar.resident()?.saturating_sub(before) / APPS;
    ensure!(each < 64 << 10, "an app that announced a large value takes {each} bytes");
    Ok(())
}

#[test]
fn a_frame_limit_above_what_can_be_is_refused_by_the_file() -> Result<()> {
    let redis = RedisServer::start()?;
    let refused = limited(&redis, "maxFrameBytes: 5Gi").map(drop).unwrap_err();
    let refused = format!("{refused:#}");
    ensure!(refused.contains("limits.maxFrameBytes: 5Gi is too large; write at most 4095Mi"), "{refused}");
    Ok(())
}

#[test]
fn why_a_large_value_has_no_copy_is_told() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = limited(&redis, "maxValueBytes: 1Ki")?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask(&format!("SET k {}", "v".repeat(2000)))? == "OK", "a large value");
    eventually("it is told", SOON, || {
        ensure!(client.ask("GET k")?.len() == 2000, "it is read");
        let reason = client.why("k", "reason")?;
        ensure!(reason.contains("too large to be kept") && reason.contains("limits.maxValueBytes is 1024"), "{reason}");
        Ok(())
    })?;
    ensure!(client.ask("SET k small")? == "OK", "a small one");
    eventually("it is kept", SOON, || {
        ensure!(
            client.ask("GET k")? == "small" && client.why("k", "served")? == "yes",
            "{}",
            client.why("k", "reason")?
        );
        Ok(())
    })?;
    Ok(())
}
