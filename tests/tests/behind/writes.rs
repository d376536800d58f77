//! What is written behind: which commands, in which order, and what happens when the store is down, slow or refuses.

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    world::{Client, SOON},
};

use super::world::{World, client, stat, stat_becomes};

const BEHIND: &str = "strategy: WriteBehind, writeBehind: {flushInterval: 20ms}";

#[test]
fn every_write_of_a_whole_value_reaches_the_table() -> Result<()> {
    let world = World::start()?;
    let sidecar = world.sidecar(BEHIND)?;
    let mut app = client(&sidecar)?;
    for (command, answer) in [
        ("SET user:a 1", "OK"),
        ("SET user:a 2 NX", "(nil)"),
        ("SET user:a 3 XX GET", "1"),
        ("SET user:b 4 EX 100", "OK"),
        ("SETEX user:c 100 5", "OK"),
        ("SETNX user:c 6", "0"),
        ("SETNX user:d 7", "1"),
        ("GETSET user:d 8", "7"),
        ("MSET user:e 9 user:f 10", "OK"),
        ("INCR user:f", "11"),
        ("INCRBYFLOAT user:e 0.5", "9.5"),
        ("SET user:g 12", "OK"),
        ("GETDEL user:g", "12"),
        ("SET user:h 13", "OK"),
        ("DEL user:h user:absent", "1"),
        ("SET other 14", "OK"),
        ("EXPIRE user:a 100", "1"),
        ("GET user:a", "3"),
    ] {
        let found = app.ask(command)?;
        ensure!(found == answer, "{command}: {found}");
    }
    world.rows_become(&["user:a=3", "user:b=4", "user:c=5", "user:d=8", "user:e=9.5", "user:f=11"])?;
    for refused in ["APPEND user:a x", "SETRANGE user:a 0 x", "MSET user:a 1 other 2", "HSET user:z f v"] {
        let found = app.ask(refused)?;
        ensure!(found.contains("WriteBehind"), "{refused}: {found}");
    }
    // What could not be loaded again is not written.
    let found = app.ask(&format!("SET user:large {}", "x".repeat((1 << 20) + 1)))?;
    ensure!(found.contains("1048576 bytes (maxValueBytes)"), "{found}");
    ensure!(app.ask("GET user:large")? == "(nil)");
    ensure!(app.ask("MULTI")? == "OK");
    let found = app.ask("SET user:a 15")?;
    ensure!(found.contains("MULTI"), "{found}");
    let found = app.ask("EXEC")?;
    ensure!(found.contains("EXECABORT"), "{found}");
    ensure!(app.ask("GET user:a")? == "3");
    Ok(())
}

#[test]
fn writes_that_came_together_are_answered_each_by_itself_and_stored_in_their_order() -> Result<()> {
    let world = World::start()?;
    let directory = tempfile::tempdir()?;
    for how in [BEHIND.to_owned(), super::world::logged(directory.path(), ", flushInterval: 20ms")] {
        let sidecar = world.sidecar(&how)?;
        let mut app = client(&sidecar)?;
        let told = app.pipeline(&[
            "SET user:a 1",
            "SET user:b 2 NX",
            "SET user:b 3 NX",
            "SET user:a 4",
            "INCR user:a",
            "SET user:c text",
            "INCR user:c",
            "APPEND user:a x",
            "MSET user:d 5 user:e 6 user:d 7",
            "GETSET user:d 8",
            "SET user:d 9 EX nonsense",
            "DEL user:e user:c",
            "SET user:f 10",
            "SET user:f 11 XX",
            "GET user:f",
            "SET user:g 12",
            "SET user:a 13",
        ])?;
        for (at, text) in [(6, "not an integer"), (7, "WriteBehind"), (10, "not an integer")] {
            ensure!(told[at].contains(text), "{at}: {}", told[at]);
        }
        let others: Vec<&str> =
            told.iter().enumerate().filter(|(at, _)| ![6, 7, 10].contains(at)).map(|(_, told)| &told[..]).collect();
        let expected = ["OK", "OK", "(nil)", "OK", "5", "OK", "OK", "7", "2", "OK", "OK", "11", "OK", "OK"];
        ensure!(others == expected, "{others:?}");
        world.rows_become(&["user:a=13", "user:b=2", "user:d=8", "user:f=11", "user:g=12"])?;
        // Nobody who loads is kept waiting by a lease, or could store what he began to load before.
        let leases = world.redis.command(&["KEYS", "*lease:user:[abdfg]"])?;
        ensure!(leases == b"*0\r\n", "{}", leases.escape_ascii());
        world.postgres.execute("DELETE FROM users")?;
        world.redis.command(&["FLUSHALL"])?;
    }
    Ok(())
}

