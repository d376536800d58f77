//! A thousand requests on four threads want the same expensive report at once, then many small ones: how often is the
//! database asked, and which tier answers?
//!
//! `cargo run -p caddy-engine --example stampede`

use std::convert::Infallible;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use caddy_engine::{CacheTier, LoadError, MultiTierCache, TierConfig};
use futures::future::join_all;

const THREADS: u64 = 4;
const REQUESTS: u64 = 1_000;
const USERS: u64 = 500;

/// What is worth caching: it takes a while, and it counts how often it was asked.
#[derive(Default)]
struct Database {
    queries: AtomicU64,
}

impl Database {
    async fn query(&self, what: &str) -> Result<String, Infallible> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(format!("the answer to {what}"))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let database = Database::default();
    let cache = MultiTierCache::<String, String>::in_process(TierConfig::default());

    let started = SystemTime::now();
    on_every_thread(async |_| {
        let requests = (0..REQUESTS / THREADS).map(|_| cache.get_or_load("report", || database.query("report")));
        for answer in join_all(requests).await {
            assert_eq!(answer?.value, "the answer to report");
        }
        Ok(())
    })?;
    let queries = database.queries.swap(0, Ordering::Relaxed);
    println!("{REQUESTS} requests for one report: {queries} query, {:?}", started.elapsed()?);

    on_every_thread(async |thread| {
        for request in 0..100_000 {
            // Few users make most requests.
            let user = (request * request + thread) % USERS * (request % 7) / 6;
            let key = format!("user:{user}");
            if cache.get_local(&key).is_none() {
                cache.get_or_load(&key, async || Ok::<_, Infallible>(format!("user number {user}"))).await?;
            }
        }
        Ok(())
    })?;
    let (stats, sizes) = (cache.stats(), cache.tier_sizes());
    println!("{} of reads answered locally; {sizes:?}", percent(cache.hit_rate()));
    for tier in [CacheTier::L1, CacheTier::L2, CacheTier::L3] {
        let tier_stats = stats.tier(tier);
        println!("{tier:?}: {} hits, {} of what came to it", tier_stats.hits, percent(tier_stats.hit_rate()));
    }
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Runs `work` on each of [`THREADS`] threads, with a runtime of its own; each thread gets an L1 of its own.
fn on_every_thread(work: impl AsyncFn(u64) -> Result<(), LoadError> + Sync) -> Result<(), Box<dyn Error>> {
    std::thread::scope(|scope| {
        let work = &work;
        let run = move |thread| -> std::io::Result<Result<(), LoadError>> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            Ok(runtime.block_on(work(thread)))
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")???;
        }
        Ok(())
    })
}
