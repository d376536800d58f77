//! Keeps the process within the memory that its cgroup gives it: L2 shrinks before the kernel would kill.
//!
//! Owns what is read of the cgroup (v2, or v1) and the budget that L2 has at the moment: what the configuration says, less
//! while memory is short, and what is freed goes [back to the kernel](trim) then. Never grows above the configuration, and
//! does nothing where no limit is set. What cannot be read counts as no limit; nothing here fails. It allocates nothing
//! once it runs.

mod trim;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use caddy_contract::{Budget, ByteSize};
use caddy_engine::Moment;

use crate::shared::Shared;

/// How often it is looked: where memory is nearly short, where half of the limit or more is in use, where less is, and where
/// there is no limit (one may be set while we run). What comes in meanwhile must not be much.
const NARROW: Duration = Duration::from_millis(50);
const INTERVAL: Duration = Duration::from_millis(250);
const ROOMY: Duration = Duration::from_secs(1);
const UNLIMITED: Duration = Duration::from_secs(5);
/// Shares of the limit, in percent: above the one L2 shrinks, below the other it grows again.
const HIGH: u64 = 82;
const LOW: u64 = 72;
/// Above this share of time in which somebody waited for memory (`some avg10` of PSI, in percent) L2 shrinks too, if more
/// than `LOW` is in use.
const PRESSURE: u64 = 10;
/// Giving memory back holds up whoever allocates: it takes one part in so many of the time, at most.
const TRIM_SHARE: u32 = 20;
/// L2 shrinks and grows in steps of this part of what is configured, and keeps a quarter whatever happens.
const STEP: u64 = 32;
const LEAST: u64 = 4;

/// What L2 has where its budget is a share of a limit that does not exist: the default.
const UNSHARED: ByteSize = ByteSize::mebi(64);

/// What the metrics show; zero where there is no limit.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) limit: AtomicU64,
    pub(crate) used: AtomicU64,
}

