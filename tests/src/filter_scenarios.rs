//! What a negative filter must not do, as stories like those of [`scenarios`](crate::scenarios): it says that a key is absent,
//! and an app knows better, or may.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    e2e::eventually,
    proxy::{Class, Direction::ToClient},
    sidecar::SidecarOptions,
    world::{Client, LONG, MOMENT, SOON, Subject, World, must},
};

/// The keys that the filter is about.
const RULES: &str = "keyspaces: [{name: sessions, match: \"s:*\", negativeFilter: {maxKeys: 20000}}]";

/// A pod whose filter answers.
pub fn filtered(subject: &Subject, set: impl Fn(SidecarOptions) -> SidecarOptions) -> Result<World> {
    let world = World::with(subject, 1, |options| set(options).section(RULES))?;
    answers(&world)?;
    Ok(world)
}

/// Waits until the filter answers about keys that nobody has asked for.
pub fn answers(world: &World) -> Result<()> {
    let mut client = world.pod().connect()?;
    let mut key = 0_u32;
    eventually("the filter answers", SOON, || {
        let before = world.pod().sidecar.metric("caddy_filtered_total")?;
        key += 1;
        ensure!(client.ask(&format!("GET s:nobody:{key}"))? == "(nil)", "an absent key");
        let after = world.pod().sidecar.metric("caddy_filtered_total")?;
        ensure!(after > before, "{}", client.ask("CACHE.STATS sessions")?);
        Ok(())
    })?;
    Ok(())
}

/// What is announced comes late: whoever wrote a key, or was shown it, finds it all the same.
pub fn own_writes_are_found_behind_a_filter(subject: &Subject) -> Result<()> {
    let world = filtered(subject, |options| options.max_staleness(LONG).timeout(LONG))?;
    let (mut client, mut other) = (world.pod().connect()?, world.pod().connect()?);
    world.pod().proxy.stall(Class::Announcing, ToClient);
    for (write, read) in [
        ("SET s:1 v", "GET s:1"),
        ("EVAL 'return redis.call(\"SET\", \"s:2\", \"v\")' 0", "GET s:2"),
        ("COPY s:1 s:3", "MGET s:3"),
        ("MSET s:4 v s:5 v", "EXISTS s:4 s:5"),
    ] {
        ensure!(!client.ask(write)?.contains("ERR"), "{write}");
        for session in [&mut client, &mut other] {
            let answer = session.ask(read)?;
            let is_found = answer != "(nil)" && answer != "[(nil)]" && answer != "0";
            must(is_found, format!("read your writes: {write} was answered, then {read} answered {answer}"))?;
        }
    }
    // Shown by a command that leaves no copy; what others wrote.
    ensure!(world.foreign("SET s:6 v")? == "OK" && client.ask("DUMP s:6")? != "(nil)");
    let read = other.ask("GET s:6")?;
    must(read == "v", format!("DUMP s:6 showed a value, then GET s:6 answered {read}"))
}

/// A key that somebody else writes is found once the bound is over, and not because somebody here asked for it before.
pub fn a_foreign_write_is_found_behind_a_filter(subject: &Subject) -> Result<()> {
    let bound = Duration::from_millis(400);
    let world = filtered(subject, |options| options.max_staleness(bound))?;
    let mut client = world.pod().connect()?;
    for key in 0..20 {
        ensure!(world.foreign(&format!("SET s:foreign:{key} v"))? == "OK");
    }
    // Proofs go on meanwhile.
    for _ in 0..8 {
        thread::sleep(bound / 4);
        client.ask("GET s:nobody")?;
    }
    for key in 0..20 {
        let read = client.ask(&format!("GET s:foreign:{key}"))?;
        must(read == "v", format!("s:foreign:{key} is there for longer than {bound:?}, and GET answered {read}"))?;
    }
    Ok(())
}

/// While the connection that announces is held up, the filter says nothing beyond the bound.
pub fn a_filter_that_hears_nothing_says_nothing(subject: &Subject) -> Result<()> {
    let bound = Duration::from_millis(400);
    let world = filtered(subject, |options| options.max_staleness(bound).timeout(LONG))?;
    let mut client = world.pod().connect()?;
    world.pod().proxy.stall(Class::Announcing, ToClient);
    ensure!(world.foreign("SET s:late v")? == "OK");
    thread::sleep(bound + Duration::from_millis(50));
    let read = client.ask("GET s:late")?;
    must(read == "v", format!("s:late is there for longer than {bound:?}, and GET answered {read}"))
}

/// What was written while the connection was lost is found by the filter that is built behind it.
pub fn a_gap_ends_a_filter(subject: &Subject) -> Result<()> {
    let world = filtered(subject, |options| options.max_staleness(LONG).timeout(LONG))?;
    let mut client = world.pod().connect()?;
    let proxy = &world.pod().proxy;
    proxy.refuse(Class::Announcing);
    proxy.cut(Class::Announcing);
    ensure!(world.foreign("SET s:lost v")? == "OK");
    eventually("the loss is seen", SOON, || {
        ensure!(world.pod().sidecar.metric("caddy_negative_filter_active{keyspace=\"sessions\"}")? == 0);
        Ok(())
    })?;
    let read = client.ask("GET s:lost")?;
    must(read == "v", format!("written while nothing was announced: GET answered {read}"))?;
    proxy.accept_again(Class::Announcing);
    ensure!(world.foreign("SET s:lost:2 v")? == "OK");
    answers(&world)?;
    for key in ["s:lost", "s:lost:2"] {
        let read = client.ask(&format!("GET {key}"))?;
        must(read == "v", format!("{key} is there since before the filter was built anew, and GET answered {read}"))?;
    }
    // And it is of use again.
    ensure!(client.ask("MGET s:no:1 s:no:2")? == "[(nil), (nil)]");
    thread::sleep(MOMENT);
    Ok(())
}

/// Everything is gone: that is a gap too, and what is written afterwards is found.
pub fn a_flush_ends_a_filter(subject: &Subject) -> Result<()> {
    let world = filtered(subject, |options| options.max_staleness(Duration::from_millis(400)))?;
    let mut client = world.pod().connect()?;
    for round in 0..5 {
        ensure!(world.foreign("FLUSHALL")? == "OK" && world.foreign(&format!("SET s:{round} v"))? == "OK");
        answers(&world)?;
        eventually("the write is found", SOON, || found(&mut client, round))?;
        answers(&world)?;
        let read = client.ask(&format!("GET s:{round}"))?;
        must(read == "v", format!("s:{round} is there, and GET answered {read}"))?;
    }
    Ok(())
}

fn found(client: &mut Client, round: u32) -> Result<()> {
    ensure!(client.ask(&format!("GET s:{round}"))? == "v");
    Ok(())
}
