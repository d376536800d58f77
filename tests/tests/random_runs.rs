//! C1, C3 and C4 in random runs: three sidecars with two workers each, clients on all of them and writers beside them,
//! faults all the time, and a checker of what everybody saw.
//!
//! `CADDY_SEED` repeats a run, `CADDY_SOAK_SECONDS` makes one after the other.

use std::time::Duration;

use anyhow::Result;
use caddy_tests::{
    chaos::{self, Alone, Overflowing, Sharded, Watched},
    redis,
    redis_cluster::{Plan, RedisCluster},
    world::Subject,
};

const SHORT: Duration = Duration::from_secs(6);
/// Where failovers take their time.
const LONGER: Duration = Duration::from_secs(9);

#[test]
fn nothing_is_violated_while_connections_break() -> Result<()> {
    let server = redis::program()?;
    chaos::runs(SHORT, |seed| Alone::start(&Subject::good(), &server, seed))
}

#[test]
fn nothing_is_violated_while_redis_closes_who_does_not_read() -> Result<()> {
    let server = redis::program()?;
    chaos::runs(SHORT, |seed| Overflowing::start(&Subject::good(), &server, seed))
}

#[test]
fn nothing_is_violated_in_front_of_valkey() -> Result<()> {
    let Some(server) = redis::valkey() else {
        println!("skipped: {}", redis::NO_VALKEY);
        return Ok(());
    };
    chaos::runs(SHORT, |seed| Alone::start(&Subject::good(), &server, seed))
}

#[test]
fn nothing_is_violated_under_broadcast() -> Result<()> {
    let server = redis::program()?;
    let subject = Subject::good().consistency("coherence: Broadcast");
    chaos::runs(SHORT, |seed| Alone::start(&subject, &server, seed))
}

#[test]
fn nothing_is_violated_under_ttl() -> Result<()> {
    let server = redis::program()?;
    let subject = Subject::good().consistency("coherence: Ttl");
    chaos::runs(SHORT, |seed| Alone::start(&subject, &server, seed))
}

#[test]
fn nothing_is_violated_while_sentinels_fail_over() -> Result<()> {
    chaos::runs(LONGER, |seed| Watched::start(&Subject::good(), seed))
}

/// In front of three primaries with replicas.
fn sharded(plan: &Plan) -> Result<()> {
    chaos::runs(LONGER, |seed| Sharded::start(&Subject::good(), RedisCluster::with_plan(plan)?, seed))
}

#[test]
fn nothing_is_violated_while_slots_and_roles_change_hands() -> Result<()> {
    sharded(&Plan { program: redis::program()?, primaries: 3, replicas: true, tls: false })
}

#[test]
fn nothing_is_violated_in_a_cluster_behind_tls() -> Result<()> {
    sharded(&Plan { program: redis::program()?, primaries: 3, replicas: true, tls: true })
}

#[test]
fn nothing_is_violated_in_a_cluster_of_valkeys() -> Result<()> {
    let Some(program) = redis::valkey() else {
        println!("skipped: {}", redis::NO_VALKEY);
        return Ok(());
    };
    sharded(&Plan { program, primaries: 3, replicas: true, tls: false })
}
