//! A sidecar in front of three primaries against one Redis asked directly: where a cluster can do what is asked, the same
//! random streams of commands get the same replies and leave the same data.
//!
//! `CADDY_SEED` repeats a stream.

use std::{env, path::Path, time::Duration};

use anyhow::{Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_resp::encode;
use caddy_tests::{
    random::Random,
    redis::{self, RedisServer},
    redis_cluster::{Plan, RedisCluster},
    wire::Wire,
    world::show,
};

use super::Shop;

/// Pipelines of one stream, and how long the test goes on with another.
const LENGTH: usize = 150;
const BUDGET: Duration = Duration::from_secs(6);

/// Names of keys of one type: in many slots. Where a command has several keys that a cluster wants in one slot, they share a tag.
const TAGS: usize = 8;

/// `{s}`, `{h}`, `{l}`, `{z}` and `{t}` (sets) are keys of a type in any slot, `{k}` of any type; `{1}`, `{2}`, `{3}` are
/// strings, and `{4}`, `{5}`, `{6}` sets, of one slot; `{v}` is a value, `{n}` a number.
const COMMANDS: &[&str] = &[
    "GET {s}",
    "GET {s}",
    "GET {s}",
    "GET {k}",
    "MGET {s} {s} {k} {s}",
    "MGET {s} {s}",
    "MGET {1} {2} {3}",
    "EXISTS {s} {k} {h} {s}",
    "EXISTS {s}",
    "STRLEN {s}",
    "TTL {k}",
    "TYPE {k}",
    "GETRANGE {s} 0 {n}",
    "HGET {h} {n}",
    "HGETALL {h}",
    "LRANGE {l} 0 -1",
    "SCARD {t}",
    "ZSCORE {z} {n}",
    "SET {s} {v}",
    "SET {s} {v}",
    "SET {s} {v} EX 1000",
    "SET {k} {v} NX",
    "SET {s} {v} GET",
    "INCR {s}",
    "APPEND {s} {v}",
    "GETDEL {s}",
    "DEL {s} {k} {h}",
    "UNLINK {s} {l} {s}",
    "TOUCH {s} {k} {t}",
    "EXPIRE {k} 1000",
    "PERSIST {k}",
    "HSET {h} {n} {v}",
    "HDEL {h} {n}",
    "RPUSH {l} {v} {n}",
    "LPOP {l}",
    "SADD {t} {n}",
    "ZADD {z} {n} {n}",
    "MSET {1} {v} {2} {v}",
    "RENAME {1} {2}",
    "COPY {1} {3} REPLACE",
    "LCS {1} {2}",
    "SUNIONSTORE {4} {5} {6}",
    "SINTER {4} {5}",
    "SADD {4} {n}",
    "PFCOUNT {1}",
    "DBSIZE",
    "PING",
    "PING {v}",
    "ECHO {v}",
    "TYPE",
    "GET",
    "NOSUCHCOMMAND {s}",
    "SETRANGE {s} -1 x",
    "EVAL SCRIPT 1 {s}",
    "BLPOP {l} 0.01",
    "SELECT 0",
    "MULTI",
];

/// So many of them are nothing but reads.
const READS: usize = 9;

const SCRIPT: &str = "redis.call('APPEND', KEYS[1], 'x') return redis.call('STRLEN', KEYS[1])";

struct Dice(Random);

impl Dice {
    fn fill_in(&mut self, template: &str, tag: usize) -> Vec<Vec<u8>> {
        let mut keys = 0;
        let mut word = |word: &str| -> Vec<u8> {
            let n = self.0.below(TAGS);
            keys += 1;
            match word {
                "{k}" => {
                    let kind = ["s", "h", "l", "z", "t"][self.0.below(5)];
                    format!("{kind}:{n}").into_bytes()
                }
                // Not text, and with half a tag.
                "{s}" if n == 0 => b"s:\xff\x00{\r\n".to_vec(),
                "{s}" | "{h}" | "{l}" | "{z}" | "{t}" => format!("{}:{n}", &word[1..2]).into_bytes(),
                "{1}" | "{2}" | "{3}" | "{4}" | "{5}" | "{6}" => format!("{{tag{tag}}}{}", &word[1..2]).into_bytes(),
                "{v}" => match n {
                    0 => b"".to_vec(),
                    1 => b"\x00\r\n$-1".to_vec(),
                    2 => "long ".repeat(400).into_bytes(),
                    _ => n.to_string().into_bytes(),
                },
                "{n}" => (n % 4).to_string().into_bytes(),
                "SCRIPT" => SCRIPT.as_bytes().to_vec(),
                word => word.as_bytes().to_vec(),
            }
        };
        template.split(' ').map(&mut word).collect()
    }

    /// A few requests to be sent in one write.
    fn pipeline(&mut self) -> Vec<Vec<Vec<u8>>> {
        let mut requests = Vec::new();
        // What a cache is for: the same few keys, read again and again.
        let known = if self.0.below(2) == 0 { READS } else { COMMANDS.len() };
        for _ in 0..=self.0.below(8) {
            let tag = self.0.below(3);
            let template = COMMANDS[self.0.below(known)];
            requests.push(self.fill_in(template, tag));
            if template != "MULTI" {
                continue;
            }
            // A cluster wants its keys in one slot.
            for _ in 0..self.0.below(4) {
                let template = ["GET {1}", "INCR {1}", "SET {2} {v}", "MGET {1} {2}", "PING", "GET {1} x", "DEL {3}"]
                    [self.0.below(7)];
                requests.push(self.fill_in(template, tag));
            }
            let end = if self.0.below(5) == 0 { "DISCARD" } else { "EXEC" };
            requests.push(self.fill_in(end, tag));
        }
        requests
    }
}

fn ask(wire: &mut Wire, requests: &[Vec<Vec<u8>>]) -> Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    for request in requests {
        encode::command(&mut bytes, request);
    }
    wire.send_raw(&bytes)?;
    requests.iter().map(|_| wire.reply()).collect()
}

