//! `CACHE.SET` and `CACHE.INVALIDATE`: tags, cascades, keyspaces, in front of a real Redis; and what they do with bad input.

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, SOON},
};

use crate::session;

#[test]
fn an_invalidated_key_is_gone_for_everybody_at_once() -> Result<()> {
    let redis = RedisServer::start()?;
    let (mine, theirs) = (Sidecar::start(&redis)?, Sidecar::start(&redis)?);
    let (mut mine, mut theirs) = (session(&mine)?, session(&theirs)?);
    ensure!(mine.ask("MSET a 1 b 2 MODE 3")? == "OK", "a write");
    for client in [&mut mine, &mut theirs] {
        ensure!(client.pipeline(&["GET a", "GET b"])? == ["1", "2"], "filled");
    }
    let answers =
        mine.pipeline(&["CACHE.INVALIDATE KEY a b none REASON 'new prices' MODE REMOVE", "GET a", "GET b"])?;
    ensure!(answers == ["2", "(nil)", "(nil)"], "read back: {answers:?}");
    // What pushed it away has been applied when something written later is seen.
    ensure!(Client(redis.connect()?).ask("SET later 1")? == "OK", "a foreign write");
    ensure!(theirs.pipeline(&["EVAL 'return 1' 0", "GET a", "GET b"])? == ["1", "(nil)", "(nil)"], "seen by the other");
    ensure!(mine.ask("CACHE.INVALIDATE KEY MODE")? == "1", "a key may be called like an option");
    Ok(())
}

#[test]
fn what_cannot_be_understood_changes_nothing_and_is_told_so() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("SET k v")? == "OK", "a write");
    for (command, said) in [
        ("CACHE.INVALIDATE", "'cache.invalidate'"),
        ("CACHE.INVALIDATE KEY", "'cache.invalidate|key'"),
        ("CACHE.INVALIDATE GROUP k", "'GROUP' with 1 more"),
        ("CACHE.INVALIDATE KEY k MODE GONE", "not 'GONE'"),
    ] {
        let reply = client.ask(command)?;
        ensure!(reply.starts_with("(error)") && reply.contains(said), "{command}: {reply}");
    }
    let answers = client.pipeline(&["MULTI", "CACHE.INVALIDATE KEY k", "EXEC", "GET k"])?;
    ensure!(answers[1].contains("send it outside of MULTI") && answers[2].contains("EXECABORT"), "{answers:?}");
    ensure!(answers[3] == "v", "{answers:?}");
    for command in ["CACHE.WHY k", "CACHE.STATS", "CACHE.GET k", "CACHE.INVALIDATIONS"] {
        let answers = client.pipeline(&["MULTI", command, "DISCARD"])?;
        ensure!(answers[1].contains("send it outside of MULTI"), "{command}: {answers:?}");
    }
    Ok(())
}

/// The generation of a tag, as any client can delete it.
fn tag(name: &str) -> String {
    format!("caddy:default.local:g:t:{name}")
}

/// Two sidecars of two workers each, with a session on each worker.
fn two(redis: &RedisServer) -> Result<(Vec<Sidecar>, Vec<Client>)> {
    let keyspaces = "keyspaces: [{name: users, match: \"user:*\"}]";
    let start = || SidecarOptions::redis(redis.socket()).workers(2).section(keyspaces).start();
    let sidecars = vec![start()?, start()?];
    let sessions = [0, 0, 1, 1].map(|at: usize| session(&sidecars[at])).into_iter().collect::<Result<_>>()?;
    Ok((sidecars, sessions))
}

