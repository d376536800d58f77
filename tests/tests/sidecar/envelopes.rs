//! Values that are kept as envelopes look like plain ones to whatever reads strings, and are not written into.

use anyhow::{Result, ensure};
use caddy_resp::encode;
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    wire::Wire,
    world::{Client, SOON, show},
};

use crate::session;

/// What reads a value, or a part of one; `{}` is its key.
const READS: &[&str] = &[
    "GET {}",
    "STRLEN {}",
    "GETRANGE {} 0 2",
    "GETRANGE {} -3 -1",
    "GETRANGE {} 5 1",
    "GETRANGE {} x 1",
    "SUBSTR {} 1 3",
    "MGET {} none {}",
    "LCS {} other",
    "LCS other {} LEN",
    "LCS {} other IDX MINMATCHLEN 2 WITHMATCHLEN",
    "LCS {} list",
    "LCS {} other BAD",
    "GETEX {}",
    "GETEX {} EX 100",
    "GETEX {} PERSIST",
    "SET {} ohmytext GET",
    "GETSET {} ohmytext",
    "SET {} ohmytext XX GET KEEPTTL",
    "GETDEL {}",
];

/// What handles a string's bytes as they are stored.
const HANDLES: &[&str] = &[
    "APPEND {} x",
    "SETRANGE {} 1 x",
    "INCR {}",
    "DECR {}",
    "INCRBY {} 2",
    "DECRBY {} 2",
    "INCRBYFLOAT {} 1.5",
    "SETBIT {} 1 1",
    "GETBIT {} 1",
    "BITCOUNT {}",
    "BITPOS {} 1",
    "BITFIELD {} SET u8 0 1",
    "BITFIELD_RO {} GET u8 0",
    "BITOP NOT somewhere {}",
    "BITOP AND somewhere plain {}",
    "RENAME {} somewhere",
    "RENAMENX {} somewhere",
    "COPY {} somewhere",
];

/// Two sidecars of a Redis, the second of which has never seen an envelope.
fn two(redis: &RedisServer) -> Result<[Sidecar; 2]> {
    let start = || SidecarOptions::redis(redis.socket()).workers(2).start();
    Ok([start()?, start()?])
}

fn prepare(client: &mut Client, set: &str) -> Result<()> {
    for command in ["DEL k other list", set, "SET other mynewtext", "RPUSH list a"] {
        let answer = client.ask(command)?;
        ensure!(!answer.starts_with("(error)"), "{command}: {answer}");
    }
    Ok(())
}

