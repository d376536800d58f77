//! Configuration that changes while the sidecar runs: the mounted ConfigMap is read again every few seconds (the
//! kubelet swaps it as a whole), taken over if it is valid as a whole, and otherwise left aside with one message.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use caddy_contract::Config;

use crate::shared::Shared;

const INTERVAL: Duration = Duration::from_secs(5);

/// Watches the file until the sidecar ends.
pub(crate) async fn watch(path: PathBuf, shared: Arc<Shared>) {
    let mut seen = read(&path);
    loop {
        tokio::time::sleep(INTERVAL).await;
        // Between two mounts, or gone: the last one stays in force.
        let Some(text) = read(&path) else { continue };
        if seen.as_ref() == Some(&text) {
            continue;
        }
        match caddy_contract::parse(&text) {
            Ok(parsed) => {
                log_ignored(&parsed.ignored);
                take_over(parsed.config, &shared);
            }
            Err(faults) => {
                shared.metrics.config_errors.inc();
                tracing::error!(path = %path.display(), "the new configuration is not valid; the old one stays in force:\n{faults}");
            }
        }
        seen = Some(text);
    }
}

/// Bytes that are no text come back as such characters, for the parser to complain about.
fn read(path: &Path) -> Option<String> {
    std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Unknown fields in the operator's file: this sidecar is older than the operator.
pub(crate) fn log_ignored(paths: &[String]) {
    if !paths.is_empty() {
        tracing::warn!(
            fields = paths.join(", "),
            "this version ignores fields of the configuration; new pods get a newer sidecar"
        );
    }
}

fn take_over(config: Config, shared: &Shared) {
    let old = Config::clone(&shared.config());
    let needs_restart = [
        ("listen", old.listen != config.listen),
        ("admin", old.admin != config.admin),
        ("workers", old.workers != config.workers),
        ("l1", old.l1 != config.l1),
        ("l2.maxBytes", old.l2.max_bytes != config.l2.max_bytes),
        ("l2.policy", old.l2.policy != config.l2.policy),
        ("l3", old.l3 != config.l3),
        ("consistency.coherence", old.consistency.coherence != config.consistency.coherence),
        ("consistency.broadcastPrefixes", old.consistency.broadcast_prefixes != config.consistency.broadcast_prefixes),
        ("tiering", old.tiering != config.tiering),
    ];
    let waiting: Vec<&str> = needs_restart.iter().filter(|(_, changed)| *changed).map(|(name, _)| *name).collect();
    if !waiting.is_empty() {
        tracing::warn!(fields = waiting.join(", "), "changes of these fields take effect in new pods only");
    }
    let generation = config.config_generation;
    match shared.reconfigure(config) {
        Ok(()) => tracing::info!(generation, "took over a new configuration"),
        Err(error) => {
            shared.metrics.config_errors.inc();
            tracing::error!(cause = ?error, "the new configuration cannot be used: {error}; the old one stays in force");
        }
    }
}
