//! The stores are down for a while under load: reads go on, old and marked; writes queue to the bound and are then refused; nothing
//! that was acknowledged is lost; and when the stores are back, each key is loaded once.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    origin::Origin,
    sidecar::Sidecar,
    world::{LONG, SOON},
};
use tokio::runtime::Runtime;

use super::world::{World, client, history_is_in_order, stat};

const PODS: usize = 2;
/// Keys that are read.
const KEYS: usize = 40;
/// Keys that each pod writes: more than its queue holds.
const WRITTEN: usize = 500;
const ROOM: i64 = 300;
/// A PostgreSQL that has just begun may be too slow for a try or two, which have 30 s each.
const RECOVERY: Duration = Duration::from_secs(110);
/// Calls of a sidecar at a time.
const CALLS: usize = 8;

/// How long the stores are down: a minute in a soak.
fn outage() -> Duration {
    if std::env::var_os("CADDY_SOAK_SECONDS").is_some() { Duration::from_mins(1) } else { Duration::from_secs(6) }
}

/// What has happened so far.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    fresh: AtomicUsize,
    stale: AtomicUsize,
    taken: AtomicUsize,
    refused: AtomicUsize,
    /// Whole rounds of reads without an old value, in a row, of each pod.
    rounds: [AtomicUsize; PODS],
}

