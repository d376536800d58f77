//! Two caches over one Redis, as two processes would have them: each answers from its own tiers until the other writes.
//!
//! `cargo run -p caddy-remote --example shared -- /path/to/redis.sock` (or `host:port`)

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use caddy_engine::codec::{BinaryCodec, CodecConfig};
use caddy_engine::{MultiTierCache, TierConfig};
use caddy_remote::{Driver, Endpoint, RedisNames, RedisRemote, Target};
use tokio::task::JoinSet;

type Cache = MultiTierCache<String, String>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("say where Redis is: a socket's path, or host:port")?;
    let mut drivers = JoinSet::new();
    let (ours, theirs) = (open(&address, &mut drivers)?, open(&address, &mut drivers)?);

    ours.insert("greeting".into(), "hello".into()).await?;
    println!("they read {:?} from Redis", theirs.get("greeting").await?);
    while theirs.get_local("greeting").is_none() {
        theirs.get("greeting").await?;
    }
    let started = SystemTime::now();
    for _ in 0..100_000 {
        theirs.get("greeting").await?;
    }
    println!("and then 100,000 times, {:?} each", started.elapsed()? / 100_000);

    ours.insert("greeting".into(), "good bye".into()).await?;
    let started = SystemTime::now();
    while theirs.get("greeting").await?.as_deref() != Some("good bye") {
        tokio::task::yield_now().await;
    }
    println!("our write was seen there {:?} after it had returned here", started.elapsed()?);
    ours.remove("greeting").await?;
    Ok(())
}

fn open(address: &str, drivers: &mut JoinSet<()>) -> Result<Cache, Box<dyn Error>> {
    let endpoint = match address.rsplit_once(':') {
        Some((host, port)) => Endpoint::Tcp { host: host.into(), port: port.parse()? },
        None => Endpoint::Unix(PathBuf::from(address)),
    };
    let target = Target::new(endpoint);
    let names = RedisNames { database: 0, prefix: "example:".into() };
    let codec = BinaryCodec::<String>::new(CodecConfig::default());
    let (remote, driver): (RedisRemote<String, String, _>, Driver) = RedisRemote::new(target, names, codec);
    drivers.spawn(driver);
    Ok(Cache::new(TierConfig::default(), Arc::new(remote)))
}
