//! The embedded L3 against a real Redis: the same random commands, the same replies, byte by byte.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::{
    fmt::Write,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use caddy_remote::embedded::Embedded;
use caddy_resp::{Protocol, Value};
use caddy_tests::{random::Random, redis::RedisServer, wire::Wire};

const SEEDS: std::ops::Range<u64> = 0..30;
const COMMANDS: usize = 1500;

const KEYS: [&[u8]; 8] = [b"a", b"b", b"c", b"d", b"key:1", b"key:2", b"", b"bin\0\r\nary"];

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Both sides, the same commands, and what was said so far.
struct Pair {
    wire: Wire,
    store: Embedded,
    protocol: Protocol,
    database: u32,
    history: String,
}

impl Pair {
    fn new(server: &RedisServer, protocol: Protocol) -> Self {
        let mut wire = server.connect().unwrap();
        if protocol == Protocol::Resp3 {
            wire.request(&["HELLO", "3"]).unwrap();
        }
        wire.request(&["FLUSHALL"]).unwrap();
        Self { wire, store: Embedded::new(Arc::new(now)), protocol, database: 0, history: String::new() }
    }

    fn both(&mut self, args: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        let theirs = self.wire.request(args).unwrap();
        let mut ours = Vec::new();
        self.store.execute(self.database, self.protocol, args, &mut ours);
        let line: Vec<String> = args.iter().map(|arg| arg.escape_ascii().to_string()).collect();
        writeln!(self.history, "{:?} -> {}", line.join(" "), theirs.escape_ascii()).unwrap();
        (ours, theirs)
    }

    fn same(&mut self, seed: u64, args: &[&[u8]]) {
        if args[0] == b"DBSIZE" {
            // Redis counts what has expired until somebody looks at it.
            for key in KEYS {
                self.same(seed, &[b"EXISTS", key]);
            }
        }
        let (ours, theirs) = self.both(args);
        let name = args[0].to_ascii_uppercase();
        let same = match name.as_slice() {
            // The clocks are read at different moments.
            b"TTL" | b"EXPIRETIME" => near(&ours, &theirs, 1),
            b"PTTL" | b"PEXPIRETIME" => near(&ours, &theirs, 2000),
            // Its cursors are its own; see below.
            b"SCAN" => ours == theirs || ours.starts_with(b"*2") && theirs.starts_with(b"*2"),
            b"KEYS" => sorted(&ours) == sorted(&theirs),
            b"RANDOMKEY" => (ours == self.null()) == (theirs == self.null()),
            b"SELECT" => {
                if theirs == b"+OK\r\n" {
                    self.database = str::from_utf8(args[1]).unwrap().parse().unwrap();
                }
                ours == theirs
            }
            _ => ours == theirs,
        };
        assert!(
            same,
            "seed {seed}: embedded says {}, Redis {}\nhistory, oldest first:\n{}",
            ours.escape_ascii(),
            theirs.escape_ascii(),
            self.history
        );
    }

    fn null(&self) -> &'static [u8] {
        if self.protocol == Protocol::Resp3 { b"_\r\n" } else { b"$-1\r\n" }
    }
}

fn near(ours: &[u8], theirs: &[u8], tolerance: u64) -> bool {
    let integer = |reply| Value::decode(reply).unwrap().0.as_integer();
    match (integer(ours), integer(theirs)) {
        (Some(ours), Some(theirs)) if ours < 0 || theirs < 0 => ours == theirs,
        (Some(ours), Some(theirs)) => ours.abs_diff(theirs) <= tolerance,
        _ => ours == theirs,
    }
}

fn sorted(reply: &[u8]) -> Vec<Vec<u8>> {
    let (value, _) = Value::decode(reply).unwrap();
    let mut keys: Vec<Vec<u8>> = value
        .as_elements()
        .unwrap_or_else(|| panic!("{value:?}"))
        .iter()
        .map(|key| key.as_bytes().unwrap().to_vec())
        .collect();
    keys.sort();
    keys
}

