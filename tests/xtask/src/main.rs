//! The project's commands, as `cargo xtask <command>`. They depend on nothing but the standard library, so that their
//! first line appears seconds after a cold start; whatever else a command needs is built or installed by its stages.
//! Fails with exit code 1 and the names of the stages that failed.

mod again;
mod bench;
mod chart;
mod checks;
mod clock;
mod cluster;
mod demo;
mod failed;
mod log;
mod need;
mod place;
mod stage;
mod test;

use std::process::ExitCode;

use failed::{Failed, Result};
use place::Place;

const HELP: &str = "\
cargo xtask <command>

  test [--quick] [--soak] [FILTER]   all tests, the end-to-end ones on a local Kubernetes included; installs what they
                                     need. --quick: no node, at most 5 minutes once built. --soak: the long-running ones
                                     too. FILTER: only tests whose name contains it, and no node
  demo [--no-pods]                   act one: a Redis and two sidecars here; act two: the same story in pods
  bench [ROUNDS]                     sidecar against redis-server (and valkey-server where packaged), one table
  cluster up|down|status             a local Kubernetes for your own trials
  image [NAME:TAG]                   an OCI archive of the sidecar and the operator in target/image, no Docker needed
  crds                               writes the generated CRD files again
  fmt | lint                         what CI runs before the tests
  help

Downloads and client libraries are kept in $CADDY_CACHE, by default ~/.cache/caddy-cache. Only what is missing is
installed; that needs root (apt-get), and so does the local Kubernetes.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&Place::find(), &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(place: &Place, arguments: &[&str]) -> Result {
    match *arguments {
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        ["test", ref rest @ ..] => test::run(place, &test::Options::parse(rest)?),
        ["demo"] => demo::run(place, demo::Acts::Both),
        ["demo", "--no-pods"] => demo::run(place, demo::Acts::One),
        ["bench"] => bench::run(place, bench::DEFAULT_ROUNDS),
        ["bench", rounds] => bench::run(place, bench::rounds(rounds)?),
        ["cluster", ref rest @ ..] => cluster::by_hand(place, rest),
        ["image"] => cluster::image(place, None),
        ["image", name] => cluster::image(place, Some(name)),
        ["crds"] => checks::crds(place),
        ["fmt"] => checks::fmt(place),
        ["lint"] => checks::lint(place),
        _ => Err(Failed::new(format!("unknown command `{}`; `cargo xtask help` lists them", arguments.join(" ")))),
    }
}
