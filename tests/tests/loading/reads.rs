//! What is loaded, how often, and for how long it counts.

use anyhow::{Result, ensure};
use caddy_resp::Value;
use caddy_tests::{
    e2e::eventually,
    load_scenarios::{Loaded, path},
    postgres::PostgresServer,
    redis::RedisServer,
    sidecar::SidecarOptions,
    world::{Client, LONG, SOON, Subject},
};

/// One number of `CACHE.STATS users`.
pub(crate) fn stat(client: &mut Client, field: &str) -> Result<i64> {
    let reply = client.0.request(&["CACHE.STATS", "users"])?;
    let (value, _) = Value::decode(&reply)?;
    value.field(field.as_bytes()).and_then(Value::as_integer).ok_or_else(|| anyhow::anyhow!("no {field}"))
}

#[test]
fn what_redis_lacks_is_loaded_once_and_is_there_for_everybody() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 2, ", ttl: 1h, negativeTtl: 1h", "")?;
    loaded.origin.set("/user%3A1", "Ada");
    let mut clients = [Client(loaded.sidecars[0].connect()?), Client(loaded.sidecars[1].connect()?)];
    for client in &mut clients {
        ensure!(client.ask("GET user:1")? == "Ada");
        ensure!(client.ask("GET user:1")? == "Ada");
    }
    ensure!(loaded.origin.requests() == 1, "one load: {}", loaded.origin.requests());
    ensure!(loaded.foreign("GET user:1")? == "Ada", "any Redis client reads it");
    let life: i64 = loaded.foreign("PTTL user:1")?.parse()?;
    ensure!((3_200_000..=3_600_000).contains(&life), "ttl less at most a tenth: {life}");
    // Not there either: that is known for a while, and by each sidecar for itself.
    let [one, _] = &mut clients;
    ensure!(one.ask("GET user:2")? == "(nil)" && one.ask("GET user:2")? == "(nil)");
    ensure!(loaded.origin.requests_for(&path("user:2")) == 1);
    // Other keys have no store.
    ensure!(one.ask("GET other")? == "(nil)" && loaded.origin.requests() == 2);
    ensure!(stat(one, "loads")? == 2);
    Ok(())
}

#[test]
fn that_a_key_is_absent_is_forgotten_when_somebody_writes_it() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, ", ttl: 1h, negativeTtl: 1h", "")?;
    let mut client = loaded.client()?;
    ensure!(client.ask("GET user:1")? == "(nil)" && client.ask("GET user:1")? == "(nil)");
    ensure!(loaded.origin.requests() == 1);
    loaded.foreign("SET user:1 written")?;
    eventually("the foreign write is seen", SOON, || {
        let read = client.ask("GET user:1")?;
        ensure!(read == "written", "{read}");
        Ok(())
    })?;
    ensure!(client.ask("DEL user:1")? == "1");
    loaded.origin.set("/user%3A1", "inserted");
    ensure!(client.ask("GET user:1")? == "inserted", "a delete makes the store the one who is asked");
    Ok(())
}

#[test]
fn a_thousand_clients_on_five_sidecars_cause_one_load() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 5, ", ttl: 1h, hardTimeout: 1m", "")?;
    loaded.origin.set("/user%3A1", "Ada");
    let mut clients = Vec::new();
    for n in 0..1000 {
        clients.push(Client(loaded.sidecars[n % 5].connect()?));
    }
    loaded.origin.delay_next("/user%3A1");
    for client in &mut clients {
        client.send("GET user:1")?;
    }
    eventually("the origin is asked", SOON, || {
        ensure!(loaded.origin.requests() == 1);
        Ok(())
    })?;
    loaded.origin.release("/user%3A1");
    for client in &mut clients {
        ensure!(client.reply()? == "Ada");
    }
    ensure!(loaded.origin.requests() == 1, "{} loads", loaded.origin.requests());
    Ok(())
}

/// Redis is asked by one of them who loads, and by none again and again until it has.
#[test]
fn of_one_sidecars_readers_one_loads_and_the_others_wait_for_it() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, ", ttl: 1h, hardTimeout: 1m", "")?;
    loaded.origin.set("/user%3A1", "Ada");
    loaded.origin.delay_next("/user%3A1");
    let mut first = loaded.client()?;
    first.send("GET user:1")?;
    eventually("the origin is asked", SOON, || {
        ensure!(loaded.origin.requests() == 1);
        Ok(())
    })?;
    let mut others = [loaded.client()?, loaded.client()?];
    let mut told = loaded.client()?;
    for (expected, other) in (1..).zip(&mut others) {
        other.send("GET user:1")?;
        eventually("it joins", SOON, || {
            let joined = stat(&mut told, "loads_joined")?;
            ensure!(joined == expected, "{joined}");
            Ok(())
        })?;
    }
    loaded.origin.release("/user%3A1");
    for client in std::iter::once(&mut first).chain(&mut others) {
        ensure!(client.reply()? == "Ada");
    }
    ensure!(loaded.origin.requests() == 1);
    Ok(())
}

