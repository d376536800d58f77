//! Write-behind, killed at every point of a write's way: what was acknowledged is stored, and of each key in its order.
//!
//! A build with crash points (feature `mutations`) kills itself, as `kill -9` does, at the n-th time that it comes to a point.
//! `CADDY_SOAK_SECONDS` goes on with further moments of each point; `CADDY_SEED` repeats them.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_tests::{
    e2e::eventually,
    postgres::PostgresServer,
    random::Random,
    redis::{self, RedisServer},
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON},
};

/// On the way of a write, in this order; those of `Pod` alone and of `Replicated` alone.
const POINTS: &[&str] = &["before-redis", "redis-has-it", "queued", "before-answer", "before-store", "stored"];
const POD: &[&str] = &["before-log", "in-log", "synced", "before-settled", "settled"];
const REPLICATED: &[&str] = &["before-wait", "replicas-have-it", "before-removed", "removed"];
/// Moments of each point in a short run.
const MOMENTS: u64 = 1;
/// Writes of one life.
const WRITES: u32 = 300;
const KEYS: u32 = 7;

struct World {
    redis: RedisServer,
    _replica: RedisServer,
    postgres: PostgresServer,
    logs: tempfile::TempDir,
}

impl World {
    fn start() -> Result<Self> {
        let (redis, replica) = RedisServer::start_pair(&redis::program()?)?;
        let postgres = PostgresServer::start()?;
        postgres.execute(
            "CREATE TABLE users (key text PRIMARY KEY, value text);
             CREATE TABLE history (n serial, key text, value text);
             CREATE FUNCTION note() RETURNS trigger AS 'BEGIN INSERT INTO history (key, value) VALUES (new.key, new.value); RETURN new; END' LANGUAGE plpgsql;
             CREATE TRIGGER note AFTER INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION note();",
        )?;
        Ok(Self { redis, _replica: replica, postgres, logs: tempfile::tempdir()? })
    }

    fn options(&self, durability: &str) -> SidecarOptions {
        let (url, logs) = (self.postgres.url(), self.logs.path().display());
        let section = format!(
            "stores:\n- name: users\n  breaker: {{failures: 0}}\n  postgres:\n    url: {url}\n    \
             load: SELECT key, value FROM users WHERE key = ANY($1)\n    \
             store: INSERT INTO users (key, value) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT (key) DO UPDATE SET value = excluded.value\n    \
             delete: DELETE FROM users WHERE key = ANY($1)\n\
             keyspaces:\n- {{name: users, match: \"user:*\", store: users, strategy: WriteBehind, \
             writeBehind: {{durability: {durability}, directory: {logs}, flushInterval: 2ms, batchSize: 10, adoptAfter: 1h}}}}\n"
        );
        let program = Path::new(env!("CARGO_BIN_EXE_sidecar-mutant"));
        SidecarOptions::redis(self.redis.socket()).max_staleness(LONG).section(&section).program(program)
    }

    /// One life that ends at a point, and the next one: nothing that was acknowledged may be missing then.
    fn die_at(&self, durability: &str, point: &str, times: u64, first: u32) -> Result<bool> {
        let context = || format!("{durability}, killed at {point}:{times}");
        let mut sidecar = self
            .options(durability)
            .variable("CADDY_CRASH_AT", &format!("{point}:{times}"))
            .start()
            .with_context(context)?;
        let acknowledged = write(&sidecar, first)?;
        let died = eventually("it is gone", SOON, || {
            ensure!(sidecar.exited()?.is_some(), "it lives");
            Ok(())
        });
        let died = died.is_ok();
        sidecar.kill()?;
        // The next process of the pod, on the same socket.
        sidecar.set_variable("CADDY_CRASH_AT", "");
        sidecar.restart()?;
        let mut app = Client(sidecar.connect()?);
        // A sidecar that has just begun does not know yet what its streams in Redis hold: the store itself is looked at.
        eventually("what was left is stored", SOON, || {
            let stats = app.ask("CACHE.STATS users")?;
            ensure!(stats.contains("behind_records, 0") || stats.contains("behind_records: 0"), "{stats}");
            let rows = self.postgres.execute("SELECT key || '=' || value FROM users")?;
            let stored: BTreeMap<&str, u32> = rows
                .lines()
                .filter_map(|row| row.split_once('='))
                .map(|(key, value)| (key, value.parse().unwrap_or(0)))
                .collect();
            for (key, value) in &acknowledged {
                let row = stored.get(key.as_str()).copied().unwrap_or(0);
                ensure!(row >= *value, "{key} was acknowledged as {value} and is {row}");
            }
            Ok(())
        })
        .with_context(context)?;
        Ok(died)
    }

    fn history_is_in_order(&self) -> Result<()> {
        let history = self.postgres.execute("SELECT key || ' ' || value FROM history ORDER BY n")?;
        let mut last: BTreeMap<&str, u32> = BTreeMap::new();
        for (key, value) in history.lines().filter_map(|line| line.split_once(' ')) {
            let value: u32 = value.parse()?;
            let before = last.insert(key, value).unwrap_or(0);
            ensure!(before <= value, "{key} went back from {before} to {value}");
        }
        ensure!(last.len() == KEYS as usize, "{last:?}");
        Ok(())
    }
}

/// Writes numbers that grow under a few keys; what was acknowledged before the sidecar was gone.
fn write(sidecar: &Sidecar, first: u32) -> Result<BTreeMap<String, u32>> {
    let mut acknowledged = BTreeMap::new();
    // It may be gone already.
    let Ok(wire) = sidecar.connect() else { return Ok(acknowledged) };
    let mut app = Client(wire);
    for batch in (first..first + WRITES).collect::<Vec<_>>().chunks(15) {
        let commands: Vec<String> = batch.iter().map(|n| format!("SET user:{} {n}", n % KEYS)).collect();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        if app.send_all(&commands).is_err() {
            return Ok(acknowledged);
        }
        for n in batch {
            match app.reply() {
                Ok(answer) => ensure!(answer == "OK", "SET user:{} {n}: {answer}", n % KEYS),
                Err(_) => return Ok(acknowledged),
            }
            let _ = acknowledged.insert(format!("user:{}", n % KEYS), *n);
        }
    }
    Ok(acknowledged)
}

fn killed_at_every_point(durability: &str, own: &[&str]) -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let soak = Duration::from_secs(number("CADDY_SOAK_SECONDS").unwrap_or(0));
    let seed = number("CADDY_SEED").unwrap_or(7);
    let mut random = Random::new(seed);
    let world = World::start()?;
    let (clock, mut first) = (BootClock, 1_000);
    let started = clock.now();
    let mut rounds = 0;
    while rounds < MOMENTS || clock.now().since(started) < soak {
        for point in POINTS.iter().chain(own) {
            // Some points are passed once per write, some once per batch of unknown size.
            let times = 1 + random.below(if rounds == 0 { 2 } else { 30 }) as u64;
            let died = world.die_at(durability, point, times, first).with_context(|| format!("seed {seed}"))?;
            ensure!(died || rounds > 0, "{durability}: nobody came to {point} {times} times");
            first += 1_000;
        }
        rounds += 1;
    }
    world.history_is_in_order()
}

#[test]
fn with_durability_pod_nothing_acknowledged_is_lost_at_any_point() -> Result<()> {
    killed_at_every_point("Pod", POD)
}

#[test]
fn with_durability_replicated_nothing_acknowledged_is_lost_at_any_point() -> Result<()> {
    killed_at_every_point("Replicated", REPLICATED)
}
