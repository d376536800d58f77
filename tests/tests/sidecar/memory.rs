//! A sidecar within a real cgroup: it stays below its limit while values of all sizes come and go.
//!
//! Two figures are looked at. What is *resident* has the program's own pages in it, which the kernel charges to whoever read
//! the file first (nobody here), and can read again: of a test's program four times what a released one has. What is
//! *charged* is what the cgroup counts but for file pages; it is what a process is killed for.
//!
//! `CADDY_SOAK_SECONDS` makes it go on for so long. Where no cgroup can be made it says so, and is skipped.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use caddy_resp::encode;
use caddy_tests::{
    e2e::Stopwatch,
    random::Random,
    redis::RedisServer,
    sidecar::{SidecarOptions, program},
    world::{LONG, SOON},
};

const KEYS: usize = 6000;
const SHORT: Duration = Duration::from_secs(6);
/// How much longer it may go on until L2 has been full.
const PATIENCE: Duration = Duration::from_mins(1);

/// A cgroup of the test's own, below the one it runs in.
struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn new(limit: u64) -> Result<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup")?;
        let own = |prefix: &str| membership.lines().find_map(|line| line.split_once(prefix)).map(|(_, path)| path);
        let (parent, file) = match own(":memory:/") {
            Some(path) => (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"),
            None => (Path::new("/sys/fs/cgroup").join(own("0::/").context("no cgroup")?), "memory.max"),
        };
        let path = parent.join(format!("caddy-test-{}-{}", std::process::id(), limit >> 20));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let group = Self { path };
        let file = group.path.join(file);
        fs::write(&file, limit.to_string()).with_context(|| format!("write {}", file.display()))?;
        Ok(group)
    }

    /// The first of these files that there is.
    fn read(&self, names: [&str; 2]) -> Result<String> {
        let file = names.map(|name| self.path.join(name)).into_iter().find(|file| file.exists());
        let file = file.with_context(|| format!("{} has none of {names:?}", self.path.display()))?;
        fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    }

    /// Bytes that count against the limit and cannot be read again from a file.
    fn charged(&self) -> Result<u64> {
        let usage: u64 = self.read(["memory.usage_in_bytes", "memory.current"])?.trim().parse()?;
        let stat = fs::read_to_string(self.path.join("memory.stat"))?;
        let of_files = ["inactive_file", "active_file"].map(|name| value(&stat, name));
        Ok(usage.saturating_sub(of_files.into_iter().sum()))
    }

    /// How often the kernel killed within it.
    fn kills(&self) -> Result<u64> {
        Ok(value(&self.read(["memory.oom_control", "memory.events"])?, "oom_kill"))
    }

    /// A program that enters it and becomes the sidecar.
    fn entrance(&self, place: &Path) -> Result<PathBuf> {
        let file = place.join("enter");
        let (group, program) = (self.path.join("cgroup.procs"), program()?);
        fs::write(&file, format!("#!/bin/sh\necho $$ > {} && exec {} \"$@\"\n", group.display(), program.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        Ok(file)
    }

    fn process(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path.join("cgroup.procs"))?.lines().next().context("nobody is in it")?.to_owned())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its process has been waited for; the kernel may need a moment more.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What a line `name 123` says; 0 where there is none.
fn value(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(found, _)| *found == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

fn resident(process: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("it was killed")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// What was seen of a sidecar under load.
struct Seen {
    /// Bytes resident, at most.
    resident: u64,
    /// Bytes charged, at most.
    charged: u64,
    /// What L2 might have, at least.
    budget: u64,
}

/// Lets values of all sizes come and go in a sidecar with so much L2 in a cgroup with such a limit. `None`: no cgroup can be
/// made here.
fn churn(limit: u64, l2: &str) -> Result<Option<Seen>> {
    let group = match Cgroup::new(limit) {
        Ok(group) => group,
        Err(error) => {
            println!("skipped: no cgroup can be made here ({error:#}); run it as root");
            return Ok(None);
        }
    };
    let place = tempfile::tempdir()?;
    let redis = RedisServer::start()?;
    let mut random = Random::new(1);
    // From some bytes to a quarter of a mebibyte, mostly small: some 180 MiB in all.
    let mut wire = redis.connect()?;
    for key in 0..KEYS {
        let bytes = if random.below(10) == 0 { random.below(256 << 10) } else { random.below(32 << 10) };
        wire.request(&["SETRANGE", &format!("k{key}"), &bytes.to_string(), "x"])?;
    }
    let options = SidecarOptions::redis(redis.socket()).program(&group.entrance(place.path())?).max_staleness(LONG);
    let l2 = format!("l2: {{maxBytes: {l2}, compression: {{algorithm: None}}}}");
    let sidecar = options.section(&l2).start()?;
    let process = group.process()?;
    let mut client = sidecar.connect()?;
    client.set_deadline(SOON)?;
    let time =
        env::var("CADDY_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).map_or(SHORT, Duration::from_secs);
    let begun = Stopwatch::start();
    let mut seen = Seen { resident: 0, charged: 0, budget: u64::MAX };
    let was_used = || -> Result<bool> {
        Ok(sidecar.metric("caddy_evictions_total")? > 100 && sidecar.metric("caddy_hits_total")? > 100)
    };
    // On a busy machine it takes longer until what comes has to make room.
    while begun.elapsed() < time || begun.elapsed() < time + PATIENCE && !was_used()? {
        let mut batch = Vec::new();
        for _ in 0..32 {
            let key = format!("k{}", random.below(KEYS));
            encode::command(&mut batch, [b"GET", key.as_bytes()]);
        }
        client.send_raw(&batch)?;
        for _ in 0..32 {
            client.reply()?;
        }
        // Written values make room at odd places.
        let bytes = random.below(64 << 10).to_string();
        client.request(&["SETRANGE", &format!("k{}", random.below(KEYS)), &bytes, "y"])?;
        seen.resident = seen.resident.max(resident(&process)?);
        seen.charged = seen.charged.max(group.charged()?);
        if random.below(20) == 0 {
            seen.budget = seen.budget.min(sidecar.metric("caddy_l2_max_bytes")?);
        }
    }
    let Seen { resident, charged, budget } = &seen;
    let [resident, charged, of, budget] = [resident, charged, &limit, budget].map(|bytes| bytes >> 20);
    println!("of {of} MiB {charged} charged at most, {resident} resident; L2 had {budget} at least");
    ensure!(sidecar.metric("caddy_memory_limit_bytes")? == limit, "the limit is seen");
    ensure!(was_used()?, "L2 was never full, or no copy answered");
    ensure!(group.kills()? == 0, "the kernel killed somebody in the cgroup");
    ensure!(seen.charged <= limit / 10 * 9, "{charged} MiB charged of {of}");
    Ok(Some(seen))
}

#[test]
fn a_sidecar_stays_below_nine_tenths_of_the_memory_that_the_operator_gives_it() -> Result<()> {
    // What the operator would set for L2 = 64Mi: (L1 + L2 + 40Mi) / 0.85. Here L2 is what is shared out of it.
    let limit = 132 << 20;
    if let Some(seen) = churn(limit, "48%")? {
        ensure!((limit * 48 / 100).abs_diff(seen.budget) < 64, "L2 may have {} of {limit} bytes", seen.budget);
        ensure!(seen.resident <= limit / 10 * 9, "{} MiB resident of {}", seen.resident >> 20, limit >> 20);
    }
    Ok(())
}

#[test]
fn a_sidecar_whose_tiers_do_not_fit_gives_memory_back_and_is_not_killed() -> Result<()> {
    // The operator would refuse it.
    let (limit, l2) = (96 << 20, 90 << 20);
    if let Some(seen) = churn(limit, "90Mi")? {
        ensure!(seen.budget < l2 / 10 * 9, "L2 may have {} MiB", seen.budget >> 20);
        // What was freed went back to the kernel: else L2 gives up one part after the other, and nothing comes of it.
        ensure!(seen.budget > l2 / 3, "L2 had {} MiB only", seen.budget >> 20);
    }
    Ok(())
}
