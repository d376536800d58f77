//! The coherence promises under every order of steps that a scheduler can find, and the proof that each guard of the
//! kernel is needed: with one guard off, some order breaks a promise.
//!
//! Run with `cargo test --profile quick -p caddy-engine --features shuttle,mutations --test interleavings`. Schedules are drawn from a
//! fixed seed, so a run repeats; a failure prints the history that led to it.

mod alone;
mod groups;
mod in_flight;
mod loads;
mod world;

use std::sync::Arc;
use std::time::Duration;

use caddy_engine::{Guard, Guards};
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};
use world::{Slip, World};

const SEED: u64 = 0x00CA_DD11;

/// What goes on at once.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    /// Operations per worker: reads, and a write or a relayed read now and then.
    operations: usize,
    own_writes: bool,
    relayed_reads: bool,
    foreign_writes: usize,
    /// Own writes whose relay is lost and that execute later.
    lost_writes: usize,
    /// FLUSHALL by a foreigner.
    flushes: usize,
    losses: usize,
    evictions: usize,
    /// Steps that the clock makes.
    ticks: usize,
    /// How long they are, in halves of the bound (and a little).
    halves: u32,
    /// Workers of the first and of the second sidecar.
    workers: [usize; world::SIDECARS],
}

/// No clock: what order alone can break (C1, C3).
const ORDER: Scenario = Scenario {
    operations: 4,
    own_writes: true,
    relayed_reads: true,
    foreign_writes: 2,
    lost_writes: 0,
    flushes: 0,
    losses: 0,
    evictions: 1,
    ticks: 0,
    halves: 1,
    workers: [2, 0],
};

/// The same with a connection that breaks.
const LOSS: Scenario = Scenario { losses: 1, ..ORDER };

/// Time passes (C4). Few other things, so that starved connections are common.
const TIME: Scenario = Scenario {
    operations: 5,
    own_writes: false,
    relayed_reads: false,
    foreign_writes: 1,
    lost_writes: 0,
    flushes: 0,
    losses: 0,
    evictions: 0,
    ticks: 7,
    halves: 1,
    workers: [2, 0],
};

/// A flight grows old: little but that.
const OLD_FLIGHT: Scenario = Scenario { operations: 1, ticks: 1, halves: 2, ..TIME };

/// What writes is the other sidecar, as coherent as this one.
const TWO_SIDECARS: Scenario = Scenario { foreign_writes: 0, workers: [2, 1], ..ORDER };

/// Somebody replaces everything.
const FLUSH: Scenario = Scenario { foreign_writes: 0, flushes: 2, workers: [2, 1], ..ORDER };

/// A write of our own executes after its app was told that nobody knows.
const LOST_WRITE: Scenario = Scenario { foreign_writes: 0, lost_writes: 1, ..TIME };

/// Time passes and the connection breaks.
const TIME_AND_LOSS: Scenario = Scenario { losses: 1, ..TIME };

fn run(scenario: Scenario, guards: Guards, slip: Option<Slip>) -> Option<String> {
    let world = World::new(guards, slip);
    let (mut connection, mut actors) = (Vec::new(), Vec::new());
    for (at, &workers) in scenario.workers.iter().enumerate().filter(|&(_, &workers)| workers > 0) {
        connection.push(spawn(&world, move |world| world.serve(at)));
        connection.push(spawn(&world, move |world| world.receive(at)));
        if slip == Some(Slip::PushNotInline) {
            connection.push(spawn(&world, move |world| world.apply_late_pushes(at)));
        }
        actors.extend((0..workers).map(|_| spawn(&world, move |world| work(world, at, scenario))));
    }
    let others: [(usize, Act); 5] = [
        (scenario.foreign_writes, World::foreign_write),
        (scenario.lost_writes, |world| world.lost_write(0)),
        (scenario.flushes, World::foreign_flush),
        (scenario.losses, |world| world.lose_connection(0)),
        (scenario.evictions, |world| world.evict(0)),
    ];
    for (times, what) in others.into_iter().filter(|&(times, _)| times > 0) {
        actors.push(spawn(&world, move |world| (0..times).for_each(|_| what(world))));
    }
    if scenario.ticks > 0 {
        actors.push(spawn(&world, move |world| {
            for _ in 0..scenario.ticks {
                world.tick(world::MAX_STALENESS / 2 * scenario.halves + Duration::from_millis(1));
                thread::yield_now();
            }
        }));
    }
    for actor in actors {
        actor.join().expect("no thread of the world panics");
    }
    world.close();
    for part in connection {
        part.join().expect("no thread of the world panics");
    }
    world.violation()
}

/// Something that happens to the world.
type Act = fn(&World);

fn spawn(world: &Arc<World>, body: impl FnOnce(&World) + Send + 'static) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || body(&world))
}

fn work(world: &World, at: usize, scenario: Scenario) {
    let mut worker = world.worker(at);
    for _ in 0..scenario.operations {
        match shuttle::rand::thread_rng().gen_range(0..8) {
            0 | 1 if scenario.own_writes => world.write(at),
            2 if scenario.relayed_reads => world.read_past_the_cache(at),
            _ => world.read(at, &mut worker),
        }
    }
}

fn explore(scenario: Scenario, guards: Guards, slip: Option<Slip>, batches: u64) -> Option<String> {
    try_orders(batches, move || run(scenario, guards, slip))
}

