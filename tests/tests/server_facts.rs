//! What the design takes for granted of servers, asked of every server that is here: what `CLIENT TRACKING` announces and
//! what it does not, in which order, and what HELLO and COMMAND tell.
//!
//! A server that fails here must not be cached from as it is now; `docs/consistency.md` says what rests on what.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::{path::PathBuf, thread, time::Duration};

use caddy_resp::{FrameKind, Value};
use caddy_tests::{
    redis::{self, RedisServer},
    wire::Wire,
};

/// Keys that a push names; `None` in it: all of them.
type Push = Option<Vec<String>>;

/// How long a push may be on its way when nothing else orders it: expiry is looked for ten times a second.
const SOON: Duration = Duration::from_secs(10);

/// A connection with tracking, and another.
struct Pair {
    tracked: Wire,
    other: Wire,
    pushes: Vec<Push>,
}

impl Pair {
    fn new(server: &RedisServer) -> Self {
        let mut tracked = server.connect().unwrap();
        assert!(tracked.request(&["HELLO", "3"]).unwrap().starts_with(b"%"));
        assert_eq!(tracked.request(&["CLIENT", "TRACKING", "ON"]).unwrap(), b"+OK\r\n");
        Self { tracked, other: server.connect().unwrap(), pushes: Vec::new() }
    }

    /// Another client's command.
    fn foreign(&mut self, line: &str) -> String {
        text(&self.other.request(&words(line)).unwrap())
    }

    /// The tracked client's own; pushes before the reply are kept.
    fn own(&mut self, line: &str) -> String {
        self.tracked.send(&words(line)).unwrap();
        loop {
            let (frame, bytes) = self.tracked.receive().unwrap();
            if frame.kind == FrameKind::Push {
                self.pushes.push(keys(&bytes));
            } else {
                return text(&bytes);
            }
        }
    }

    /// What was pushed until now, by the order of the stream: before the answer to a PING.
    fn pushed(&mut self) -> Vec<Push> {
        assert_eq!(self.own("PING"), "+PONG\r\n");
        std::mem::take(&mut self.pushes)
    }