#[test]
fn many_keys_of_a_table_are_one_statement() -> Result<()> {
    let (server, redis) = (PostgresServer::start()?, RedisServer::start()?);
    server.execute(
        "CREATE TABLE users (key text PRIMARY KEY, value text, ttl bigint);
         INSERT INTO users SELECT 'user:' || n, 'name ' || n, CASE WHEN n = 7 THEN 90000 END FROM generate_series(1, 50) n",
    )?;
    let store = format!(
        "stores: [{{name: users, postgres: {{url: \"{}\", timeout: 20s, load: \"SELECT key, value, ttl FROM users WHERE key = ANY($1)\"}}}}]",
        server.url()
    );
    let rule =
        "keyspaces: [{name: users, match: \"user:*\", strategy: ReadThrough, store: users, ttl: 1h, hardTimeout: 1m}]";
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&store).section(rule).start()?;
    let mut client = Client(sidecar.connect()?);
    eventually("copies are tracked", SOON, || {
        ensure!(sidecar.metric("caddy_coherent")? == 1);
        Ok(())
    })?;
    let keys: Vec<String> = (1..=60).map(|n| format!("user:{n}")).collect();
    let names: Vec<String> = (1..=60).map(|n| if n <= 50 { format!("name {n}") } else { "(nil)".into() }).collect();
    let read = client.ask(&format!("MGET {}", keys.join(" ")))?;
    ensure!(read == format!("[{}]", names.join(", ")), "{read}");
    ensure!(stat(&mut client, "loads")? == 60);
    ensure!(sidecar.metric("caddy_store_keys_total")? == 60);
    let calls = sidecar.metric("caddy_store_calls_total")?;
    ensure!(calls < 20, "{calls} calls for 60 keys");
    // A column says how long a row is fresh.
    let life: i64 = Client(redis.connect()?).ask("PTTL user:7")?.parse()?;
    ensure!((80_000..=90_000).contains(&life), "{life}");
    ensure!(client.ask("MGET user:1 user:2")? == "[name 1, name 2]");
    ensure!(sidecar.metric("caddy_store_calls_total")? == calls, "they are in Redis now");
    Ok(())
}

#[test]
fn the_stores_own_word_on_freshness_counts() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, ", ttl: 1h, jitterPercent: 0", "")?;
    let mut client = loaded.client()?;
    loaded.origin.set("/user%3A1", "Ada");
    loaded.origin.cache_control(Some("max-age=100"));
    ensure!(client.ask("GET user:1")? == "Ada");
    let life: i64 = loaded.foreign("PTTL user:1")?.parse()?;
    ensure!((60_000..=100_000).contains(&life), "{life}");
    loaded.origin.cache_control(Some("no-store"));
    loaded.origin.set("/user%3A2", "Bob");
    ensure!(client.ask("GET user:2")? == "Bob" && client.ask("GET user:2")? == "Bob");
    ensure!(loaded.origin.requests_for(&path("user:2")) == 2, "not to be kept");
    ensure!(loaded.foreign("EXISTS user:2")? == "0");
    Ok(())
}

#[test]
fn writes_reads_and_transactions_in_one_pipeline_are_as_without_a_store() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, ", ttl: 1h", "")?;
    let mut client = loaded.client()?;
    loaded.origin.set("/user%3A1", "stored");
    let replies = client.pipeline(&[
        "SET user:1 a",
        "GET user:1",
        "APPEND user:1 b",
        "GET user:1",
        "INCR user:1",
        "DEL user:1 other",
        "GET user:1",
        "SET user:1",
        "MGET user:1 other",
    ])?;
    let mut expected = vec!["OK", "a", "2", "ab"];
    ensure!(replies[..4] == expected, "{replies:?}");
    ensure!(replies[4].starts_with("(error) ERR value is not an integer"), "{replies:?}");
    expected = vec!["1", "stored"];
    ensure!(replies[5..7] == expected, "{replies:?}");
    ensure!(replies[7].starts_with("(error) ERR wrong number of arguments for 'set'"), "{replies:?}");
    ensure!(replies[8] == "[stored, (nil)]", "{replies:?}");
    // A transaction of the app's own is Redis's alone: what is absent there is nil.
    let replies = client.pipeline(&["DEL user:1", "MULTI", "GET user:1", "EXEC"])?;
    ensure!(replies[3] == "[(nil)]", "{replies:?}");
    let replies = client.pipeline(&["MULTI", "SET user:1 a", "DEL user:1", "EXEC", "GET user:1"])?;
    ensure!(replies[3..] == ["[OK, 1]", "stored"], "{replies:?}");
    Ok(())
}

