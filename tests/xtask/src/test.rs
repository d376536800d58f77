//! `cargo xtask test`: which tests run, in which order, and what they find in their environment. One build profile for
//! all of them and for the image, and always the whole workspace (one package alone would choose other features of its
//! dependencies), so that little is compiled twice.

use std::process::Command;

use crate::again;
use crate::chart;
use crate::checks::cargo;
use crate::cluster::{self, Binaries, Which};
use crate::failed::{Failed, Result};
use crate::log::Log;
use crate::need::{self, Clients};
use crate::place::Place;
use crate::stage::{self, Lane, Outcome, Stage};

/// How long each random run of `--soak` goes on unless `CADDY_SOAK_SECONDS` says otherwise.
const SOAK_SECONDS: &str = "600";
/// How long write-behind is killed in a `--soak`, for each durability, and its store is down under load.
const CRASH_SECONDS: &str = "60";

/// Which tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    quick: bool,
    soak: bool,
    filter: Option<String>,
}

impl Options {
    /// Reads what follows `test`.
    pub(crate) fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        for argument in arguments {
            match *argument {
                "--quick" => options.quick = true,
                "--soak" => options.soak = true,
                flag if flag.starts_with('-') => {
                    return Err(Failed::new(format!("`test` does not know {flag}; it knows --quick and --soak")));
                }
                filter if options.filter.is_none() => options.filter = Some(filter.to_owned()),
                more => return Err(Failed::new(format!("`test` takes one FILTER; `{more}` is a second one"))),
            }
        }
        Ok(options)
    }

    fn everything(&self) -> bool {
        !self.quick && self.filter.is_none()
    }
}

/// Runs the tests.
pub(crate) fn run(place: &Place, options: &Options) -> Result {
    let title = if options.quick { "cargo xtask test --quick" } else { "cargo xtask test" };
    let mut plan = basic(place, options);
    if options.everything() {
        plan.extend(on_a_node(place));
        plan.extend(more(place));
    }
    if options.soak {
        let place = place.clone();
        plan.push(Stage::new(Lane::Cargo, "soak", move |log| soak(&place, log)).after(&["packages", "build"]));
    }
    stage::run(title, &place.logs(), plan)
}

/// Unit, property and integration tests with a real Redis and the snippets' clients.
fn basic(place: &Place, options: &Options) -> Vec<Stage> {
    let (build, tests, clients) = (place.clone(), place.clone(), place.clone());
    let filter = options.filter.clone();
    vec![
        Stage::new(Lane::Side, "packages", |log| {
            need::programs(log, &[need::REDIS, need::POSTGRES, need::LANGUAGES].concat())
        }),
        Stage::new(Lane::Side, "client libraries", move |log| {
            let installed = Clients::of(&clients).install(&clients, log)?;
            Ok(match (installed, need::valkey(&clients, log)?) {
                (Outcome::Noted(note), None) => Outcome::Noted(note + "; without Valkey: no package here has it"),
                (installed, _) => installed,
            })
        })
        .after(&["packages"]),
        Stage::new(Lane::Cargo, "build", move |log| {
            done(log.run(&mut cargo(&build, &["test", "--workspace", "--no-run"])))?;
            // The tests of one package start the binaries of another: those are built here, not by `cargo test`.
            done(log.run(&mut cargo(&build, &["build", "-p", "caddy-sidecar", "-p", "caddy-operator"])))
        }),
        Stage::new(Lane::Cargo, "tests", move |log| {
            let rest: Vec<&str> = filter.as_deref().into_iter().collect();
            again::run(log, &["--lib", "--bins", "--tests"], &rest, |selected| Ok(tests_of(&tests, &[], selected)))
        })
        .after(&["packages", "client libraries", "build"]),
    ]
}

/// What takes longer, or needs another build.
fn more(place: &Place) -> Vec<Stage> {
    let (docs, shuttle, helm, check) = (place.clone(), place.clone(), place.clone(), place.clone());
    let (golden, dropped) = (place.clone(), place.clone());
    vec![
        Stage::new(Lane::Cargo, "doc tests", move |log| {
            done(log.run(&mut cargo(&docs, &["test", "--workspace", "--no-fail-fast", "--doc"])))
        })
        .after(&["build"]),
        Stage::new(Lane::Cargo, "dropped guards", move |log| mutations(&dropped, log)).after(&["packages", "build"]),
        Stage::new(Lane::Cargo, "interleavings", move |log| interleavings(&shuttle, log)),
        Stage::new(Lane::Side, "kubectl and helm", move |log| cluster::clients(&helm, log)).after(&["packages"]),
        Stage::new(Lane::Side, "chart", move |log| chart::check(&check, log)).after(&["kubectl and helm"]),
        Stage::new(Lane::Cargo, "chart golden files", move |log| {
            let mut command = cargo(&golden, &["test", "--workspace", "--test", "chart"]);
            done(log.run(command.env("CADDY_HELM", chart::tool(&golden, "helm"))))
        })
        .after(&["kubectl and helm", "build"]),
    ]
}

/// The kernel under shuttle, which swaps its atomics and locks: a build of its own, optimised because it tries many orders.
fn interleavings(place: &Place, log: &mut Log) -> Result<Outcome> {
    let features = ["--features", "shuttle,mutations", "--test", "interleavings"];
    done(log.run(cargo(place, &["test", "--profile", "quick", "-p", "caddy-engine"]).args(features)))
}

/// The guards of coherence, each dropped once over a real socket, and write-behind, killed at every point: a build with
/// droppable guards and crash points.
fn mutations(place: &Place, log: &mut Log) -> Result<Outcome> {
    let targets = ["--test", "mutations", "--test", "crash_points"];
    again::run(log, &targets, &[], |selected| Ok(tests_of(place, &["--features", "caddy-tests/mutations"], selected)))
}

