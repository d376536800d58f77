//! A store that fails, hangs or is slow: what readers get meanwhile, and what it is asked.

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    load_scenarios::{Loaded, path},
    world::{MOMENT, SOON, Subject},
};

use crate::reads::stat;

/// Old after a moment, and then good for an outage of an hour.
const STALE: &str = ", ttl: 50ms, jitterPercent: 0, staleIfError: 1h, hardTimeout: 1m";

#[test]
fn through_an_outage_reads_go_on_stale_and_marked() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, STALE, ", breaker: {failures: 3, pause: 300ms}")?;
    let (mut old, mut new) = (loaded.client()?, loaded.client()?);
    new.ask("HELLO 3")?;
    loaded.origin.set("/user%3A1", "Ada");
    ensure!(old.ask("GET user:1")? == "Ada");
    loaded.origin.fail_with(|_| Some(503));
    eventually("the value is old", SOON, || {
        let read = new.0.request(&["GET", "user:1"])?;
        ensure!(read == b"|1\r\n+stale\r\n#t\r\n$3\r\nAda\r\n", "{}", String::from_utf8_lossy(&read));
        Ok(())
    })?;
    // RESP2 cannot say it; the keyspace that sets staleIfError allows it.
    ensure!(old.ask("GET user:1")? == "Ada");
    ensure!(new.0.request(&["MGET", "user:1"])? == b"|1\r\n+stale\r\n#t\r\n*1\r\n$3\r\nAda\r\n");
    // What was never there cannot be had, and the error says so.
    let error = old.ask("GET user:2")?;
    ensure!(error.starts_with("(error) STOREERR store 'users'"), "{error}");
    // The breaker: the store is left alone, whoever asks how often.
    for _ in 0..50 {
        ensure!(old.ask("GET user:1")? == "Ada");
    }
    ensure!(loaded.sidecars[0].metric("caddy_store_left_alone_total")? > 0);
    ensure!(stat(&mut old, "served_stale")? > 50);
    loaded.origin.set("/user%3A1", "Ada Lovelace");
    loaded.origin.recover();
    eventually("it is fresh again", SOON, || {
        let read = new.0.request(&["GET", "user:1"])?;
        ensure!(read == b"$12\r\nAda Lovelace\r\n", "{}", String::from_utf8_lossy(&read));
        Ok(())
    })
    .map(drop)
}

#[test]
fn a_hung_load_holds_up_nobody_else() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, ", ttl: 1h, hardTimeout: 500ms", ", maxConcurrent: 2")?;
    let (mut stuck, mut other) = (loaded.client()?, loaded.client()?);
    loaded.origin.hang_on("/user%3A1");
    loaded.origin.set("/user%3A2", "Bob");
    loaded.ask_late(&mut stuck, "user:1")?;
    ensure!(other.ask("GET user:2")? == "Bob");
    let error = stuck.reply()?;
    ensure!(error.starts_with("(error) STOREERR store 'users' gave no value within 500ms"), "{error}");
    Ok(())
}

#[test]
fn a_load_that_was_given_up_leaves_its_place_to_others() -> Result<()> {
    let one_at_a_time = ", maxConcurrent: 1, breaker: {failures: 0}";
    let rule = ", ttl: 1h, hardTimeout: 500ms";
    let loaded = Loaded::start(&Subject::good(), 1, rule, one_at_a_time)?;
    let (mut stuck, mut other) = (loaded.client()?, loaded.client()?);
    loaded.origin.hang_on("/user%3A1");
    loaded.origin.set("/user%3A2", "Bob");
    loaded.ask_late(&mut stuck, "user:1")?;
    let error = stuck.reply()?;
    ensure!(error.contains("gave no value within 500ms"), "{error}");
    // The store itself hangs for as long as this test lasts.
    let read = other.ask("GET user:2")?;
    ensure!(read == "Bob", "the place of the load that was given up is still taken: {read}");
    Ok(())
}

#[test]
fn a_slow_store_is_not_waited_for_where_there_is_an_old_value() -> Result<()> {
    let rule = format!("{STALE}, softTimeout: 20ms");
    let loaded = Loaded::start(&Subject::good(), 1, &rule, "")?;
    let mut client = loaded.client()?;
    loaded.origin.set("/user%3A1", "old");
    ensure!(client.ask("GET user:1")? == "old");
    loaded.origin.set("/user%3A1", "new");
    eventually("it is old in Redis", SOON, || {
        let life: i64 = loaded.foreign("PTTL user:1")?.parse()?;
        ensure!(life < 3_600_000, "{life}");
        Ok(())
    })?;
    loaded.ask_late(&mut client, "user:1")?;
    ensure!(client.reply()? == "old", "answered while the store is asked");
    loaded.origin.release(&path("user:1"));
    eventually("the load went on behind it", SOON, || {
        let read = client.ask("GET user:1")?;
        ensure!(read == "new", "{read}");
        Ok(())
    })
    .map(drop)
}

