//! What writing to a store costs, and gives: writes behind beside plain ones to a Redis, durable ones beside what the disk can
//! sync, batches beside rows one by one in a real PostgreSQL, and refreshing ahead beside waiting for the store.
//!
//! Here nothing is pinned, since a pod's Redis is on another machine: each server has what the machine has. Where it is not
//! PostgreSQL that is measured, it gets what the others leave: it would be on a third. What is compared takes turns within
//! each round, as elsewhere.
//!
//! Every write is in Redis before it is acknowledged, so none can be quicker than a relay in front of a Redis: its rate is
//! told, too. The disk's limit is what it takes if all that is in flight is one batch with one fsync. No write can be acknowledged quicker
//! than Redis has it, so the rate of plain writes is told beside it.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use caddy_engine::store::BackingStore;
use caddy_remote::stores::{PostgresConfig, PostgresStore};
use caddy_resp::Value;
use caddy_tests::{origin::Origin, postgres::PostgresServer};
use tokio::runtime::Runtime;

use crate::load::{key, set, timed, value};
use crate::locks::Line;
use crate::server::{Server, Servers};
use crate::table::median;

/// Requests in flight on a connection.
const PIPELINE: usize = 16;
/// Connections where many write at once.
const CONNECTIONS: usize = 64;
/// Writes of one measurement: divides evenly by the product of both.
const WRITES: usize = 64 * PIPELINE * 50;
/// Keys that are written.
const KEYS: usize = 20_000;
/// Rows that PostgreSQL gets in batches, and one by one.
const ROWS: usize = 20_000;
const SINGLE_ROWS: usize = 1_000;
/// Bytes of a record in the log, about: what a key and a value of these sizes take there.
const RECORD: usize = 150;
/// How long the disk, and refreshing ahead, are watched in a round.
const WATCHED: Duration = Duration::from_secs(1);
/// Keys that are read all the time, and what becomes of them.
const HOT: usize = 100;
const FRESH: &str = "ttl: 5s, refreshAtPercent: 60";
const READ_FOR: Duration = Duration::from_secs(12);

const LOAD: &str = "SELECT key, value FROM users WHERE key = ANY($1)";
const STORE: &str = "INSERT INTO users SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT (key) DO UPDATE SET value = excluded.value";

/// Measures, and says what was seen.
pub(crate) fn measure(servers: &Servers, rounds: usize) -> Result<String> {
    let (postgres, measured) = (PostgresServer::start_durable_in_the_background()?, PostgresServer::start_durable()?);
    for server in [&postgres, &measured] {
        server.execute("CREATE TABLE users (key text PRIMARY KEY, value text)")?;
    }
    let (redis, data) = servers.free_redis("plain")?;
    let mut plain = connect(&data, CONNECTIONS)?;
    let (behind, relayed) = servers.free_redis("behind-the-relay")?;
    let relay = servers.free_relay("passing-on", &relayed, behind)?;
    let mut passed_on = lines(&relay, CONNECTIONS)?;
    let memory = writer(servers, "memory", &postgres, "durability: Memory")?;
    let log = servers.folder().join("log");
    let pod = writer(servers, "pod", &postgres, &format!("durability: Pod, directory: {}", log.display()))?;
    let rows = writer(servers, "rows", &measured, "durability: Memory")?;
    let mut figures = Figures::default();
    for _ in 0..rounds {
        // Who writes behind has its connections by then.
        for server in [&memory, &pod] {
            rate(&mut lines(server, 1)?, server)?;
        }
        postgres.stay_in_the_background()?;
        let mut many = lines(&memory, CONNECTIONS)?;
        let (ours, theirs) = (rate(&mut many, &memory)?, plain_rate(&mut plain)?);
        figures.memory.push(ours / theirs);
        figures.plain.push(theirs);
        figures.relay.push(plain_rate(&mut passed_on)? / theirs);
        figures.alone.push(rate(&mut many[..1], &memory)? / plain_rate(&mut plain[..1])?);
        let mut many = lines(&pod, CONNECTIONS)?;
        let (ours, most) = (rate(&mut many, &pod)?, synced(servers.folder(), CONNECTIONS * PIPELINE)?);
        figures.pod.push(ours / most);
        figures.pod_of_plain.push(ours / theirs);
        figures.disk.push(most);
        figures.acknowledged.push(ours);
        let (together, single) = (batched(&rows)?, one_by_one(&measured)?);
        figures.batches.push(together / single);
        figures.rows.push(together);
    }
    drop(redis);
    Ok(format!("{figures}\n{}", refreshed(servers)?))
}

