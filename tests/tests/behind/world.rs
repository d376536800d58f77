//! One Redis, one PostgreSQL with a table of users, and sidecars between them.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use caddy_resp::Value;
use caddy_tests::{
    e2e::eventually,
    postgres::PostgresServer,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON},
};

pub(crate) struct World {
    pub(crate) redis: RedisServer,
    pub(crate) postgres: PostgresServer,
}

/// The stores and the one keyspace, `users`.
pub(crate) fn section(postgres: &PostgresServer, keyspace: &str) -> String {
    let url = postgres.url();
    format!(
        "stores:\n- name: users\n  breaker: {{failures: 0}}\n  postgres:\n    url: {url}\n    timeout: 2s\n    \
         load: SELECT key, value FROM users WHERE key = ANY($1)\n    \
         store: INSERT INTO users (key, value) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT (key) DO UPDATE SET value = excluded.value\n    \
         delete: DELETE FROM users WHERE key = ANY($1)\n\
         keyspaces:\n- {{name: users, match: \"user:*\", store: users, {keyspace}}}\n"
    )
}

/// Written behind into a log in `directory`.
pub(crate) fn logged(directory: &Path, more: &str) -> String {
    let directory = directory.display();
    format!("strategy: WriteBehind, writeBehind: {{durability: Pod, directory: {directory}{more}}}")
}

/// The table, and what was written to it in which order.
pub(crate) fn table(postgres: &PostgresServer) -> Result<()> {
    postgres.execute(
        "CREATE TABLE users (key text PRIMARY KEY, value text CHECK (length(value) <= 100));
             CREATE TABLE history (n serial, key text, value text);
             CREATE FUNCTION note() RETURNS trigger AS 'BEGIN INSERT INTO history (key, value) VALUES (new.key, new.value); RETURN new; END' LANGUAGE plpgsql;
             CREATE TRIGGER note AFTER INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION note();",
    )?;
    Ok(())
}

/// Of every key the table has seen numbers that only grow; a repetition is the same again.
pub(crate) fn history_is_in_order(postgres: &PostgresServer) -> Result<()> {
    let history = postgres.execute("SELECT key || ' ' || value FROM history ORDER BY n")?;
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, value) in history.lines().filter_map(|line| line.split_once(' ')) {
        let Ok(value) = value.parse() else { continue };
        let before = last.insert(key, value).unwrap_or(0);
        ensure!(before <= value, "{key} went back from {before} to {value}");
    }
    ensure!(!last.is_empty(), "nothing was written");
    Ok(())
}

impl World {
    /// Values longer than 100 characters are refused by the table.
    pub(crate) fn start() -> Result<Self> {
        Self::of(RedisServer::start()?)
    }

    pub(crate) fn of(redis: RedisServer) -> Result<Self> {
        let postgres = PostgresServer::start()?;
        table(&postgres)?;
        Ok(Self { redis, postgres })
    }

    pub(crate) fn sidecar(&self, keyspace: &str) -> Result<Sidecar> {
        self.options(keyspace).start()
    }

    pub(crate) fn options(&self, keyspace: &str) -> SidecarOptions {
        let section = section(&self.postgres, keyspace);
        SidecarOptions::redis(self.redis.socket()).max_staleness(LONG).section(&section)
    }

    /// The rows, as `key=value`, in the order of their keys.
    pub(crate) fn rows(&self) -> Result<Vec<String>> {
        let rows = self.postgres.execute("SELECT key || '=' || value FROM users ORDER BY key")?;
        Ok(rows.lines().map(str::to_owned).collect())
    }

    pub(crate) fn rows_become(&self, expected: &[&str]) -> Result<()> {
        eventually("the rows are there", SOON, || {
            let rows = self.rows()?;
            ensure!(rows == expected, "{rows:?}");
            Ok(())
        })
        .map(drop)
    }
}

pub(crate) fn client(sidecar: &Sidecar) -> Result<Client> {
    Ok(Client(sidecar.connect()?))
}

/// One number of `CACHE.STATS users`.
pub(crate) fn stat(client: &mut Client, field: &str) -> Result<i64> {
    let reply = client.0.request(&["CACHE.STATS", "users"])?;
    let (value, _) = Value::decode(&reply)?;
    value.field(field.as_bytes()).and_then(Value::as_integer).with_context(|| format!("no {field}"))
}

pub(crate) fn stat_becomes(client: &mut Client, field: &str, expected: i64) -> Result<()> {
    eventually(field, SOON, || {
        let found = stat(client, field)?;
        ensure!(found == expected, "{field} is {found}");
        Ok(())
    })
    .map(drop)
}
