//! Redis gives up clients that do not read: what becomes of copies, and of requests, when it closes a connection of the
//! sidecar because its output buffer is full (`client-output-buffer-limit`).
//!
//! Neither needs luck: the connection's bytes are left where they are, and what Redis wants to write is more than the
//! kernel's buffers and the limit take together. Announcements that were in that buffer are never seen by anybody.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    e2e::eventually,
    proxy::{Class, Direction::ToClient},
    redis::RedisServer,
    world::{Client, MOMENT, Pod, SOON, Subject, World, must},
};

/// What Redis keeps for a client: more than its longest reply to the sidecar itself, that to `COMMAND`.
const LIMIT: &str = "normal 262144 0 0";
/// Keys that are announced together, and the length of their names: more than [`LIMIT`] and what sockets take.
const BALLAST: usize = 800;
const NAME: usize = 1000;
/// A value of which Redis cannot keep a reply.
const LARGE: &str = "large";
const LARGE_BYTES: &str = "700000";

/// Lets Redis give up clients soon.
pub fn limit_buffers(redis: &RedisServer) -> Result<()> {
    let reply = redis.command(&["CONFIG", "SET", "client-output-buffer-limit", LIMIT])?;
    ensure!(reply == b"+OK\r\n", "CONFIG SET is answered {}", reply.escape_ascii());
    redis.command(&["SETRANGE", LARGE, LARGE_BYTES, "x"])?;
    Ok(())
}

/// Lets Redis close the tracked connection of a pod that does not read; it is not told of that before the proxy is healed.
pub fn overflow_tracked(redis: &RedisServer, pod: &Pod) -> Result<()> {
    let names: Vec<String> = (0..BALLAST).map(|n| format!("ballast:{n:0NAME$}")).collect();
    let reads: Vec<String> = names.iter().map(|name| format!("GET {name}")).collect();
    let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
    let mut write = vec!["MSET"];
    for name in &names {
        write.extend([name, "x"]);
    }
    let before = redis.overflows();
    eventually("Redis closes the tracked connection", SOON, || {
        pod.proxy.pass(Class::Tracked, ToClient);
        let replies = pod.connect()?.pipeline(&reads)?;
        ensure!(replies.iter().all(|reply| !reply.starts_with("(error)")), "a read failed");
        pod.proxy.clog(Class::Tracked, ToClient);
        redis.command(&write)?;
        // The connection may have been another one when the keys were read.
        ensure!(redis.overflows() > before, "it did not have to be told of them");
        Ok(())
    })?;
    Ok(())
}

/// Lets Redis close a relay of a pod that does not read.
pub fn overflow_relay(redis: &RedisServer, pod: &Pod) -> Result<()> {
    eventually("Redis closes a relay", SOON, || {
        pod.proxy.pass(Class::Relay, ToClient);
        send_for_too_much(redis, pod, &mut pod.connect()?, &[], MOMENT * 8)
    })?;
    Ok(())
}

/// Sends these requests on a relay that is not read, and one behind them for more than Redis keeps for it; waits until Redis
/// has closed it.
fn send_for_too_much(
    redis: &RedisServer,
    pod: &Pod,
    client: &mut Client,
    requests: &[&str],
    patience: Duration,
) -> Result<()> {
    let before = redis.overflows();
    // Else it would not even be made.
    let touched = client.ask(&format!("TOUCH {LARGE}"))?;
    ensure!(touched == "1", "TOUCH is answered {touched}");
    pod.proxy.clog(Class::Relay, ToClient);
    client.send_all(requests)?;
    client.send(&format!("GETEX {LARGE}"))?;
    eventually("Redis closes the relay", patience, || {
        ensure!(redis.overflows() > before, "it does not");
        Ok(())
    })?;
    Ok(())
}

/// What Redis had to say of a copy was in the buffer that it threw away, or came later: the copy is dead.
pub fn an_overflow_kills_every_copy(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    limit_buffers(&world.redis)?;
    let mut client = world.cached("k", "v0")?;
    let before = world.pod().proxy.accepted(Class::Tracked);
    overflow_tracked(&world.redis, world.pod())?;
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    world.pod().proxy.heal();
    world.pod().proxy.wait_for_connection(Class::Tracked, before)?;
    world.pod().wait_until_coherent()?;
    let read = client.ask("GET k")?;
    must(read == "v1", format!("Redis closed the tracked connection before k was written; then GET k answered {read}"))
}

/// A write whose reply was thrown away counts as written; each request gets one answer, and the session goes on.
pub fn an_overflow_of_a_relay_answers_for_all_that_was_on_it(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    limit_buffers(&world.redis)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    send_for_too_much(&world.redis, world.pod(), &mut client, &["SET k v1"], SOON)?;
    client.send_all(&["INCR n", "PING"])?;
    world.pod().proxy.pass(Class::Relay, ToClient);
    let (written, large) = (client.reply()?, client.reply()?);
    ensure!(written == "OK" || written.starts_with("(error) NOTREADY"), "SET k v1 is answered {written}");
    ensure!(large.starts_with("(error) NOTREADY"), "what Redis threw away is answered {large}");
    // Either it was on the closed connection too, or it is the first on the next one.
    let counted = client.reply()?;
    ensure!(counted == "1" || counted.starts_with("(error) NOTREADY"), "INCR n is answered {counted}");
    ensure!(client.reply()? == "PONG", "each request has one answer");
    let stored = world.foreign("GET k")?;
    client.send("GET k")?;
    let read = if let Some(read) = client.reply_within(MOMENT)? {
        read
    } else {
        world.pod().proxy.heal();
        client.reply()?
    };
    must(read == stored, format!("SET k v1 was answered {written}, Redis has {stored}; then GET k answered {read}"))
}
