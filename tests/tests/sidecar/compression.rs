//! Compressed copies over a socket: the same answers, less memory, and L1 holds what is ready to send.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    world::{Client, SOON},
};

use crate::keyspaces::{start, stat};

/// Text that compresses and does not repeat as a whole.
fn text(bytes: usize, seed: usize) -> String {
    let mut text = String::new();
    for number in 0.. {
        if text.len() >= bytes {
            break;
        }
        let value = (number * 7919 + seed * 104_729) % 1_000_003;
        write!(text, "{{\"id\":{value},\"name\":\"user {number}\"}},").ok();
    }
    text
}

fn get(client: &mut Client, key: &str) -> Result<String> {
    client.ask(&format!("GET {key}"))
}

#[test]
fn compressed_copies_answer_the_same_and_take_less() -> Result<()> {
    let redis = RedisServer::start()?;
    let (_sidecar, mut client) = start(&redis, "{name: texts, match: \"t:*\"}")?;
    let (small, large) = (text(4000, 1), text(200_000, 2));
    redis.command(&["SET", "t:small", &small])?;
    redis.command(&["SET", "t:large", &large])?;
    redis.command(&["HSET", "t:hash", "f", &small])?;
    for _ in 0..3 {
        ensure!(get(&mut client, "t:small")? == small && get(&mut client, "t:large")? == large, "GET");
        ensure!(client.ask("HGETALL t:hash")? == format!("[f, {small}]"), "HGETALL");
    }
    ensure!(client.ask("STRLEN t:small")? == small.len().to_string(), "STRLEN");
    ensure!(client.ask("EXISTS t:small")? == "1", "EXISTS");
    client.ask("HELLO 3")?;
    ensure!(client.0.request(&["HGETALL", "t:hash"])?.starts_with(b"%1\r\n"), "a map in RESP3");
    // The large one is compressed behind its answer.
    eventually("all are compressed", SOON, || {
        ensure!(stat(&mut client, "texts", "compressed")? == 3, "compressed");
        ensure!(stat(&mut client, "texts", "l2_bytes")? < 100_000, "l2_bytes");
        Ok(())
    })?;
    ensure!(get(&mut client, "t:large")? == large, "GET of the replaced copy");
    ensure!(stat(&mut client, "texts", "misses")? == 3, "each was read once from Redis");
    ensure!(stat(&mut client, "texts", "compression_saved_bytes")? > 100_000, "saved");

    // What is read often is unpacked once and for all.
    for _ in 0..30 {
        get(&mut client, "t:small")?;
    }
    let unpacked = stat(&mut client, "texts", "decompressed")?;
    let hits = stat(&mut client, "texts", "hits_l1")?;
    for _ in 0..20 {
        ensure!(get(&mut client, "t:small")? == small, "GET from L1");
    }
    ensure!(stat(&mut client, "texts", "decompressed")? == unpacked, "L1 holds what is ready to send");
    ensure!(stat(&mut client, "texts", "hits_l1")? == hits + 20, "L1 answers");
    ensure!(stat(&mut client, "texts", "misses")? == 3, "no copy was lost on the way");
    Ok(())
}

#[test]
fn small_records_shrink_by_a_dictionary_of_their_keyspace() -> Result<()> {
    let redis = RedisServer::start()?;
    let (sidecar, mut client) =
        start(&redis, "{name: users, match: \"u:*\", compression: {algorithm: Zstd}}, {name: rest, match: \"*\"}")?;
    let record = |user: usize| {
        format!(
            "{{\"id\":{user},\"name\":\"user {}\",\"plan\":\"free\",\"mail\":\"u{user}@example.com\",\"active\":true}}",
            user * 31 % 977
        )
    };
    let read = |client: &mut Client, users: std::ops::Range<usize>| -> Result<()> {
        for user in users {
            redis.command(&["SET", &format!("u:{user}"), &record(user)])?;
            let value = get(client, &format!("u:{user}"))?;
            ensure!(value == record(user) && get(client, &format!("u:{user}"))? == value, "GET u:{user}: {value}");
        }
        Ok(())
    };
    read(&mut client, 0..400)?;
    eventually("a dictionary was trained", SOON, || {
        ensure!(sidecar.log().contains("trained a dictionary"), "the log");
        Ok(())
    })?;
    let before = stat(&mut client, "users", "compressed")?;
    read(&mut client, 400..600)?;
    ensure!(stat(&mut client, "users", "compressed")? >= before + 190, "records are compressed now");
    let (from, to) =
        (stat(&mut client, "users", "compressed_from_bytes")?, stat(&mut client, "users", "compressed_to_bytes")?);
    ensure!(from > 2 * to, "{from} bytes became {to}");
    ensure!(stat(&mut client, "rest", "compressed")? == 0, "another keyspace");
    Ok(())
}
