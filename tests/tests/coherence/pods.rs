//! Several sidecars on one Redis: what is written in one, or past all of them, is seen in each.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use caddy_engine::{BootClock, Clock as _, Moment};
use caddy_tests::world::{Client, LONG, Subject, World};

const BOUND: Duration = Duration::from_millis(200);

/// Two pods with two workers each, and sessions on every worker: `[pod][worker]`.
fn two_pods(bound: Duration) -> Result<(World, Vec<Vec<Client>>)> {
    let world = World::with(&Subject::good(), 2, |options| options.workers(2).max_staleness(bound))?;
    // Connections are given to the workers in turn.
    let sessions = world.pods.iter().map(|pod| (0..2).map(|_| pod.connect()).collect()).collect::<Result<_>>()?;
    Ok((world, sessions))
}

#[test]
fn a_write_in_one_pod_is_seen_in_the_other_at_once_behind_a_barrier() -> Result<()> {
    let (_world, mut sessions) = two_pods(LONG)?;
    for round in 0..60 {
        let value = round.to_string();
        let (writer, reader) = (round % 2, (round + 1) % 2);
        ensure!(sessions[writer][0].ask(&format!("SET k {value}"))? == "OK", "SET");
        sessions[reader][round % 2].barrier()?;
        for session in sessions.iter_mut().flatten() {
            let read = session.ask("GET k")?;
            ensure!(
                read == value,
                "round {round}: {read} was read after {value} had been written and a barrier passed"
            );
        }
    }
    Ok(())
}

/// Reads until the value is there; a read that was asked for after the bound had passed must show it.
fn seen_within(client: &mut Client, key: &str, value: &str, written: Moment, bound: Duration) -> Result<()> {
    loop {
        let asked = BootClock.now();
        let read = client.ask(&format!("GET {key}"))?;
        if read == value {
            return Ok(());
        }
        let late = asked.since(written);
        ensure!(late <= bound, "{read} was read {late:?} after {value} had been written, the bound being {bound:?}");
    }
}

#[test]
fn a_write_is_seen_everywhere_within_the_bound() -> Result<()> {
    let (world, mut sessions) = two_pods(BOUND)?;
    for round in 0..60 {
        let value = round.to_string();
        let answered = match round % 3 {
            0 => sessions[0][1].ask(&format!("SET k {value}"))?,
            1 => sessions[1][0].ask(&format!("SET k {value}"))?,
            _ => world.foreign(&format!("SET k {value}"))?,
        };
        let written = BootClock.now();
        ensure!(answered == "OK", "SET answers {answered}");
        for session in sessions.iter_mut().flatten() {
            seen_within(session, "k", &value, written, BOUND)?;
        }
    }
    Ok(())
}

#[test]
fn everything_is_seen_gone_after_a_flush() -> Result<()> {
    let (world, mut sessions) = two_pods(LONG)?;
    for flush_in_pod in [true, false] {
        ensure!(world.foreign("MSET a 1 b 2")? == "OK", "MSET");
        for session in sessions.iter_mut().flatten() {
            session.barrier()?;
            ensure!(session.pipeline(&["GET a", "GET b"])? == ["1", "2"], "GET");
        }
        let answer = if flush_in_pod { sessions[0][0].ask("FLUSHALL")? } else { world.foreign("FLUSHALL")? };
        ensure!(answer == "OK", "FLUSHALL answers {answer}");
        if flush_in_pod {
            let read = sessions[0][1].ask("GET a")?;
            ensure!(read == "(nil)", "the pod that flushed reads {read}");
        }
        for session in sessions.iter_mut().flatten() {
            session.barrier()?;
            let read = session.pipeline(&["GET a", "GET b"])?;
            ensure!(read == ["(nil)", "(nil)"], "after FLUSHALL (in a pod: {flush_in_pod}) {read:?} is read");
        }
    }
    Ok(())
}

#[test]
fn a_write_to_a_key_known_to_be_absent_is_seen() -> Result<()> {
    let (world, mut sessions) = two_pods(LONG)?;
    for session in sessions.iter_mut().flatten() {
        ensure!(session.pipeline(&["GET k", "GET k"])? == ["(nil)", "(nil)"], "GET of an absent key");
    }
    ensure!(sessions[0][0].why("k", "served")? == "yes", "an absent key is cached as such");
    ensure!(world.foreign("SET k v")? == "OK", "SET");
    for session in sessions.iter_mut().flatten() {
        session.barrier()?;
        let read = session.ask("GET k")?;
        ensure!(read == "v", "a key that was absent is read as {read} after it was written");
    }
    Ok(())
}

#[test]
fn the_time_to_live_is_never_longer_than_in_redis() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let mut client = world.pod().connect()?;
    for life in [400, 1500] {
        ensure!(world.foreign(&format!("SET k v PX {life}"))? == "OK", "SET");
        let end = BootClock.now() + Duration::from_millis(life);
        client.barrier()?;
        loop {
            let before: i64 = world.foreign("PTTL k")?.parse()?;
            let asked = BootClock.now();
            let (value, ttl) = (client.ask("GET k")?, client.ask("PTTL k")?);
            let ttl: i64 = ttl.parse()?;
            // A millisecond of rounding; what Redis said before is more than what it would say now.
            ensure!(ttl <= before.max(-2) + 1, "PTTL is {ttl} in the pod after it was {before} in Redis");
            if value == "(nil)" {
                break;
            }
            ensure!(asked <= end, "{value} was read {:?} after its end", asked.since(end));
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
