//! Durability `Replicated`: what was acknowledged is in Redis and on its replica, until the store has it.

use anyhow::{Context, Result, ensure};
use caddy_tests::{
    e2e::eventually,
    postgres::PostgresServer,
    redis::{self, RedisServer},
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON, show},
};

use super::world::{World, client, history_is_in_order, section, stat, stat_becomes};

/// A Redis and its replica.
struct Replicas {
    world: World,
    replica: RedisServer,
}

const KEYSPACE: &str =
    "strategy: WriteBehind, writeBehind: {durability: Replicated, adoptAfter: 1s, flushInterval: 5ms, batchSize: 20}";

impl Replicas {
    fn start() -> Result<Self> {
        let (redis, replica) = RedisServer::start_pair(&redis::program()?)?;
        Ok(Self { world: World::of(redis)?, replica })
    }
}

/// `SET user:<n> <n>` for each; all are acknowledged.
fn write_all(app: &mut Client, numbers: std::ops::Range<u32>) -> Result<()> {
    for n in numbers.clone() {
        app.send(&format!("SET user:{n} {n}"))?;
    }
    for n in numbers {
        let answer = app.reply()?;
        ensure!(answer == "OK", "SET user:{n}: {answer}");
    }
    Ok(())
}

fn adopted(sidecars: &[Sidecar]) -> Result<i64> {
    sidecars.iter().map(|sidecar| stat(&mut client(sidecar)?, "behind_adopted")).sum()
}

/// Nothing is left in Redis of what the store has.
fn nothing_is_recorded(redis: &RedisServer) -> Result<()> {
    eventually("what the store has is no longer in Redis", SOON, || {
        let keys = show(&redis.command(&["KEYS", "caddy:*:wb*:users*"])?);
        ensure!(keys == "[]", "{keys}");
        Ok(())
    })
    .map(drop)
}

#[test]
fn the_next_process_of_the_pod_stores_what_the_last_one_left() -> Result<()> {
    let Replicas { mut world, replica: _replica } = Replicas::start()?;
    let mut sidecar = world.sidecar(&KEYSPACE.replace("1s", "1h"))?;
    world.postgres.stop()?;
    let mut app = client(&sidecar)?;
    write_all(&mut app, 0..700)?;
    for (command, answer) in [("SET user:3 new", "OK"), ("DEL user:5", "1"), ("INCR user:7", "8")] {
        ensure!(app.ask(command)? == answer, "{command}");
    }
    ensure!(stat(&mut app, "behind_lost_with_the_process")? == 0);
    sidecar.kill()?;
    world.postgres.restart()?;
    sidecar.restart()?;
    let mut app = client(&sidecar)?;
    eventually("all of them are in the table", SOON, || {
        ensure!(world.rows()?.len() == 699, "{} rows", world.rows()?.len());
        Ok(())
    })?;
    let rows = world.rows()?;
    ensure!(rows.contains(&"user:3=new".into()) && rows.contains(&"user:7=8".into()), "{rows:?}");
    stat_becomes(&mut app, "behind_records", 0)?;
    ensure!(stat(&mut app, "behind_adopted")? == 0, "they were its own");
    nothing_is_recorded(&world.redis)?;
    history_is_in_order(&world.postgres)
}

#[test]
fn of_many_sidecars_one_adopts_what_a_dead_pod_left() -> Result<()> {
    let Replicas { mut world, replica: _replica } = Replicas::start()?;
    let mut dead = world.sidecar(KEYSPACE)?;
    let others = (0..3).map(|_| world.sidecar(KEYSPACE)).collect::<Result<Vec<_>>>()?;
    world.postgres.stop()?;
    write_all(&mut client(&dead)?, 0..1_100)?;
    dead.kill()?;
    eventually("all is adopted", SOON, || {
        let count = adopted(&others)?;
        ensure!(count == 1_100, "{count}");
        Ok(())
    })?;
    world.postgres.restart()?;
    eventually("all of them are in the table", SOON, || {
        ensure!(world.rows()?.len() == 1_100, "{} rows", world.rows()?.len());
        Ok(())
    })?;
    for other in &others {
        stat_becomes(&mut client(other)?, "behind_records", 0)?;
    }
    ensure!(adopted(&others)? == 1_100, "each record has one that adopts it");
    let stored = world.postgres.execute("SELECT count(*) FROM history")?;
    ensure!(stored == "1100", "each was stored once: {stored}");
    nothing_is_recorded(&world.redis)
}

