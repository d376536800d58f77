//! Connections to Redis that one session uses after another: nothing of the first is left on them.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use anyhow::{Result, ensure};
use caddy_tests::{
    redis::RedisServer,
    sidecar::Sidecar,
    world::{MOMENT, SOON},
};

/// All replies to requests after which the client closes its end.
fn said(sidecar: &Sidecar, requests: &str) -> Result<String> {
    let mut stream = UnixStream::connect(sidecar.socket())?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(requests.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

#[test]
fn what_a_transaction_would_do_to_its_connection_never_meets_another_session() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    for command in ["SUBSCRIBE news", "PSUBSCRIBE *", "HELLO 3", "AUTH other secret", "CLIENT REPLY OFF", "MONITOR"] {
        let replies = said(&sidecar, &format!("MULTI\r\n{command}\r\nSET k v\r\nEXEC\r\n"))?;
        ensure!(replies.contains("is not available through the cache"), "{command} is refused: {replies}");
        ensure!(replies.contains("-EXECABORT"), "and the transaction with it: {replies}");
        ensure!(redis.command(&["EXISTS", "k"])? == b":0\r\n", "nothing of it was executed: {command}");
        let next = said(&sidecar, "MULTI\r\nGET nothing\r\nEXEC\r\nBLPOP nothing 0\r\n")?;
        ensure!(next == "+OK\r\n+QUEUED\r\n*1\r\n$-1\r\n", "after {command} the next session got {next}");
    }
    // What these leave behind is not refused: their connection is nobody else's.
    for command in ["CLIENT TRACKING ON", "CLIENT SETNAME mine"] {
        let replies = said(&sidecar, &format!("MULTI\r\n{command}\r\nEXEC\r\n"))?;
        ensure!(replies == "+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n", "{command}: {replies}");
        let next = said(&sidecar, "MULTI\r\nCLIENT TRACKINGINFO\r\nCLIENT GETNAME\r\nEXEC\r\n")?;
        ensure!(next.contains("off") && !next.contains("mine"), "after {command} the next session got {next}");
    }
    Ok(())
}

#[test]
fn a_client_that_closes_its_end_gets_the_answers_of_its_transaction() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let replies = said(&sidecar, "MULTI\r\nSET k v\r\nSLOWLOG RESET\r\nEXEC\r\nGET k\r\n")?;
    ensure!(replies == "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n$1\r\nv\r\n", "{replies}");
    ensure!(said(&sidecar, "WATCH k\r\n")? == "+OK\r\n", "and whoever watches is not waited for");
    let mut blocked = UnixStream::connect(sidecar.socket())?;
    blocked.write_all(b"BLPOP list 0\r\n")?;
    blocked.set_read_timeout(Some(MOMENT))?;
    ensure!(blocked.read(&mut [0; 16]).is_err(), "BLPOP waits");
    blocked.set_read_timeout(Some(SOON))?;
    blocked.shutdown(Shutdown::Write)?;
    ensure!(blocked.read(&mut [0; 16])? == 0, "what may never be answered is not waited for");
    Ok(())
}

#[test]
fn subscribers_of_resp2_are_answered_in_order() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    for requests in [
        "SUBSCRIBE a\r\nGET k\r\nPING\r\nUNSUBSCRIBE a\r\nPING\r\nSET k v\r\nGET k\r\nQUIT\r\n",
        "UNSUBSCRIBE a b\r\nPING\r\nGET k\r\nQUIT\r\n",
        "SUBSCRIBE a b\r\nRESET\r\nPING\r\nQUIT\r\n",
        "PSUBSCRIBE a* b*\r\nSUBSCRIBE c\r\nPUNSUBSCRIBE\r\nGET k\r\nUNSUBSCRIBE\r\nGET k\r\nQUIT\r\n",
        "SUBSCRIBE\r\nPING\r\nQUIT\r\n",
    ] {
        redis.command(&["DEL", "k"])?;
        let mut direct = UnixStream::connect(redis.socket())?;
        direct.write_all(requests.as_bytes())?;
        let mut expected = String::new();
        direct.read_to_string(&mut expected)?;
        redis.command(&["DEL", "k"])?;
        let mut through = UnixStream::connect(sidecar.socket())?;
        through.set_read_timeout(Some(SOON))?;
        through.write_all(requests.as_bytes())?;
        let mut got = String::new();
        through.read_to_string(&mut got)?;
        ensure!(got == expected, "{requests:?}\nRedis: {expected:?}\nhere:  {got:?}");
    }
    Ok(())
}
