//! The circuit breaker: nobody waits for a Redis that is known to be away, and everybody is back when any connection is.

use std::time::Duration;

use anyhow::{Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::SidecarOptions,
    world::{Client, SOON},
};

/// How long a request may be unanswered, and a connect take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Requests that would take this many times as long if each waited.
const REQUESTS: u32 = 50;

#[test]
fn requests_do_not_wait_for_a_redis_that_is_known_to_hang() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket()).timeout(PATIENCE).start()?;
    let mut client = Client(sidecar.connect()?);
    ensure!(client.ask("SET k v")? == "OK");
    redis.sigstop()?;
    let reply = client.ask("SET k v")?;
    ensure!(reply.starts_with("(error) NOTREADY"), "{reply}");
    let asked = BootClock.now();
    for _ in 0..REQUESTS {
        for command in ["SET k v", "MULTI", "BLPOP list 0"] {
            let reply = Client(sidecar.connect()?).ask(command)?;
            ensure!(reply.starts_with("(error) NOTREADY"), "{command}: {reply}");
            ensure!(reply.contains("did not answer within"), "it says why: {reply}");
        }
    }
    let took = BootClock.now().since(asked);
    ensure!(took < PATIENCE * REQUESTS, "{took:?}: each waited out a timeout");
    redis.sigcont()?;
    eventually("it is back", SOON, || {
        let reply = client.ask("SET k v")?;
        ensure!(reply == "OK", "{reply}");
        Ok(())
    })?;
    Ok(())
}

/// Fills and relays are over different connections; neither says NOTREADY once the other has been answered.
#[test]
fn relays_are_back_when_the_tracked_connection_is() -> Result<()> {
    let mut redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket()).start()?;
    let mut clients = [(); 2].map(|()| Client(sidecar.connect().expect("the sidecar takes connections")));
    for round in 0..8 {
        redis.kill()?;
        let [reader, writer] = &mut clients;
        eventually("it is gone for both", SOON, || {
            let replies = [reader.ask("GET absent")?, writer.ask("SET k v")?];
            ensure!(replies.iter().all(|reply| reply.starts_with("(error) NOTREADY")), "{replies:?}");
            Ok(())
        })?;
        redis.restart()?;
        // Without a word from anybody: the tracked connection comes back by itself.
        eventually("the sidecar is coherent again", SOON, || {
            ensure!(sidecar.metric("caddy_coherent")? == 1);
            Ok(())
        })?;
        let reply = writer.ask("SET k v")?;
        ensure!(reply == "OK", "round {round}: {reply}");
        let reply = reader.ask("MGET k absent")?;
        ensure!(reply == "[v, (nil)]", "round {round}: {reply}");
    }
    Ok(())
}