/// `cargo test` over the workspace, with the parts that the tests start.
fn tests_of(place: &Place, features: &[&str], selected: &[&str]) -> Command {
    let mut command = cargo(place, &["test", "--workspace", "--no-fail-fast"]);
    command.args(features).args(selected);
    with_parts(&mut command, place);
    command
}

/// Random runs, one after the other with new seeds, for `CADDY_SOAK_SECONDS` each.
fn soak(place: &Place, log: &mut Log) -> Result<Outcome> {
    let mut command =
        cargo(place, &["test", "--workspace", "--test", "random_runs", "--test", "differential", "--test", "fuzz"]);
    with_parts(&mut command, place);
    let seconds = std::env::var("CADDY_SOAK_SECONDS").unwrap_or_else(|_| SOAK_SECONDS.to_owned());
    command.env("CADDY_SOAK_SECONDS", seconds);
    done(log.run(command.args(["--", "--nocapture"])))?;
    let mut command = cargo(place, &["test", "--workspace", "--test", "sidecar"]);
    with_parts(&mut command, place);
    command.env("CADDY_SOAK_SECONDS", std::env::var("CADDY_SOAK_SECONDS").unwrap_or_else(|_| SOAK_SECONDS.to_owned()));
    done(log.run(command.args(["--", "memory::", "--nocapture"])))?;
    // The minute of an outage under load.
    let mut command = cargo(place, &["test", "--workspace", "--test", "behind"]);
    with_parts(&mut command, place);
    command.env("CADDY_SOAK_SECONDS", CRASH_SECONDS);
    done(log.run(command.args(["--", "outage::", "--nocapture"])))?;
    let crashes = ["test", "--workspace", "--features", "caddy-tests/mutations", "--test", "crash_points"];
    let mut command = cargo(place, &crashes);
    with_parts(&mut command, place);
    command.env("CADDY_SOAK_SECONDS", CRASH_SECONDS);
    done(log.run(command.args(["--", "--nocapture"])))
}

/// The end-to-end tests and what they need: the node is built in the background while cargo compiles.
fn on_a_node(place: &Place) -> Vec<Stage> {
    let (prepare, image, up, e2e, down) = (place.clone(), place.clone(), place.clone(), place.clone(), place.clone());
    let native = place.clone();
    vec![
        Stage::new(Lane::Side, "kubernetes", move |log| cluster::prepare(&prepare, log, Which::Ours))
            .after(&["packages", "client libraries"]),
        Stage::new(Lane::Cargo, "image", move |log| {
            cluster::build_image(&image, log, Binaries::Debug, None).map(|_| Outcome::Done)
        })
        .after(&["packages"]),
        Stage::new(Lane::Side, "cluster up", move |log| cluster::up(&up, log, Which::Ours))
            .after(&["kubernetes", "image"]),
        Stage::new(Lane::Cargo, "end to end", move |log| end_to_end(&e2e, log, Which::Ours)).after(&["cluster up"]),
        Stage::new(Lane::Side, "cluster down", move |log| cluster::down(&down, log, Which::Ours))
            .after(&["end to end"])
            .always(),
        Stage::new(Lane::Cargo, "native sidecars", move |log| native_sidecars(&native, log))
            .after(&["image", "cluster down"]),
    ]
}

/// The packaged node is too old for native sidecars: their form runs where somebody offers a newer Kubernetes on purpose.
fn native_sidecars(place: &Place, log: &mut Log) -> Result<Outcome> {
    if cluster::NAMED_BY.iter().all(|variable| std::env::var_os(variable).is_none()) {
        let variables = cluster::NAMED_BY.join(" or ");
        return Ok(Outcome::Skipped(format!("no newer Kubernetes: {variables} offers one")));
    }
    let result = cluster::up(place, log, Which::Chosen).and_then(|_| end_to_end(place, log, Which::Chosen));
    cluster::down(place, log, Which::Chosen)?;
    result
}

fn end_to_end(place: &Place, log: &mut Log, which: Which) -> Result<Outcome> {
    again::run(log, &["--test", "e2e"], &["--nocapture", "--test-threads=1"], |selected| {
        let mut command = tests_of(place, &[], selected);
        cluster::with_cluster(&mut command, place, which)?;
        Ok(command)
    })
}

/// Tells the tests where the parts are that this command installed and built.
fn with_parts(command: &mut Command, place: &Place) {
    let clients = Clients::of(place);
    let parts = [
        ("CADDY_SIDECAR_BIN", place.binary("debug", "caddy-sidecar")),
        ("CADDY_OPERATOR_BIN", place.binary("debug", "caddy-operator")),
        ("CADDY_PYTHON", clients.python),
        ("CADDY_NODE_MODULES", clients.node_modules),
        ("CADDY_GO_CLIENT", clients.go),
    ];
    command.envs(parts);
    command.envs(need::installed_valkey(place).map(|program| ("CADDY_VALKEY_SERVER", program)));
}

fn done(result: Result) -> Result<Outcome> {
    result.map(|()| Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood_or_refused() {
        let options = Options::parse(&["--quick", "session"]).unwrap();
        assert_eq!(options, Options { quick: true, soak: false, filter: Some("session".into()) });
        assert!(!options.everything());
        assert!(Options::parse(&[]).unwrap().everything());
        assert!(Options::parse(&["--fast"]).unwrap_err().to_string().contains("--quick"));
        assert!(Options::parse(&["one", "two"]).is_err());
    }
}