    /// As [`pushed`](Self::pushed), names only, in alphabetical order.
    fn named(&mut self) -> Vec<String> {
        let mut names: Vec<String> = self.pushed().into_iter().flat_map(|push| push.expect("names, not all")).collect();
        names.sort();
        names
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

fn text(reply: &[u8]) -> String {
    String::from_utf8_lossy(reply).into_owned()
}

fn keys(push: &[u8]) -> Push {
    let (value, _) = Value::decode(push).unwrap();
    let Value::Push(elements) = &value else { panic!("{value:?}") };
    assert_eq!(elements[0].as_bytes(), Some(&b"invalidate"[..]), "{value:?}");
    elements[1].as_elements().map(|keys| keys.iter().map(|key| text(key.as_bytes().unwrap())).collect())
}

/// Runs a check against every server that is here.
fn each(check: impl Fn(&RedisServer)) {
    let valkey = redis::valkey();
    if valkey.is_none() {
        println!("skipped for Valkey: {}", redis::NO_VALKEY);
    }
    let programs: Vec<PathBuf> = [Some(redis::program().unwrap()), valkey].into_iter().flatten().collect();
    for program in programs {
        let server = RedisServer::start_program(&program).unwrap();
        println!("{}", program.display());
        check(&server);
    }
}

#[test]
fn a_read_is_announced_once_whatever_was_read_and_whether_it_was_there() {
    each(|server| {
        let mut pair = Pair::new(server);
        pair.foreign("SET there 1");
        for read in [
            "GET k",
            "PTTL k",
            "TTL k",
            "EXISTS k",
            "STRLEN k",
            "TYPE k",
            "MGET k other",
            "HGETALL k",
            "OBJECT ENCODING k",
        ] {
            pair.own(read);
            pair.foreign("DEL k");
            pair.foreign("SET k 1");
            pair.foreign("SET k 2");
            assert_eq!(pair.named(), ["k"], "{read}: one push for two writes");
            pair.foreign("SET k 3");
            assert_eq!(pair.named(), Vec::<String>::new(), "{read}: one-shot");
            pair.foreign("DEL k");
        }
        pair.own("GET nothing");
        pair.foreign("LPUSH nothing x");
        assert_eq!(pair.named(), ["nothing"], "an absent key");
        pair.own("MGET a b c");
        pair.foreign("MSET a 1 c 1");
        assert_eq!(pair.named(), ["a", "c"], "MGET is about each of its keys");
    });
}

#[test]
fn every_way_to_write_is_announced() {
    each(|server| {
        let mut pair = Pair::new(server);
        for (before, write, named) in [
            ("SET a 1", "APPEND a x", "a"),
            ("SET a 1", "EXPIRE a 100", "a"),
            ("SET a 1 EX 100", "PERSIST a", "a"),
            ("SET a 1", "GETEX a EX 50", "a"),
            ("SET a 1", "GETDEL a", "a"),
            ("SET a 1", "UNLINK a", "a"),
            ("SET a 1", "RENAME a b", "a b"),
            ("SET a 1", "COPY a b REPLACE", "b"),
            ("SET a 1", "EVAL redis.call('SET','a','2') 0", "a"),
            ("HSET a f 1", "HINCRBY a f 1", "a"),
            ("RPUSH a 1 2", "SORT a STORE b", "b"),
            ("SET a 1", "MOVE a 3", "a"),
        ] {
            pair.foreign("DEL a b");
            pair.pushed();
            pair.foreign(before);
            pair.own("EXISTS a b");
            let write: Vec<String> = words_of_script(write);
            let write: Vec<&str> = write.iter().map(String::as_str).collect();
            let reply = text(&pair.other.request(&write).unwrap());
            assert!(!reply.starts_with('-'), "{write:?}: {reply}");
            assert_eq!(pair.named().join(" "), named, "{write:?}");
            pair.foreign("FLUSHALL");
            pair.pushed();
        }
        pair.own("GET a");
        pair.other.send_raw(b"MULTI\r\nSET a 1\r\nSET a 2\r\nEXEC\r\n").unwrap();
        (0..4).for_each(|_| drop(pair.other.reply().unwrap()));
        assert_eq!(pair.named(), ["a"], "MULTI");
    });
}

/// A script is one argument.
fn words_of_script(line: &str) -> Vec<String> {
    match line.strip_prefix("EVAL ") {
        Some(rest) => {
            let (script, count) = rest.rsplit_once(' ').unwrap();
            vec!["EVAL".into(), script.into(), count.into()]
        }
        None => line.split(' ').map(str::to_owned).collect(),
    }
}

#[test]
fn after_an_own_write_a_key_is_announced_to_nobody_and_an_own_push_follows_the_reply() {
    each(|server| {
        let mut pair = Pair::new(server);
        pair.own("GET k");
        assert_eq!(pair.own("SET k 1"), "+OK\r\n");
        assert!(pair.pushes.is_empty(), "the push of an own write comes behind its reply");
        assert_eq!(pair.named(), ["k"], "and it comes");
        pair.foreign("SET k 2");
        assert_eq!(pair.named(), Vec::<String>::new(), "nobody was told to read it again");
    });
}

#[test]
fn flushes_are_announced_as_all_keys_and_a_swap_not_at_all() {
    each(|server| {
        let mut pair = Pair::new(server);
        for flush in ["FLUSHALL", "FLUSHDB", "FLUSHALL ASYNC"] {
            pair.own("GET k");
            pair.foreign(flush);
            assert_eq!(pair.pushed(), [None], "{flush}");
        }
        pair.foreign("SET k zero");
        assert_eq!(pair.own("GET k"), "$4\r\nzero\r\n");
        assert_eq!(pair.foreign("SWAPDB 0 1"), "+OK\r\n");
        assert_eq!(pair.pushed(), [], "this is why SWAPDB is warned of");
        assert_eq!(pair.own("GET k"), "_\r\n", "though the value is another");
    });
}

#[test]
fn pushes_name_no_database() {
    each(|server| {
        let mut pair = Pair::new(server);
        pair.own("GET k");
        pair.foreign("SELECT 3");
        pair.foreign("SET k 1");
        assert_eq!(pair.named(), ["k"], "a write in another database looks the same");
    });
}

#[test]
fn hello_and_select_keep_tracking_and_hello_tells_the_role() {
    each(|server| {
        let mut pair = Pair::new(server);
        pair.own("GET k");
        let hello = pair.own("HELLO");
        assert!(hello.contains("role\r\n$6\r\nmaster"), "{hello}");
        pair.own("SELECT 1");
        pair.own("SELECT 0");
        pair.foreign("SET k 1");
        assert_eq!(pair.named(), ["k"]);
        // Nobody is there; it is a replica all the same, and says so to whoever probes.
        pair.foreign("REPLICAOF 127.0.0.1 1");
        let hello = pair.own("HELLO");
        assert!(hello.contains("role\r\n$5\r\nslave") || hello.contains("role\r\n$7\r\nreplica"), "{hello}");
    });
}

#[test]
fn expired_and_evicted_keys_are_announced() {
    each(|server| {
        let mut pair = Pair::new(server);
        pair.foreign("SET k 1 PX 30");
        pair.own("GET k");
        pair.tracked.set_deadline(SOON).unwrap();
        let (frame, push) = pair.tracked.receive().unwrap();
        assert_eq!((frame.kind, keys(&push)), (FrameKind::Push, Some(vec!["k".to_owned()])), "expiry");

        let names: Vec<String> = (0..50).map(|n| format!("e{n}")).collect();
        for name in &names {
            pair.foreign(&format!("SET {name} {}", "x".repeat(2000)));
            pair.own(&format!("GET {name}"));
        }
        pair.foreign("CONFIG SET maxmemory-policy allkeys-random");
        pair.foreign("CONFIG SET maxmemory 1");
        pair.foreign("SET more x");
        pair.foreign("CONFIG SET maxmemory 0");
        let told = pair.named();
        let gone: Vec<&String> =
            names.iter().filter(|name| pair.foreign(&format!("EXISTS {name}")) == ":0\r\n").collect();
        assert!(!gone.is_empty(), "nothing was evicted");
        assert!(gone.iter().all(|name| told.contains(name)), "evicted: {gone:?}, announced: {told:?}");
    });
}

/// The order that everything rests on: a push never comes after the answer to a PING that was sent after the write was
/// acknowledged, and never after a newer value was read.
#[test]
fn a_push_comes_before_the_pong_and_before_the_newer_value() {
    each(|server| {
        let mut pair = Pair::new(server);
        // A second writer, so that pushes and replies of others mix with ours.
        let socket = server.socket().to_owned();
        let noise = thread::spawn(move || {
            let mut wire = Wire::connect(&socket).unwrap();
            for n in 0..6000 {
                wire.request(&["SET", &format!("noise{}", n % 7), &"y".repeat(n % 300)]).unwrap();
            }
        });
        for n in 0..3000 {
            let key = format!("k{}", n % 5);
            pair.own(&format!("GET {key}"));
            pair.own(&format!("GET noise{}", n % 7));
            pair.pushes.clear();
            assert_eq!(pair.foreign(&format!("SET {key} {n}")), "+OK\r\n");
            let pushed = if n % 2 == 0 {
                pair.own("PING");
                std::mem::take(&mut pair.pushes)
            } else {
                assert!(pair.own(&format!("GET {key}")).contains(&format!("{n}\r\n")), "what was acknowledged is read");
                std::mem::take(&mut pair.pushes)
            };
            assert!(pushed.iter().flatten().flatten().any(|name| *name == key), "write {n} of {key}: {pushed:?}");
        }
        noise.join().unwrap();
    });
}

#[test]
fn what_a_user_may_do_and_how_many_readers_are_remembered_can_be_asked() {
    each(|server| {
        server.command(&["ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", "-swapdb"]).unwrap();
        let ask = |line: &str| text(&server.command(&words(line)).unwrap());
        assert_eq!(ask("ACL WHOAMI"), "$7\r\ndefault\r\n");
        assert_eq!(ask("ACL DRYRUN default SWAPDB 0 1"), "+OK\r\n");
        let refusal = ask("ACL DRYRUN limited SWAPDB 0 1");
        assert!(refusal.starts_with('$') && refusal.contains("no permissions to run the 'swapdb'"), "{refusal}");
        let limit = ask("CONFIG GET tracking-table-max-keys");
        assert_eq!(limit, "*2\r\n$23\r\ntracking-table-max-keys\r\n$7\r\n1000000\r\n");
        let mut wire = server.connect().unwrap();
        server.command(&["ACL", "SETUSER", "silent", "on", ">pw", "~*", "+@all", "-acl", "-config"]).unwrap();
        assert!(wire.request(&["HELLO", "3", "AUTH", "silent", "pw"]).unwrap().starts_with(b"%"));
        for question in ["ACL WHOAMI", "ACL DRYRUN silent SWAPDB 0 1", "CONFIG GET tracking-table-max-keys"] {
            assert!(wire.request(&words(question)).unwrap().starts_with(b"-NOPERM"), "{question}");
        }
    });
}

#[test]
fn a_full_table_of_readers_tells_too_much_and_never_too_little() {
    each(|server| {
        let mut pair = Pair::new(server);
        pair.foreign("CONFIG SET tracking-table-max-keys 10");
        (0..50).for_each(|n| drop(pair.own(&format!("GET k{n}"))));
        // What was forgotten is told as if it had been written.
        let forgotten = pair.named();
        (0..50).for_each(|n| drop(pair.foreign(&format!("SET k{n} 1"))));
        let told = pair.named();
        let missing: Vec<String> =
            (0..50).map(|n| format!("k{n}")).filter(|key| !told.contains(key) && !forgotten.contains(key)).collect();
        assert!(missing.is_empty() && !forgotten.is_empty(), "never told: {missing:?}; forgotten: {forgotten:?}");
    });
}

#[test]
fn who_may_not_track_is_told_so_and_commands_tell_their_keys() {
    each(|server| {
        server.command(&["ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", "-client"]).unwrap();
        let mut wire = server.connect().unwrap();
        assert!(wire.request(&["HELLO", "3", "AUTH", "limited", "pw"]).unwrap().starts_with(b"%"));
        assert!(wire.request(&["CLIENT", "TRACKING", "ON"]).unwrap().starts_with(b"-NOPERM"));
        let reply = wire.request(&["COMMAND", "INFO", "get"]).unwrap();
        let (value, _) = Value::decode(&reply).unwrap();
        let fields = value.as_elements().unwrap()[0].as_elements().unwrap();
        assert_eq!(fields.len(), 10);
        let spec = &fields[8].as_elements().unwrap()[0];
        assert_eq!(spec.field(b"begin_search").unwrap().field(b"type").unwrap().as_bytes(), Some(&b"index"[..]));
    });
}
