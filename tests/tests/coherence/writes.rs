//! Every way to write, held against what it really changed.

use anyhow::{Result, ensure};
use caddy_tests::{
    proxy::{Class, Direction},
    world::{Client, MOMENT, Subject, World},
};

/// What is there before each of [`WRITES`]. `absent` is not.
const BEFORE: &[&str] = &[
    "FLUSHALL",
    "SET k 5",
    "SET dst old",
    "RPUSH l b a",
    "SADD s1 a b",
    "SADD s2 b c",
    "ZADD z 1 a",
    "GEOADD g 1 1 a",
];

/// Ways to change `k`, `dst` or `absent`.
const WRITES: &[&str] = &[
    "SET k 6",
    "SET k 6 GET",
    "SETEX k 100 6",
    "PSETEX k 100000 6",
    "GETSET k 6",
    "GETDEL k",
    "GETEX k EX 100",
    "SETNX absent 6",
    "MSET dst 6 k 7",
    "MSETNX absent 6 fresh 7",
    "APPEND k 0",
    "INCR k",
    "DECR k",
    "INCRBY k 2",
    "DECRBY k 2",
    "INCRBYFLOAT k 0.5",
    "SETRANGE k 1 x",
    "SETBIT k 1 1",
    "BITFIELD k SET u8 0 1",
    "BITOP NOT dst k",
    "DEL s1 k dst",
    "UNLINK s1 k dst",
    "EXPIRE k 100",
    "PEXPIRE k 100000",
    "EXPIREAT k 9999999999",
    "PEXPIREAT k 9999999999999",
    "EXPIRE k -1",
    "RENAME k dst",
    "RENAMENX k absent",
    "COPY k dst REPLACE",
    "COPY k absent",
    "MOVE k 1",
    "LPUSH absent x",
    "RPUSH absent x",
    "LMOVE l absent LEFT RIGHT",
    "RPOPLPUSH l absent",
    "BLMOVE l absent LEFT RIGHT 0",
    "BRPOPLPUSH l absent 0",
    "SADD absent x",
    "SMOVE s1 absent a",
    "SINTERSTORE dst s1 s2",
    "SUNIONSTORE dst s1 s2",
    "SDIFFSTORE dst s1 s2",
    "HSET absent f v",
    "HSETNX absent f v",
    "HINCRBY absent f 1",
    "HINCRBYFLOAT absent f 1",
    "ZADD absent 1 a",
    "ZINCRBY absent 1 a",
    "ZUNIONSTORE dst 2 z s1",
    "ZINTERSTORE dst 2 z s1",
    "ZDIFFSTORE dst 1 z",
    "ZRANGESTORE dst z 0 -1",
    "GEOADD absent 1 1 a",
    "GEOSEARCHSTORE dst g FROMLONLAT 1 1 BYRADIUS 10 km",
    "GEORADIUS g 1 1 10 km STORE dst",
    "GEORADIUSBYMEMBER g a 10 km STORE dst",
    "PFADD absent x",
    "PFMERGE absent",
    "XADD absent * f v",
    "XGROUP CREATE absent group $ MKSTREAM",
    "SORT l ALPHA STORE dst",
    "EVAL 'return redis.call(\"SET\", KEYS[1], \"6\")' 1 k",
];

/// Without any push: what a command changed is dead when it is answered.
#[test]
fn every_write_kills_the_copies_of_the_keys_it_changed() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let mut client = world.pod().connect()?;
    let mut direct = Client(world.redis.connect()?);
    let keys = [("k", "5"), ("dst", "old"), ("absent", "(nil)")];
    let mut state = || -> Result<Vec<String>> {
        direct.pipeline(&[
            "DUMP k",
            "PEXPIRETIME k",
            "DUMP dst",
            "PEXPIRETIME dst",
            "DUMP absent",
            "PEXPIRETIME absent",
        ])
    };
    let mut changes = 0;
    for write in WRITES {
        for command in BEFORE {
            world.foreign(command)?;
        }
        client.barrier()?;
        for (key, value) in keys {
            client.hold(key, value)?;
        }
        let before = state()?;
        world.pod().proxy.stall(Class::Tracked, Direction::ToClient);
        client.send(write)?;
        let mut reply = client.reply_within(MOMENT)?;
        if reply.is_none() {
            // It waits for a barrier.
            world.pod().proxy.heal();
            reply = Some(client.reply()?);
        }
        let reply = reply.unwrap_or_default();
        ensure!(!reply.starts_with("(error)"), "{write} answers {reply}");
        let after = state()?;
        for (index, (key, _)) in keys.iter().enumerate() {
            if before[2 * index..2 * index + 2] != after[2 * index..2 * index + 2] {
                changes += 1;
                let served = client.why(key, "served")?;
                ensure!(served == "no", "{write} was answered {reply}, and the copy of {key} is still served");
            }
        }
        world.pod().proxy.heal();
    }
    ensure!(changes >= WRITES.len(), "{changes} changes by {} writes: some do nothing", WRITES.len());
    Ok(())
}