#[test]
fn what_somebody_has_overwritten_is_not_adopted() -> Result<()> {
    let Replicas { mut world, replica: _replica } = Replicas::start()?;
    let mut dead = world.sidecar(KEYSPACE)?;
    let other = world.sidecar(KEYSPACE)?;
    world.postgres.stop()?;
    write_all(&mut client(&dead)?, 0..10)?;
    dead.kill()?;
    let mut app = client(&other)?;
    ensure!(app.ask("SET user:3 newer")? == "OK" && app.ask("DEL user:4")? == "1");
    eventually("the rest is adopted", SOON, || {
        let count = stat(&mut app, "behind_adopted")?;
        ensure!(count == 8, "{count}");
        Ok(())
    })?;
    world.postgres.restart()?;
    stat_becomes(&mut app, "behind_records", 0)?;
    let rows = world.rows()?;
    ensure!(rows.len() == 9 && rows.contains(&"user:3=newer".into()), "{rows:?}");
    Ok(())
}

#[test]
fn without_a_replica_the_store_acknowledges() -> Result<()> {
    let Replicas { mut world, replica } = Replicas::start()?;
    let sidecar = world.sidecar(&KEYSPACE.replace("batchSize: 20", "maxWait: 300ms"))?;
    let mut app = client(&sidecar)?;
    ensure!(app.ask("SET user:1 both")? == "OK");
    ensure!(stat(&mut app, "behind_unlogged")? == 0, "the replica had it");
    drop(replica);
    ensure!(app.ask("SET user:1 store")? == "OK");
    ensure!(world.rows()? == ["user:1=store"], "acknowledged without a replica, it is stored: {:?}", world.rows()?);
    world.postgres.stop()?;
    let refused = app.ask("SET user:1 nobody")?;
    ensure!(refused.contains("STOREERR") && refused.contains("0 of 1 replicas"), "{refused}");
    let told = app.ask("CACHE.STATS users")?;
    ensure!(told.contains("behind_replication, 0 of 1 replicas"), "{told}");
    ensure!(sidecar.log().contains("acknowledged by the store only: 0 of 1 replicas"), "{}", sidecar.log());
    world.postgres.restart()?;
    world.rows_become(&["user:1=nobody"])
}

#[test]
fn a_server_that_evicts_any_key_is_refused() -> Result<()> {
    let world = World::of(RedisServer::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"])?)?;
    let sidecar = world.sidecar(KEYSPACE)?;
    let mut app = client(&sidecar)?;
    eventually("it is known that the server evicts", SOON, || {
        let refused = app.ask("SET user:1 x")?;
        ensure!(refused.contains("allkeys-lru") && refused.contains("noeviction"), "{refused}");
        Ok(())
    })?;
    ensure!(app.ask("SET other x")? == "OK");
    Ok(())
}

#[test]
fn a_failover_between_a_write_and_its_replicas_is_no_acknowledgement() -> Result<()> {
    let Replicas { mut world, replica } = Replicas::start()?;
    let sidecar = world.sidecar(&KEYSPACE.replace("batchSize: 20", "maxWait: 2s"))?;
    let mut app = client(&sidecar)?;
    ensure!(app.ask("SET user:1 a")? == "OK");
    stat_becomes(&mut app, "behind_records", 0)?;
    // The replica is silent: the write waits for it, and its connection is cut meanwhile.
    world.postgres.stop()?;
    replica.sigstop()?;
    app.send("SET user:1 b")?;
    eventually("Redis waits for its replica", SOON, || {
        let blocked = show(&world.redis.command(&["INFO", "clients"])?);
        ensure!(blocked.contains("blocked_clients:1"), "{blocked}");
        Ok(())
    })?;
    replica.sigcont()?;
    ensure!(app.reply()? == "OK");
    replica.sigstop()?;
    // Of two that Redis executes together the second waits for the next WAIT, which another connection sends.
    let mut other = client(&sidecar)?;
    world.redis.sigstop()?;
    app.send("SET user:1 c")?;
    other.send("SET user:2 d")?;
    let taken = client(&sidecar)?.ask("CACHE.STATS users");
    world.redis.sigcont()?;
    taken?;
    eventually("Redis waits for its replica", SOON, || {
        let blocked = show(&world.redis.command(&["INFO", "clients"])?);
        ensure!(blocked.contains("blocked_clients:1"), "{blocked}");
        Ok(())
    })?;
    let _ = world.redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])?;
    for app in [&mut app, &mut other] {
        let answer = app.reply()?;
        ensure!(answer.contains("STOREERR"), "nobody knows whether a replica has it: {answer}");
    }
    replica.sigcont()?;
    world.postgres.restart()?;
    world.rows_become(&["user:1=c", "user:2=d"])
}

