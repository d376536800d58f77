//! What clients do wrong, and what it costs others: nothing.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use caddy_resp::encode;
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    wire::Wire,
    world::{MOMENT, SOON},
};

use crate::session;

/// All that is answered until the connection closes.
fn said_until_closed(mut stream: UnixStream, bytes: &[u8]) -> Result<String> {
    stream.set_read_timeout(Some(SOON))?;
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            Err(error).context("the connection stays open")
        }
        _ => Ok(String::from_utf8_lossy(&said).into_owned()),
    }
}

#[test]
fn malformed_requests_get_redis_own_error_and_the_connection_closes() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut bystander = session(&sidecar)?;
    let long = vec![b'x'; 70_000];
    let mut bad: Vec<Vec<u8>> = [
        &b"*x\r\n"[..],
        b"*99999999999\r\n",
        b"*2\r\n$3\r\nGET\r\n$-5\r\n",
        b"*2\r\n$3\r\nGET\r\n$1234567890123\r\n",
        b"*1\r\n:4\r\n",
        b"*2\r\n$3\r\nGET\r\nk\r\n",
        b"SET k \"unbalanced\r\n",
        b"GET 'a'b\r\n",
    ]
    .iter()
    .map(|bytes| bytes.to_vec())
    .collect();
    bad.push(long.clone());
    bad.push([b"*1", &long[..]].concat());
    bad.push([b"*1\r\n$1", &long[..]].concat());
    for bytes in bad {
        // What came before it is answered.
        let bytes = [b"*1\r\n$4\r\nPING\r\n", &bytes[..]].concat();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let by_redis = said_until_closed(UnixStream::connect(redis.socket())?, &bytes)?;
        let by_us = said_until_closed(UnixStream::connect(sidecar.socket())?, &bytes)?;
        ensure!(by_redis.starts_with("+PONG\r\n-ERR Protocol error"), "{shown:?}: Redis says {by_redis:?}");
        ensure!(by_us == by_redis, "{shown:?}: {by_us:?}, but Redis says {by_redis:?}");
    }
    ensure!(bystander.ask("PING")? == "PONG", "others are not disturbed");
    ensure!(sidecar.metric("caddy_task_panics_total")? == 0, "nothing panicked");
    Ok(())
}

#[test]
fn requests_over_the_limit_are_refused_before_they_are_sent() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket()).section("limits: {maxFrameBytes: 64Ki}").start()?;
    let said = said_until_closed(UnixStream::connect(sidecar.socket())?, b"*2\r\n$3\r\nGET\r\n$70000\r\n")?;
    let refusal = "-ERR Protocol error: request is larger than 65536 bytes; raise limits.maxFrameBytes\r\n";
    ensure!(said == refusal, "one argument too long: {said:?}");
    let mut many = b"*5\r\n$4\r\nMSET\r\n".to_vec();
    for _ in 0..4 {
        encode::bulk(&mut many, &vec![b'x'; 20_000]);
    }
    let said = said_until_closed(UnixStream::connect(sidecar.socket())?, &many)?;
    ensure!(said == refusal, "too long in all: {said:?}");
    ensure!(session(&sidecar)?.ask("PING")? == "PONG", "others are not disturbed");
    Ok(())
}

#[test]
fn a_command_may_have_more_than_a_million_arguments_as_in_redis() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut args = vec!["MSET"];
    args.resize(1 + 2 * 600_000, "k");
    ensure!(sidecar.connect()?.request(&args)? == b"+OK\r\n", "MSET");
    ensure!(session(&sidecar)?.ask("GET k")? == "k", "it was executed");
    Ok(())
}

#[test]
fn a_web_browser_is_turned_away() -> Result<()> {
    let sidecar = SidecarOptions::embedded().start()?;
    let request = b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n";
    let said = said_until_closed(UnixStream::connect(sidecar.socket())?, request)?;
    ensure!(said.is_empty(), "it is told {said:?}");
    ensure!(session(&sidecar)?.ask("GET k")? == "(nil)", "and nothing it sent is executed");
    Ok(())
}

