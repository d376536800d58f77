//! Looks at the Helm chart without a cluster: `helm lint`, and `helm template` with and without the one required value.

use std::path::PathBuf;
use std::process::Command;

use crate::failed::{Failed, Result};
use crate::log::Log;
use crate::place::Place;
use crate::stage::Outcome;

const VALUE: &str = "image.repository=registry.example/caddy-cache";

/// Lints and renders the chart; a rendering without an image must fail with a message that names the value.
pub(crate) fn check(place: &Place, log: &mut Log) -> Result<Outcome> {
    let chart = place.root.join("charts/caddy-cache");
    log.run(helm(place).arg("lint").arg("--strict").arg(&chart).args(["--set", VALUE]))?;
    log.run(helm(place).args(["template", "caddy-cache"]).arg(&chart).args(["--set", VALUE]))?;
    if log.run(helm(place).args(["template", "caddy-cache"]).arg(&chart)).is_ok() {
        return Err(Failed::new("the chart renders without image.repository; it must refuse and say what to set"));
    }
    let said = crate::log::tail(log.path(), 20).join("\n");
    if !said.contains("image.repository") {
        return Err(Failed::new(format!("without image.repository helm's error does not name it: {said}")));
    }
    Ok(Outcome::Done)
}

/// Helm as the local Kubernetes' scripts brought it, else the system's.
pub(crate) fn helm(place: &Place) -> Command {
    Command::new(tool(place, "helm"))
}

/// A Kubernetes client program from the cache, else from `PATH`.
pub(crate) fn tool(place: &Place, name: &str) -> PathBuf {
    let cached = place.cache.join("kube/bin").join(name);
    if cached.is_file() { cached } else { name.into() }
}
