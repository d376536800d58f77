//! A sidecar in front of one Redis against an identical Redis asked directly: the same random streams of commands get the
//! same replies and leave the same data.
//!
//! `CADDY_SEED` repeats a stream, `CADDY_SOAK_SECONDS` makes one after the other. A failure says which stream, and the
//! fewest of its steps that still differ.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod compare;
mod plan;
mod replay;
mod templates;

use std::{collections::BTreeSet, env, fmt::Write as _, time::Duration};

use caddy_engine::{BootClock, Clock as _, Moment};
use caddy_sidecar::commands::rows;
use caddy_tests::redis;

use crate::{
    plan::{Known, Step, plan},
    replay::{Difference, World},
};

/// What the sidecar makes of an app's strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    Plain,
    /// Envelopes: by the rule of their keyspace, or by the command that writes them. The others are plain.
    Tagged,
}

/// Steps of one stream.
const LENGTH: usize = 200;
/// How long one test goes on with another stream.
const BUDGET: Duration = Duration::from_secs(9);
/// How long the shortest failing stream is looked for.
const SHRINKING: Duration = Duration::from_mins(1);

#[test]
fn one_worker_answers_as_redis_does() {
    differ(&redis::program().unwrap(), 1, Values::Plain);
}

#[test]
fn two_workers_answer_as_redis_does() {
    differ(&redis::program().unwrap(), 2, Values::Plain);
}

#[test]
fn values_with_tags_are_answered_as_redis_answers_plain_ones() {
    differ(&redis::program().unwrap(), 2, Values::Tagged);
}

#[test]
fn two_workers_answer_as_valkey_does() {
    match redis::valkey() {
        Some(program) => {
            differ(&program, 2, Values::Plain);
            differ(&program, 2, Values::Tagged);
        }
        None => println!("skipped: {}", redis::NO_VALKEY),
    }
}

#[test]
fn every_command_of_the_table_is_tried_or_left_out_for_a_reason() {
    let known = Known { dumps: vec![Vec::new()], sha: Vec::new() };
    let mut tried: BTreeSet<String> = templates::UNTRIED.iter().map(|(name, _)| (*name).to_owned()).collect();
    for step in plan(1, 20_000, Values::Plain, &known) {
        tried.extend(step.requests().map(|request| String::from_utf8_lossy(&request[0]).to_lowercase()));
    }
    let table = rows().filter(|row| row.since == "7.0").map(|row| row.name.to_owned());
    let missing: Vec<String> = table.filter(|name| !tried.contains(name)).collect();
    assert!(missing.is_empty(), "neither tried nor left out: {missing:?}");
}

/// Streams on servers of this program, until the time is over.
fn differ(program: &std::path::Path, workers: u32, values: Values) {
    let clock = BootClock;
    let budget = number("CADDY_SOAK_SECONDS").map_or(BUDGET, Duration::from_secs);
    let given = number("CADDY_SEED");
    let mut seed = given.unwrap_or_else(|| clock.now().as_nanos() % 1_000_000);
    let mut world = World::start(program, workers, values).unwrap();
    let started = clock.now();
    let mut streams = 0;
    loop {
        let steps = plan(seed, LENGTH, values, &world.known);
        let stream = format!("CADDY_SEED={seed}, {values:?} values, {workers} worker(s), {}", program.display());
        let difference = world.replay(&steps).unwrap_or_else(|error| panic!("{stream}: {error:#}"));
        if let Some(difference) = difference {
            let report = report(&mut world, steps, &difference, clock.now());
            panic!("{stream}: {report}\nThe sidecar said:\n{}", world.log());
        }
        streams += 1;
        if given.is_some() || clock.now().since(started) >= budget {
            break;
        }
        seed += 1;
    }
    let (gets, hits) = (world.gets, world.hits().unwrap());
    println!("{streams} streams up to seed {seed}, {} requests, {gets} GETs, {hits} hits", world.requests);
    // Else nothing was compared but Redis with itself.
    assert!(hits * 3 >= gets, "up to seed {seed} only {hits} of {gets} reads were answered from copies");
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text}")))
}

/// What differed, and the fewest steps that still do.
fn report(world: &mut World, mut steps: Vec<Step>, first: &Difference, started: Moment) -> String {
    let mut last = first.clone();
    steps.truncate(last.step + 1);
    let mut size = steps.len().div_ceil(2);
    loop {
        let mut at = 0;
        let before = steps.len();
        while at < steps.len() {
            if BootClock.now().since(started) > SHRINKING {
                return describe(first, &steps, &last);
            }
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(fewer.len()));
            match world.replay(&fewer).ok().flatten() {
                Some(difference) => {
                    fewer.truncate(difference.step + 1);
                    (steps, last) = (fewer, difference);
                }
                None => at += size,
            }
        }
        if size == 1 && steps.len() == before {
            break;
        }
        size = size.div_ceil(2);
    }
    thin(world, &mut steps, &mut last, started);
    describe(first, &steps, &last)
}

/// Takes requests out of pipelines.
fn thin(world: &mut World, steps: &mut Vec<Step>, last: &mut Difference, started: Moment) {
    for at in (0..steps.len()).rev() {
        let mut number = 0;
        while BootClock.now().since(started) < SHRINKING {
            let mut fewer = steps.clone();
            let Some(Step::Pipeline { requests, .. }) = fewer.get_mut(at) else { break };
            if number >= requests.len() || requests.len() == 1 {
                break;
            }
            requests.remove(number);
            match world.replay(&fewer).ok().flatten() {
                Some(difference) => (*steps, *last) = (fewer, difference),
                None => number += 1,
            }
        }
    }
}

fn describe(first: &Difference, steps: &[Step], last: &Difference) -> String {
    let mut text = format!("step {} differs: {}\nThe shortest stream found that differs:\n", first.step, first.what);
    for (number, step) in steps.iter().enumerate() {
        let _ = writeln!(text, "  {number}: {}", replay::show_step(step));
    }
    let _ = write!(text, "and there: {}", last.what);
    text
}
