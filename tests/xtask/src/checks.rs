//! The checks that run before the tests, and the generated files. Each is one cargo command whose output goes straight to
//! the terminal; nothing is changed except by `crds`.

use std::process::Command;

use crate::failed::{Failed, Result, Step};
use crate::log::shown;
use crate::place::Place;

/// A cargo command in the checkout, by the cargo that runs us.
pub(crate) fn cargo(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&place.root).args(arguments).env("CARGO_TARGET_DIR", &place.target);
    // What `cargo run` set for us is not meant for the cargo we start.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

/// `cargo fmt --check` over the workspace.
pub(crate) fn fmt(place: &Place) -> Result {
    loud(&mut cargo(place, &["fmt", "--all", "--check"]))
}

/// The packages whose documentation is read by those who build on them.
const LIBRARIES: [&str; 5] = ["caddy-engine", "caddy-remote", "caddy-resp", "caddy-lease", "caddy-contract"];

/// clippy over everything, warnings as errors; also over what only a feature builds: the scheduler under the kernel, and the
/// build with droppable guards. rustdoc likewise over the libraries: what it links to is there, for a reader from outside too.
pub(crate) fn lint(place: &Place) -> Result {
    let parts: [&[&str]; 3] = [
        &["--workspace", "--all-targets"],
        &["-p", "caddy-engine", "--features", "shuttle,mutations", "--tests"],
        &["-p", "caddy-tests", "--features", "mutations", "--all-targets"],
    ];
    parts.iter().try_for_each(|part| {
        let mut command = cargo(place, &["clippy", "--locked", "--quiet"]);
        loud(command.args(*part).args(["--", "-D", "warnings"]))
    })?;
    let mut command = cargo(place, &["doc", "--locked", "--quiet", "--no-deps"]);
    command.args(LIBRARIES.iter().flat_map(|library| ["-p", library]));
    loud(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Writes the generated CRD files anew: the plain one and the chart's.
pub(crate) fn crds(place: &Place) -> Result {
    loud(&mut cargo(place, &["run", "--quiet", "-p", "caddy-crds", "--bin", "crdgen"]))
}

fn loud(command: &mut Command) -> Result {
    println!("$ {}", shown(command));
    let status = command.status().step(format!("start `{}`", shown(command)))?;
    if status.success() { Ok(()) } else { Err(Failed::new(format!("`{}` ended with {status}", shown(command)))) }
}
