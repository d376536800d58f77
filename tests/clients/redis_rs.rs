//! redis-rs on the sidecar's socket, blocking or (`CADDY_CLIENT=tokio`) multiplexed: a line for each step; a mismatch ends
//! it with an error.

use std::{env, io, thread, time::Duration};

use anyhow::{Result, ensure};
use redis::{AsyncCommands as _, Client, Commands as _, Script};

const DOUBLE: &str = "local v = redis.call('GET', KEYS[1]) * 2; redis.call('SET', KEYS[1], v); return v";

fn main() -> Result<()> {
    let client = Client::open(format!("unix://{}", env::var("CADDY_SOCKET")?))?;
    match env::var("CADDY_CLIENT").as_deref() {
        Ok("tokio") => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(multiplexed(&client))
        }
        _ => blocking(&client),
    }
}

fn step(name: &str, holds: bool) -> Result<()> {
    ensure!(holds, "{name}: not as expected");
    println!("{name}");
    Ok(())
}

/// The sidecar is restarted meanwhile.
fn restart() -> Result<()> {
    println!("restart");
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn pipeline() -> (redis::Pipeline, Vec<i64>) {
    let mut pipeline = redis::pipe();
    for n in 0..100 {
        pipeline.set(format!("n:{n}"), n).ignore().incr(format!("n:{n}"), 1);
    }
    (pipeline, (1..=100).collect())
}

fn transaction() -> redis::Pipeline {
    let mut transaction = redis::pipe();
    transaction.atomic().set("a", 1).ignore().incr("a", 1).get("a");
    transaction
}

fn blocking(client: &Client) -> Result<()> {
    let mut cache = client.get_connection()?;
    step("connected", redis::cmd("PING").query::<String>(&mut cache)? == "PONG")?;

    cache.set_ex::<_, _, ()>("user:1", "Ada", 600)?;
    let values = (0..3).map(|_| cache.get("user:1")).collect::<redis::RedisResult<Vec<String>>>()?;
    step("hit", values == ["Ada"; 3] && cache.get::<_, Option<String>>("user:2")?.is_none())?;

    let (pipeline, wanted) = pipeline();
    step("pipeline", pipeline.query::<Vec<i64>>(&mut cache)? == wanted)?;
    step("transaction", transaction().query::<(i64, i64)>(&mut cache)? == (2, 2))?;

    redis::cmd("WATCH").arg("a").exec(&mut cache)?;
    client.get_connection()?.set::<_, _, ()>("a", "other")?;
    let outcome: Option<()> = redis::pipe().atomic().set("a", "mine").ignore().query(&mut cache)?;
    step("conflict", outcome.is_none() && cache.get::<_, String>("a")? == "other")?;

    let mut subscriber = client.get_connection()?;
    let mut channel = subscriber.as_pubsub();
    channel.subscribe("news")?;
    let receivers: i64 = cache.publish("news", "hello")?;
    let heard: String = channel.get_message()?.get_payload()?;
    channel.unsubscribe("news")?;
    drop(channel);
    // The connection is an ordinary one again.
    let again: String = subscriber.get("user:1")?;
    step("pubsub", receivers == 1 && heard == "hello" && again == "Ada")?;

    cache.set::<_, _, ()>("s", 21)?;
    let before: i64 = cache.get("s")?;
    let doubled: i64 = Script::new(DOUBLE).key("s").invoke(&mut cache)?;
    step("script", (before, doubled) == (21, 42) && cache.get::<_, i64>("s")? == 42)?;

    let mut waiting = client.get_connection()?;
    let job = thread::spawn(move || waiting.blpop::<_, (String, String)>("queue", 10.0));
    cache.rpush::<_, _, ()>("queue", "job")?;
    let job = job.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))??;
    step("blocking", job.1 == "job")?;

    restart()?;
    // redis-rs leaves it to the app to connect again.
    ensure!(cache.get::<_, String>("user:1").is_err(), "the old connection still answers");
    let mut cache = client.get_connection()?;
    let kept: String = cache.get("user:1")?;
    cache.set::<_, _, ()>("user:1", "Eve")?;
    step("reconnected", kept == "Ada" && cache.get::<_, String>("user:1")? == "Eve")
}

async fn multiplexed(client: &Client) -> Result<()> {
    let mut cache = client.get_multiplexed_async_connection().await?;
    step("connected", redis::cmd("PING").query_async::<String>(&mut cache).await? == "PONG")?;

    cache.set_ex::<_, _, ()>("user:1", "Ada", 600).await?;
    let first: String = cache.get("user:1").await?;
    // Many tasks share the connection.
    let mut many = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let mut cache = cache.clone();
        many.spawn(async move { cache.get::<_, String>("user:1").await });
    }
    let many = many.join_all().await.into_iter().collect::<redis::RedisResult<Vec<_>>>()?;
    step("hit", first == "Ada" && many == ["Ada"; 30] && cache.get::<_, Option<String>>("user:2").await?.is_none())?;

    let (pipeline, wanted) = pipeline();
    step("pipeline", pipeline.query_async::<Vec<i64>>(&mut cache).await? == wanted)?;
    step("transaction", transaction().query_async::<(i64, i64)>(&mut cache).await? == (2, 2))?;

    // WATCH is of a connection: one that is not shared.
    let mut watching = client.get_multiplexed_async_connection().await?;
    redis::cmd("WATCH").arg("a").exec_async(&mut watching).await?;
    cache.set::<_, _, ()>("a", "other").await?;
    let outcome: Option<()> = redis::pipe().atomic().set("a", "mine").ignore().query_async(&mut watching).await?;
    step("conflict", outcome.is_none() && cache.get::<_, String>("a").await? == "other")?;

    let mut channel = client.get_async_pubsub().await?;
    channel.subscribe("news").await?;
    let receivers: i64 = cache.publish("news", "hello").await?;
    let heard = futures_next(&mut channel).await?;
    step("pubsub", receivers == 1 && heard == "hello")?;

    cache.set::<_, _, ()>("s", 21).await?;
    let before: i64 = cache.get("s").await?;
    let doubled: i64 = Script::new(DOUBLE).key("s").invoke_async(&mut cache).await?;
    step("script", (before, doubled) == (21, 42) && cache.get::<_, i64>("s").await? == 42)?;

    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
    let mut waiting = client.get_multiplexed_async_connection_with_config(&patient).await?;
    let (job, pushed) =
        tokio::join!(waiting.blpop::<_, (String, String)>("queue", 10.0), cache.rpush::<_, _, ()>("queue", "job"));
    pushed?;
    step("blocking", job?.1 == "job")?;

    restart()?;
    ensure!(cache.get::<_, String>("user:1").await.is_err(), "the old connection still answers");
    let mut cache = client.get_multiplexed_async_connection().await?;
    let kept: String = cache.get("user:1").await?;
    cache.set::<_, _, ()>("user:1", "Eve").await?;
    step("reconnected", kept == "Ada" && cache.get::<_, String>("user:1").await? == "Eve")
}

async fn futures_next(channel: &mut redis::aio::PubSub) -> Result<String> {
    use futures::StreamExt as _;
    let message = channel.on_message().next().await;
    Ok(message.ok_or_else(|| anyhow::anyhow!("the subscription ended"))?.get_payload()?)
}
