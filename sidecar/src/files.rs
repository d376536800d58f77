//! The process's limit on open files: raised as far as it may be, and what of it apps can have.
//!
//! Beyond the limit the kernel lets apps connect and leaves them waiting. So that they are told instead, no more
//! connections are taken than files are there for, whatever the configuration says.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files for everything but apps: connections to Redis, the admin port, the runtimes' own.
const RESERVED: u64 = 128;

/// How many apps can be connected at a time; `wanted` is `limits.maxConnections`.
pub(crate) fn room_for_apps(wanted: usize) -> usize {
    let limit = raise();
    let room = room(limit);
    if room < wanted {
        tracing::warn!(
            limit,
            wanted,
            room,
            "the limit on open files leaves no room for limits.maxConnections; raise it (ulimit -n), or ask for less"
        );
    }
    room
}

/// Raises the soft limit to the hard one; the limit in force.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        return maximum.unwrap_or(u64::MAX);
    }
    current.unwrap_or(u64::MAX)
}

fn room(limit: u64) -> usize {
    usize::try_from(limit - RESERVED.min(limit / 2)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_get_what_the_sidecar_does_not_need_itself() {
        assert_eq!((room(1024), room(64), room(1)), (896, 32, 1));
        assert_eq!(room(u64::MAX), usize::MAX - 128);
    }
}