#[test]
fn reads_answer_from_the_value() -> Result<()> {
    let (redis, plain) = (RedisServer::start()?, RedisServer::start()?);
    let sidecars = two(&redis)?;
    let (mut ours, mut theirs) = (session(&sidecars[0])?, Client(plain.connect()?));
    for protocol in ["HELLO 2", "HELLO 3"] {
        ours.ask(protocol)?;
        theirs.ask(protocol)?;
        for template in READS {
            let read = template.replace("{}", "k");
            for before in [&[][..], &["GET k"], &["EVAL 'return 1' 0"], &["MULTI"], &["WATCH x"]] {
                prepare(&mut ours, "CACHE.SET k ohmytext PX 100000 TAGS 1 t")?;
                prepare(&mut theirs, "SET k ohmytext PX 100000")?;
                let behind: &[&str] = match before {
                    ["MULTI"] => &["EXEC", "GET k"],
                    ["WATCH x"] => &["UNWATCH", "GET k"],
                    _ => &["GET k"],
                };
                let commands: Vec<&str> =
                    before.iter().copied().chain([read.as_str()]).chain(behind.iter().copied()).collect();
                let (a, b) = (ours.pipeline(&commands)?, theirs.pipeline(&commands)?);
                ensure!(a == b, "{protocol}, {commands:?}: {a:?} instead of {b:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_handles_stored_bytes_is_told_what_to_do_and_changes_nothing() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecars = two(&redis)?;
    let (mut setter, mut other) = (session(&sidecars[0])?, session(&sidecars[1])?);
    for template in HANDLES {
        let command = template.replace("{}", "k");
        let plain = template.replace("{}", "p");
        for client in [&mut setter, &mut other] {
            ensure!(client.ask("SET p 5")? == "OK" && client.ask("CACHE.SET k 5")? == "OK", "set");
            let answers = client.pipeline(&[&command, "GET k", "MULTI", &command, "EXEC", "GET k"])?;
            ensure!(answers[0].starts_with("(error) WRONGTYPE the value has tags"), "{command}: {}", answers[0]);
            ensure!(answers[4].contains("(error) WRONGTYPE the value has tags"), "{command}: {}", answers[4]);
            ensure!(answers[1] == "5" && answers[5] == "5", "{command}: {answers:?}");
            let answer = client.ask(&plain)?;
            ensure!(!answer.contains("tags"), "{plain}: {answer}");
        }
    }
    // What goes elsewhere may go there.
    let answers = setter.pipeline(&["SET p 5", "BITOP OR k p p", "CACHE.SET k 6", "RENAME p k", "GET k"])?;
    ensure!(answers == ["OK", "1", "OK", "OK", "5"], "into it: {answers:?}");
    Ok(())
}

#[test]
fn who_never_saw_an_envelope_hears_that_there_are_some() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecars = two(&redis)?;
    let (mut setter, mut other) = (session(&sidecars[0])?, session(&sidecars[1])?);
    ensure!(setter.ask("CACHE.SET k value TAGS 1 t")? == "OK", "set");
    caddy_tests::e2e::eventually("it has heard", SOON, || {
        let answers = other.pipeline(&["STRLEN k", "GETRANGE k 0 1"])?;
        ensure!(answers == ["5", "va"], "{answers:?}");
        Ok(())
    })?;
    let third = SidecarOptions::redis(redis.socket()).start()?;
    let mut third = session(&third)?;
    caddy_tests::e2e::eventually("who comes later knows", SOON, || {
        let answers = third.pipeline(&["STRLEN k", "APPEND k x"])?;
        ensure!(answers[0] == "5" && answers[1].contains("WRONGTYPE"), "{answers:?}");
        Ok(())
    })?;
    Ok(())
}

/// A request with a word of raw bytes.
fn raw(wire: &mut Wire, words: &[&[u8]]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    encode::command(&mut bytes, words);
    wire.send_raw(&bytes)?;
    wire.reply()
}

#[test]
fn a_value_that_begins_as_an_envelope_does_is_kept_in_one() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecars = two(&redis)?;
    let value = b"\xc1\xcaanything";
    let (mut ours, mut theirs) = (sidecars[0].connect()?, sidecars[1].connect()?);
    // So that neither takes it for bytes of somebody's own.
    ensure!(show(&raw(&mut ours, &[b"CACHE.SET", b"e", b"v"])?) == "OK", "an envelope");
    ensure!(show(&raw(&mut theirs, &[b"GET", b"e"])?) == "v", "seen");
    let writes: [&[&[u8]]; 5] = [
        &[b"SET", b"k", value],
        &[b"SETEX", b"k", b"100", value],
        &[b"MSET", b"a", b"1", b"k", value],
        &[b"GETSET", b"k", value],
        &[b"PSETEX", b"k", b"100000", value],
    ];
    for write in writes {
        let answer = show(&raw(&mut ours, write)?);
        ensure!(!answer.starts_with("(error)"), "{answer}");
        let mut expected = Vec::new();
        encode::bulk(&mut expected, value);
        for wire in [&mut ours, &mut theirs] {
            caddy_tests::e2e::eventually("it is read as it was written", SOON, || {
                let read = raw(wire, &[b"GET", b"k"])?;
                ensure!(read == expected, "{}", read.escape_ascii());
                Ok(())
            })?;
            ensure!(raw(wire, &[b"STRLEN", b"k"])? == b":10\r\n", "its length");
        }
        ensure!(Client(redis.connect()?).ask("STRLEN k")? == "18", "an envelope without anything");
    }
    Ok(())
}

#[test]
fn what_has_become_stale_is_shown_to_nobody() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecars = two(&redis)?;
    let mut client = session(&sidecars[0])?;
    let read = ["EVAL 'return 1' 0", "GET k", "MGET k none", "GETRANGE k 0 -1", "STRLEN k"];
    ensure!(client.ask("CACHE.SET k v PX 100000 STALE 100000")? == "OK", "fresh for long");
    let answers = client.pipeline(&read)?;
    ensure!(answers[1..] == ["v", "[v, (nil)]", "v", "1"], "{answers:?}");
    // It has a time of staleness only: fresh for no time at all, then.
    ensure!(client.ask("CACHE.INVALIDATE KEY k MODE EXPIRE")? == "1", "expired");
    let answers = client.pipeline(&read)?;
    ensure!(answers[1..] == ["(nil)", "[(nil), (nil)]", "", "0"], "{answers:?}");
    let answers = client.pipeline(&["MULTI", "GET k", "EXEC", "EXISTS k"])?;
    ensure!(answers[2..] == ["[(nil)]", "1"], "{answers:?}");
    // Without a time of staleness it is removed.
    ensure!(client.ask("CACHE.SET k v TAGS 1 t")? == "OK" && client.ask("SET plain v")? == "OK", "set");
    ensure!(client.ask("CACHE.INVALIDATE KEY k plain none MODE EXPIRE")? == "2", "removed");
    ensure!(client.ask("EXISTS k plain")? == "0", "they are gone");
    Ok(())
}

/// A value that is kept for outages only is not shown by what changes it, as it is not by a GET.
#[test]
fn what_is_stale_is_not_shown_by_commands_that_take_it() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket()).start()?;
    let mut client = Client(sidecar.connect()?);
    let takes =
        ["GETEX k", "GETEX k EX 1000", "GETEX k PERSIST", "GETDEL k", "GETSET k x", "SET k x GET", "SET k x XX GET"];
    for command in takes {
        for protocol in ["2", "3"] {
            client.ask(&format!("HELLO {protocol}"))?;
            ensure!(client.ask("CACHE.SET k fresh PX 3600000 STALE 3600000")? == "OK", "set");
            ensure!(client.ask(command)? == "fresh", "{command}, in RESP{protocol}");
            ensure!(client.ask("CACHE.SET k fresh PX 3600000 STALE 3600000")? == "OK", "set");
            let answers = client.pipeline(&["MULTI", command, "EXEC"])?;
            ensure!(answers[2] == "[fresh]", "{command}: {answers:?}");
            for stale in ["CACHE.SET k old PX 1 STALE 3600000", "CACHE.INVALIDATE KEY k MODE EXPIRE"] {
                ensure!(client.ask("CACHE.SET k old PX 3600000 STALE 3600000")? == "OK", "set");
                let made = client.ask(stale)?;
                ensure!(made == "OK" || made == "1", "{stale}: {made}");
                eventually("it is stale", SOON, || {
                    ensure!(client.ask("GET k")? == "(nil)", "k is fresh");
                    Ok(())
                })?;
                let answer = client.ask(command)?;
                ensure!(answer == "(nil)", "{command} behind {stale}: {answer}");
            }
        }
    }
    // What is no envelope is shown as it is, and so are Redis's own errors.
    ensure!(
        client.pipeline(&["SET k v", "GETDEL k", "GETDEL k", "SET k v NX GET"])? == ["OK", "v", "(nil)", "(nil)"],
        "plain"
    );
    ensure!(
        client.pipeline(&["RPUSH l x", "GETDEL l", "GETEX k EX x"])?[1..]
            .iter()
            .all(|answer| answer.starts_with("(error)")),
        "errors"
    );
    Ok(())
}
