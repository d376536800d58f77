//! Sessions with a connection of their own, databases, and many sessions that want the same.

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    proxy::{Class, Direction},
    world::{MOMENT, SOON, Subject, World},
};

#[test]
fn transactions_watch_and_abort_as_in_redis() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let (mut client, mut other) = (world.cached("k", "0")?, world.pod().connect()?);
    ensure!(client.pipeline(&["WATCH k", "GET k", "MULTI", "INCR k"])? == ["OK", "0", "OK", "QUEUED"], "WATCH");
    ensure!(other.ask("SET k 5")? == "OK", "SET");
    let aborted = client.ask("EXEC")?;
    ensure!(aborted == "(nil)", "EXEC after a foreign write answers {aborted}");
    ensure!(client.ask("GET k")? == "5", "GET after the abort");
    let done = client.pipeline(&["MULTI", "INCR k", "GET k", "EXEC", "GET k"])?;
    ensure!(done == ["OK", "QUEUED", "QUEUED", "[6, 6]", "6"], "the transaction answers {done:?}");
    let dropped = client.pipeline(&["MULTI", "INCR k", "DISCARD", "GET k"])?;
    ensure!(dropped == ["OK", "QUEUED", "OK", "6"], "the discarded transaction answers {dropped:?}");
    ensure!(other.ask("GET k")? == "6", "GET in another session");
    Ok(())
}

#[test]
fn a_blocked_session_holds_up_nobody_else() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let (mut blocked, mut other) = (world.pod().connect()?, world.cached("k", "v")?);
    blocked.send("BLPOP list 0")?;
    ensure!(blocked.reply_within(MOMENT)?.is_none(), "BLPOP of an empty list waits");
    ensure!(other.ask("GET k")? == "v" && other.ask("RPUSH list x")? == "1", "others go on");
    ensure!(blocked.reply()? == "[list, x]", "BLPOP gets what was pushed");
    ensure!(blocked.ask("GET k")? == "v", "and goes on");
    Ok(())
}

#[test]
fn subscribers_get_their_messages_in_both_protocols() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let (mut old, mut new, mut other) = (world.pod().connect()?, world.pod().connect()?, world.cached("k", "v")?);
    ensure!(old.ask("SUBSCRIBE news")? == "[subscribe, news, 1]", "SUBSCRIBE in RESP2");
    new.ask("HELLO 3")?;
    new.send("SUBSCRIBE news")?;
    new.0.receive()?;
    ensure!(other.ask("PUBLISH news hello")? == "2", "PUBLISH reaches both");
    ensure!(old.reply()? == "[message, news, hello]", "a message in RESP2");
    let (_, push) = new.0.receive()?;
    ensure!(push.starts_with(b">3"), "a message in RESP3 is a push: {}", String::from_utf8_lossy(&push));
    // A subscriber in RESP3 may also ask; in RESP2 it may once it has unsubscribed.
    ensure!(new.ask("GET k")? == "v", "GET of a RESP3 subscriber");
    ensure!(old.ask("UNSUBSCRIBE")? == "[unsubscribe, news, 0]", "UNSUBSCRIBE in RESP2");
    ensure!(old.ask("GET k")? == "v", "GET after UNSUBSCRIBE");
    Ok(())
}

#[test]
fn the_apps_own_tracking_is_served_by_redis() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let mut client = world.cached("k", "v0")?;
    client.ask("HELLO 3")?;
    ensure!(client.ask("CLIENT TRACKING ON")? == "OK", "CLIENT TRACKING");
    ensure!(client.ask("GET k")? == "v0", "GET");
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    let (_, push) = client.0.receive()?;
    ensure!(push.starts_with(b">2\r\n$10\r\ninvalidate"), "the push is {}", String::from_utf8_lossy(&push));
    ensure!(client.ask("GET k")? == "v1", "GET after the push");
    Ok(())
}

#[test]
fn databases_are_kept_apart() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let (mut zero, mut two) = (world.cached("k", "in 0".replace(' ', "-").as_str())?, world.pod().connect()?);
    ensure!(two.pipeline(&["SELECT 2", "SET k in-2", "GET k"])? == ["OK", "OK", "in-2"], "database 2");
    eventually("database 2 is cached too", SOON, || {
        two.ask("GET k")?;
        ensure!(two.why("k", "served")? == "yes", "{}", two.why("k", "reason")?);
        Ok(())
    })?;
    ensure!(zero.ask("GET k")? == "in-0" && two.ask("GET k")? == "in-2", "each has its own");
    ensure!(two.ask("DEL k")? == "1", "DEL");
    ensure!(zero.ask("GET k")? == "in-0" && two.ask("GET k")? == "(nil)", "each has its own");
    let refused = two.ask("SELECT 99")?;
    ensure!(refused.starts_with("(error) ERR"), "SELECT 99 answers {refused}");
    ensure!(two.ask("SET where here")? == "OK" && zero.ask("GET where")? == "(nil)", "the session stays in database 2");
    Ok(())
}

#[test]
fn one_miss_of_many_asks_redis_once() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let mut sessions = (0..8).map(|_| world.pod().connect()).collect::<Result<Vec<_>>>()?;
    ensure!(world.foreign("SET k v")? == "OK" && world.foreign("CONFIG RESETSTAT")? == "OK", "SET");
    world.pod().proxy.stall(Class::Tracked, Direction::ToServer);
    for session in &mut sessions {
        session.send("GET k")?;
    }
    eventually("all have asked", SOON, || {
        let joined = world.pod().sidecar.metric("caddy_reads_below_total")?;
        ensure!(joined >= 8, "{joined} reads have led or joined a flight");
        Ok(())
    })?;
    world.pod().proxy.heal();
    for session in &mut sessions {
        ensure!(session.reply()? == "v", "GET");
    }
    let stats = world.foreign("INFO commandstats")?;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls=")?.split(',').next());
    ensure!(calls == Some("1"), "Redis was asked {calls:?} times");
    Ok(())
}