#[test]
fn a_stream_whose_keyspace_is_gone_is_stored_all_the_same() -> Result<()> {
    let Replicas { mut world, replica: _replica } = Replicas::start()?;
    let mut sidecar = world.sidecar(KEYSPACE)?;
    world.postgres.stop()?;
    write_all(&mut client(&sidecar)?, 0..5)?;
    sidecar.kill()?;
    world.postgres.restart()?;
    let config = std::fs::read_to_string(sidecar.config())?;
    // Another keyspace has streams still, so that somebody looks.
    let others = format!("strategy: ReadThrough}}\n- {{name: others, match: \"other:*\", store: users, {KEYSPACE}");
    sidecar.write_config(&config.replace(KEYSPACE, &others))?;
    sidecar.restart()?;
    eventually("the table has them", SOON, || {
        ensure!(world.rows()?.len() == 5, "{:?}", world.rows()?);
        Ok(())
    })?;
    nothing_is_recorded(&world.redis)
}

#[test]
fn a_write_is_called_the_same_however_often_it_is_sent() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
    let origin = runtime.block_on(caddy_tests::origin::Origin::start())?;
    let redis = RedisServer::start()?;
    let keyspace = KEYSPACE.replace("adoptAfter", "replicas: 0, adoptAfter");
    let url = origin.url();
    let store = format!(
        "stores: [{{name: users, http: {{url: \"{url}/{{key}}\", retries: 0}}, breaker: {{failures: 0}}}}]\n\
         keyspaces: [{{name: users, match: \"user:*\", store: users, {keyspace}}}]"
    );
    let mut sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&store).start()?;
    origin.fail_with(|_| Some(503));
    let mut app = client(&sidecar)?;
    ensure!(app.ask("SET user:1 a")? == "OK");
    eventually("it was sent", SOON, || {
        ensure!(!origin.names_of("/user%3A1").is_empty());
        Ok(())
    })?;
    sidecar.kill()?;
    let before = origin.names_of("/user%3A1").len();
    sidecar.restart()?;
    eventually("the next process has sent it", SOON, || {
        ensure!(origin.names_of("/user%3A1").len() > before);
        Ok(())
    })?;
    let names = origin.names_of("/user%3A1");
    ensure!(!names[0].is_empty() && names.iter().all(|name| *name == names[0]), "{names:?}");
    origin.recover();
    let mut app = client(&sidecar)?;
    stat_becomes(&mut app, "behind_records", 0)?;
    ensure!(app.ask("SET user:1 b")? == "OK");
    stat_becomes(&mut app, "behind_records", 0)?;
    let last = origin.names_of("/user%3A1").pop().unwrap_or_default();
    ensure!(last != names[0], "another write has another name");
    Ok(())
}

#[test]
fn a_statement_may_ask_for_the_names_of_writes() -> Result<()> {
    let postgres = PostgresServer::start()?;
    postgres.execute("CREATE TABLE users (key text PRIMARY KEY, value text, write text)")?;
    let world = World { redis: RedisServer::start()?, postgres };
    let keyspace = "strategy: WriteBehind, writeBehind: {flushInterval: 5ms}";
    let section = section(&world.postgres, keyspace)
        .replace(
            "(key, value) SELECT * FROM unnest($1::text[], $2::text[])",
            "SELECT * FROM unnest($1::text[], $2::text[], $3::text[])",
        )
        .replace("value = excluded.value", "value = excluded.value, write = excluded.write");
    let sidecar = SidecarOptions::redis(world.redis.socket()).max_staleness(LONG).section(&section).start()?;
    let mut app = client(&sidecar)?;
    ensure!(app.ask("MSET user:1 a user:2 b")? == "OK");
    stat_becomes(&mut app, "behind_records", 0)?;
    let names = world.postgres.execute("SELECT count(DISTINCT write) FROM users WHERE write <> ''")?;
    ensure!(names == "2", "{names} names");
    Ok(())
}