#[test]
fn a_hot_key_is_refreshed_before_its_end_and_no_reader_waits_for_it() -> Result<()> {
    let rule = ", ttl: 1500ms, jitterPercent: 0, refreshAtPercent: 20, hardTimeout: 1m";
    let loaded = Loaded::start(&Subject::good(), 1, rule, "")?;
    let mut client = loaded.client()?;
    loaded.origin.set("/user%3A1", "first");
    ensure!(client.ask("GET user:1")? == "first");
    loaded.origin.set("/user%3A1", "second");
    eventually("the new value comes by itself", SOON, || {
        let read = client.ask("GET user:1")?;
        ensure!(read == "second", "{read}");
        Ok(())
    })?;
    // How many came in time depends on the machine; that there are some does not.
    ensure!(stat(&mut client, "refreshes")? >= 1);
    Ok(())
}

/// What the sidecar's own commands do to a key ends the load of it, as any other write does.
#[test]
fn caches_own_commands_end_loads() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, ", ttl: 1h", "")?;
    let (mut reader, mut writer) = (loaded.client()?, loaded.client()?);
    for (key, command, left) in [
        ("user:1", "CACHE.SET user:1 own PX 1; DEL user:1", "(nil)"),
        ("user:2", "CACHE.INVALIDATE KEY user:2", "(nil)"),
        ("user:3", "CACHE.INVALIDATE CASCADE user:3", "(nil)"),
        ("user:4", "CACHE.INVALIDATE PATTERN user:4", "(nil)"),
        ("user:5", "CACHE.TOUCH user:5", "loaded"),
    ] {
        loaded.origin.set(&path(key), "loaded");
        loaded.ask_late(&mut reader, key)?;
        for command in command.split("; ") {
            let reply = writer.ask(command)?;
            ensure!(!reply.starts_with("(error)"), "{command} answers {reply}");
        }
        loaded.origin.release(&path(key));
        ensure!(reader.reply()? == "loaded", "{key}: who asked before may be answered so");
        // A pattern is in force before Redis has been swept.
        eventually(format!("behind {command} {left} is left"), SOON, || {
            let stored = loaded.foreign(&format!("GET {key}"))?;
            ensure!(stored == left, "the load left {stored}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn what_is_unchanged_is_not_sent_again() -> Result<()> {
    let rule = ", ttl: 1h, staleIfError: 1h, hardTimeout: 1m";
    let loaded = Loaded::start(&Subject::good(), 2, rule, "")?;
    let mut client = loaded.client()?;
    loaded.origin.set("/user%3A1", "Ada");
    ensure!(client.ask("GET user:1")? == "Ada", "loaded");
    let renew = |client: &mut Client| -> Result<String> {
        ensure!(client.ask("CACHE.INVALIDATE KEY user:1 MODE EXPIRE")? == "1", "it is old");
        client.ask("GET user:1")
    };
    ensure!(renew(&mut client)? == "Ada" && renew(&mut client)? == "Ada");
    ensure!((loaded.origin.requests(), loaded.origin.unchanged()) == (3, 2), "asked whether it is that still");
    loaded.origin.set("/user%3A1", "Ada Lovelace");
    ensure!(renew(&mut client)? == "Ada Lovelace" && renew(&mut client)? == "Ada Lovelace");
    ensure!((loaded.origin.requests(), loaded.origin.unchanged()) == (5, 3), "another value has another tag");
    ensure!(loaded.sidecars[0].metric("caddy_store_unchanged_total")? == 3);
    // What another sidecar has loaded since is not what the tag is of, which the store's value may have again.
    let mut other = Client(loaded.sidecars[1].connect()?);
    loaded.origin.set("/user%3A1", "Grace");
    ensure!(renew(&mut other)? == "Grace");
    loaded.origin.set("/user%3A1", "Ada Lovelace");
    ensure!(renew(&mut client)? == "Ada Lovelace");
    ensure!((loaded.origin.requests(), loaded.origin.unchanged()) == (7, 3), "all of it is asked for");
    // Nor is what an app has written.
    ensure!(client.ask("SET user:1 other")? == "OK");
    ensure!(renew(&mut client)? == "Ada Lovelace");
    ensure!((loaded.origin.requests(), loaded.origin.unchanged()) == (8, 3), "all of it is asked for again");
    Ok(())
}

#[test]
fn a_key_that_a_statement_refuses_is_the_only_one_without_a_value() -> Result<()> {
    let (server, redis) = (PostgresServer::start()?, RedisServer::start()?);
    server.execute(
        "CREATE TABLE users (id int PRIMARY KEY, name text);
         INSERT INTO users SELECT n, 'name ' || n FROM generate_series(1, 40) n; INSERT INTO users VALUES (41, NULL)",
    )?;
    // A number is not what an app may have asked for.
    let load = "SELECT 'user:' || id, name, CASE WHEN id = 1 THEN 9223372036854775807 END FROM users \
                WHERE id = ANY(SELECT substr(key, 6)::int FROM unnest($1::text[]) AS key)";
    let store = format!(
        "stores: [{{name: users, postgres: {{url: \"{}\", timeout: 20s, maxConnections: 1, load: \"{load}\"}}, maxConcurrent: 1}}]",
        server.url()
    );
    let rule = "keyspaces: [{name: users, match: \"user:*\", strategy: ReadThrough, store: users, hardTimeout: 1m}]";
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&store).section(rule).start()?;
    let mut client = Client(sidecar.connect()?);
    let asked: Vec<String> = (1..=20)
        .map(|n| format!("GET user:{n}"))
        .chain(["GET user:x".to_owned(), "GET user:41".to_owned()])
        .chain((21..=40).map(|n| format!("GET user:{n}")))
        .collect();
    let told = client.pipeline(&asked.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (command, told) in asked.iter().zip(told) {
        let expected = match &command["GET user:".len()..] {
            "x" => "invalid input syntax".to_owned(),
            "41" => "(nil)".to_owned(),
            n => format!("name {n}"),
        };
        ensure!(told == expected || (told.starts_with("(error)") && told.contains(&expected)), "{command}: {told}");
    }
    let life: i64 = Client(redis.connect()?).ask("PTTL user:1")?.parse()?;
    ensure!(life > 0, "it is kept for as long as can be, {life}");
    Ok(())
}

/// Each of them ends the connection, and nobody is told which it was.
#[test]
fn rows_that_are_far_too_large_are_the_only_ones_without_a_value() -> Result<()> {
    let (server, redis) = (PostgresServer::start()?, RedisServer::start()?);
    server.execute(
        "CREATE TABLE users (key text PRIMARY KEY, value text);
         INSERT INTO users SELECT 'user:' || n, 'name ' || n FROM generate_series(1, 40) n;
         UPDATE users SET value = repeat('x', 3 << 20) WHERE key IN ('user:7', 'user:30')",
    )?;
    let store = format!(
        "stores: [{{name: users, postgres: {{url: \"{}\", timeout: 20s, maxConnections: 1, maxValueBytes: 64Ki, \
         load: \"SELECT key, value FROM users WHERE key = ANY($1)\"}}, maxConcurrent: 1}}]",
        server.url()
    );
    let rule = "keyspaces: [{name: users, match: \"user:*\", strategy: ReadThrough, store: users, hardTimeout: 1m}]";
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&store).section(rule).start()?;
    let mut client = Client(sidecar.connect()?);
    let asked: Vec<String> = (1..=40).map(|n| format!("GET user:{n}")).collect();
    let told = client.pipeline(&asked.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (n, told) in (1..=40).zip(told) {
        let is_large = told.starts_with("(error) STOREERR") && told.contains(&format!("the row of user:{n} has"));
        ensure!(if [7, 30].contains(&n) { is_large } else { told == format!("name {n}") }, "user:{n}: {told}");
    }
    Ok(())
}

/// What came is answered before the rest is asked for, and the rest in calls that it fits into.
#[test]
fn many_large_values_come_in_as_many_calls_as_keep_them_out_of_memory_together() -> Result<()> {
    let (server, redis) = (PostgresServer::start()?, RedisServer::start()?);
    server.execute(
        "CREATE TABLE users AS SELECT 'user:' || n AS key, repeat(chr(96 + n), 1000000) AS value FROM generate_series(1, 26) n",
    )?;
    let section = format!(
        "stores: [{{name: users, postgres: {{url: \"{}\", timeout: 20s, maxConnections: 1, load: \"SELECT key, value FROM users WHERE key = ANY($1)\"}}, maxConcurrent: 1}}]\n\
         keyspaces: [{{name: users, match: \"user:*\", strategy: ReadThrough, store: users, hardTimeout: 20s}}]\n",
        server.url()
    );
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&section).start()?;
    let mut app = Client(sidecar.connect()?);
    let names: Vec<String> = (1..=27).map(|n| format!("user:{n}")).collect();
    let answer = app.ask(&format!("MGET {}", names.join(" ")))?;
    let values: Vec<&str> = answer.trim_matches(['[', ']']).split(", ").collect();
    ensure!(values.len() == 27 && values[26] == "(nil)", "{} values", values.len());
    for (value, letter) in values.iter().zip('a'..='z') {
        ensure!(value.len() == 1_000_000 && value.chars().all(|c| c == letter), "{letter}");
    }
    let calls = sidecar.metric("caddy_store_calls_total")?;
    // Eight values of them are what one call may bring.
    ensure!((4..=8).contains(&calls), "{calls} calls");
    ensure!(sidecar.metric("caddy_store_failures_total")? == 0);
    Ok(())
}
