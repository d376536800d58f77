//! Conditional writes all at once, in front of one server: see [`caddy_tests::conditional_run`]. `CADDY_SEED` repeats one run.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use caddy_tests::{
    conditional_run::{Ground, play},
    redis::{self, RedisServer},
    world::{Subject, World, show},
};

const BOUND: Duration = Duration::from_millis(200);

fn runs(server: &Path) -> Result<()> {
    let seeds = match std::env::var("CADDY_SEED") {
        Ok(seed) => vec![seed.parse()?],
        Err(_) => vec![1, 2],
    };
    for seed in seeds {
        let redis = RedisServer::start_program(server)?;
        let world = World::on(redis, &Subject::good(), 2, |options| options.workers(2).max_staleness(BOUND))?;
        let foreign = |words: &[&str]| Ok(show(&world.redis.command(words)?));
        let ground = Ground {
            sidecars: [&world.pods[0].sidecar, &world.pods[1].sidecar],
            keys: (0..3).map(|n| format!("k{n}")).collect(),
            in_cluster: false,
            foreign: &foreign,
            max_staleness: BOUND,
        };
        play(&ground, seed).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
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
