//! Durability `Pod`: what was acknowledged is stored, whenever the sidecar is killed; and in its order.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use caddy_tests::{sidecar::Sidecar, world::Client};

use super::world::{World, client, logged, stat_becomes};

/// Writes numbers under a few keys until the sidecar is gone; what was acknowledged, by key.
fn write_until_killed(sidecar: &mut Sidecar, first: u32, after: u32) -> Result<BTreeMap<String, u32>> {
    let mut app = client(sidecar)?;
    let mut acknowledged = BTreeMap::new();
    for n in first..first + 400 {
        app.send(&format!("SET user:{} {n}", n % 7))?;
    }
    for n in first..first + 400 {
        if n == first + after {
            sidecar.kill()?;
        }
        match app.reply() {
            Ok(answer) => {
                ensure!(answer == "OK", "{answer}");
                let _ = acknowledged.insert(format!("user:{}", n % 7), n);
            }
            Err(_) => break,
        }
    }
    Ok(acknowledged)
}

#[test]
fn what_was_acknowledged_is_stored_whenever_the_sidecar_is_killed() -> Result<()> {
    let world = World::start()?;
    let logs = tempfile::tempdir()?;
    let mut sidecar = world.sidecar(&logged(logs.path(), ", flushInterval: 5ms, batchSize: 20"))?;
    let mut first = 0;
    // At many moments of the way: nothing acknowledged yet, some of it stored, all of it.
    for after in [0, 1, 3, 20, 60, 150, 250, 399] {
        let acknowledged = write_until_killed(&mut sidecar, first, after)?;
        first += 1_000;
        sidecar.restart()?;
        let mut app = client(&sidecar)?;
        stat_becomes(&mut app, "behind_records", 0)?;
        let rows: BTreeMap<String, u32> = world
            .rows()?
            .iter()
            .filter_map(|row| row.split_once('=').map(|(key, value)| (key.to_owned(), value.parse().unwrap_or(0))))
            .collect();
        for (key, value) in &acknowledged {
            let stored = rows.get(key).copied().unwrap_or(0);
            ensure!(stored >= *value, "killed after {after}: {key} was acknowledged as {value} and is {stored}");
        }
    }
    // Of every key the table has seen the writes in their order; a repetition after a crash is the same again.
    let history = world.postgres.execute("SELECT key || ' ' || value FROM history ORDER BY n")?;
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    for (key, value) in history.lines().filter_map(|line| line.split_once(' ')) {
        let value: u32 = value.parse()?;
        let before = last.insert(key, value).unwrap_or(0);
        ensure!(before <= value, "{key} went back from {before} to {value}");
    }
    ensure!(last.len() == 7);
    Ok(())
}

#[test]
fn a_store_that_is_down_while_the_sidecar_dies_gets_everything_later() -> Result<()> {
    let mut world = World::start()?;
    let logs = tempfile::tempdir()?;
    let mut sidecar = world.sidecar(&logged(logs.path(), ", flushInterval: 5ms"))?;
    world.postgres.stop()?;
    let mut app = client(&sidecar)?;
    for n in 0..200 {
        app.send(&format!("SET user:{n} {n}"))?;
    }
    for _ in 0..200 {
        ensure!(app.reply()? == "OK");
    }
    ensure!(app.ask("DEL user:3")? == "1");
    sidecar.kill()?;
    world.postgres.restart()?;
    sidecar.restart()?;
    let mut app = client(&sidecar)?;
    stat_becomes(&mut app, "behind_records", 0)?;
    ensure!(world.rows()?.len() == 199);
    Ok(())
}

#[test]
fn a_log_whose_keyspace_left_the_strategy_is_drained_at_the_next_start() -> Result<()> {
    let mut world = World::start()?;
    let logs = tempfile::tempdir()?;
    let behind = logged(logs.path(), "");
    let mut sidecar = world.sidecar(&behind)?;
    world.postgres.stop()?;
    ensure!(client(&sidecar)?.ask("SET user:a 1")? == "OK");
    sidecar.kill()?;
    world.postgres.restart()?;
    let config = std::fs::read_to_string(sidecar.config())?;
    // Another keyspace says where logs are.
    let others = format!("strategy: ReadThrough}}\n- {{name: others, match: \"other:*\", store: users, {behind}");
    sidecar.write_config(&config.replace(&behind, &others))?;
    sidecar.restart()?;
    world.rows_become(&["user:a=1"])
}

#[test]
fn a_full_disk_slows_writes_down_to_the_store_and_loses_nothing() -> Result<()> {
    let mut world = World::start()?;
    let logs = tempfile::tempdir()?;
    // No file of the sidecar's may be longer than this: its log is full soon.
    let limit = "#!/bin/bash\nulimit -f 48\ntrap '' XFSZ\nexec \"$CADDY_REAL_SIDECAR\" \"$@\"\n";
    let script = logs.path().join("limited");
    std::fs::write(&script, limit)?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let program = caddy_tests::sidecar::program()?;
    let sidecar = world
        .options(&logged(logs.path(), ", flushInterval: 1h, maxWait: 300ms"))
        .program(&script)
        .variable("CADDY_REAL_SIDECAR", &program.display().to_string())
        .start()?;
    let mut app = client(&sidecar)?;
    let value = "v".repeat(99);
    for n in 0..600 {
        let answer = app.ask(&format!("SET user:{n} {value}"))?;
        ensure!(answer == "OK", "{n}: {answer}");
    }
    ensure!(super::world::stat(&mut app, "behind_unlogged")? > 0, "the disk was never full");
    world.postgres.stop()?;
    let refused = refused_when_nothing_keeps_it(&mut app, &value)?;
    ensure!(refused, "without a disk and a store nothing may be acknowledged");
    world.postgres.restart()?;
    stat_becomes(&mut app, "behind_records", 0)?;
    ensure!(world.rows()?.len() >= 600);
    Ok(())
}

/// Writes until one is refused because neither log nor store has it.
fn refused_when_nothing_keeps_it(app: &mut Client, value: &str) -> Result<bool> {
    for n in 2_000..3_000 {
        let answer = app.ask(&format!("SET user:{n} {value}"))?;
        if answer.contains("STOREERR") {
            return Ok(answer.contains("may never"));
        }
    }
    Ok(false)
}
