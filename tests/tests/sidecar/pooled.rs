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
    for command in
        ["SUBSCRIBE a b", "UNSUBSCRIBE", "HELLO 3 AUTH a b", "HELLO 3 SETNAME a", "CLIENT REPLY OFF", "MONITOR"]
    {
        let replies = said(&sidecar, &format!("MULTI\r\n{command}\r\nSET k v\r\nEXEC\r\n"))?;
        ensure!(replies.contains("is not available through the cache"), "{command} is refused: {replies}");
        ensure!(replies.contains("-EXECABORT"), "and the transaction with it: {replies}");
        ensure!(redis.command(&["EXISTS", "k"])? == b":0\r\n", "nothing of it was executed: {command}");
        let next = said(&sidecar, "MULTI\r\nGET nothing\r\nEXEC\r\nBLPOP nothing 0\r\n")?;
        ensure!(next == "+OK\r\n+QUEUED\r\n*1\r\n$-1\r\n", "after {command} the next session got {next}");
    }
    // What these leave behind is not refused: their connection is nobody else's.
    for command in ["CLIENT TRACKING ON", "CLIENT SETNAME mine", "AUTH other secret"] {
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
        are_answered_alike(&redis, &sidecar, requests)?;
    }
    Ok(())
}

/// Requests that end with QUIT get the same bytes from both.
fn are_answered_alike(redis: &RedisServer, sidecar: &Sidecar, requests: &str) -> Result<()> {
    let [expected, got] = [redis.socket(), &sidecar.socket()].map(|socket| -> Result<String> {
        redis.command(&["DEL", "k"])?;
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(requests.as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    });
    let (expected, got) = (expected?, got?);
    ensure!(got == expected, "{requests:?}\nRedis: {expected:?}\nhere:  {got:?}");
    Ok(())
}

#[test]
fn what_a_transaction_does_to_the_session_is_done_to_it() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    for requests in [
        // The name, before and behind.
        "MULTI\r\nCLIENT SETNAME a\r\nCLIENT GETNAME\r\nCLIENT SETNAME 'b c'\r\nEXEC\r\nCLIENT GETNAME\r\n",
        "MULTI\r\nCLIENT SETNAME a\r\nDISCARD\r\nCLIENT GETNAME\r\n",
        "CLIENT SETNAME a\r\nMULTI\r\nCLIENT SETNAME b\r\nNOPE\r\nEXEC\r\nCLIENT GETNAME\r\n",
        "MULTI\r\nCLIENT NO-EVICT maybe\r\nCLIENT NO-EVICT on\r\nSET k v\r\nEXEC\r\nGET k\r\n",
        // The protocol: nil is written in each one's way.
        "MULTI\r\nHELLO 4\r\nHELLO abc\r\nGET k\r\nEXEC\r\nGET k\r\n",
        "SET k v\r\nWATCH k\r\nMULTI\r\nCLIENT SETNAME a\r\nSET k w\r\nEXEC\r\nMULTI\r\nPING\r\nEXEC\r\n",
        // What a transaction did, or would have done, to its connection is no obstacle to the next HELLO.
        "MULTI\r\nHELLO 3\r\nDISCARD\r\nHELLO 4\r\nGET k\r\n",
        "MULTI\r\nCLIENT NO-EVICT maybe\r\nINFO nothing\r\nEXEC\r\nHELLO 4\r\nHELLO abc x\r\n",
        "MULTI\r\nCLIENT TRACKING ON\r\nDISCARD\r\nHELLO 4\r\n",
        // A subscription ends what RESP2 can say, and RESP3 goes on.
        "MULTI\r\nSUBSCRIBE a\r\nGET k\r\nEXEC\r\nGET k\r\nPING\r\nUNSUBSCRIBE a\r\nGET k\r\n",
        "MULTI\r\nPSUBSCRIBE a*\r\nPUBLISH ab hello\r\nEXEC\r\nPUNSUBSCRIBE a*\r\nGET k\r\n",
        "MULTI\r\nSUBSCRIBE a\r\nUNSUBSCRIBE a\r\nEXEC\r\nSET k v\r\nGET k\r\n",
        "MULTI\r\nSUBSCRIBE a\r\nDISCARD\r\nGET k\r\n",
        // Replies that the app does not want.
        "CLIENT REPLY OFF\r\nSET k v\r\nGET k\r\nMULTI\r\nGET k\r\nEXEC\r\nNOPE\r\nCLIENT REPLY ON\r\nGET k\r\n",
        "CLIENT REPLY SKIP\r\nSET k v\r\nGET k\r\nCLIENT REPLY SKIP\r\nCLIENT REPLY SKIP\r\nGET k\r\nECHO a\r\n",
        "CLIENT REPLY SKIP\r\nCLIENT REPLY ON\r\nGET k\r\nCLIENT REPLY OFF\r\nCLIENT REPLY SKIP\r\nGET k\r\nRESET\r\nGET k\r\n",
        "CLIENT REPLY maybe\r\nCLIENT REPLY\r\nCLIENT REPLY SKIP\r\nCLIENT REPLY OFF\r\nPING\r\nCLIENT REPLY ON\r\n",
        "CLIENT REPLY OFF\r\nSUBSCRIBE a\r\nUNSUBSCRIBE a\r\nCLIENT REPLY ON\r\nGET k\r\n",
        "CLIENT REPLY OFF\r\nBLPOP nothing 0.05\r\nGET k\r\nCLIENT REPLY ON\r\nECHO after\r\n",
        "WAIT 0 0\r\nSET k v\r\nWAIT 1 1\r\nMULTI\r\nWAIT 0 0\r\nEXEC\r\nWAIT a b\r\nWAIT 0\r\n",
    ] {
        are_answered_alike(&redis, &sidecar, &format!("{requests}QUIT\r\n"))?;
        // There subscriptions are confirmed by pushes, which own answers may overtake, and within MULTI not at all.
        if !requests.contains("SUBSCRIBE") {
            are_answered_alike(&redis, &sidecar, &format!("CLIENT REPLY SKIP\r\nHELLO 3\r\n{requests}QUIT\r\n"))?;
        }
    }
    for before in ["HELLO 3\r\nMULTI\r\n", "MULTI\r\nHELLO 3\r\n"] {
        let replies = said(&sidecar, &format!("{before}SUBSCRIBE a\r\nEXEC\r\nPING\r\n"))?;
        ensure!(replies.contains("and RESP2; send it") && replies.contains("-EXECABORT"), "{replies}");
    }
    // Of a transaction that changed the protocol: the session keeps it, its connection is nobody else's, HELLO changes it again.
    let replies = said(&sidecar, "MULTI\r\nHELLO 3\r\nEXEC\r\nGET no\r\nHELLO 2\r\nGET no\r\n")?;
    ensure!(replies.contains("\r\n_\r\n*14\r\n") && replies.ends_with("$-1\r\n"), "{replies}");
    let next = said(&sidecar, "MULTI\r\nGET no\r\nEXEC\r\n")?;
    ensure!(next == "+OK\r\n+QUEUED\r\n*1\r\n$-1\r\n", "the next session got {next}");
    // HELLO tells the session's own number.
    let replies = said(&sidecar, "MULTI\r\nGET no\r\nHELLO 3\r\nGET no\r\nCLIENT ID\r\nEXEC\r\nGET no\r\n")?;
    ensure!(replies.contains("*4\r\n$-1\r\n%7\r\n") && replies.ends_with("_\r\n"), "each in its protocol: {replies}");
    let number = replies.split("$2\r\nid\r\n").nth(1).and_then(|rest| rest.lines().next()).unwrap_or("none");
    ensure!(replies.matches(&format!("{number}\r\n")).count() == 2, "{number}: {replies}");
    Ok(())
}