/// Reads all keys, again and again.
fn read(sidecar: &Sidecar, seen: &Seen, rounds: &AtomicUsize) -> Result<()> {
    let mut app = client(sidecar)?;
    app.ask("HELLO 3")?;
    while !seen.over.load(Ordering::SeqCst) {
        let mut is_fresh = true;
        for key in 0..KEYS {
            let answer = app.ask(&format!("GET profile:{key}"))?;
            if answer == format!("{{stale: true}} value {key}") {
                seen.stale.fetch_add(1, Ordering::SeqCst);
                is_fresh = false;
            } else {
                ensure!(answer == format!("value {key}"), "profile:{key}: {answer}");
                seen.fresh.fetch_add(1, Ordering::SeqCst);
            }
        }
        if is_fresh {
            rounds.fetch_add(1, Ordering::SeqCst);
        } else {
            rounds.store(0, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// Writes numbers that grow; what was acknowledged last, by key.
fn write(sidecar: &Sidecar, seen: &Seen, pod: usize) -> Result<BTreeMap<String, usize>> {
    let (mut app, mut acknowledged) = (client(sidecar)?, BTreeMap::new());
    for number in 1.. {
        if seen.over.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("user:{pod}:{}", number % WRITTEN);
        let answer = app.ask(&format!("SET {key} {number}"))?;
        if answer == "OK" {
            acknowledged.insert(key, number);
            seen.taken.fetch_add(1, Ordering::SeqCst);
        } else {
            ensure!(answer.contains("STOREERR") && answer.contains("nothing was written"), "{key}: {answer}");
            seen.refused.fetch_add(1, Ordering::SeqCst);
        }
    }
    Ok(acknowledged)
}

fn comes_to(what: &str, counter: &AtomicUsize, least: usize) -> Result<()> {
    comes_to_within(what, SOON, counter, least)
}

fn comes_to_within(what: &str, time: Duration, counter: &AtomicUsize, least: usize) -> Result<()> {
    let before = counter.load(Ordering::SeqCst);
    eventually(what, time, || {
        let more = counter.load(Ordering::SeqCst).saturating_sub(before);
        ensure!(more >= least, "{more} of {least}");
        Ok(())
    })
    .map(drop)
}

#[test]
fn through_an_outage_under_load_reads_go_on_writes_wait_and_nothing_is_lost() -> Result<()> {
    let runtime = Runtime::new()?;
    let origin = runtime.block_on(Origin::start())?;
    (0..KEYS).for_each(|key| origin.set(&format!("/profile%3A{key}"), &format!("value {key}")));
    origin.cache_control(Some("max-age=1"));
    let mut world = World::start()?;
    let section = super::world::section(
        &world.postgres,
        &format!("strategy: WriteBehind, writeBehind: {{flushInterval: 20ms, maxRecords: {ROOM}, maxWait: 200ms}}"),
    );
    // A server that is down refuses at once; one that has just begun, beside all that asks here, may need its time.
    let section = section.replace("timeout: 2s", "timeout: 30s");
    let store = format!(
        "stores:\n- name: profiles\n  maxConcurrent: {CALLS}\n  breaker: {{failures: 3, pause: 300ms}}\n  \
         http: {{url: \"{}/{{key}}\", timeout: 30s, retries: 0}}\n",
        origin.url()
    );
    let rule = "- {name: profiles, match: \"profile:*\", strategy: ReadThrough, store: profiles, ttl: 1h, jitterPercent: 0, \
                staleIfError: 1h, hardTimeout: 1m}\n";
    let section = format!("{}{rule}", section.replace("stores:\n", &store));
    let start = |_| {
        caddy_tests::sidecar::SidecarOptions::redis(world.redis.socket()).max_staleness(LONG).section(&section).start()
    };
    let sidecars = (0..PODS).map(start).collect::<Result<Vec<_>>>()?;
    let seen = Seen::default();
    let acknowledged = thread::scope(|scope| -> Result<Vec<BTreeMap<String, usize>>> {
        let pods = || sidecars.iter().enumerate();
        let readers: Vec<_> = pods()
            .map(|(pod, sidecar)| {
                let seen = &seen;
                scope.spawn(move || read(sidecar, seen, &seen.rounds[pod]))
            })
            .collect();
        let writers: Vec<_> = pods()
            .map(|(pod, sidecar)| {
                let seen = &seen;
                scope.spawn(move || write(sidecar, seen, pod))
            })
            .collect();
        let played = play(&mut world, &origin, &sidecars, &seen);
        seen.over.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for reader in readers {
            reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        }
        for writer in writers {
            all.push(writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??);
        }
        played.map(|()| all)
    })?;
    for sidecar in &sidecars {
        let mut app = client(sidecar)?;
        eventually("what waited is stored", RECOVERY, || {
            let waiting = stat(&mut app, "behind_records")?;
            ensure!(waiting == 0, "{waiting} writes wait");
            Ok(())
        })?;
    }
    let rows = world.rows()?;
    let rows: BTreeMap<&str, &str> = rows.iter().filter_map(|row| row.split_once('=')).collect();
    for (key, number) in acknowledged.iter().flatten() {
        let row = rows.get(key.as_str()).copied().unwrap_or("absent");
        ensure!(row == number.to_string(), "{key} was acknowledged as {number}, and the store has {row}");
    }
    history_is_in_order(&world.postgres)
}

fn play(world: &mut World, origin: &Origin, sidecars: &[Sidecar], seen: &Seen) -> Result<()> {
    comes_to("reads while all is well", &seen.fresh, 20 * KEYS)?;
    comes_to("writes while all is well", &seen.taken, 200)?;

    origin.fail_with(|_| Some(503));
    world.postgres.stop()?;
    let before = origin.requests();
    thread::sleep(outage());
    comes_to("old values", &seen.stale, 20 * KEYS)?;
    comes_to("refusals", &seen.refused, 3)?;
    for sidecar in sidecars {
        let waiting = stat(&mut client(sidecar)?, "behind_records")?;
        ensure!(waiting <= ROOM, "{waiting} writes wait");
    }
    let asked = origin.requests() - before;
    ensure!(asked < seen.stale.load(Ordering::SeqCst), "the store was asked {asked} times");

    // From now on one load is enough for each key.
    origin.cache_control(Some("max-age=3600"));
    origin.most_at_once();
    let before = origin.requests();
    origin.recover();
    world.postgres.restart()?;
    for rounds in &seen.rounds {
        comes_to("nothing but fresh values", rounds, 5)?;
    }
    comes_to_within("writes", RECOVERY, &seen.taken, 200)?;
    let (loads, at_once) = (origin.requests() - before, origin.most_at_once());
    println!("{loads} loads of {KEYS} keys behind the outage, {at_once} at once");
    ensure!(2 * loads <= 3 * KEYS, "{loads} loads of {KEYS} keys");
    ensure!(at_once <= PODS * CALLS, "{at_once} at once");
    Ok(())
}
