//! What reading through to a store promises, each as a short story that ends in a [`Violation`](crate::world::Violation)
//! when the promise is broken.
//!
//! A real HTTP origin answers late, with what it had when it was asked: what a slow database does. `tests/loading` runs the
//! stories on the sidecar, `tests/mutations.rs` on sidecars that lack a guard.

use std::fmt;

use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;

use crate::{
    e2e::eventually,
    origin::Origin,
    redis::RedisServer,
    sidecar::Sidecar,
    world::{Client, LONG, SOON, Subject, must},
};

/// The rule of these stories; further fields may follow.
const RULE: &str = "name: users, match: \"user:*\", strategy: ReadThrough, store: users";

/// A Redis, an origin, and sidecars that load from the one into the other.
pub struct Loaded {
    /// The cluster's Redis.
    pub redis: RedisServer,
    /// The app's database.
    pub origin: Origin,
    /// In front of both.
    pub sidecars: Vec<Sidecar>,
    _runtime: Runtime,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Loaded {
    /// With `count` sidecars; `rule` are further fields of the keyspace, `store` of the store, each behind a comma.
    pub fn start(subject: &Subject, count: usize, rule: &str, store: &str) -> Result<Self> {
        let runtime = Runtime::new().context("start a runtime")?;
        let origin = runtime.block_on(Origin::start())?;
        origin.cache_control(None);
        let redis = RedisServer::start()?;
        let url = format!("{}/{{key}}", origin.url());
        let sections = [
            format!("stores: [{{name: users, http: {{url: \"{url}\", timeout: 20s, retries: 0}}{store}}}]"),
            format!("keyspaces: [{{{RULE}{rule}}}]"),
        ];
        let start = |_| {
            let options = subject.options(redis.socket()).max_staleness(LONG).timeout(LONG);
            sections.iter().fold(options, |options, section| options.section(section)).start()
        };
        let sidecars = (0..count).map(start).collect::<Result<Vec<_>>>()?;
        let loaded = Self { redis, origin, sidecars, _runtime: runtime };
        eventually("copies are tracked", SOON, || {
            for sidecar in &loaded.sidecars {
                ensure!(sidecar.metric("caddy_coherent")? == 1, "caddy_coherent");
            }
            Ok(())
        })?;
        Ok(loaded)
    }

    /// A client of the first sidecar.
    pub fn client(&self) -> Result<Client> {
        Ok(Client(self.sidecars[0].connect()?))
    }

    /// A command straight to Redis.
    pub fn foreign(&self, command: &str) -> Result<String> {
        Client(self.redis.connect()?).ask(command)
    }

    /// Asks for a key whose answer the origin holds back, until the origin was asked.
    pub fn ask_late(&self, client: &mut Client, key: &str) -> Result<()> {
        let path = path(key);
        let before = self.origin.requests_for(&path);
        self.origin.delay_next(&path);
        client.send(&format!("GET {key}"))?;
        eventually("the origin is asked", SOON, || {
            ensure!(self.origin.requests_for(&path) > before, "not asked yet");
            Ok(())
        })
        .map(drop)
    }
}

/// Where the origin has a key.
pub fn path(key: &str) -> String {
    format!("/{}", key.replace(':', "%3A"))
}

/// A key is deleted, and gone from the store too, while its value is on the way: it may not come back.
pub fn a_delete_during_a_load_is_not_undone(subject: &Subject) -> Result<()> {
    let loaded = Loaded::start(subject, 1, ", ttl: 1h", "")?;
    loaded.origin.set("/user%3A1", "before");
    let (mut reader, mut writer) = (loaded.client()?, loaded.client()?);
    loaded.ask_late(&mut reader, "user:1")?;
    ensure!(writer.ask("DEL user:1")? == "0", "DEL tells that there was none");
    loaded.origin.release("/user%3A1");
    ensure!(reader.reply()? == "before", "who asked before the DEL may be answered so");
    let left = loaded.foreign("GET user:1")?;
    must(left == "(nil)", format!("DEL user:1 was answered, and behind it the load of before stored {left}"))
}

/// The same within an app's own transaction.
pub fn a_delete_in_a_transaction_during_a_load_is_not_undone(subject: &Subject) -> Result<()> {
    let loaded = Loaded::start(subject, 1, ", ttl: 1h", "")?;
    loaded.origin.set("/user%3A1", "before");
    let (mut reader, mut writer) = (loaded.client()?, loaded.client()?);
    loaded.ask_late(&mut reader, "user:1")?;
    let replies = writer.pipeline(&["MULTI", "SET user:1 x", "DEL user:1", "EXEC"])?;
    ensure!(replies[3] == "[OK, 1]", "{replies:?}");
    loaded.origin.release("/user%3A1");
    ensure!(reader.reply()? == "before", "who asked before the DEL may be answered so");
    let left = loaded.foreign("GET user:1")?;
    must(left == "(nil)", format!("DEL user:1 was executed, and behind it the load of before stored {left}"))
}

/// The same by a write from elsewhere that knows nothing of leases.
pub fn a_foreign_write_during_a_load_stays(subject: &Subject) -> Result<()> {
    let loaded = Loaded::start(subject, 1, ", ttl: 1h", "")?;
    loaded.origin.set("/user%3A1", "before");
    let mut reader = loaded.client()?;
    loaded.ask_late(&mut reader, "user:1")?;
    ensure!(loaded.foreign("SET user:1 after")? == "OK", "SET");
    loaded.origin.release("/user%3A1");
    let read = reader.reply()?;
    let left = loaded.foreign("GET user:1")?;
    must(read == "after" && left == "after", format!("SET user:1 after; then the load answered {read} and left {left}"))
}

/// A reader who knows of a delete is not answered by a load from before it.
pub fn a_dead_load_is_not_joined(subject: &Subject) -> Result<()> {
    let loaded = Loaded::start(subject, 1, ", ttl: 1h", "")?;
    loaded.origin.set("/user%3A1", "before");
    let (mut reader, mut writer) = (loaded.client()?, loaded.client()?);
    loaded.ask_late(&mut reader, "user:1")?;
    loaded.origin.set("/user%3A1", "after");
    ensure!(writer.ask("DEL user:1")? == "0", "DEL");
    writer.send("GET user:1")?;
    let early = writer.reply_within(crate::world::MOMENT)?;
    loaded.origin.release("/user%3A1");
    let read = early.map_or_else(|| writer.reply(), Ok)?;
    let asked_before = reader.reply()?;
    ensure!(["before", "after"].contains(&asked_before.as_str()), "{asked_before}");
    must(read == "after", format!("DEL user:1 was answered, then GET user:1 answered {read}"))
}
