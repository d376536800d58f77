//! `cargo xtask bench`: builds the sidecar as it is released and the load generator, installs the servers to compare with,
//! and lets the generator (`tests/src/bin/bench.rs`) measure and print its one table.

use std::process::Command;

use crate::checks::cargo;
use crate::failed::{Failed, Result, Step};
use crate::log::Log;
use crate::need;
use crate::place::Place;

/// Rounds per row: enough for a median that a neighbour's burst does not move.
pub(crate) const DEFAULT_ROUNDS: u32 = 7;
/// Beyond this a run takes hours.
const MAX_ROUNDS: u32 = 1000;

/// Reads the number of rounds.
pub(crate) fn rounds(text: &str) -> Result<u32> {
    let rounds: u32 = text.parse().step(format!("ROUNDS is a number, not `{text}`"))?;
    if (1..=MAX_ROUNDS).contains(&rounds) {
        Ok(rounds)
    } else {
        Err(Failed::new(format!("ROUNDS lies in 1..={MAX_ROUNDS}")))
    }
}

/// Runs the benchmark.
pub(crate) fn run(place: &Place, rounds: u32) -> Result {
    println!(
        "cargo xtask bench: builds the release sidecar first; log in {}",
        place.logs().join("bench.log").display()
    );
    let mut log = Log::create(place.logs().join("bench.log"))?;
    need::programs(&mut log, need::REDIS)?;
    let valkey = need::valkey(&mut log)?;
    log.run(&mut cargo(place, &["build", "--release", "-p", "caddy-sidecar"]))?;
    log.run(&mut cargo(place, &["build", "--profile", "quick", "-p", "caddy-tests", "--bin", "bench"]))?;
    let mut bench = Command::new(place.binary("quick", "bench"));
    bench.arg("--sidecar").arg(place.binary("release", "caddy-sidecar"));
    bench.arg("--redis").arg(need::which("redis-server").unwrap_or_else(|| "redis-server".into()));
    match &valkey {
        Some(valkey) => {
            bench.arg("--valkey").arg(valkey);
        }
        None => println!("valkey-server: not packaged for this release, left out"),
    }
    bench.args(["--rounds", &rounds.to_string()]);
    let status = bench.status().step("start the load generator")?;
    if status.success() { Ok(()) } else { Err(Failed::new(format!("the load generator ended with {status}"))) }
}
