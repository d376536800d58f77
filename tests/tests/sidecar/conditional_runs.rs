//! Conditional writes all at once, in front of one server: see [`caddy_tests::conditional_run`]. `CADDY_SEED` repeats one run.

use std::path::Path;

use anyhow::{Context as _, Result};
use caddy_tests::{
    conditional_run::{Ground, play},
    redis,
    world::Subject,
};

fn runs(server: &Path) -> Result<()> {
    let seeds = match std::env::var("CADDY_SEED") {
        Ok(seed) => vec![seed.parse()?],
        Err(_) => vec![1, 2],
    };
    seeds.into_iter().try_for_each(|seed| {
        let run = |ground: &Ground<'_>| play(ground, seed).with_context(|| format!("seed {seed}"));
        Ground::in_front_of(&Subject::good(), server, run)
    })
}

#[test]
fn all_at_once_nothing_late_is_stored() -> Result<()> {
    runs(&redis::program()?)
}

#[test]
fn all_at_once_nothing_late_is_stored_in_a_valkey() -> Result<()> {
    let Some(server) = redis::valkey() else {
        println!("skipped: {}", redis::NO_VALKEY);
        return Ok(());
    };
    runs(&server)
}
