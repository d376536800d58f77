//! Where things are: the checkout, the build directory, and the cache outside the checkout that a second run and a fresh
//! clone find again. Reads the environment; writes nothing.

use std::env;
use std::path::{Path, PathBuf};

/// The folders of one run.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// Cargo's build directory.
    pub(crate) target: PathBuf,
    /// Downloads, client libraries and Kubernetes binaries, kept between runs and checkouts.
    pub(crate) cache: PathBuf,
}

impl Place {
    /// Reads `CARGO_MANIFEST_DIR` (set by `cargo run`), `CARGO_TARGET_DIR`, `CADDY_CACHE`, `XDG_CACHE_HOME` and `HOME`.
    pub(crate) fn find() -> Self {
        let start = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let root = checkout_above(&start).unwrap_or(start);
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let target = if target.is_absolute() { target } else { root.join(target) };
        Self { target, cache: cache_dir(|name| env::var_os(name).map(PathBuf::from)), root }
    }

    /// The folder of the stages' log files.
    pub(crate) fn logs(&self) -> PathBuf {
        self.target.join("xtask")
    }

    /// A binary of ours in the given profile's folder (`debug`, `quick`, `release`).
    pub(crate) fn binary(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }
}

fn checkout_above(start: &Path) -> Option<PathBuf> {
    start.ancestors().find(|folder| folder.join("Cargo.lock").is_file()).map(Path::to_path_buf)
}

fn cache_dir(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    variable("CADDY_CACHE").unwrap_or_else(|| {
        let base = variable("XDG_CACHE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(env::temp_dir);
        base.join("caddy-cache")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_lies_where_the_most_specific_variable_says() {
        let all = |name: &str| match name {
            "CADDY_CACHE" => Some(PathBuf::from("/a")),
            "XDG_CACHE_HOME" => Some(PathBuf::from("/b")),
            _ => Some(PathBuf::from("/home/me")),
        };
        assert_eq!(cache_dir(all), PathBuf::from("/a"));
        assert_eq!(cache_dir(|name| all(name).filter(|_| name != "CADDY_CACHE")), PathBuf::from("/b/caddy-cache"));
        let home_only = |name: &str| all(name).filter(|_| name == "HOME");
        assert_eq!(cache_dir(home_only), PathBuf::from("/home/me/.cache/caddy-cache"));
    }
}
