//! Commands that depend on what was there, of keys that the store has and Redis has not.

use anyhow::{Context, Result, ensure};
use caddy_tests::{
    e2e::eventually,
    origin::Origin,
    redis::RedisServer,
    sidecar::SidecarOptions,
    world::{LONG, SOON, show},
};

use super::world::{World, client, logged, stat, stat_becomes};

const BEHIND: &str = "strategy: WriteBehind, writeBehind: {flushInterval: 20ms}";

/// What the table has at first.
const ROWS: &str = "INSERT INTO users VALUES ('user:visits', '41'), ('user:price', '1.5'), ('user:name', 'Ada'), \
                    ('user:there', 'old'), ('user:got', 'old'), ('user:set', 'old'), ('user:taken', 'old')";

/// Each is answered as if Redis had what the table has.
const STEPS: &[(&str, &str)] = &[
    ("INCR user:visits", "42"),
    ("INCRBYFLOAT user:price 0.5", "2"),
    ("SETNX user:name Grace", "0"),
    ("SET user:there new XX", "OK"),
    ("SET user:absent new XX", "(nil)"),
    ("GETSET user:got new", "old"),
    ("SET user:set new GET", "old"),
    ("GETDEL user:taken", "old"),
    ("GETDEL user:taken", "(nil)"),
    ("MSETNX user:name 1 user:other 2", "0"),
    ("SETNX user:new 1", "1"),
    ("INCR user:count", "1"),
    ("GET user:name", "Ada"),
];

const AFTERWARDS: &[&str] = &[
    "user:count=1",
    "user:got=new",
    "user:name=Ada",
    "user:new=1",
    "user:price=2",
    "user:set=new",
    "user:there=new",
    "user:visits=42",
];

#[test]
fn what_only_the_store_has_is_there_for_every_command() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let kept_stale = "strategy: WriteBehind, ttl: 1h, staleIfError: 1h, writeBehind: {flushInterval: 20ms}";
    let replicated = "strategy: WriteBehind, writeBehind: {durability: Replicated, replicas: 0, flushInterval: 20ms}";
    for keyspace in [BEHIND, &logged(directory.path(), ", flushInterval: 20ms"), replicated, kept_stale] {
        let world = World::start()?;
        world.postgres.execute(ROWS)?;
        let sidecar = world.sidecar(keyspace)?;
        let mut app = client(&sidecar)?;
        for (command, answer) in STEPS {
            let found = app.ask(command)?;
            ensure!(found == *answer, "{keyspace}: {command}: {found}");
        }
        world.rows_become(AFTERWARDS)?;
        // Redis loses a number that the store has: it is counted on.
        stat_becomes(&mut app, "behind_records", 0)?;
        world.redis.command(&["DEL", "user:visits"])?;
        ensure!(app.ask("INCRBY user:visits 8")? == "50");
        // And one that is only about to reach the store.
        world.redis.command(&["DEL", "user:visits"])?;
        let found = app.ask("DECR user:visits")?;
        ensure!(found == "49", "{found}");
        ensure!(app.ask("SETNX user:name 1")? == "0" && app.ask("INCR user:name")?.contains("not an integer"));
    }
    Ok(())
}

#[test]
fn in_a_pipeline_they_are_answered_in_their_order() -> Result<()> {
    let world = World::start()?;
    world.postgres.execute(ROWS)?;
    let sidecar = world.sidecar(BEHIND)?;
    let mut app = client(&sidecar)?;
    let told = app.pipeline(&[
        "SET user:a 1",
        "INCR user:visits",
        "INCR user:a",
        "INCR user:visits",
        "SET user:name x NX",
        "INCR user:new",
        "SET user:visits 7",
        "GET user:visits",
        "INCR user:visits",
        "MGET user:a user:name user:new",
    ])?;
    let expected = ["OK", "42", "2", "43", "(nil)", "1", "OK", "7", "8", "[2, Ada, 1]"];
    ensure!(told == expected, "{told:?}");
    Ok(())
}

