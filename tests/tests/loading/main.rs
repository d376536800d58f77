//! Reading through to a store over a socket: a real sidecar, a real Redis, a real PostgreSQL and a real HTTP origin.

mod cluster;
mod examples;
mod outages;
mod reads;

use anyhow::Result;
use caddy_tests::{load_scenarios, world::Subject};

#[test]
fn a_delete_during_a_load_is_not_undone() -> Result<()> {
    load_scenarios::a_delete_during_a_load_is_not_undone(&Subject::good())
}

#[test]
fn a_delete_in_a_transaction_during_a_load_is_not_undone() -> Result<()> {
    load_scenarios::a_delete_in_a_transaction_during_a_load_is_not_undone(&Subject::good())
}

#[test]
fn a_foreign_write_during_a_load_stays() -> Result<()> {
    load_scenarios::a_foreign_write_during_a_load_stays(&Subject::good())
}

#[test]
fn a_dead_load_is_not_joined() -> Result<()> {
    load_scenarios::a_dead_load_is_not_joined(&Subject::good())
}
