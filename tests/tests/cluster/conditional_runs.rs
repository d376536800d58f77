//! Conditional writes all at once, in front of a cluster: a key, its lease and its fence are in one slot, its groups and its
//! lock elsewhere. See [`caddy_tests::conditional_run`]; `CADDY_SEED` repeats one run.

use std::time::Duration;

use anyhow::{Context as _, Result};
use caddy_tests::{
    conditional_run::{Ground, play},
    redis_cluster::RedisCluster,
    world::Subject,
};

use super::conditional::ready;

const BOUND: Duration = Duration::from_millis(300);

#[test]
fn all_at_once_nothing_late_is_stored_in_any_slot() -> Result<()> {
    let seed = std::env::var("CADDY_SEED").map_or(Ok(1), |seed| seed.parse())?;
    let cluster = RedisCluster::start(3)?;
    let start = || Subject::good().cluster_options(&cluster).max_staleness(BOUND).workers(2).start();
    let sidecars = [start()?, start()?];
    for sidecar in &sidecars {
        ready(sidecar)?;
    }
    let foreign = |words: &[&str]| cluster.request(words);
    let ground = Ground {
        sidecars: [&sidecars[0], &sidecars[1]],
        keys: (0..3).map(|n| cluster.key_of(n, n)).collect(),
        in_cluster: true,
        foreign: &foreign,
        max_staleness: BOUND,
    };
    play(&ground, seed).with_context(|| format!("seed {seed}"))
}