#[derive(Default)]
struct Figures {
    memory: Vec<f64>,
    relay: Vec<f64>,
    alone: Vec<f64>,
    plain: Vec<f64>,
    pod: Vec<f64>,
    pod_of_plain: Vec<f64>,
    disk: Vec<f64>,
    acknowledged: Vec<f64>,
    batches: Vec<f64>,
    rows: Vec<f64>,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let middle = |values: &Vec<f64>| median(values.clone()).unwrap_or(f64::NAN);
        writeln!(
            f,
            "Write-behind, pipelines of {PIPELINE}, durability Memory: acknowledged at × {:.2} of the rate of plain SETs to a \
             Redis ({CONNECTIONS} connections; × {:.2} with one; plain SETs through a bare relay: × {:.2}).",
            middle(&self.memory),
            middle(&self.alone),
            middle(&self.relay),
        )?;
        writeln!(
            f,
            "Durability Pod: {:.0} writes/s acknowledged, × {:.2} of the {:.0} that the disk takes in batches of all that is in \
             flight, each with an fsync; × {:.2} of the {:.0} plain SETs that Redis takes.",
            middle(&self.acknowledged),
            middle(&self.pod),
            middle(&self.disk),
            middle(&self.pod_of_plain),
            middle(&self.plain),
        )?;
        write!(
            f,
            "PostgreSQL gets {:.0} rows/s in batches, × {:.1} of rows one by one.",
            middle(&self.rows),
            middle(&self.batches),
        )
    }
}

/// A sidecar whose keyspace `b…` writes behind.
fn writer(servers: &Servers, name: &'static str, postgres: &PostgresServer, how: &str) -> Result<Server> {
    let (behind, data) = servers.free_redis(&format!("{name}-redis"))?;
    let section = format!(
        "stores: [{{name: users, postgres: {{url: \"{}\", timeout: 10s, load: \"{LOAD}\", store: \"{STORE}\", \
         delete: \"DELETE FROM users WHERE key = ANY($1)\"}}}}]\n\
         keyspaces: [{{name: users, match: \"b*\", strategy: WriteBehind, store: users, \
         writeBehind: {{maxRecords: 1000000, maxBytes: 512Mi, {how}}}}}]\n",
        postgres.url()
    );
    servers.free_sidecar(name, &data, behind, &section)
}

fn lines(server: &Server, count: usize) -> Result<Vec<UnixStream>> {
    (0..count).map(|_| server.connect()).collect()
}

fn connect(socket: &Path, count: usize) -> Result<Vec<UnixStream>> {
    (0..count).map(|_| crate::server::connect(socket)).collect()
}

/// Writes of the keyspace that a second acknowledges; then the store gets all of them.
fn rate(connections: &mut [UnixStream], server: &Server) -> Result<f64> {
    let rate = plain_rate(connections)?;
    stored(server)?;
    Ok(rate)
}

fn plain_rate(connections: &mut [UnixStream]) -> Result<f64> {
    let count = if connections.len() == 1 { WRITES / 4 } else { WRITES };
    let value = value(100);
    let writes: Vec<_> = (0..count).map(|number| set(&key("behind", number % KEYS), &value)).collect();
    let begun = Instant::now();
    timed(connections, &writes, PIPELINE, b"+OK\r\n")?;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Records that a second of this disk takes, so many with one fsync.
fn synced(folder: &Path, records: usize) -> Result<f64> {
    let path = folder.join("synced");
    let mut file = fs::File::create(&path).context("create a file to sync")?;
    let batch = vec![b'x'; records * RECORD];
    let (begun, mut batches) = (Instant::now(), 0_u32);
    while begun.elapsed() < WATCHED {
        file.write_all(&batch)?;
        file.sync_data()?;
        batches += 1;
    }
    let rate = f64::from(batches) * records as f64 / begun.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate)
}