#[test]
fn a_number_that_was_loaded_is_counted_on() -> Result<()> {
    let world = World::start()?;
    let sidecar =
        world.sidecar("strategy: WriteBehind, ttl: 1h, staleIfError: 1h, writeBehind: {flushInterval: 20ms}")?;
    world.postgres.execute("INSERT INTO users VALUES ('user:visits', '41'), ('user:text', 'no number')")?;
    let mut app = client(&sidecar)?;
    ensure!(app.ask("GET user:visits")? == "41" && app.ask("GET user:text")? == "no number");
    let told = app.pipeline(&["INCR user:visits", "INCRBY user:visits 8", "GET user:visits", "INCR user:text"])?;
    ensure!(told[..3] == ["42", "50", "50"] && told[3].contains("not an integer"), "{told:?}");
    ensure!(app.ask("GET user:text")? == "no number");
    world.rows_become(&["user:text=no number", "user:visits=50"])?;
    // What somebody has declared old is loaded before it is counted on.
    world.postgres.execute("UPDATE users SET value = '100' WHERE key = 'user:text'")?;
    app.ask("CACHE.INVALIDATE KEY user:text")?;
    ensure!(app.ask("GET user:text")? == "100" && app.ask("INCR user:text")? == "101");
    world.rows_become(&["user:text=101", "user:visits=50"])
}

#[test]
fn others_see_a_write_at_once_and_the_table_gets_batches() -> Result<()> {
    let world = World::start()?;
    let sidecars = [world.sidecar(BEHIND)?, world.sidecar(BEHIND)?];
    let (mut one, mut other) = (client(&sidecars[0])?, client(&sidecars[1])?);
    for n in 0..2_000 {
        one.send(&format!("SET user:{n} {n}"))?;
    }
    for _ in 0..2_000 {
        ensure!(one.reply()? == "OK");
    }
    ensure!(other.ask("GET user:1999")? == "1999");
    stat_becomes(&mut one, "behind_records", 0)?;
    ensure!(world.rows()?.len() == 2_000);
    let flushes = stat(&mut one, "behind_flushes")?;
    ensure!(flushes <= 200, "{flushes} statements for 2000 rows");
    // What was deleted here is not loaded again, old, over there.
    ensure!(one.ask("DEL user:7")? == "1");
    ensure!(other.ask("GET user:7")? == "(nil)");
    Ok(())
}

#[test]
fn while_the_store_is_down_writes_queue_to_the_bound_and_nothing_is_lost() -> Result<()> {
    let mut world = World::start()?;
    let sidecar =
        world.sidecar("strategy: WriteBehind, writeBehind: {flushInterval: 20ms, maxRecords: 50, maxWait: 50ms}")?;
    let mut app = client(&sidecar)?;
    ensure!(app.ask("SET user:0 0")? == "OK");
    stat_becomes(&mut app, "behind_records", 0)?;
    world.postgres.stop()?;
    let (mut taken, mut refused) = (vec![0], 0);
    for n in 1..80 {
        match app.ask(&format!("SET user:{n} {n}"))? {
            answer if answer == "OK" => taken.push(n),
            answer => {
                ensure!(answer.contains("STOREERR") && answer.contains("nothing was written"), "{answer}");
                ensure!(app.ask(&format!("EXISTS user:{n}"))? == "0", "what is refused is not in Redis either");
                refused += 1;
            }
        }
        if refused > 2 {
            break;
        }
    }
    ensure!(taken.len() == 51 && refused == 3, "{} taken", taken.len());
    ensure!(stat(&mut app, "behind_records")? == 50);
    ensure!(stat(&mut app, "behind_lost_with_the_process")? == 50);
    world.postgres.restart()?;
    stat_becomes(&mut app, "behind_records", 0)?;
    ensure!(world.rows()?.len() == taken.len());
    Ok(())
}

