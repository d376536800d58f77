//! What a sidecar reads counts against the budget of L2 before it is kept, or until the app has it: entries make way.

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    proxy::{Class, Direction, Proxy},
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    wire::Wire,
    world::{LONG, SOON},
};

const BUDGET: u64 = 4 << 20;
const SMALL: usize = 3000;
const LARGE: u64 = 300 << 10;
/// `$307200\r\n`, the value, `\r\n`.
const REPLY: u64 = LARGE + 11;

/// Bytes in flight, and with those in L2.
fn bytes(sidecar: &Sidecar) -> Result<(u64, u64)> {
    let in_flight = sidecar.metric("caddy_in_flight_bytes")?;
    Ok((in_flight, in_flight + sidecar.metric("caddy_l2_bytes")?))
}

fn within_budget(sidecar: &Sidecar, at_least: u64, what: &str) -> Result<()> {
    eventually(what, SOON, || {
        let (in_flight, all) = bytes(sidecar)?;
        ensure!(in_flight >= at_least, "{in_flight} bytes in flight");
        ensure!(all <= BUDGET, "{all} bytes of {BUDGET}, {in_flight} of them in flight");
        Ok(())
    })
    .map(drop)
}

fn start(redis: &RedisServer) -> Result<(Proxy, Sidecar, Wire)> {
    start_with(redis, "{}")
}

fn start_with(redis: &RedisServer, limits: &str) -> Result<(Proxy, Sidecar, Wire)> {
    let proxy = Proxy::start(redis.socket())?;
    let l2 = format!("l2: {{maxBytes: {BUDGET}, compression: {{algorithm: None}}}}");
    // What is stalled here is no loss, however long a busy machine takes to look.
    let l3 = format!("endpoints: [\"unix:{}\"], timeout: 60s", proxy.socket().display());
    let options = SidecarOptions::l3_redis(&l3).max_staleness(LONG).section(&l2);
    let sidecar = options.section(&format!("limits: {limits}")).start()?;
    let mut client = sidecar.connect()?;
    client.set_deadline(SOON)?;
    Ok((proxy, sidecar, client))
}

/// Fills most of L2 with small values.
fn fill(redis: &RedisServer, client: &mut Wire) -> Result<()> {
    let mut wire = redis.connect()?;
    for key in 0..SMALL {
        let key = format!("small:{key}");
        wire.request(&["SETRANGE", &key, "2047", "x"])?;
        client.request(&["GET", &key])?;
    }
    Ok(())
}

/// Asks for the large value, of which all but the last 100 KiB come.
fn read_most_of_it(proxy: &Proxy, sidecar: &Sidecar, client: &mut Wire) -> Result<()> {
    proxy.stall(Class::Tracked, Direction::ToClient);
    client.send(&["GET", "large"])?;
    proxy.wait_for_replies(Class::Tracked, 2)?;
    proxy.let_through(Class::Tracked, Direction::ToClient, REPLY - (100 << 10));
    within_budget(sidecar, LARGE - (100 << 10), "a part of the value has come")
}

fn nothing_is_in_flight(sidecar: &Sidecar) -> Result<()> {
    eventually("nothing is in flight", SOON, || {
        let (in_flight, all) = bytes(sidecar)?;
        ensure!(in_flight == 0 && all <= BUDGET, "{all} bytes of {BUDGET}, {in_flight} in flight");
        Ok(())
    })
    .map(drop)
}

#[test]
fn entries_make_way_for_a_value_that_is_being_read() -> Result<()> {
    let redis = RedisServer::start()?;
    let (proxy, sidecar, mut client) = start(&redis)?;
    fill(&redis, &mut client)?;
    redis.connect()?.request(&["SETRANGE", "large", &(LARGE - 1).to_string(), "x"])?;
    let (in_flight, all) = bytes(&sidecar)?;
    ensure!(in_flight == 0 && all > BUDGET / 10 * 9 && all <= BUDGET, "{all} bytes of {BUDGET}, {in_flight} in flight");

    read_most_of_it(&proxy, &sidecar, &mut client)?;
    // All of it, but not its PTTL, without which it is not kept.
    proxy.let_through(Class::Tracked, Direction::ToClient, 100 << 10);
    within_budget(&sidecar, REPLY, "the value has come")?;
    proxy.pass(Class::Tracked, Direction::ToClient);
    ensure!(client.reply()?.len() as u64 == REPLY, "the value");
    nothing_is_in_flight(&sidecar)
}

#[test]
fn what_was_in_flight_on_a_lost_connection_is_given_back() -> Result<()> {
    let redis = RedisServer::start()?;
    let (proxy, sidecar, mut client) = start(&redis)?;
    redis.connect()?.request(&["SETRANGE", "large", &(LARGE - 1).to_string(), "x"])?;
    ensure!(client.request(&["GET", "none"])? == b"$-1\r\n", "it is connected");
    read_most_of_it(&proxy, &sidecar, &mut client)?;
    proxy.cut(Class::Tracked);
    proxy.pass(Class::Tracked, Direction::ToClient);
    ensure!(client.reply()?.len() as u64 == REPLY, "it is read over the relay instead");
    nothing_is_in_flight(&sidecar)
}

