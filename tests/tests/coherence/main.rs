//! C1, C3, C4 and C6 on the real sidecar, in front of a real Redis, through a proxy that holds things back.
//!
//! `CADDY_SEED` repeats a random run, `CADDY_SOAK_SECONDS` makes one after the other.

mod breaker;
mod outages;
mod pods;
mod sessions;
mod writes;

use std::{env, time::Duration};

use anyhow::{Context as _, Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_tests::{
    chaos::{self, Run},
    scenarios,
    world::Subject,
};

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() -> anyhow::Result<()> {
            scenarios::$name(&Subject::good())
        }
    )*};
}

scenarios! {
    own_write_is_read_back
    writes_are_seen_by_the_other_worker
    pipelined_read_follows_the_write
    pipelined_read_follows_the_relayed_read
    pipelined_read_follows_the_read_of_many
    pipelined_read_follows_another_read_of_the_key
    pipelined_write_waits_for_the_read
    no_step_back_after_a_relayed_read
    no_step_back_after_a_read_in_a_transaction
    a_write_in_a_transaction_is_read_back
    a_write_while_watching_is_read_back
    a_script_write_is_read_back
    a_script_write_in_a_transaction_is_read_back
    a_swapped_database_is_read_as_it_is
    a_barrier_brings_every_foreign_write
    a_dead_fill_is_not_kept
    a_dead_flight_is_not_joined
    an_old_flight_is_not_joined
    a_loss_kills_every_copy
    tracking_goes_on_after_a_reconnect
    a_half_open_link_keeps_the_bound
    a_late_proof_counts_from_its_sending
    a_copy_expires_with_its_key
    a_replica_proves_nothing
    a_late_write_of_a_lost_relay_is_seen
}

/// How long a random run takes, and how long a soak goes on with one after the other.
const RUN: Duration = Duration::from_secs(12);

fn number(variable: &str) -> Result<Option<u64>> {
    let text = env::var(variable).ok();
    text.map(|text| text.parse().with_context(|| format!("{variable}={text} is not a number"))).transpose()
}

#[test]
fn nothing_is_violated_in_random_runs() -> Result<()> {
    let clock = BootClock;
    let soak = Duration::from_secs(number("CADDY_SOAK_SECONDS")?.unwrap_or(0));
    let mut seed = number("CADDY_SEED")?.unwrap_or_else(|| clock.now().as_nanos() % 1_000_000);
    let started = clock.now();
    loop {
        let summary = chaos::play(&Subject::good(), Run { seed, duration: RUN })?;
        println!("seed {seed}: {summary:?}");
        ensure!(summary.operations > 500, "too little happened to mean anything: {summary:?}");
        ensure!(summary.hits > 100, "too little was answered from copies to mean anything: {summary:?}");
        seed += 1;
        if clock.now().since(started) >= soak {
            return Ok(());
        }
    }
}
