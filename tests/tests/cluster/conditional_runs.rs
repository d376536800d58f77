//! Conditional writes all at once, in front of a cluster: a key, its lease and its fence are in one slot, its groups and its
//! lock elsewhere. See [`caddy_tests::conditional_run`]; `CADDY_SEED` repeats one run.

use anyhow::{Context as _, Result};
use caddy_tests::{
    conditional_run::{Ground, play},
    world::Subject,
};

#[test]
fn all_at_once_nothing_late_is_stored_in_any_slot() -> Result<()> {
    let seed = std::env::var("CADDY_SEED").map_or(Ok(1), |seed| seed.parse())?;
    Ground::in_front_of_a_cluster(&Subject::good(), |ground| play(ground, seed).with_context(|| format!("seed {seed}")))
}