#[test]
fn entries_make_way_for_a_reply_that_is_only_relayed() -> Result<()> {
    let redis = RedisServer::start()?;
    let (proxy, sidecar, mut client) = start(&redis)?;
    fill(&redis, &mut client)?;
    redis.connect()?.request(&["SETRANGE", "large", &(LARGE - 1).to_string(), "x"])?;
    ensure!(client.request(&["DEL", "none"])? == b":0\r\n", "the relay is connected");

    proxy.stall(Class::Relay, Direction::ToClient);
    client.send(&["GETDEL", "large"])?;
    proxy.wait_for_replies(Class::Relay, 1)?;
    proxy.let_through(Class::Relay, Direction::ToClient, REPLY - (100 << 10));
    within_budget(&sidecar, LARGE - (100 << 10), "a part of the reply has come")?;
    proxy.pass(Class::Relay, Direction::ToClient);
    ensure!(client.reply()?.len() as u64 == REPLY, "the value");
    nothing_is_in_flight(&sidecar)
}

#[test]
fn entries_make_way_for_replies_that_an_app_does_not_read() -> Result<()> {
    const ASKED: usize = 8;
    let redis = RedisServer::start()?;
    let (_proxy, sidecar, mut client) = start(&redis)?;
    fill(&redis, &mut client)?;
    redis.connect()?.request(&["SETRANGE", "large", &(LARGE - 1).to_string(), "x"])?;
    ensure!(client.request(&["GET", "large"])?.len() as u64 == REPLY, "the value");

    let mut app = sidecar.connect()?;
    app.set_deadline(SOON)?;
    let (mut batch, asked) = (Vec::new(), [b"GET".as_slice(), b"large"]);
    (0..ASKED).for_each(|_| caddy_resp::encode::command(&mut batch, asked));
    app.send_raw(&batch)?;
    // What the socket itself takes is the kernel's: a few hundred KiB.
    within_budget(&sidecar, 1 << 20, "the app does not read")?;
    for _ in 0..ASKED {
        ensure!(app.reply()?.len() as u64 == REPLY, "the value");
    }
    nothing_is_in_flight(&sidecar)
}

#[test]
fn entries_make_way_for_many_short_replies_that_are_only_relayed() -> Result<()> {
    const ASKED: usize = 200;
    const SHORT: usize = 15_000;
    let redis = RedisServer::start()?;
    let (_proxy, sidecar, mut client) = start_with(&redis, "{outputBufferBytes: 64Ki}")?;
    fill(&redis, &mut client)?;
    redis.connect()?.request(&["SETRANGE", "short", &(SHORT - 1).to_string(), "x"])?;
    ensure!(client.request(&["DEL", "none"])? == b":0\r\n", "the relay is connected");

    let mut app = sidecar.connect()?;
    app.set_deadline(SOON)?;
    let (mut batch, asked) = (Vec::new(), [b"GETEX".as_slice(), b"short"]);
    (0..ASKED).for_each(|_| caddy_resp::encode::command(&mut batch, asked));
    // Few bytes: they are read, and taken, together.
    app.send_raw(&batch)?;
    // But for the output's 64 KiB, and what the socket takes.
    within_budget(&sidecar, 2 << 20, "the app does not read")?;
    for _ in 0..ASKED {
        ensure!(app.reply()?.len() == SHORT + 10, "the value");
    }
    nothing_is_in_flight(&sidecar)
}

#[test]
fn copies_that_answer_behind_a_read_that_waits_are_bounded() -> Result<()> {
    const ASKED: usize = 64;
    const OUTPUT: u64 = 1 << 20;
    let redis = RedisServer::start()?;
    let (proxy, sidecar, mut client) = start_with(&redis, "{outputBufferBytes: 1Mi}")?;
    redis.connect()?.request(&["SETRANGE", "large", &(LARGE - 1).to_string(), "x"])?;
    ensure!(client.request(&["GET", "large"])?.len() as u64 == REPLY, "the value");

    proxy.stall(Class::Tracked, Direction::ToClient);
    let mut batch = Vec::new();
    caddy_resp::encode::command(&mut batch, [b"GET".as_slice(), b"slow"]);
    (0..ASKED).for_each(|_| caddy_resp::encode::command(&mut batch, [b"GET".as_slice(), b"large"]));
    client.send_raw(&batch)?;
    within_budget(&sidecar, OUTPUT, "they wait")?;
    let (in_flight, _) = bytes(&sidecar)?;
    ensure!(in_flight <= OUTPUT + REPLY, "{in_flight} bytes in flight: no more is taken than the output may have");
    proxy.pass(Class::Tracked, Direction::ToClient);
    ensure!(client.reply()? == b"$-1\r\n", "the slow one comes first");
    for _ in 0..ASKED {
        ensure!(client.reply()?.len() as u64 == REPLY, "the value");
    }
    nothing_is_in_flight(&sidecar)
}