#[test]
fn a_reader_that_does_not_read_is_closed() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .section("limits: {outputBufferBytes: 128Ki, slowReaderTimeout: 400ms}")
        .start()?;
    redis.command(&[b"SET", &b"k"[..], &vec![b'x'; 60_000]])?;
    let mut slow = UnixStream::connect(sidecar.socket())?;
    slow.set_write_timeout(Some(Duration::from_millis(200)))?;
    let mut batch = Vec::new();
    (0..200).for_each(|_| encode::command(&mut batch, ["GET", "k"]));
    // More than all buffers hold; the sidecar stops reading, and so the write may get stuck.
    let _ = slow.write_all(&batch);
    let mut other = session(&sidecar)?;
    eventually("the slow reader is closed", SOON, || {
        ensure!(other.ask("PING")? == "PONG", "others are not disturbed");
        ensure!(sidecar.metric("caddy_slow_readers_total")? == 1, "caddy_slow_readers_total");
        Ok(())
    })?;
    slow.set_read_timeout(Some(SOON))?;
    let mut rest = Vec::new();
    let read = slow.read_to_end(&mut rest);
    ensure!(read.is_ok() || read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset), "it is open");
    ensure!(rest.len() < 200 * 60_000, "it was sent everything all the same");
    let log = sidecar.log();
    ensure!(log.contains("does not read its replies") && log.contains("peer=unix:uid="), "the log names it:\n{log}");
    eventually("its session is gone", SOON, || {
        ensure!(sidecar.metric("caddy_sessions")? == 1, "caddy_sessions");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_subscriber_that_does_not_read_is_closed_before_it_costs_much() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .section("limits: {outputBufferBytes: 128Ki, slowReaderTimeout: 10m}")
        .start()?;
    let mut subscriber = session(&sidecar)?;
    ensure!(subscriber.ask("SUBSCRIBE news")? == "[subscribe, news, 1]", "SUBSCRIBE");
    let message = vec![b'x'; 20_000];
    eventually("it is closed", SOON, || {
        for _ in 0..20 {
            redis.command(&[b"PUBLISH", &b"news"[..], &message])?;
        }
        ensure!(sidecar.metric("caddy_slow_readers_total")? == 1, "caddy_slow_readers_total");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_slow_but_steady_reader_gets_everything() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .section("limits: {outputBufferBytes: 128Ki, slowReaderTimeout: 5s}")
        .start()?;
    redis.command(&[b"SET", &b"k"[..], &vec![b'x'; 60_000]])?;
    let mut client = sidecar.connect()?;
    let mut batch = Vec::new();
    (0..100).for_each(|_| encode::command(&mut batch, ["GET", "k"]));
    client.send_raw(&batch)?;
    for reply in 0..100 {
        thread::sleep(Duration::from_millis(5));
        ensure!(client.reply()?.len() > 60_000, "reply {reply} is whole");
    }
    Ok(())
}

#[test]
fn beyond_the_limit_of_connections_a_client_is_told_so() -> Result<()> {
    let sidecar = SidecarOptions::embedded().section("limits: {maxConnections: 2}").start()?;
    // The connections that asked whether it had started must have gone.
    eventually("nobody is connected", SOON, || {
        ensure!(sidecar.metric("caddy_sessions")? == 0, "caddy_sessions");
        Ok(())
    })?;
    let (mut first, second) = (session(&sidecar)?, session(&sidecar)?);
    ensure!(first.ask("PING")? == "PONG", "the first is served");
    let said = said_until_closed(UnixStream::connect(sidecar.socket())?, b"")?;
    ensure!(said.starts_with("-ERR max number of clients reached"), "the third is told {said:?}");
    ensure!(sidecar.metric("caddy_refused_connections_total")? == 1, "caddy_refused_connections_total");
    let log = sidecar.log();
    ensure!(log.contains("refused a connection") && log.contains("peer=unix:uid="), "the log names it:\n{log}");
    drop(second);
    eventually("there is room again", SOON, || {
        ensure!(session(&sidecar)?.ask("PING")? == "PONG", "PING");
        Ok(())
    })?;
    ensure!(first.ask("PING")? == "PONG", "the first was never disturbed");
    Ok(())
}

#[test]
fn a_client_is_told_also_when_it_is_the_files_that_run_out() -> Result<()> {
    let sidecar = SidecarOptions::embedded().open_files(64).start()?;
    ensure!(sidecar.log().contains("limit on open files"), "the log says so at the start: {}", sidecar.log());
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut client = session(&sidecar)?;
        // One that is refused may be gone before it has asked.
        let told = client.ask("PING").unwrap_or_default();
        if told != "PONG" {
            ensure!(told.is_empty() || told.starts_with("(error) ERR max number of clients"), "it is told {told}");
            ensure!(held.len() >= 20, "only {} fit", held.len());
            return Ok(());
        }
        held.push(client);
    }
    anyhow::bail!("a hundred clients with 64 files")
}

#[test]
fn half_a_request_holds_up_nobody() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut half = UnixStream::connect(sidecar.socket())?;
    half.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nhal")?;
    ensure!(session(&sidecar)?.ask("PING")? == "PONG", "others go on");
    // Its end closed with requests unanswered: they are answered first.
    let mut closing = UnixStream::connect(sidecar.socket())?;
    closing.write_all(b"SET a 1\r\nGET a\r\nPING\r\n")?;
    closing.shutdown(Shutdown::Write)?;
    let said = said_until_closed(closing, b"")?;
    ensure!(said == "+OK\r\n$1\r\n1\r\n+PONG\r\n", "a client that closed its end is told {said:?}");
    drop(half);
    eventually("the half request is gone with its client", SOON, || {
        ensure!(sidecar.metric("caddy_sessions")? == 0, "caddy_sessions");
        Ok(())
    })?;
    ensure!(session(&sidecar)?.ask("GET k")? == "(nil)", "and was not executed");
    Ok(())
}

#[test]
fn a_client_that_goes_away_while_blocked_frees_its_connection_to_redis() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let clients = || -> Result<usize> {
        let list = String::from_utf8_lossy(&redis.command(&["CLIENT", "LIST"])?).into_owned();
        Ok(list.matches("cmd=blpop").count())
    };
    let mut blocked = session(&sidecar)?;
    blocked.send("BLPOP list 0")?;
    eventually("Redis sees it blocked", SOON, || {
        ensure!(clients()? == 1, "one client is blocked");
        Ok(())
    })?;
    ensure!(blocked.reply_within(MOMENT)?.is_none(), "BLPOP waits");
    drop(blocked);
    eventually("Redis sees it gone", SOON, || {
        ensure!(clients()? == 0, "no client is blocked");
        Ok(())
    })?;
    let mut other: Wire = sidecar.connect()?;
    ensure!(other.request(&["RPUSH", "list", "x"])? == b":1\r\n", "nothing popped what was pushed later");
    Ok(())
}
