//! C7 of negative filters: stories, and random writers beside them with lost connections and emptied databases.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_tests::{
    filter_scenarios::{self, answers, filtered},
    proxy::Class,
    world::{Client, Subject, must},
};

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() -> anyhow::Result<()> {
            filter_scenarios::$name(&Subject::good())
        }
    )*};
}

scenarios! {
    own_writes_are_found_behind_a_filter
    a_foreign_write_is_found_behind_a_filter
    a_filter_that_hears_nothing_says_nothing
    a_gap_ends_a_filter
    a_flush_ends_a_filter
}

const BOUND: Duration = Duration::from_millis(300);
const KEYS: u64 = 40;
const RUN: Duration = Duration::from_secs(6);

/// A writer beside the sidecar lets keys come and go, each with the moment from which it is there for good until it is
/// removed; readers ask for them; the filter's connection is cut, and the database emptied, now and then.
#[test]
fn no_reader_misses_what_is_there_in_random_runs() -> Result<()> {
    let world = filtered(&Subject::good(), |options| options.max_staleness(BOUND).workers(2))?;
    let clock = BootClock;
    let (over, state) = (AtomicBool::new(false), (0..KEYS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    // Nanoseconds since boot at which its SET was answered; 0: it may be absent.
    let (over, state, world) = (&over, &state, &world);
    let (mut reads, mut absent) = (0_u64, 0_u64);
    thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(move || -> Result<()> {
            let mut redis = Client(world.redis.connect()?);
            let mut random = 7_u64;
            while !over.load(Ordering::Relaxed) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (key, what) = ((random >> 33) % KEYS, (random >> 20) % 100);
                let since = &state[key as usize];
                match what {
                    0 => {
                        for since in state {
                            since.store(0, Ordering::SeqCst);
                        }
                        redis.ask("FLUSHALL")?;
                    }
                    1 => world.pod().proxy.cut(Class::Announcing),
                    2..50 => {
                        since.store(0, Ordering::SeqCst);
                        redis.ask(&format!("DEL s:{key}"))?;
                    }
                    _ => {
                        redis.ask(&format!("SET s:{key} v"))?;
                        if since.load(Ordering::SeqCst) == 0 {
                            since.store(clock.now().as_nanos(), Ordering::SeqCst);
                        }
                    }
                }
                thread::sleep(Duration::from_millis(3));
            }
            Ok(())
        });
        let mut client = world.pod().connect()?;
        let begun = clock.now();
        let read = (|| -> Result<()> {
            while clock.now().since(begun) < RUN {
                let key = reads % KEYS;
                reads += 1;
                let since = state[key as usize].load(Ordering::SeqCst);
                let asked = clock.now();
                let answer = client.ask(&format!("GET s:{key}"))?;
                let was_there = since != 0 && state[key as usize].load(Ordering::SeqCst) == since;
                let for_long = was_there && asked.as_nanos().saturating_sub(since) > BOUND.as_nanos() as u64;
                must(answer == "v" || !for_long, format!("s:{key} is there for longer than the bound: {answer}"))?;
                absent += u64::from(answer == "(nil)");
            }
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        writer.join().ok().context("the writer panicked")??;
        read
    })?;
    ensure!(reads > 300 && absent > 30, "too little happened to mean anything: {reads} reads, {absent} absent");
    answers(world)?;
    ensure!(world.pod().sidecar.metric("caddy_negative_filter_builds_total{keyspace=\"sessions\"}")? > 2);
    Ok(())
}