/// Waits until a read is answered so: another sidecar hears of it in its own time, within the bound.
fn becomes(client: &mut Client, key: &str, value: &str) -> Result<()> {
    eventually(format!("{key} is {value}"), SOON, || {
        let answer = client.ask(&format!("GET {key}"))?;
        ensure!(answer == value, "{answer}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_tag_invalidates_what_carries_it_and_nothing_else() -> Result<()> {
    let redis = RedisServer::start()?;
    let (_sidecars, mut sessions) = two(&redis)?;
    let set = |client: &mut Client, value: &str| -> Result<()> {
        for (key, tags) in [("a", "2 news sport"), ("b", "1 sport"), ("c", "1 weather")] {
            let answer = client.ask(&format!("CACHE.SET {key} {value} PX 600000 TAGS {tags}"))?;
            ensure!(answer == "OK", "{key}: {answer}");
        }
        Ok(())
    };
    set(&mut sessions[0], "1")?;
    for client in &mut sessions {
        for _ in 0..3 {
            ensure!(client.pipeline(&["GET a", "CACHE.GET b", "MGET a c"])? == ["1", "1", "[1, 1]"], "read");
        }
    }
    ensure!(sessions[1].why("a", "served")? == "yes", "from a copy");
    let generations = sessions[1].why("a", "generations")?;
    ensure!(generations == "a in force, s:* in force, t:news in force, t:sport in force", "{generations}");
    // One write; at once here, soon elsewhere.
    ensure!(sessions[0].ask("CACHE.INVALIDATE TAG sport REASON 'the match is over'")? == "1", "invalidated");
    for client in &mut sessions[..2] {
        ensure!(client.pipeline(&["GET a", "GET b", "GET c"])? == ["(nil)", "(nil)", "1"], "here");
    }
    for client in &mut sessions[2..] {
        becomes(client, "a", "(nil)")?;
        ensure!(client.pipeline(&["GET b", "GET c"])? == ["(nil)", "1"], "elsewhere");
    }
    // What is set afterwards is bound to the new generation, also in one pipeline.
    let commands = ["CACHE.INVALIDATE TAG sport news", "CACHE.SET a 2 TAGS 2 news sport", "GET a"];
    ensure!(sessions[2].pipeline(&commands)? == ["1", "OK", "2"], "set behind");
    becomes(&mut sessions[0], "a", "2")?;
    // Any client can do it.
    ensure!(Client(redis.connect()?).ask(&format!("DEL {}", tag("news")))? == "1", "a plain DEL");
    for client in &mut sessions {
        becomes(client, "a", "(nil)")?;
    }
    Ok(())
}

#[test]
fn a_generation_whose_life_is_prolonged_is_read_again_and_the_copies_live() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("CACHE.SET k v TAGS 1 t")? == "OK" && client.ask("GET k")? == "v", "filled");
    let reads = |sidecar: &Sidecar| sidecar.metric("caddy_fills_total");
    let before = reads(&sidecar)?;
    let mut foreign = Client(redis.connect()?);
    ensure!(foreign.ask(&format!("PEXPIRE {} 500000", tag("t")))? == "1", "prolonged");
    eventually("the copy is served again", SOON, || {
        ensure!(client.why("k", "served")? == "yes", "{}", client.why("k", "generations")?);
        Ok(())
    })?;
    ensure!(client.ask("GET k")? == "v" && reads(&sidecar)? == before, "the value was not read again");
    // Expired or evicted is invalid.
    ensure!(foreign.ask(&format!("PEXPIRE {} 1", tag("t")))? == "1", "expired");
    eventually("it is gone", SOON, || {
        ensure!(foreign.ask(&format!("EXISTS {}", tag("t")))? == "0", "not yet");
        ensure!(client.ask("GET k")? == "(nil)", "served");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn keyspaces_and_everything_are_cleared_by_one_write() -> Result<()> {
    let redis = RedisServer::start()?;
    let (_sidecars, mut sessions) = two(&redis)?;
    let set = ["CACHE.SET user:1 u", "CACHE.SET other o PX 600000", "SET plain p"];
    ensure!(sessions[0].pipeline(&set)? == ["OK", "OK", "OK"], "set");
    for client in &mut sessions {
        ensure!(client.ask("MGET user:1 other plain")? == "[u, o, p]", "read");
    }
    ensure!(sessions[0].ask("CACHE.INVALIDATE KEYSPACE users")? == "1", "cleared");
    ensure!(sessions[1].ask("MGET user:1 other plain")? == "[(nil), o, p]", "the keyspace");
    becomes(&mut sessions[2], "user:1", "(nil)")?;
    ensure!(sessions[2].ask("CACHE.INVALIDATE ALL")? == "1", "cleared");
    ensure!(sessions[3].ask("MGET user:1 other plain")? == "[(nil), (nil), p]", "everything");
    becomes(&mut sessions[0], "other", "(nil)")?;
    let answer = sessions[0].ask("CACHE.INVALIDATE KEYSPACE nobody")?;
    ensure!(answer.contains("no keyspace is named 'nobody'; there are *, users"), "{answer}");
    Ok(())
}

#[test]
fn a_cascade_reaches_what_depends_on_what_depends() -> Result<()> {
    let redis = RedisServer::start()?;
    let (sidecars, mut sessions) = two(&redis)?;
    let build = |client: &mut Client| -> Result<()> {
        // Children before their parents' own edges are known, and after.
        for (key, parents) in [("page", "1 list"), ("list", "2 item:1 item:2"), ("page", "1 list")] {
            ensure!(client.ask(&format!("CACHE.SET {key} v DEPENDS {parents}"))? == "OK", "{key}");
        }
        ensure!(client.pipeline(&["CACHE.SET item:1 v", "CACHE.SET item:2 v"])? == ["OK", "OK"], "items");
        Ok(())
    };
    build(&mut sessions[0])?;
    for client in &mut sessions {
        ensure!(client.ask("MGET page list item:1 item:2")? == "[v, v, v, v]", "read");
    }
    sessions[0].ask("CACHE.INVALIDATE CASCADE item:1")?;
    ensure!(sessions[1].ask("MGET page list item:1 item:2")? == "[(nil), (nil), (nil), v]", "here");
    becomes(&mut sessions[2], "page", "(nil)")?;
    // The other sidecar builds it anew, from what stands in Redis about parents.
    build(&mut sessions[2])?;
    becomes(&mut sessions[0], "page", "v")?;
    sessions[0].ask("CACHE.INVALIDATE CASCADE item:2")?;
    becomes(&mut sessions[3], "page", "(nil)")?;
    // An edge that closes a circle is legal, and said.
    ensure!(sidecars[0].metric("caddy_dependency_cycles_total")? == 0, "no circle yet");
    for (key, parent) in [("x", "y"), ("y", "z"), ("z", "x"), ("x", "y"), ("y", "z"), ("z", "x")] {
        ensure!(sessions[0].ask(&format!("CACHE.SET {key} v DEPENDS 1 {parent}"))? == "OK", "{key}");
    }
    ensure!(sidecars[0].metric("caddy_dependency_cycles_total")? > 0, "a circle");
    ensure!(sessions[0].ask("GET z")? == "v", "it is a value like any other");
    sessions[0].ask("CACHE.INVALIDATE CASCADE y")?;
    ensure!(sessions[0].ask("MGET x y z")? == "[(nil), (nil), (nil)]", "all of the circle");
    Ok(())
}

#[test]
fn a_cascade_goes_down_as_many_levels_as_a_value_may_depend_on() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    for n in 1..=120 {
        let told = client.ask(&format!("CACHE.SET k{n} v DEPENDS 1 k{}", n - 1))?;
        ensure!(told == "OK", "level {n}: {told}");
    }
    ensure!(client.ask("MGET k1 k120")? == "[v, v]", "the first, and the last");
    ensure!(client.ask("CACHE.INVALIDATE CASCADE k0")? == "1", "the root is no value, but has a generation");
    ensure!(client.ask("MGET k1 k60 k120")? == "[(nil), (nil), (nil)]", "all are gone");
    Ok(())
}

#[test]
fn no_command_shows_an_envelope() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    let set = "CACHE.SET k v TAGS 1 t";
    for (commands, last) in [
        // Behind an unanswered relayed command: over the relay.
        (vec![set, "SET x 1", "GET k"], "v"),
        (vec![set, "SET x 1", "MGET k none k"], "[v, (nil), v]"),
        (vec![set, "GETEX k"], "v"),
        (vec![set, "SET k w GET"], "v"),
        (vec![set, "GETSET k w"], "v"),
        (vec![set, "GETDEL k"], "v"),
        (vec![set, "MULTI", "SET x 1", "GET k", "MGET x k", "EXEC"], "[OK, v, [1, v]]"),
        (vec![set, "WATCH x", "GET k"], "v"),
    ] {
        let answers = client.pipeline(&commands)?;
        ensure!(answers.last().map(String::as_str) == Some(last), "{commands:?}: {answers:?}");
        ensure!(client.pipeline(&["UNWATCH", "DEL k"])?[0] == "OK", "clean again");
        // Nothing of it when it was invalidated.
        client.ask(set)?;
        ensure!(Client(redis.connect()?).ask(&format!("DEL {}", tag("t")))? == "1", "invalidated");
        let answers = client.pipeline(&["EVAL 'return 1' 0", "SET x 1", "GET k"])?;
        ensure!(answers.last().map(String::as_str) == Some("(nil)"), "{answers:?}");
    }
    Ok(())
}

#[test]
fn without_a_redis_nothing_is_half_done() -> Result<()> {
    let mut redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.pipeline(&["CACHE.SET k v TAGS 1 t", "GET k"])? == ["OK", "v"], "set");
    redis.stop()?;
    for command in ["CACHE.INVALIDATE TAG t", "CACHE.INVALIDATE ALL", "CACHE.SET other v TAGS 1 new", "GET k"] {
        let answer = client.ask(command)?;
        ensure!(answer.starts_with("(error) NOTREADY"), "{command}: {answer}");
    }
    redis.restart()?;
    eventually("it is back", SOON, || {
        ensure!(client.ask("CACHE.SET k v TAGS 1 t")? == "OK", "not yet");
        ensure!(client.ask("GET k")? == "v", "not yet");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn the_embedded_l3_knows_tags_too() -> Result<()> {
    let sidecar = SidecarOptions::embedded().start()?;
    let mut client = session(&sidecar)?;
    let commands = ["CACHE.SET k v PX 60000 TAGS 1 t", "GET k", "GET k", "CACHE.INVALIDATE TAG t", "GET k"];
    ensure!(client.pipeline(&commands)? == ["OK", "v", "v", "1", "(nil)"], "embedded");
    Ok(())
}