#[test]
fn of_many_who_count_one_loads_and_none_is_lost() -> Result<()> {
    const APPS: usize = 16;
    let world = World::start()?;
    world.postgres.execute(ROWS)?;
    let sidecars = [world.sidecar(BEHIND)?, world.sidecar(BEHIND)?];
    std::thread::scope(|scope| {
        let apps: Vec<_> = (0..APPS)
            .map(|n| {
                let sidecar = &sidecars[n % 2];
                scope.spawn(move || -> Result<()> {
                    let answer = client(sidecar)?.ask("INCR user:visits")?;
                    answer.parse::<i64>().map(drop).with_context(|| answer)
                })
            })
            .collect();
        apps.into_iter().try_for_each(|app| app.join().map_err(|_| anyhow::anyhow!("an app panicked"))?)
    })?;
    let mut apps = [client(&sidecars[0])?, client(&sidecars[1])?];
    ensure!(apps[0].ask("GET user:visits")? == (41 + APPS).to_string());
    let loads = stat(&mut apps[0], "loads")? + stat(&mut apps[1], "loads")?;
    ensure!(loads == 1, "{loads} loads");
    Ok(())
}

#[test]
fn nothing_is_written_while_nobody_knows_what_was_there() -> Result<()> {
    let mut world = World::start()?;
    world.postgres.execute(ROWS)?;
    let sidecar = world.sidecar(BEHIND)?;
    let mut app = client(&sidecar)?;
    world.postgres.stop()?;
    for command in ["INCR user:visits", "SET user:name x NX", "GETSET user:got x", "GETDEL user:taken"] {
        let found = app.ask(command)?;
        ensure!(found.contains("STOREERR") && found.contains("nothing was written"), "{command}: {found}");
    }
    // Leases are given back behind the answer.
    let keys = show(&world.redis.command(&["KEYS", "user:*"])?);
    ensure!(keys == "[]", "{keys}");
    // What does not depend on it is taken.
    ensure!(app.ask("SET user:visits 7")? == "OK" && app.ask("INCR user:visits")? == "8");
    world.postgres.restart()?;
    eventually("what was refused is repeated", SOON, || {
        let found = app.ask("GETSET user:got x")?;
        ensure!(found == "old", "{found}");
        Ok(())
    })?;
    eventually("the table has it", SOON, || {
        let rows = world.rows()?;
        ensure!(rows.contains(&"user:visits=8".to_owned()) && rows.contains(&"user:got=x".to_owned()), "{rows:?}");
        Ok(())
    })
    .map(drop)
}

#[test]
fn what_may_not_be_kept_in_redis_is_not_counted_on_there() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
    let origin = runtime.block_on(Origin::start())?;
    let redis = RedisServer::start()?;
    let url = origin.url();
    let section = format!(
        "stores: [{{name: users, http: {{url: \"{url}/{{key}}\"}}}}]\n\
         keyspaces: [{{name: users, match: \"user:*\", store: users, {BEHIND}}}]"
    );
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&section).start()?;
    let mut app = client(&sidecar)?;
    origin.set("/user%3A1", "41");
    origin.cache_control(Some("no-store"));
    let found = app.ask("INCR user:1")?;
    ensure!(found.contains("STOREERR") && found.contains("no-store"), "{found}");
    ensure!(origin.value("/user%3A1") == Some(b"41".to_vec()));
    origin.cache_control(None);
    ensure!(app.ask("INCR user:1")? == "42");
    Ok(())
}

#[test]
fn what_is_written_through_shows_what_the_store_had() -> Result<()> {
    let mut world = World::start()?;
    world.postgres.execute(ROWS)?;
    let sidecar = world.sidecar("strategy: WriteThrough")?;
    let mut app = client(&sidecar)?;
    for (command, answer) in [
        ("GETSET user:got new", "old"),
        ("SET user:set new GET", "old"),
        ("GETDEL user:taken", "old"),
        ("GETDEL user:taken", "(nil)"),
        ("GETSET user:absent new", "(nil)"),
    ] {
        let found = app.ask(command)?;
        ensure!(found == answer, "{command}: {found}");
    }
    world.postgres.stop()?;
    let found = app.ask("GETSET user:name x")?;
    ensure!(found.contains("STOREERR") && found.contains("nothing was written"), "{found}");
    Ok(())
}
