//! Writing through: the store first, and the cache as it was when that fails.

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    origin::Origin,
    redis::RedisServer,
    sidecar::SidecarOptions,
    world::{LONG, SOON},
};

use super::world::{World, client};

const THROUGH: &str = "strategy: WriteThrough";

#[test]
fn what_the_cache_has_the_store_has() -> Result<()> {
    let mut world = World::start()?;
    let sidecar = world.sidecar(THROUGH)?;
    let mut app = client(&sidecar)?;
    for (command, answer) in [
        ("SET user:a 1", "OK"),
        ("SET user:a 2 EX 100", "OK"),
        ("GETSET user:a 3", "2"),
        ("SET user:a 4 GET", "3"),
        ("MSET user:b 5 user:c 6", "OK"),
        ("DEL user:c user:absent", "1"),
        ("GETDEL user:d", "(nil)"),
        ("GET user:a", "4"),
    ] {
        let found = app.ask(command)?;
        ensure!(found == answer, "{command}: {found}");
    }
    ensure!(world.rows()? == ["user:a=4", "user:b=5"], "{:?}", world.rows()?);
    for refused in ["SET user:a 1 NX", "SETNX user:z 1", "INCR user:a", "APPEND user:a x"] {
        let found = app.ask(refused)?;
        ensure!(found.contains("WriteThrough"), "{refused}: {found}");
    }
    // Refused by the table, and then by a database that is gone: the cache is as it was.
    let refused = app.ask(&format!("SET user:a {}", "x".repeat(101)))?;
    ensure!(refused.contains("STOREERR") && refused.contains("check constraint"), "{refused}");
    // What could not be loaded again is not even offered to it.
    let refused = app.ask(&format!("MSET user:b 7 user:a {}", "x".repeat((1 << 20) + 1)))?;
    ensure!(refused.contains("1048576 bytes (maxValueBytes)"), "{refused}");
    ensure!(app.ask("GET user:a")? == "4");
    world.postgres.stop()?;
    let refused = app.ask("DEL user:a")?;
    ensure!(refused.contains("STOREERR"), "{refused}");
    ensure!(app.ask("GET user:a")? == "4");
    world.postgres.restart()?;
    ensure!(app.ask("DEL user:a")? == "1");
    ensure!(app.ask("GET user:a")? == "(nil)");
    Ok(())
}