/// A command line with `K` for a key, `V` for a value, `N` for a number, `T` for a time to live, `X` for one that may be wrong, `A` for a point in
/// time, `O` for anything: options, nonsense.
const SHAPES: &[&str] = &[
    "GET K",
    "SET K V",
    "SET K N",
    "SET K V O",
    "SET K V O O",
    "SET K V O T O",
    "SET K V EX T",
    "SET K V PX T NX",
    "SET K V EXAT A",
    "SET K V PXAT A XX GET",
    "SET K V KEEPTTL",
    "SET K V GET",
    "SET K V NX GET",
    "SET K V XX GET",
    "SET K V EX X",
    "SET K V PX X O",
    "SETEX K T V",
    "SETEX K X V",
    "PSETEX K T V",
    "PSETEX K X V",
    "SETNX K V",
    "GETSET K V",
    "GETDEL K",
    "GETEX K",
    "GETEX K EX T",
    "GETEX K PERSIST",
    "GETEX K PXAT A",
    "GETEX K EXAT X",
    "GETEX K O T",
    "GETEX K O",
    "MGET K K K",
    "MSET K V K V",
    "MSET K V K",
    "MSETNX K V K V",
    "MSETNX K V K",
    "DEL K K",
    "UNLINK K",
    "EXISTS K K K",
    "EXPIRE K T",
    "EXPIRE K X",
    "EXPIRE K T O",
    "EXPIRE K T O O",
    "PEXPIRE K T O",
    "EXPIREAT K A O",
    "PEXPIREAT K X",
    "PEXPIREAT K A O",
    "EXPIREAT K A",
    "TTL K",
    "PTTL K",
    "EXPIRETIME K",
    "PEXPIRETIME K",
    "PERSIST K",
    "INCR K",
    "DECR K",
    "INCRBY K N",
    "DECRBY K N",
    "INCRBYFLOAT K F",
    "INCRBYFLOAT K F",
    "SET K F",
    "APPEND K V",
    "STRLEN K",
    "SETRANGE K N V",
    "SETRANGE K I V",
    "GETRANGE K I I",
    "GETRANGE K N N",
    "SUBSTR K I I",
    "TYPE K",
    "RENAME K K",
    "RENAMENX K K",
    "COPY K K",
    "COPY K K REPLACE",
    "COPY K K DB D",
    "COPY K K DB D REPLACE",
    "COPY K K O",
    "MOVE K D",
    "RANDOMKEY",
    "DBSIZE",
    "KEYS P",
    "TOUCH K K",
    "FLUSHDB",
    "FLUSHALL O",
    "FLUSHDB ASYNC",
    "SWAPDB D D",
    "SELECT D",
    "SELECT 0",
    "SELECT 0",
    "ECHO V",
    "PING",
    "PING V",
    "GET",
    "SET K",
    "MGET",
    "EXPIRE K",
    "GETRANGE K I",
    "COMMAND GETKEYS SET K V",
    "PING V V",
    "SCAN O",
    "SCAN 0 COUNT N",
    "SCAN 0 O",
];