/// Tries `batches` batches of random orders, and as many in which threads starve; the first violation found.
fn try_orders(batches: u64, run: impl Fn() -> Option<String> + Send + Sync + Clone + 'static) -> Option<String> {
    let found = Arc::new(parking_lot::Mutex::new(None));
    let body = {
        let found = found.clone();
        move || {
            // The runner cannot be stopped without a panic, so a batch is finished idly once something is found.
            if found.lock().is_none()
                && let Some(violation) = run()
            {
                found.lock().get_or_insert(violation);
            }
        }
    };
    for seed in SEED..SEED + batches {
        Runner::new(RandomScheduler::new_from_seed(seed, BATCH), Config::default()).run(body.clone());
        if found.lock().is_none() {
            Runner::new(PctScheduler::new_from_seed(seed, 4, BATCH), Config::default()).run(body.clone());
        }
        if let Some(violation) = found.lock().take() {
            return Some(format!("seed {seed:#x}: {violation}"));
        }
    }
    None
}

/// Schedules per batch and scheduler.
const BATCH: usize = 200;
/// Batches in which promises must hold.
const BATCHES: u64 = 15;

fn holds(scenario: Scenario) {
    let violation = explore(scenario, Guards::default(), None, BATCHES);
    assert!(violation.is_none(), "{scenario:?}\n{}", violation.unwrap_or_default());
}

fn breaks(scenario: Scenario, guards: Guards, slip: Option<Slip>) {
    let violation = explore(scenario, guards, slip, 20 * BATCHES);
    assert!(violation.is_some(), "no order of steps breaks a promise: the guard is not tested by {scenario:?}");
    println!("{}", violation.unwrap_or_default());
}

#[test]
fn promises_hold_in_every_order_tried() {
    holds(ORDER);
}

#[test]
fn promises_hold_when_the_connection_breaks() {
    holds(LOSS);
}

#[test]
fn the_bound_on_staleness_holds() {
    holds(TIME);
    holds(OLD_FLIGHT);
}

#[test]
fn the_bound_on_staleness_holds_when_the_connection_breaks() {
    holds(TIME_AND_LOSS);
}

#[test]
fn promises_hold_with_a_second_sidecar() {
    holds(TWO_SIDECARS);
    holds(Scenario { losses: 1, ..TWO_SIDECARS });
    holds(Scenario { workers: [2, 1], own_writes: true, ..TIME });
}

#[test]
fn promises_hold_when_everything_is_replaced() {
    holds(FLUSH);
    holds(Scenario { flushes: 1, foreign_writes: 0, ..TIME });
}

#[test]
fn the_bound_on_staleness_holds_when_a_lost_write_executes_late() {
    holds(LOST_WRITE);
}

#[test]
fn without_bumps_promises_break() {
    breaks(ORDER, Guards::without(Guard::Bump), None);
}

#[test]
fn without_fill_tokens_promises_break() {
    breaks(ORDER, Guards::without(Guard::FillToken), None);
}

#[test]
fn when_readers_join_dead_flights_promises_break() {
    breaks(ORDER, Guards::without(Guard::JoinOnlyLiveFlights), None);
}

#[test]
fn when_readers_join_old_flights_the_bound_breaks() {
    breaks(OLD_FLIGHT, Guards::without(Guard::JoinerAgeLimit), None);
}

#[test]
fn without_the_flush_of_a_lost_connection_the_bound_breaks() {
    breaks(TIME_AND_LOSS, Guards::without(Guard::FlushOnLoss), None);
}

#[test]
fn without_the_currency_check_the_bound_breaks() {
    breaks(TIME, Guards::without(Guard::CurrencyCheck), None);
}

#[test]
fn when_proofs_count_from_their_arrival_the_bound_breaks() {
    breaks(TIME, Guards::without(Guard::ProofFromSending), None);
}

#[test]
fn when_the_stamp_is_read_before_the_currency_the_bound_breaks() {
    breaks(TIME, Guards::without(Guard::CurrencyBeforeStamp), None);
}

#[test]
fn when_a_write_is_answered_before_its_bump_promises_break() {
    breaks(ORDER, Guards::default(), Some(Slip::AnswerBeforeBump));
}

#[test]
fn when_another_task_applies_pushes_promises_break() {
    breaks(ORDER, Guards::default(), Some(Slip::PushNotInline));
}

#[test]
fn when_relayed_reads_do_not_bump_promises_break() {
    breaks(ORDER, Guards::default(), Some(Slip::RelayedReadWithoutBump));
}

#[test]
fn when_a_new_connection_does_not_track_the_bound_breaks() {
    breaks(TIME_AND_LOSS, Guards::default(), Some(Slip::NoRetracking));
}

#[test]
fn when_another_task_applies_the_pushes_of_a_second_sidecar_promises_break() {
    breaks(TWO_SIDECARS, Guards::default(), Some(Slip::PushNotInline));
}

#[test]
fn when_the_flush_of_everything_is_not_applied_promises_break() {
    breaks(FLUSH, Guards::default(), Some(Slip::IgnoreFlush));
}

#[test]
fn when_own_writes_are_not_pushed_the_bound_breaks() {
    breaks(LOST_WRITE, Guards::default(), Some(Slip::OwnWritesNotPushed));
}

#[test]
fn when_the_tiers_are_filled_from_own_writes_promises_break() {
    breaks(ORDER, Guards::default(), Some(Slip::PopulateFromWrite));
}

#[test]
fn when_the_tiers_are_filled_over_a_relay_promises_break() {
    breaks(ORDER, Guards::default(), Some(Slip::FillFromRelay));
}
