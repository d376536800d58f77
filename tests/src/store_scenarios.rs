//! What writing to a store promises, each as a short story that ends in a [`Violation`](crate::world::Violation) when the
//! promise is broken.
//!
//! A real PostgreSQL, and writes behind that have not got there yet. `tests/behind` runs the stories on the sidecar,
//! `tests/mutations.rs` on sidecars that lack a guard.

use std::fmt;

use anyhow::{Result, ensure};

use crate::{
    e2e::eventually,
    postgres::PostgresServer,
    redis::RedisServer,
    sidecar::Sidecar,
    world::{Client, LONG, SOON, Subject, must},
};

const STRATEGY: &str = "strategy: WriteBehind, writeBehind: {flushInterval: 1m, maxWait: 1m}";

/// A Redis, a table with one user, and sidecars that write behind, a minute later.
struct Behind {
    redis: RedisServer,
    postgres: PostgresServer,
    sidecars: Vec<Sidecar>,
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behind").finish_non_exhaustive()
    }
}

impl Behind {
    fn start(subject: &Subject, count: usize) -> Result<Self> {
        let (redis, postgres) = (RedisServer::start()?, PostgresServer::start()?);
        postgres.execute(
            "CREATE TABLE users (key text PRIMARY KEY, value text); INSERT INTO users VALUES ('user:1', 'old')",
        )?;
        let section = format!(
            "stores:\n- name: users\n  postgres:\n    url: {}\n    load: SELECT key, value FROM users WHERE key = ANY($1)\n    \
             timeout: 20s\n    store: INSERT INTO users SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT (key) DO UPDATE SET value = excluded.value\n    \
             delete: DELETE FROM users WHERE key = ANY($1)\n\
             keyspaces:\n- {{name: users, match: \"user:*\", store: users, hardTimeout: 1s, \
             {STRATEGY}}}",
            postgres.url()
        );
        let start = |_| subject.options(redis.socket()).max_staleness(LONG).timeout(LONG).section(&section).start();
        let sidecars = (0..count).map(start).collect::<Result<Vec<_>>>()?;
        let behind = Self { redis, postgres, sidecars };
        for sidecar in &behind.sidecars {
            eventually("copies are tracked", SOON, || {
                ensure!(sidecar.metric("caddy_coherent")? == 1, "caddy_coherent");
                Ok(())
            })?;
        }
        Ok(behind)
    }

    fn client(&self, at: usize) -> Result<Client> {
        Ok(Client(self.sidecars[at].connect()?))
    }
}

/// A key is deleted, and the store still has it: no other pod brings it back.
pub fn a_deletion_on_its_way_to_the_store_is_not_undone(subject: &Subject) -> Result<()> {
    let behind = Behind::start(subject, 2)?;
    let (mut one, mut two) = (behind.client(0)?, behind.client(1)?);
    ensure!(one.ask("GET user:1")? == "old" && one.ask("DEL user:1")? == "1", "it is there, and deleted");
    let (read, other) = (one.ask("GET user:1")?, two.ask("GET user:1")?);
    must(read == "(nil)" && other != "old", format!("DEL user:1 was answered, then the pods read {read} and {other}"))
}

/// A write that the store has not got is lost in Redis: its own pod answers it all the same.
pub fn a_write_on_its_way_to_the_store_is_read(subject: &Subject) -> Result<()> {
    let behind = Behind::start(subject, 1)?;
    let mut client = behind.client(0)?;
    ensure!(client.ask("SET user:1 new")? == "OK", "SET");
    ensure!(Client(behind.redis.connect()?).ask("DEL user:1")? == "1", "it is evicted");
    client.barrier()?;
    let read = client.ask("GET user:1")?;
    must(read == "new", format!("SET user:1 new was answered, Redis lost it, then GET user:1 answered {read}"))
}

/// Its keyspace writes through from now on, and the store takes long over what was written before: that is stored first.
pub fn a_write_through_is_stored_behind_older_ones(subject: &Subject) -> Result<()> {
    let behind = Behind::start(subject, 1)?;
    behind.postgres.execute(
        "CREATE TABLE seen (value text);
             CREATE FUNCTION see() RETURNS trigger AS 'BEGIN IF new.value = ''older'' THEN PERFORM pg_sleep(2); END IF; \
             INSERT INTO seen VALUES (new.value); RETURN new; END' LANGUAGE plpgsql;
             CREATE TRIGGER see BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION see();",
    )?;
    let mut client = behind.client(0)?;
    ensure!(client.ask("SET user:1 older")? == "OK", "SET");
    let sidecar = &behind.sidecars[0];
    let config = std::fs::read_to_string(sidecar.config())?;
    sidecar.write_config(&config.replace(STRATEGY, "strategy: WriteThrough"))?;
    eventually("it writes through", SOON, || {
        ensure!(client.ask("SETNX user:1 other")?.contains("WriteThrough"), "not yet");
        Ok(())
    })?;
    ensure!(client.ask("SET user:1 newer")? == "OK", "SET");
    eventually("the store has seen both", SOON, || {
        let seen = behind.postgres.execute("SELECT string_agg(DISTINCT value, ' ' ORDER BY value) FROM seen")?;
        ensure!(seen == "newer older", "{seen}");
        Ok(())
    })?;
    let row = behind.postgres.execute("SELECT value FROM users WHERE key = 'user:1'")?;
    must(row == "newer", format!("SET user:1 newer was answered behind an older SET, and the store has {row}"))
}

/// The store has the key and Redis has lost it: what depends on whether it is there finds it.
pub fn what_redis_lacks_is_loaded_for_a_condition(subject: &Subject) -> Result<()> {
    let behind = Behind::start(subject, 1)?;
    let told = behind.client(0)?.ask("SET user:1 new NX")?;
    must(told == "(nil)", format!("the store has user:1, and SET user:1 new NX answered {told}"))
}
