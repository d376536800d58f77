//! The local Kubernetes as stages and commands: thin calls of `tests/kube/cluster` and of the image builder, which own
//! what a node is. Never touches an existing kubeconfig or context; in a plan `down` always follows `up`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::chart;
use crate::checks::cargo;
use crate::failed::{Failed, Result, Step};
use crate::log::{Log, shown};
use crate::need;
use crate::place::Place;
use crate::stage::Outcome;

/// The image's name where nobody gave one.
const IMAGE_NAME: &str = "localhost/caddy-cache:dev";

/// Which binaries go into an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binaries {
    /// Those the tests were built with: nothing is compiled twice.
    Debug,
    /// Optimised, and quicker to build than a release.
    Quick,
    /// What one pushes to a registry.
    Release,
}

impl Binaries {
    fn profile(self) -> &'static str {
        match self {
            Self::Debug => "dev",
            Self::Quick => "quick",
            Self::Release => "release",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Quick => "quick",
            Self::Release => "release",
        }
    }
}

/// Which Kubernetes, where several could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// What `tests/kube/cluster` chooses: one named on purpose, newer binaries, kind, or the packaged node.
    Chosen,
    /// The same without what the environment names on purpose.
    Ours,
}

/// The variables that name a Kubernetes on purpose.
pub(crate) const NAMED_BY: [&str; 2] = ["CADDY_TEST_KUBECONFIG", "KUBEBUILDER_ASSETS"];

/// kubectl and Helm, in the cache.
pub(crate) fn clients(place: &Place, log: &mut Log) -> Result<Outcome> {
    log.run(script(place, "build").arg("--clients")).map(|()| Outcome::Done)
}

/// Builds what a node needs into the cache: minutes the first time, nothing later. With low priority, since cargo
/// compiles at the same time.
pub(crate) fn prepare(place: &Place, log: &mut Log, which: Which) -> Result<Outcome> {
    if !need::is_root() {
        return Err(Failed::new("the local Kubernetes needs root; `cargo xtask test --quick` does not"));
    }
    let script = place.root.join("tests/kube/cluster");
    let mut command = Command::new("nice");
    command.args(["-n", "10"]).arg(script).arg("prepare").env("CADDY_CACHE", &place.cache);
    log.run(chosen(&mut command, which)).map(|()| Outcome::Done)
}

/// Starts the cluster, or finds it running.
pub(crate) fn up(place: &Place, log: &mut Log, which: Which) -> Result<Outcome> {
    log.run(chosen(script(place, "cluster").arg("up"), which)).map(|()| Outcome::Done)
}

/// Stops what `up` started and removes its state; fine when there is none.
pub(crate) fn down(place: &Place, log: &mut Log, which: Which) -> Result<Outcome> {
    log.run(chosen(script(place, "cluster").arg("down"), which)).map(|()| Outcome::Done)
}

/// The kubeconfig of the running cluster.
pub(crate) fn kubeconfig(place: &Place, which: Which) -> Result<PathBuf> {
    let mut command = script(place, "cluster");
    chosen(command.arg("kubeconfig"), which);
    let output = command.output().step(format!("start `{}`", shown(&command)))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && Path::new(&path).is_file() {
        Ok(path.into())
    } else {
        Err(Failed::new(format!("`{}` names no kubeconfig (it said \"{path}\")", shown(&command))))
    }
}

/// A program of `tests/` that plays on the cluster, with everything it wants to know in its environment.
pub(crate) fn player(place: &Place, program: PathBuf, which: Which) -> Result<Command> {
    let mut command = Command::new(program);
    command.current_dir(&place.root);
    with_cluster(&mut command, place, which)?;
    Ok(command)
}

/// Tells a command which cluster, which image and which client programs it is about.
pub(crate) fn with_cluster(command: &mut Command, place: &Place, which: Which) -> Result {
    command.env("CADDY_E2E_KUBECONFIG", kubeconfig(place, which)?).env("CADDY_CACHE", &place.cache);
    command.env("CADDY_IMAGE", IMAGE_NAME).env("CADDY_IMAGE_ARCHIVE", archive(place));
    for (variable, name) in [("CADDY_KUBECTL", "kubectl"), ("CADDY_HELM", "helm")] {
        command.env(variable, chart::tool(place, name));
    }
    Ok(())
}

fn archive(place: &Place) -> PathBuf {
    place.target.join("image/caddy-cache.tar")
}

fn chosen(command: &mut Command, which: Which) -> &mut Command {
    if which == Which::Ours {
        for variable in NAMED_BY {
            command.env_remove(variable);
        }
    }
    command
}

/// Builds the image's archive and returns where it is.
pub(crate) fn build_image(place: &Place, log: &mut Log, binaries: Binaries, name: Option<&str>) -> Result<PathBuf> {
    let mut build =
        cargo(place, &["build", "--profile", binaries.profile(), "-p", "caddy-sidecar", "-p", "caddy-operator"]);
    log.run(&mut build)?;
    let archive = archive(place);
    let mut image = script(place, "image");
    image.args(["--name", name.unwrap_or(IMAGE_NAME)]).arg("--output").arg(&archive);
    image.arg(place.binary(binaries.folder(), "caddy-sidecar")).arg(place.binary(binaries.folder(), "caddy-operator"));
    log.run(&mut image)?;
    Ok(archive)
}

/// `cargo xtask image`.
pub(crate) fn image(place: &Place, name: Option<&str>) -> Result {
    let mut log = Log::create(place.logs().join("image.log"))?;
    println!("building the release binaries and the image; log in {}", log.path().display());
    let archive = build_image(place, &mut log, Binaries::Release, name)?;
    println!("wrote {} ({})", archive.display(), name.unwrap_or(IMAGE_NAME));
    println!("push it with what you have, for example");
    println!("  skopeo copy oci-archive:{} docker://REGISTRY/caddy-cache:TAG", archive.display());
    Ok(())
}

/// `cargo xtask cluster …`: the script's own output, straight to the terminal.
pub(crate) fn by_hand(place: &Place, arguments: &[&str]) -> Result {
    let mut command = script(place, "cluster");
    command.args(arguments);
    println!("$ {}", shown(&command));
    let status = command.status().step(format!("start `{}`", shown(&command)))?;
    if status.success() { Ok(()) } else { Err(Failed::new(format!("`{}` ended with {status}", shown(&command)))) }
}

fn script(place: &Place, name: &str) -> Command {
    let mut command = Command::new(place.root.join("tests/kube").join(name));
    command.current_dir(&place.root).env("CADDY_CACHE", &place.cache);
    command
}
