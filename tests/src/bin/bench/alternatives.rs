//! A sidecar beside what one would do instead, with a network of 0.25 ms between pod and Redis: every read over that
//! network, or a client library that caches by itself (redis-rs, `CacheConfig`).

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redis::AsyncCommands;

use crate::delay::Network;
use crate::load::{bulk, get, key, micros, percentile, set, timed, value};
use crate::server::{Server, Servers};
use crate::table::median;

/// Half the round trip.
const EACH_WAY: Duration = Duration::from_micros(125);
/// Reads of one round.
const READS: usize = 400;
/// How long a stale answer is waited out.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures, and says what was seen.
pub(crate) fn measure(servers: &Servers, rounds: usize) -> Result<String> {
    let (behind, data) = servers.redis_behind("far")?;
    let network = Network::start(servers.folder().join("network.sock"), data.clone(), EACH_WAY)?;
    let sidecar = servers.sidecar("far-sidecar", network.socket(), behind)?;
    let mut near = [sidecar.connect()?];
    let mut far = [UnixStream::connect(network.socket())?];
    let mut redis = [UnixStream::connect(&data)?];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut library = runtime.block_on(caching_client(network.socket()))?;

    let content = value(100);
    let reply = bulk(&content);
    let (mut hits, mut misses, mut libraries) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let writes: Vec<_> = (0..READS).map(|number| set(&key("far", number), &content)).collect();
        timed(&mut redis, &writes, 1, b"+OK\r\n")?;
        let reads: Vec<_> = (0..READS).map(|number| get(&key("far", number))).collect();
        let mut direct = timed(&mut far, &reads, 1, &reply)?;
        let direct = micros(percentile(&mut direct, 50));
        let mut miss = timed(&mut near, &reads, 1, &reply)?;
        misses.push(micros(percentile(&mut miss, 50)) / direct);
        let hot = vec![get(&key("far", 0)); READS];
        let mut hit = timed(&mut near, &hot, 1, &reply)?;
        hits.push(direct / micros(percentile(&mut hit, 50)));
        let mut cached = runtime.block_on(cached_reads(&mut library, &key("far", 0)))?;
        libraries.push(micros(percentile(&mut hit, 50)) / micros(percentile(&mut cached, 50)));
    }
    let middle = |values| median(values).unwrap_or(f64::NAN);
    let speed = format!(
        "Redis 0.25 ms away: a hit is {:.1} × quicker than a read over that network, a miss takes {:.2} × one.\n\
         A client library that caches in the app's own process (redis-rs): the sidecar's hit takes {:.1} × its hit.",
        middle(hits),
        middle(misses),
        middle(libraries)
    );
    let ours = staleness(&network, &mut redis, |request| timed_answer(&sidecar, request))?;
    let theirs = staleness(&network, &mut redis, |name| Ok(runtime.block_on(library_answer(&mut library, name))))?;
    let bound = |time: Duration| {
        if time >= PATIENCE { "more than 10 s".into() } else { format!("{:.2} s", time.as_secs_f64()) }
    };
    Ok(format!(
        "{speed}\nThe network cut while both ends think it stands: the old value was last served {} after a foreign write by the \
         sidecar (bound 1 s), {} by the library.",
        bound(ours),
        bound(theirs)
    ))
}

async fn caching_client(socket: &Path) -> Result<redis::aio::MultiplexedConnection> {
    let info =
        redis::parse_redis_url(&format!("unix://{}?protocol=resp3", socket.display())).context("a URL of Redis")?;
    let client = redis::Client::open(info)?;
    let config = redis::AsyncConnectionConfig::new().set_cache_config(redis::caching::CacheConfig::default());
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

async fn cached_reads(library: &mut redis::aio::MultiplexedConnection, name: &str) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(READS);
    for _ in 0..READS {
        let start = Instant::now();
        let _: Vec<u8> = library.get(name).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// How long after a foreign write made during a cut the old value was last given out. `ask` tells the answer to a GET of
/// a key; `None` where there was an error or no answer, which is honest.
fn staleness(
    network: &Network,
    redis: &mut [UnixStream],
    mut ask: impl FnMut(&str) -> Result<Option<Vec<u8>>>,
) -> Result<Duration> {
    let name = key("cut", 0);
    timed(redis, &[set(&name, b"old")], 1, b"+OK\r\n")?;
    // Close by, also after a copy of an earlier value.
    while ask(&name)? != Some(b"old".to_vec()) {
        thread::sleep(Duration::from_millis(20));
    }
    for _ in 0..20 {
        ask(&name)?;
    }
    network.cut();
    timed(redis, &[set(&name, b"new")], 1, b"+OK\r\n")?;
    let written = Instant::now();
    let mut last_stale = Duration::ZERO;
    while written.elapsed() < PATIENCE && written.elapsed() < last_stale + Duration::from_secs(3) {
        let asked = written.elapsed();
        if ask(&name)? == Some(b"old".to_vec()) {
            last_stale = asked;
        }
        thread::sleep(Duration::from_millis(5));
    }
    network.heal();
    Ok(if written.elapsed() >= PATIENCE { PATIENCE.max(last_stale) } else { last_stale })
}

fn timed_answer(sidecar: &Server, name: &str) -> Result<Option<Vec<u8>>> {
    use std::io::{Read, Write};
    // A connection of its own: an answer that comes late must not be taken for the next one's.
    let mut app = sidecar.connect()?;
    app.set_read_timeout(Some(Duration::from_millis(500)))?;
    app.write_all(&get(name))?;
    let mut reply = vec![0; bulk(b"old").len()];
    Ok(app.read_exact(&mut reply).ok().map(|()| reply[4..7].to_vec()))
}

async fn library_answer(library: &mut redis::aio::MultiplexedConnection, name: &str) -> Option<Vec<u8>> {
    tokio::time::timeout(Duration::from_millis(500), library.get(name)).await.ok()?.ok()
}