/// Room is asked for ahead of the writes that come together, and the last of it is no less theirs.
#[test]
fn writes_that_come_together_take_the_room_to_the_last_place() -> Result<()> {
    let mut world = World::start()?;
    let sidecar =
        world.sidecar("strategy: WriteBehind, writeBehind: {flushInterval: 20ms, maxRecords: 50, maxWait: 1s}")?;
    let mut app = client(&sidecar)?;
    world.postgres.stop()?;
    // What does not fit waits for the room that others have been given ahead, and each for `maxWait`.
    let writes: Vec<String> = (0..54).map(|n| format!("SET user:{n} {n}")).collect();
    let told = app.pipeline(&writes.iter().map(String::as_str).collect::<Vec<_>>())?;
    let (taken, refused) = told.split_at(50);
    ensure!(taken.iter().all(|told| told == "OK"), "{told:?}");
    ensure!(refused.iter().all(|told| told.contains("STOREERR") && told.contains("nothing was written")), "{told:?}");
    ensure!(stat(&mut app, "behind_records")? == 50);
    world.postgres.restart()?;
    stat_becomes(&mut app, "behind_records", 0)?;
    ensure!(world.rows()?.len() == 50);
    Ok(())
}

#[test]
fn poison_rows_become_dead_letters_and_do_not_hold_up_others() -> Result<()> {
    let world = World::start()?;
    let sidecar = world.sidecar("strategy: WriteBehind, writeBehind: {flushInterval: 20ms, maxAttempts: 1}")?;
    let mut app = client(&sidecar)?;
    let poison = "x".repeat(101);
    for n in 0..50 {
        let value = if n == 17 { poison.as_str() } else { "good" };
        app.send(&format!("SET user:{n} {value}"))?;
    }
    for _ in 0..50 {
        ensure!(app.reply()? == "OK");
    }
    stat_becomes(&mut app, "behind_dead_letters", 1)?;
    stat_becomes(&mut app, "behind_records", 1)?;
    ensure!(world.rows()?.len() == 49);
    let listed = app.ask("CACHE.DEADLETTERS users")?;
    ensure!(listed.contains("user:17") && listed.contains("check constraint"), "{listed}");
    world.postgres.execute("ALTER TABLE users DROP CONSTRAINT users_value_check")?;
    ensure!(app.ask("CACHE.DEADLETTERS users REPLAY")? == "1");
    stat_becomes(&mut app, "behind_records", 0)?;
    ensure!(world.rows()?.len() == 50);
    Ok(())
}

#[test]
fn what_is_wrong_with_the_store_and_not_with_a_row_makes_no_dead_letters() -> Result<()> {
    let world = World::start()?;
    let sidecar = world.sidecar("strategy: WriteBehind, writeBehind: {flushInterval: 20ms, maxAttempts: 1}")?;
    let mut app = client(&sidecar)?;
    world.postgres.execute("ALTER TABLE users RENAME TO moved")?;
    app.ask("MSET user:a 1 user:b 2")?;
    eventually("it was tried more than once", SOON, || {
        let failures = stat(&mut app, "behind_failures")?;
        ensure!(failures > 2, "{failures}");
        Ok(())
    })?;
    ensure!(stat(&mut app, "behind_dead_letters")? == 0);
    world.postgres.execute("ALTER TABLE moved RENAME TO users")?;
    world.rows_become(&["user:a=1", "user:b=2"])
}