#[test]
fn after_writes_of_one_key_through_two_sidecars_cache_and_store_agree() -> Result<()> {
    let world = World::start()?;
    let sidecars = [world.sidecar(THROUGH)?, world.sidecar(THROUGH)?];
    let mut apps = Vec::new();
    for n in 0..4 {
        apps.push(client(&sidecars[n % 2])?);
    }
    for round in 0..60 {
        for (n, app) in apps.iter_mut().enumerate() {
            app.send(&format!("SET user:hot {round}-{n}"))?;
        }
        for app in &mut apps {
            ensure!(app.reply()? == "OK");
        }
        let row = world.postgres.execute("SELECT value FROM users WHERE key = 'user:hot'")?;
        for app in &mut apps {
            eventually("cache and store agree", SOON, || {
                let read = app.ask("GET user:hot")?;
                ensure!(read == row, "round {round}: the cache has {read}, the store {row}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A write takes long, another one of its key overlaps and ends, and a third begins, or a load, which finds no trace of that.
#[test]
fn what_begins_behind_one_of_two_writes_is_not_kept_over_the_other() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    for command in ["SET user:a third", "GET user:a"] {
        let (origin, redis) = (runtime.block_on(Origin::start())?, RedisServer::start()?);
        let section = format!(
            "stores:\n- name: users\n  http: {{url: \"{}/{{key}}\", timeout: 1m, retries: 0}}\n\
             keyspaces:\n- {{name: users, match: \"user:*\", store: users, hardTimeout: 1m, {THROUGH}}}\n",
            origin.url()
        );
        let start = || SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&section).start();
        let (one, other) = (start()?, start()?);
        let (mut first, mut second, mut third) = (client(&one)?, client(&other)?, client(&other)?);
        origin.hold_next("/user%3Aa");
        first.send("SET user:a first")?;
        eventually("the store is asked", SOON, || {
            ensure!(!origin.is_to_hold("/user%3Aa"));
            Ok(())
        })?;
        ensure!(second.ask("SET user:a second")? == "OK");
        // The store executes it now, and answers later.
        origin.delay_next("/user%3Aa");
        third.send(command)?;
        eventually("the store has it, or is asked for it", SOON, || {
            let has = if command.starts_with("SET") { "third" } else { "second" };
            ensure!(
                origin.requests_for("/user%3Aa") == 2 && origin.value("/user%3Aa").as_deref() == Some(has.as_bytes())
            );
            Ok(())
        })?;
        other.suspend()?;
        origin.release("/user%3Aa");
        ensure!(first.reply()? == "OK");
        ensure!(origin.value("/user%3Aa").as_deref() == Some(&b"first"[..]), "the store took it last");
        other.resume()?;
        third.reply()?;
        for app in [&mut first, &mut second] {
            let read = app.ask("GET user:a")?;
            ensure!(read == "first", "behind {command} the store has what was written first, and the cache {read}");
        }
    }
    Ok(())
}

/// What was loaded, and is kept for outages too, is an envelope in Redis; apps never see that.
#[test]
fn what_was_loaded_is_shown_by_what_replaces_it() -> Result<()> {
    for strategy in [THROUGH, "strategy: WriteBehind, writeBehind: {flushInterval: 20ms}"] {
        let world = World::start()?;
        let sidecar = world.sidecar(&format!("{strategy}, ttl: 1h, staleIfError: 1h"))?;
        let mut app = client(&sidecar)?;
        for (number, command) in ["GETSET {} new", "SET {} new GET", "GETDEL {}"].iter().enumerate() {
            let key = format!("user:{number}");
            world.postgres.execute(&format!("INSERT INTO users VALUES ('{key}', 'loaded')"))?;
            ensure!(app.ask(&format!("GET {key}"))? == "loaded", "{strategy}: it is loaded");
            let shown = app.ask(&command.replace("{}", &key))?;
            ensure!(shown == "loaded", "{strategy}: {command} shows {shown}");
            let left = app.ask(&format!("GET {key}"))?;
            ensure!(
                left == if command.contains("new") { "new" } else { "(nil)" },
                "{strategy}: {command} leaves {left}"
            );
        }
    }
    Ok(())
}

#[test]
fn what_is_written_behind_does_not_overtake_what_is_written_through() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let origin = runtime.block_on(Origin::start())?;
    let redis = RedisServer::start()?;
    let section = format!(
        "stores:\n- name: users\n  http: {{url: \"{}/{{key}}\", timeout: 1m, retries: 0}}\n\
         keyspaces:\n- {{name: users, match: \"user:*\", store: users, {THROUGH}}}\n",
        origin.url()
    );
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&section).start()?;
    let (mut first, mut second, mut third) = (client(&sidecar)?, client(&sidecar)?, client(&sidecar)?);
    origin.hold_next("/user%3Aa");
    first.send("SET user:a 1")?;
    eventually("the store is asked", SOON, || {
        ensure!(!origin.is_to_hold("/user%3Aa"));
        Ok(())
    })?;
    let config = std::fs::read_to_string(sidecar.config())?;
    let behind = "strategy: WriteBehind, writeBehind: {flushInterval: 1ms, batchSize: 1}";
    sidecar.write_config(&config.replace(THROUGH, behind))?;
    eventually("it writes behind", SOON, || {
        let told = third.ask("APPEND user:z 1")?;
        ensure!(told.contains("WriteBehind"), "{told}");
        Ok(())
    })?;
    second.send("SET user:a 2")?;
    // What came behind it is stored.
    ensure!(third.ask("SET user:b 3")? == "OK");
    eventually("the store has it", SOON, || {
        ensure!(origin.value("/user%3Ab").as_deref() == Some(&b"3"[..]));
        Ok(())
    })?;
    origin.release("/user%3Aa");
    ensure!(first.reply()? == "OK" && second.reply()? == "OK");
    eventually("the store has what was written last", SOON, || {
        let value = origin.value("/user%3Aa");
        ensure!(value.as_deref() == Some(&b"2"[..]), "{value:?}");
        Ok(())
    })?;
    ensure!(first.ask("GET user:a")? == "2");
    Ok(())
}
