//! What a client that asks is told there is: `COMMAND` with the sidecar's own commands, `CLIENT LIST`, the sections of `INFO`.

use anyhow::{Context as _, Result, ensure};
use caddy_resp::{Protocol, Value};
use caddy_sidecar::commands::rows;
use caddy_tests::{
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    wire::Wire,
};

use crate::session;

/// A reply's elements, each by itself.
fn elements(reply: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (value, _) = Value::decode(reply).context("the reply cannot be read")?;
    let elements = value.as_elements().with_context(|| format!("no array: {}", reply.escape_ascii()))?;
    let encoded = |element: &Value<'_>| {
        let mut out = Vec::new();
        element.encode(Protocol::Resp3, &mut out);
        out
    };
    Ok(elements.iter().map(encoded).collect())
}

fn asked(wire: &mut Wire, line: &str) -> Result<Vec<u8>> {
    wire.request(&line.split(' ').collect::<Vec<_>>())
}

#[test]
fn command_tells_of_the_sidecars_own_commands_too() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let embedded = SidecarOptions::embedded().start()?;
    let ours = rows().filter(|row| row.is_ours()).count();
    ensure!(ours > 10, "{ours}");
    for protocol in ["2", "3"] {
        let (mut app, mut direct) = (sidecar.connect()?, redis.connect()?);
        for wire in [&mut app, &mut direct] {
            asked(wire, &format!("HELLO {protocol}"))?;
        }
        for line in ["COMMAND", "COMMAND INFO", "COMMAND LIST"] {
            let (here, there) = (elements(&asked(&mut app, line)?)?, elements(&asked(&mut direct, line)?)?);
            let more = here.len() - there.len();
            ensure!(more == ours || line == "COMMAND LIST" && more > ours, "{line}: {more} more, of {ours}");
            let text = here.concat();
            for name in ["cache.get", "lock.acquire"] {
                ensure!(String::from_utf8_lossy(&text).contains(&format!("{name}\r\n")), "{line}: {name}");
            }
        }
        let counted = |reply: Vec<u8>| Value::decode(&reply).ok().and_then(|(value, _)| value.as_integer());
        let there = counted(asked(&mut direct, "COMMAND COUNT")?).context("a count")?;
        let here = counted(asked(&mut app, "COMMAND COUNT")?).context("a count")?;
        ensure!(here == there + i64::try_from(ours)?, "{here} here, {there} there");

        let here = elements(&asked(&mut app, "COMMAND INFO get CACHE.SET nosuch cache.invalidate|key mget")?)?;
        let there = elements(&asked(&mut direct, "COMMAND INFO get nosuch mget")?)?;
        ensure!([&here[0], &here[2], &here[4]] == [&there[0], &there[1], &there[2]], "others are as the server says");
        ensure!(elements(&here[1])?.len() == 10 && elements(&here[3])?.len() == 10, "ours are of the same shape");
        ensure!(elements(&here[1])?[3..6] == [b":1\r\n", b":1\r\n", b":1\r\n"], "the key of CACHE.SET");

        let docs = asked(&mut app, "COMMAND DOCS get lock.acquire nosuch cache.invalidate")?;
        let docs = String::from_utf8_lossy(&docs).into_owned();
        let theirs = asked(&mut direct, "COMMAND DOCS get")?;
        let theirs = String::from_utf8_lossy(&theirs).into_owned();
        let (_, theirs) = theirs.split_once("\r\n").context("the server's documentation")?;
        for part in ["fencing token\r\n", "cache.invalidate|tag\r\n", theirs] {
            ensure!(docs.contains(part) && !part.is_empty(), "{part} is missing in {docs}");
        }
        Value::decode(docs.as_bytes()).context("DOCS cannot be read")?;
        Value::decode(&asked(&mut app, "COMMAND DOCS")?).context("DOCS of all cannot be read")?;

        let keys = asked(&mut app, "COMMAND GETKEYS CACHE.INVALIDATE KEY a b MODE REMOVE")?;
        ensure!(keys == b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", "{}", keys.escape_ascii());
        let keys = elements(&asked(&mut app, "COMMAND GETKEYSANDFLAGS CACHE.SET k v")?)?;
        ensure!(keys.len() == 1 && elements(&keys[0])?[0] == b"$1\r\nk\r\n", "the key and its flags");
        for (line, said) in [("LOCK.GRAPH", "has no key arguments"), ("CACHE.SET k", "Invalid number of arguments")] {
            let reply = asked(&mut app, &format!("COMMAND GETKEYS {line}"))?;
            ensure!(String::from_utf8_lossy(&reply).contains(said), "{line}: {}", reply.escape_ascii());
        }
        for line in
            ["COMMAND GETKEYS SET a", "COMMAND GETKEYS PING", "COMMAND FOO", "COMMAND COUNT x", "COMMAND LIST FOO"]
        {
            ensure!(asked(&mut app, line)? == asked(&mut direct, line)?, "{line}");
        }
        let mut app = embedded.connect()?;
        asked(&mut app, &format!("HELLO {protocol}"))?;
        let described = elements(&asked(&mut app, "COMMAND INFO lock.graph get")?)?;
        ensure!(elements(&described[0])?.len() == 10 && elements(&described[1])?.len() == 10, "embedded");
    }
    Ok(())
}

#[test]
fn client_list_and_info_show_what_is_asked_for() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let (mut app, mut other) = (session(&sidecar)?, session(&sidecar)?);
    let (mine, theirs) = (app.ask("CLIENT ID")?, other.ask("CLIENT ID")?);
    let list = app.ask(&format!("CLIENT LIST ID {theirs}"))?;
    ensure!(list.contains(&format!("id={theirs} ")) && !list.contains(&format!("id={mine} ")), "{list}");
    let refused = app.ask("CLIENT LIST ID x")?;
    ensure!(refused.contains("Invalid client ID"), "{refused}");
    let list = app.ask("CLIENT LIST TYPE normal")?;
    ensure!(list.contains(&format!("id={theirs} ")) && list.contains(&format!("id={mine} ")), "{list}");
    for (line, is_there) in
        [("INFO", true), ("INFO caddy", true), ("INFO server all", true), ("INFO replication", false)]
    {
        let info = app.ask(line)?;
        ensure!(info.contains("caddy_version:") == is_there, "{line}: {info}");
    }
    Ok(())
}