#[test]
fn the_end_of_a_sidecar_and_the_end_of_a_strategy_drain_first() -> Result<()> {
    let world = World::start()?;
    let slow = "strategy: WriteBehind, writeBehind: {flushInterval: 1h}";
    let mut sidecar = world.sidecar(slow)?;
    let mut app = client(&sidecar)?;
    ensure!(app.ask("SET user:a 1")? == "OK");
    ensure!(world.rows()?.is_empty(), "it waits for others");
    let config = std::fs::read_to_string(sidecar.config())?;
    sidecar.write_config(&config.replace(slow, "strategy: ReadThrough"))?;
    world.rows_become(&["user:a=1"])?;
    sidecar.write_config(&config)?;
    let written = |app: &mut Client| -> Result<bool> {
        Ok(app.ask("SET user:b 2")? == "OK" && stat(app, "behind_taken").is_ok())
    };
    caddy_tests::e2e::eventually("it writes behind again", caddy_tests::world::SOON, || {
        ensure!(written(&mut app)?);
        Ok(())
    })?;
    drop(app);
    sidecar.terminate()?;
    caddy_tests::e2e::eventually("it has ended", caddy_tests::world::SOON, || {
        ensure!(sidecar.exited()?.is_some());
        Ok(())
    })?;
    ensure!(world.rows()? == ["user:a=1", "user:b=2"], "{:?}", world.rows()?);
    Ok(())
}

#[test]
fn what_the_store_refused_before_a_keyspace_writes_through_does_not_come_over_what_it_takes() -> Result<()> {
    let world = World::start()?;
    let behind = "strategy: WriteBehind, writeBehind: {flushInterval: 20ms, maxAttempts: 1}";
    let sidecar = world.sidecar(behind)?;
    let mut app = client(&sidecar)?;
    let poison = "x".repeat(101);
    ensure!(app.ask(&format!("MSET user:a {poison} user:b {poison}"))? == "OK");
    stat_becomes(&mut app, "behind_dead_letters", 2)?;
    let config = std::fs::read_to_string(sidecar.config())?;
    sidecar.write_config(&config.replace(behind, "strategy: WriteThrough"))?;
    caddy_tests::e2e::eventually("it writes through", caddy_tests::world::SOON, || {
        ensure!(app.ask("SETNX user:a 9")?.contains("WriteThrough"));
        Ok(())
    })?;
    ensure!(app.ask("SET user:a good")? == "OK", "dead letters are not waited for");
    world.postgres.execute("ALTER TABLE users DROP CONSTRAINT users_value_check")?;
    ensure!(app.ask("CACHE.DEADLETTERS users REPLAY")? == "1", "the other one");
    world.rows_become(&["user:a=good", &format!("user:b={poison}")])
}

#[test]
fn a_keyspace_that_comes_back_before_it_was_drained_goes_on_with_its_log() -> Result<()> {
    let mut world = World::start()?;
    let logs = tempfile::tempdir()?;
    let behind = super::world::logged(logs.path(), ", flushInterval: 20ms, maxWait: 200ms");
    let sidecar = world.sidecar(&behind)?;
    let mut app = client(&sidecar)?;
    world.postgres.stop()?;
    ensure!(app.ask("SET user:a 1")? == "OK");
    let config = std::fs::read_to_string(sidecar.config())?;
    let becomes = |strategy: &str, app: &mut Client, refuses: &str, word: &str| {
        sidecar.write_config(&config.replace(&behind, strategy))?;
        caddy_tests::e2e::eventually(strategy, caddy_tests::world::SOON, || {
            let answer = app.ask(refuses)?;
            ensure!(answer.contains(word), "{answer}");
            Ok(())
        })
    };
    becomes("strategy: WriteThrough", &mut app, "SETNX user:a 9", "WriteThrough")?;
    let refused = app.ask("SET user:a 2")?;
    ensure!(refused.contains("older writes of the key") && refused.contains("nothing was written"), "{refused}");
    ensure!(app.ask("GET user:a")? == "1");
    becomes(&behind, &mut app, "APPEND user:z 1", "WriteBehind")?;
    ensure!(stat(&mut app, "behind_records")? == 1, "what waits is what waited before");
    ensure!(app.ask("SET user:a 3")? == "OK");
    world.postgres.restart()?;
    world.rows_become(&["user:a=3"])
}
