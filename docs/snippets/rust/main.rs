//! An app that uses the cache through its sidecar.

use redis::Commands; // cargo add redis

fn main() -> redis::RedisResult<()> {
    let socket = std::env::var("CADDY_SOCKET").unwrap_or_else(|_| "/run/caddy/cache.sock".into());
    let mut cache = redis::Client::open(format!("unix://{socket}"))?.get_connection()?;

    cache.set::<_, _, ()>("user:1", "Ada")?;
    println!("{}", cache.get::<_, String>("user:1")?); // from Redis the first time, from this pod afterwards
    println!("{}", cache.get::<_, String>("user:1")?);
    Ok(())
}
