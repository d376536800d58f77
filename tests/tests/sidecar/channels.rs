//! Pub/sub of the embedded L3 is Redis's: the same steps, byte for byte.

use anyhow::{Context as _, Result, ensure};
use caddy_tests::{redis::RedisServer, sidecar::SidecarOptions, wire::Wire, world::Client};

/// Who sends what, and how many frames come back.
const STEPS: &[(&str, &str, usize)] = &[
    ("listener", "PUBLISH a nobody", 1),
    ("listener", "SUBSCRIBE a b a", 3),
    ("publisher", "PUBLISH a first", 1),
    ("listener", "", 1),
    ("listener", "PSUBSCRIBE a* ??", 2),
    // Once for the channel, once for the pattern.
    ("publisher", "PUBLISH a second", 1),
    ("listener", "", 2),
    ("publisher", "PUBLISH axe third", 1),
    ("listener", "", 1),
    ("publisher", "PUBLISH nothing fourth", 1),
    ("listener", "SSUBSCRIBE a", 1),
    ("publisher", "SPUBLISH a sharded", 1),
    ("listener", "", 1),
    ("publisher", "PUBSUB CHANNELS a*", 1),
    ("publisher", "PUBSUB NUMSUB a b c", 1),
    ("publisher", "PUBSUB NUMSUB", 1),
    ("publisher", "PUBSUB NUMPAT", 1),
    ("publisher", "PUBSUB SHARDCHANNELS", 1),
    ("publisher", "PUBSUB SHARDNUMSUB a b", 1),
    ("publisher", "PUBSUB NOPE", 1),
    ("publisher", "PUBLISH a", 1),
    ("listener", "PING", 1),
    ("listener", "PING text", 1),
    ("listener", "UNSUBSCRIBE b", 1),
    ("listener", "PUNSUBSCRIBE a*", 1),
    ("listener", "UNSUBSCRIBE", 1),
    ("listener", "UNSUBSCRIBE", 1),
    ("publisher", "PUBLISH ab fifth", 1),
    ("listener", "", 1),
    ("listener", "PUNSUBSCRIBE", 1),
    ("listener", "SUNSUBSCRIBE", 1),
    ("listener", "PUNSUBSCRIBE", 1),
    ("listener", "GET k", 1),
    ("listener", "SUBSCRIBE a", 1),
    ("listener", "RESET", 1),
    ("publisher", "PUBLISH a sixth", 1),
    ("listener", "SUBSCRIBE a", 1),
    ("listener", "QUIT", 1),
];

fn talk(mut listener: Wire, mut publisher: Wire, resp3: bool) -> Result<Vec<String>> {
    let mut said = Vec::new();
    if resp3 {
        listener.request(&["HELLO", "3"])?;
    }
    for (who, request, frames) in STEPS {
        let wire = if *who == "listener" { &mut listener } else { &mut publisher };
        if !request.is_empty() {
            wire.send(&request.split(' ').collect::<Vec<_>>())?;
        }
        for _ in 0..*frames {
            let (_, frame) = wire.receive().with_context(|| format!("{who}: {request}; before: {said:?}"))?;
            said.push(format!("{who} {request}: {}", frame.escape_ascii()));
        }
    }
    Ok(said)
}

#[test]
fn subscribers_of_the_embedded_l3_get_what_those_of_redis_get() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::embedded().start()?;
    for resp3 in [false, true] {
        let theirs = talk(redis.connect()?, redis.connect()?, resp3)?;
        let ours = talk(sidecar.connect()?, sidecar.connect()?, resp3)?;
        for (ours, theirs) in ours.iter().zip(&theirs) {
            ensure!(ours == theirs, "RESP3: {resp3}\nhere:  {ours}\nRedis: {theirs}");
        }
        ensure!(ours.len() == theirs.len());
    }
    // Whoever has gone is not published to.
    let mut gone = sidecar.connect()?;
    gone.request(&["SUBSCRIBE", "left"])?;
    drop(gone);
    let mut publisher = sidecar.connect()?;
    caddy_tests::e2e::eventually("the subscription is over", caddy_tests::world::SOON, || {
        let receivers = publisher.request(&["PUBLISH", "left", "x"])?;
        ensure!(receivers == b":0\r\n");
        Ok(())
    })?;
    Ok(())
}

/// In RESP2 a subscriber may send nothing else.
#[test]
fn a_subscriber_of_resp2_is_told_what_it_may_send() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::embedded().start()?;
    let [ours, theirs] = [sidecar.connect()?, redis.connect()?].map(|mut wire| -> Result<Vec<Vec<u8>>> {
        wire.request(&["SUBSCRIBE", "a"])?;
        Ok(vec![wire.request(&["GET", "k"])?, wire.request(&["PING", "a", "b"])?, wire.request(&["CLIENT", "ID"])?])
    });
    let (ours, theirs) = (ours?, theirs?);
    ensure!(ours == theirs, "{ours:?}\n{theirs:?}");
    Ok(())
}

/// Who subscribes to nothing any more has a connection like any other: it may speak another protocol, and be counted as free.
#[test]
fn a_session_that_was_subscribed_is_free_again() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket()).start()?;
    let (mut app, mut direct) = (Client(sidecar.connect()?), Client(redis.connect()?));
    ensure!(app.ask("SUBSCRIBE a")? == "[subscribe, a, 1]");
    ensure!(app.ask("SSUBSCRIBE s")? == "[ssubscribe, s, 1]");
    ensure!(app.ask("UNSUBSCRIBE")? == "[unsubscribe, a, 0]");
    ensure!(app.ask("HELLO 3")?.starts_with("(error) ERR Can't execute 'hello'"), "it still is");
    ensure!(app.ask("SUNSUBSCRIBE")? == "[sunsubscribe, s, 0]");
    ensure!(!app.ask("HELLO 3")?.contains("error"), "it may change its protocol");
    let pushed = |app: &mut Client, request: &[&str], text: &str| -> Result<()> {
        app.0.send(request)?;
        let (_, frame) = app.0.receive()?;
        ensure!(frame.starts_with(b">3") && frame.ends_with(text.as_bytes()), "{}", frame.escape_ascii());
        Ok(())
    };
    pushed(&mut app, &["SUBSCRIBE", "a"], "a\r\n:1\r\n")?;
    ensure!(!app.ask("HELLO 3 SETNAME listener")?.contains("error"), "what changes nothing may be said at any time");
    ensure!(app.ask("CLIENT GETNAME")? == "listener");
    ensure!(app.ask("HELLO 2")?.starts_with("(error) ERR HELLO cannot change"), "the connection to Redis is RESP3's");
    pushed(&mut app, &["UNSUBSCRIBE"], "a\r\n:0\r\n")?;
    ensure!(app.pipeline(&["WATCH k", "HELLO 3", "UNWATCH", "PING"])?[3] == "PONG");
    ensure!(!app.ask("HELLO 2")?.contains("error") && app.ask("GET k")? == "(nil)");
    let clients = direct.ask("CLIENT LIST TYPE pubsub")?;
    ensure!(clients.is_empty(), "no connection is left that subscribes: {clients}");
    Ok(())
}
