//! `cargo xtask bench`: builds the sidecar as it is released and the load generator, installs the servers to compare with,
//! and lets the generator (`tests/src/bin/bench/`) measure and print what it found.

use std::fs;
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
    let valkey = need::valkey(place, &mut log)?;
    log.run(&mut cargo(place, &["build", "--release", "-p", "caddy-sidecar"]))?;
    log.run(&mut cargo(place, &["build", "--profile", "quick", "-p", "caddy-tests", "--bin", "bench"]))?;
    let binary = place.binary("quick", "bench");
    let mut bench = if let Some((load, servers)) = cores(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        println!("load on core {load}, servers on core {servers}");
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", &load.to_string()]).arg(binary).args(["--server-core", &servers.to_string()]);
        pinned
    } else {
        println!("one core for everything: what is measured is mostly the scheduler");
        Command::new(binary)
    };
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

/// The first and the last core this process may use, from `/proc/self/status`; none when there is only one.
fn cores(status: &str) -> Option<(u32, u32)> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim();
    let mut numbers = list.split([',', '-']).map_while(|number| number.parse().ok());
    let first = numbers.next()?;
    numbers.last().filter(|last| *last != first).map(|last| (first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_and_servers_get_different_cores() {
        assert_eq!(cores("Name:\tx\nCpus_allowed_list:\t0-1\n"), Some((0, 1)));
        assert_eq!(cores("Cpus_allowed_list:\t2,5-7\n"), Some((2, 7)));
        assert_eq!(cores("Cpus_allowed_list:\t3\n"), None);
    }

    #[test]
    fn the_number_of_rounds_is_bounded() {
        assert_eq!(rounds("9").unwrap(), 9);
        assert!(rounds("0").is_err() && rounds("many").is_err());
    }
}