/// Rows that PostgreSQL gets in a second, from the first acknowledgement until it has the last one.
fn batched(server: &Server) -> Result<f64> {
    let value = value(100);
    let writes: Vec<_> = (0..ROWS).map(|number| set(&key("b", number), &value)).collect();
    let begun = Instant::now();
    timed(&mut lines(server, 1)?, &writes, 1000, b"+OK\r\n")?;
    stored(server)?;
    Ok(ROWS as f64 / begun.elapsed().as_secs_f64())
}

/// The same, each row by a statement of its own, over one prepared connection.
fn one_by_one(postgres: &PostgresServer) -> Result<f64> {
    let mut config = PostgresConfig::new(postgres.url(), LOAD);
    config.store = Some(STORE.to_owned());
    let store = PostgresStore::new(config)?;
    let value = Bytes::from(value(100));
    Runtime::new()?.block_on(async {
        store.store_many(&[(Bytes::from_static(b"first"), value.clone())]).await?;
        let begun = Instant::now();
        for number in 0..SINGLE_ROWS {
            store.store_many(&[(key("b", number).into(), value.clone())]).await?;
        }
        Ok(SINGLE_ROWS as f64 / begun.elapsed().as_secs_f64())
    })
}

/// Waits until the store has everything.
fn stored(server: &Server) -> Result<()> {
    let mut line = Line(server.connect()?);
    while number(&mut line, "behind_records")? > 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    ensure!(number(&mut line, "behind_dead_letters")? == 0, "the store refuses what is written");
    Ok(())
}

/// One number of `CACHE.STATS users`.
fn number(line: &mut Line, field: &str) -> Result<i64> {
    let reply = line.ask(&["CACHE.STATS", "users"])?;
    let (value, _) = Value::decode(&reply)?;
    value.field(field.as_bytes()).and_then(Value::as_integer).with_context(|| format!("no {field}"))
}

/// Keys that are read all the time, from a store that they are refreshed from ahead of their end.
fn refreshed(servers: &Servers) -> Result<String> {
    let runtime = Runtime::new()?;
    let origin = runtime.block_on(Origin::start())?;
    origin.cache_control(None);
    (0..HOT).for_each(|number| origin.set(&format!("/{}", key("hot", number)), "v"));
    let (behind, data) = servers.free_redis("ahead-redis")?;
    let section = format!(
        "stores: [{{name: users, http: {{url: \"{}/{{key}}\"}}}}]\n\
         keyspaces: [{{name: users, match: \"h*\", strategy: ReadThrough, store: users, {FRESH}}}]\n",
        origin.url()
    );
    let sidecar = servers.free_sidecar("ahead", &data, behind, &section)?;
    let (mut app, mut line) = (lines(&sidecar, 1)?, Line(sidecar.connect()?));
    let reads: Vec<_> = (0..HOT).map(|number| crate::load::get(&key("hot", number))).collect();
    for _ in 0..50 {
        timed(&mut app, &reads, 1, b"$1\r\nv\r\n")?;
    }
    let counted = |line: &mut Line| -> Result<Vec<i64>> {
        ["hits_l1", "hits_l2", "misses", "loads", "refreshes"].iter().map(|field| number(line, field)).collect()
    };
    let before = counted(&mut line)?;
    let begun = Instant::now();
    while begun.elapsed() < READ_FOR {
        timed(&mut app, &reads, 1, b"$1\r\nv\r\n")?;
    }
    let after = counted(&mut line)?;
    let [l1, l2, misses, loads, refreshes] = std::array::from_fn(|n| after[n] - before[n]);
    let hits = l1 + l2;
    Ok(format!(
        "Refreshing ahead, {HOT} keys ({FRESH}) for {} s: {:.3} % of {} reads were hits in the pod, {refreshes} refreshes, and \
         {loads} loads that a read waited for.",
        READ_FOR.as_secs(),
        100.0 * hits as f64 / (hits + misses).max(1) as f64,
        hits + misses,
    ))
}