/// Watches until the sidecar ends.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let Some(cgroup) = Cgroup::own() else { return std::future::pending().await };
    // Another one is for new pods, whose limit goes with it.
    let of = shared.config().l2.max_bytes;
    let mut trim_from = Moment::ZERO;
    loop {
        let mut pause = UNLIMITED;
        let mut looked = cgroup.look();
        if looked.is_some_and(Seen::is_high) && shared.now() >= trim_from {
            // What is freed already need not be freed of L2.
            let begun = shared.now();
            trim::give_back();
            let ended = shared.now();
            trim_from = ended + ended.since(begun) * TRIM_SHARE;
            looked = cgroup.look();
        }
        if let Some(seen) = looked {
            pause = seen.pause();
            shared.memory.limit.store(seen.limit, Ordering::Relaxed);
            shared.memory.used.store(seen.used, Ordering::Relaxed);
            let configured = budget(of, Some(seen.limit));
            let (entries, now) = (shared.cache.stats().l2_bytes as u64, shared.cache.l2_max_bytes() as u64);
            let next = next_budget(seen, entries, now, configured);
            if next != now {
                if now == configured {
                    tracing::warn!(used = seen.used, limit = seen.limit, "memory is short: L2 gives some back");
                }
                shared.cache.set_l2_max_bytes(usize::try_from(next).unwrap_or(usize::MAX));
            }
            while shared.cache.shrink() {
                tokio::task::yield_now().await;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// The bytes that L2 may have, at most, under this limit. A share of nothing is what L2 has by default.
fn budget(of: Budget, limit: Option<u64>) -> u64 {
    of.under(limit.map(ByteSize::new)).unwrap_or(UNSHARED).bytes().max(1 << 20)
}

/// The bytes that L2 may have when the sidecar starts.
pub(crate) fn first_budget(of: Budget) -> usize {
    let limit = Cgroup::own().and_then(|cgroup| cgroup.look()).map(|seen| seen.limit);
    if limit.is_none() && matches!(of, Budget::Share(_)) {
        tracing::warn!("l2.maxBytes is a share of the memory limit, but there is none: L2 has {UNSHARED}");
    }
    usize::try_from(budget(of, limit)).unwrap_or(usize::MAX)
}

/// What a cgroup says at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    limit: u64,
    /// Without what the kernel can take back at once: file pages that nobody used lately.
    used: u64,
    /// Percent.
    pressure: u64,
}

impl Seen {
    /// So many percent of the limit.
    fn at(self, percent: u64) -> u64 {
        self.limit / 100 * percent
    }

    fn pause(self) -> Duration {
        match self.used {
            used if used < self.at(50) => ROOMY,
            used if used < self.at(LOW) => INTERVAL,
            _ => NARROW,
        }
    }

    fn is_high(self) -> bool {
        self.used > self.at(HIGH)
    }
}

/// The budget of L2 from now on, which holds `entries` bytes and may hold `now`.
fn next_budget(seen: Seen, entries: u64, now: u64, configured: u64) -> u64 {
    // The limit may have become smaller, and a share of it with it.
    let now = now.min(configured);
    let step = configured / STEP;
    if seen.is_high() || seen.pressure > PRESSURE && seen.used > seen.at(LOW) {
        // A budget that is not filled gives nothing back by becoming smaller.
        now.min(entries).saturating_sub(step).max(configured / LEAST).min(now)
    } else if seen.used < seen.at(LOW) {
        (now + step).min(configured)
    } else {
        now
    }
}

/// The files of the cgroup that this process is in, held open.
#[derive(Debug)]
struct Cgroup {
    /// Of this cgroup and those above it.
    limits: Vec<File>,
    usage: File,
    stat: File,
    /// In `stat`: the file pages that the kernel can take back, and in v1 the limit.
    reclaimable: &'static str,
    pressure: Option<File>,
}

impl Cgroup {
    /// `None`: there is none with a memory controller that can be read.
    fn own() -> Option<Self> {
        Self::of(&fs::read_to_string("/proc/self/cgroup").ok()?, Path::new("/sys/fs/cgroup"))
    }

    fn of(membership: &str, mounts: &Path) -> Option<Self> {
        let path = |controller: &str| {
            let mut lines = membership.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
            lines
                .find(|line| line.len() == 3 && line[1] == controller)
                .map(|line| line[2].trim_start_matches('/').to_owned())
        };
        // Within a container its own cgroup is often mounted as the root, whatever the path says.
        let place = |mount: PathBuf, path: String| {
            let own = mount.join(path);
            if own.is_dir() { (own, mount) } else { (mount.clone(), mount) }
        };
        if let Some((own, mount)) = path("memory").map(|path| place(mounts.join("memory"), path)) {
            return Some(Self {
                limits: up(&own, &mount, &["memory.limit_in_bytes"]),
                usage: File::open(own.join("memory.usage_in_bytes")).ok()?,
                stat: File::open(own.join("memory.stat")).ok()?,
                reclaimable: "total_inactive_file ",
                pressure: None,
            });
        }
        let (own, mount) = place(mounts.to_owned(), path("")?);
        Some(Self {
            limits: up(&own, &mount, &["memory.max", "memory.high"]),
            usage: File::open(own.join("memory.current")).ok()?,
            stat: File::open(own.join("memory.stat")).ok()?,
            reclaimable: "inactive_file ",
            pressure: File::open(own.join("memory.pressure")).ok(),
        })
    }

    /// `None`: there is no limit.
    fn look(&self) -> Option<Seen> {
        // Without a limit v1 says a number that no machine has, v2 says `max`.
        let limits = self.limits.iter().filter_map(|file| read(file, number)).filter(|limit| *limit < 1 << 60);
        let limit = limits.min().filter(|limit| *limit > 0)?;
        let usage = read(&self.usage, number)?;
        let reclaimable =
            read(&self.stat, |text| text.lines().find_map(|line| number(line.strip_prefix(self.reclaimable)?)));
        let pressure = self.pressure.as_ref().and_then(|file| read(file, some_avg10));
        Some(Seen { limit, used: usage.saturating_sub(reclaimable.unwrap_or(0)), pressure: pressure.unwrap_or(0) })
    }
}

/// The files of these names in `own` and in each directory above it up to `mount`.
fn up(own: &Path, mount: &Path, names: &[&str]) -> Vec<File> {
    let directories = own.ancestors().take_while(|directory| directory.starts_with(mount));
    directories.flat_map(|directory| names.iter().filter_map(|name| File::open(directory.join(name)).ok())).collect()
}

/// What a small file says now.
fn read<T>(file: &File, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let mut buffer = [0; 8192];
    let length = file.read_at(&mut buffer, 0).ok()?;
    parse(str::from_utf8(&buffer[..length]).ok()?)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `some avg10=1.23 avg60=…`, whole percent.
fn some_avg10(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("some avg10="))?;
    number(value.split(['.', ' ']).next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MI: u64 = 1 << 20;

    #[test]
    fn l2_gives_back_what_is_short_and_gets_it_again() {
        let seen = |used, pressure| Seen { limit: 100 * MI, used: used * MI, pressure };
        let (configured, full) = (64 * MI, 60 * MI);
        assert_eq!(next_budget(seen(80, 0), full, configured, configured), configured);
        assert_eq!(next_budget(seen(80, 50), full, configured, configured), 58 * MI, "somebody waits for memory");
        assert_eq!(next_budget(seen(10, 50), full, configured, configured), configured, "it is not our memory");
        assert_eq!(
            next_budget(seen(90, 0), full, configured, configured),
            58 * MI,
            "from what it holds, not from what it may"
        );
        assert_eq!(next_budget(seen(99, 0), MI, 17 * MI, configured), 16 * MI, "a quarter stays");
        assert_eq!(next_budget(seen(75, 0), full, 30 * MI, configured), 30 * MI);
        assert_eq!(next_budget(seen(70, 0), full, 30 * MI, configured), 32 * MI);
        assert_eq!(next_budget(seen(70, 0), full, configured, configured), configured);
    }

    #[test]
    fn a_share_follows_the_limit() {
        assert_eq!(budget(Budget::Share(50), Some(100 * MI)), 50 * MI);
        assert_eq!(budget(Budget::Share(1), Some(10 * MI)), MI, "too little to be a tier");
        assert_eq!(budget(Budget::Share(50), None), 64 * MI);
        assert_eq!(budget(Budget::Size(ByteSize::mebi(8)), None), 8 * MI);
        let seen = Seen { limit: 100 * MI, used: 75 * MI, pressure: 0 };
        assert_eq!(next_budget(seen, MI, 64 * MI, 50 * MI), 50 * MI, "the limit was lowered");
    }

    #[test]
    fn both_versions_of_cgroups_are_read() {
        let place = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = place.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("pod/app/memory.max", "max\n");
        write("pod/app/memory.high", "90000\n");
        write("pod/memory.max", "100000\n");
        write("pod/app/memory.current", "50000\n");
        write("pod/app/memory.stat", "anon 1\ninactive_file 20000\nactive_file 3\n");
        write("pod/app/memory.pressure", "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00\n");
        let look = |membership: &str| Cgroup::of(membership, place.path()).unwrap().look();
        assert_eq!(look("0::/pod/app\n"), Some(Seen { limit: 90_000, used: 30_000, pressure: 12 }));

        write("memory/app/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/memory.limit_in_bytes", "70000\n");
        write("memory/app/memory.usage_in_bytes", "60000\n");
        write("memory/app/memory.stat", "cache 5\ntotal_inactive_file 1000\n");
        assert_eq!(look("4:memory:/app\n0::/\n"), Some(Seen { limit: 70_000, used: 59_000, pressure: 0 }));
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(look("4:memory:/app\n"), None, "no limit");
        assert!(Cgroup::of("1:cpu:/\n", place.path()).is_none());
    }
}