#[test]
fn where_there_is_no_room_to_wait_a_read_fails_at_once() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, ", hardTimeout: 1m", ", maxConcurrent: 1, maxQueued: 1")?;
    let mut clients = [loaded.client()?, loaded.client()?, loaded.client()?];
    loaded.origin.set("/user%3A1", "one");
    loaded.origin.set("/user%3A2", "two");
    loaded.ask_late(&mut clients[0], "user:1")?;
    clients[1].send("GET user:2")?;
    ensure!(clients[1].reply_within(MOMENT)?.is_none(), "it waits for its turn");
    let error = clients[2].ask("GET user:3")?;
    ensure!(error.starts_with("(error) STOREERR too many loads wait"), "{error}");
    loaded.origin.release("/user%3A1");
    ensure!(clients[0].reply()? == "one" && clients[1].reply()? == "two");
    Ok(())
}

#[test]
fn what_is_expired_is_loaded_anew_and_there_for_an_outage() -> Result<()> {
    let rule = ", ttl: 1h, jitterPercent: 0, staleIfError: 1h, hardTimeout: 1m";
    let loaded = Loaded::start(&Subject::good(), 1, rule, ", breaker: {failures: 0}")?;
    let (mut old, mut new) = (loaded.client()?, loaded.client()?);
    new.ask("HELLO 3")?;
    loaded.origin.set("/user%3A1", "Ada");
    ensure!(old.ask("GET user:1")? == "Ada" && new.ask("GET user:1")? == "Ada", "loaded");
    loaded.origin.fail_with(|_| Some(503));
    ensure!(old.ask("CACHE.INVALIDATE KEY user:1 MODE EXPIRE")? == "1", "expired");
    let read = new.ask("GET user:1")?;
    ensure!(read == "{stale: true} Ada", "{read}");
    loaded.origin.set("/user%3A1", "Ada Lovelace");
    loaded.origin.recover();
    ensure!(new.ask("GET user:1")? == "Ada Lovelace", "loaded anew");
    // What is removed is not there for an outage.
    loaded.origin.fail_with(|_| Some(503));
    ensure!(old.ask("CACHE.INVALIDATE KEY user:1")? == "1", "removed");
    let error = new.ask("GET user:1")?;
    ensure!(error.starts_with("(error) STOREERR"), "{error}");
    Ok(())
}

#[test]
fn a_load_under_way_is_not_stored_over_an_expiry() -> Result<()> {
    let rule = ", ttl: 1h, jitterPercent: 0, staleIfError: 1h, refreshAtPercent: 10, hardTimeout: 1m";
    let loaded = Loaded::start(&Subject::good(), 1, rule, "")?;
    let (mut client, mut other) = (loaded.client()?, loaded.client()?);
    loaded.origin.set("/user%3A1", "old");
    ensure!(client.ask("GET user:1")? == "old", "loaded");
    ensure!(client.ask("CACHE.INVALIDATE KEY user:1 MODE EXPIRE")? == "1", "expired");
    // Asked before the database changed, answered after that was told.
    loaded.ask_late(&mut client, "user:1")?;
    loaded.origin.set("/user%3A1", "new");
    ensure!(other.ask("CACHE.INVALIDATE KEY user:1 MODE EXPIRE")? == "0", "it is stale already, and its load is over");
    loaded.origin.release(&path("user:1"));
    client.reply()?;
    eventually("the new value", SOON, || {
        let read = other.ask("GET user:1")?;
        ensure!(read == "new", "{read}");
        Ok(())
    })
    .map(drop)
}

#[test]
fn what_is_loaded_carries_the_tags_of_its_rule() -> Result<()> {
    let rule = ", ttl: 1h, jitterPercent: 0, staleIfError: 1h, hardTimeout: 1m, tags: [\"user {1}\"]";
    let loaded = Loaded::start(&Subject::good(), 2, rule, ", breaker: {failures: 0}")?;
    let mut client = loaded.client()?;
    client.ask("HELLO 3")?;
    loaded.origin.set("/user%3A1", "old");
    ensure!(client.pipeline(&["GET user:1", "GET user:1"])? == ["old", "old"], "loaded");
    loaded.origin.set("/user%3A1", "new");
    ensure!(client.ask("CACHE.INVALIDATE TAG 'user 1'")? == "1", "its tag is there");
    ensure!(client.pipeline(&["GET user:1", "GET user:1"])? == ["new", "new"], "loaded anew");
    // Expired, it is there for an outage; removed, it is not.
    loaded.origin.fail_with(|_| Some(503));
    ensure!(client.ask("CACHE.INVALIDATE TAG 'user 1' MODE EXPIRE")? == "1", "expired");
    let read = client.ask("GET user:1")?;
    ensure!(read == "{stale: true} new", "{read}");
    ensure!(client.ask("CACHE.INVALIDATE TAG 'user 1'")? == "1", "removed");
    let error = client.ask("GET user:1")?;
    ensure!(error.starts_with("(error) STOREERR"), "{error}");
    Ok(())
}