/// Sets and maps in the order of their text, since every server has its own; of a time to live that there is one.
fn comparable(request: &[Vec<u8>], reply: &[u8]) -> String {
    let text = show(reply);
    if request[0] == b"TTL" && !text.starts_with('-') {
        return "some time".to_owned();
    }
    let unordered = [&b"HGETALL"[..], b"SINTER"].contains(&request[0].as_slice());
    if !unordered {
        return format!("{} {text}", String::from_utf8_lossy(&reply[..reply.len().min(1)]));
    }
    let mut words: Vec<&str> = text.split(", ").map(|word| word.trim_matches(['[', ']'])).collect();
    words.sort_unstable();
    words.join(" ")
}

#[test]
fn three_primaries_answer_as_one_redis_does() -> Result<()> {
    differ(&redis::program()?)
}

#[test]
fn three_valkeys_answer_as_one_does() -> Result<()> {
    let Some(program) = redis::valkey() else {
        println!("skipped: {}", redis::NO_VALKEY);
        return Ok(());
    };
    differ(&program)
}

/// Streams on servers of this program, in sessions of both protocols, until the time is over.
fn differ(program: &Path) -> Result<()> {
    let clock = BootClock;
    let given: Option<u64> = env::var("CADDY_SEED").ok().and_then(|text| text.parse().ok());
    let mut seed = given.unwrap_or_else(|| clock.now().as_nanos() % 1_000_000);
    let plan = Plan { program: program.to_owned(), primaries: 3, replicas: false, tls: false };
    let shop = Shop::with(RedisCluster::with_plan(&plan)?, Duration::from_secs(1))?;
    let direct = RedisServer::start_program(program)?;
    let started = clock.now();
    let mut requests: u64 = 0;
    loop {
        let mut dice = Dice(Random::new(seed));
        let mut sessions = Vec::new();
        for hello in ["2", "3", "2"] {
            let mut pair = [shop.sidecar.connect()?, direct.connect()?];
            for wire in &mut pair {
                wire.request(&["HELLO", hello])?;
                wire.request(&["FLUSHALL"])?;
            }
            sessions.push(pair);
        }
        for step in 0..LENGTH {
            let pipeline = dice.pipeline();
            let [ours, theirs] = &mut sessions[dice.0.below(3)];
            let (ours, theirs) = (ask(ours, &pipeline)?, ask(theirs, &pipeline)?);
            for ((request, ours), theirs) in pipeline.iter().zip(&ours).zip(&theirs) {
                requests += 1;
                let words: Vec<_> = request.iter().map(|word| String::from_utf8_lossy(word)).collect();
                let (ours, theirs) = (comparable(request, ours), comparable(request, theirs));
                ensure!(
                    ours == theirs,
                    "CADDY_SEED={seed}, {}, step {step}: {words:?} answers {ours}, not {theirs}",
                    program.display()
                );
            }
        }
        let mut digests = Vec::new();
        let mut wires = [shop.sidecar.connect()?, direct.connect()?];
        let keys = show(&wires[1].request(&["KEYS", "*"])?);
        for key in keys.trim_matches(['[', ']']).split(", ").filter(|key| key.is_ascii()) {
            for wire in &mut wires {
                let reply = wire.request(&["DUMP", key])?;
                let ttl = show(&wire.request(&["TTL", key])?);
                digests.push((key.to_owned(), reply, ttl.starts_with('-')));
            }
        }
        for pair in digests.chunks(2) {
            // The order within a set or a hash is the server's own.
            let same = pair[0].1.len() == pair[1].1.len() && pair[0].2 == pair[1].2;
            ensure!(same, "CADDY_SEED={seed}: afterwards {} is not the same", pair[0].0);
        }
        if given.is_some() || clock.now().since(started) >= BUDGET {
            break;
        }
        seed += 1;
    }
    let hits = shop.sidecar.metric("caddy_hits_total")?;
    println!("{requests} requests up to seed {seed}, {hits} hits");
    ensure!(hits * 12 > requests, "only {hits} of {requests} requests were answered from copies");
    Ok(())
}