fn fill(random: &mut Random, token: &str) -> Vec<u8> {
    let pick = |random: &mut Random, among: &[&str]| among[random.below(among.len())].as_bytes().to_vec();
    match token {
        "K" => KEYS[random.below(KEYS.len())].to_vec(),
        "V" => pick(
            random,
            &["", "v", "value", "10", "-3", "x\r\n\0y", "0.5", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
        ),
        "N" => pick(
            random,
            &[
                "0",
                "1",
                "-1",
                "7",
                "100",
                "-100",
                "9223372036854775807",
                "-9223372036854775808",
                "9223372036854775808",
                "9223372036854775",
                "9223372036854776",
                "-9223372036854776",
                "-9223372036854775",
                "+1",
                "01",
                " 1",
                "1.5",
                "x",
                "",
                "4294967296",
                "536870912",
            ],
        ),
        "I" => pick(random, &["0", "1", "2", "5", "-1", "-2", "-5", "100", "-100", "12"]),
        "X" => pick(
            random,
            &[
                "0",
                "-1",
                "-100",
                "9223372036854775807",
                "-9223372036854775808",
                "9223372036854775808",
                "9223372036854775",
                "9223372036854776",
                "-9223372036854776",
                "-9223372036854775",
                "9000000000000000",
                "+1",
                "01",
                "1.5",
                "x",
                "",
                "4294967296",
            ],
        ),
        // Far enough that nothing expires while the two answer.
        "T" => pick(random, &["1000000", "2000000", "1500000", "999999999"]),
        "A" => pick(random, &["1", "1000", "99999999999", "9999999999999", "8888888888888", "77777777777"]),
        "D" => pick(random, &["0", "1", "2", "15", "16", "-1", "x", "99999999999", "3000000000"]),
        "P" => pick(random, &["*", "**", "?", "key:*", "[ab]", "[^a]", "*:[1-9]", "", "\\a", "[a", "*a*"]),
        "F" => pick(
            random,
            &[
                "0",
                "1",
                "-1",
                "0.1",
                "0.2",
                "1.5",
                "3.0e3",
                "-2.5e-3",
                "1e17",
                "1e-17",
                "123456789.123456789",
                "10000.00001",
                "inf",
                "-inf",
                "nan",
                "x",
                "",
                " 1",
                "1 ",
                "0x10",
                "1e400",
                "1e5000",
                "+1",
                "-0.0",
                "1000000.1",
                "99999999999999999999",
                ".5",
                "5.",
                "1e-5000",
                "infinity",
                "0.30000000000000004",
                "-7.000001",
                "1e",
                "e1",
                "1e+2",
                "-",
                "1e-20",
                "1.0000000000000000001",
            ],
        ),
        "O" => pick(
            random,
            &[
                "NX", "XX", "gt", "LT", "GET", "keepttl", "PERSIST", "EX", "px", "EXAT", "PXAT", "REPLACE", "DB",
                "nonsense", "", "SYNC", "async", "MATCH", "COUNT", "-1", "x1",
            ],
        ),
        literal => literal.as_bytes().to_vec(),
    }
}

#[test]
fn random_commands_are_answered_as_redis_answers_them() {
    let server = RedisServer::start().unwrap();
    for seed in SEEDS {
        let protocol = if seed % 2 == 0 { Protocol::Resp2 } else { Protocol::Resp3 };
        let mut pair = Pair::new(&server, protocol);
        let mut random = Random::new(seed);
        for _ in 0..COMMANDS {
            let shape = SHAPES[random.below(SHAPES.len())];
            let args: Vec<Vec<u8>> = shape.split(' ').map(|token| fill(&mut random, token)).collect();
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            pair.same(seed, &args);
        }
        for database in 0..3 {
            let database = format!("{database}");
            pair.same(seed, &[b"SELECT", database.as_bytes()]);
            pair.same(seed, &[b"DBSIZE"]);
            pair.same(seed, &[b"KEYS", b"*"]);
            for key in KEYS {
                pair.same(seed, &[b"GET", key]);
                pair.same(seed, &[b"PTTL", key]);
            }
        }
    }
}

#[test]
fn a_scan_gives_the_same_keys() {
    let server = RedisServer::start().unwrap();
    let mut pair = Pair::new(&server, Protocol::Resp2);
    for n in 0..300 {
        pair.same(0, &[b"SET", format!("{}:{n}", if n % 3 == 0 { "user" } else { "order" }).as_bytes(), b"v"]);
    }
    for options in [
        &[][..],
        &["COUNT", "3"],
        &["MATCH", "user:*"],
        &["MATCH", "*1", "COUNT", "100"],
        &["TYPE", "string"],
        &["TYPE", "list"],
        &["match", "*", "type", "STRING"],
    ] {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for (side, found) in [(true, &mut ours), (false, &mut theirs)] {
            let mut cursor = b"0".to_vec();
            loop {
                let mut args: Vec<&[u8]> = vec![b"SCAN", &cursor];
                args.extend(options.iter().map(|option| option.as_bytes()));
                let (embedded, redis) = {
                    let mut reply = Vec::new();
                    pair.store.execute(0, Protocol::Resp2, &args, &mut reply);
                    (reply, pair.wire.request(&args).unwrap())
                };
                let reply = if side { embedded } else { redis };
                let (value, _) = Value::decode(&reply).unwrap();
                let [next, keys] = value.as_elements().unwrap() else { panic!("{value:?}") };
                found.extend(keys.as_elements().unwrap().iter().map(|key| key.as_bytes().unwrap().to_vec()));
                cursor = next.as_bytes().unwrap().to_vec();
                if cursor == b"0" {
                    break;
                }
            }
            found.sort();
            found.dedup();
        }
        assert_eq!(ours, theirs, "{options:?}");
    }
}
