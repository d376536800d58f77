//! Each rule of the lock scripts has a story that ends otherwise without it. The scripts run in a Redis; what its clock
//! says is given, so that it also jumps, ahead and back.

use caddy_resp::Value;
use caddy_tests::{redis::RedisServer, wire::Wire};

use crate::show;

macro_rules! source {
    ($($part:literal),*) => {
        concat!($(include_str!(concat!("../../../sidecar/remote/src/locks/scripts/", $part, ".lua")), "\n"),*)
    };
}

const ACQUIRE: &str = source!("number", "head", "acquire", "common", "acquire_rest");
const RELEASE: &str = source!("number", "head", "release", "common", "release_rest");
const RENEW: &str = source!("number", "renew");

const LOCKS: &str = "caddy:{planted}:locks";
const EPOCH: &str = "7";
const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
/// Microseconds.
const NOW: u64 = 1_800_000_000_000_001;
/// Of every acquisition here.
const LEASE: u64 = 60 * SECOND;

/// The scripts, with one passage of them replaced.
struct Scripts<'a> {
    redis: &'a RedisServer,
    planted: (&'a str, &'a str),
}

impl Scripts<'_> {
    fn run(&self, source: &str, at: u64, keys: &[&str], args: &[&str]) -> String {
        let clock = format!("{{'{}', '{}'}}", at / SECOND, at % SECOND);
        let source = source.replace(self.planted.0, self.planted.1);
        let source = source.replace("redis.call('TIME')", &clock).replace("call('TIME')", &clock);
        let (count, keys) = (keys.len().to_string(), keys.iter());
        let mut command = vec!["EVAL", &source, &count];
        command.extend(keys.chain(args));
        show(&Value::decode(&self.redis.command(&command).unwrap()).unwrap().0)
    }

    fn about(&self, source: &str, at: u64, args: &[&str]) -> String {
        let keys = ["", ":h:l", ":z:l", ":q:l", ":live", ":contended"].map(|kind| format!("{LOCKS}{kind}"));
        self.run(source, at, &keys.each_ref().map(String::as_str), args)
    }

    /// `a1` is an owner at the client `a`, and its only acquisition.
    fn acquire(&self, at: u64, owner: &str, mode: &str) -> String {
        let (client, number) = owner.split_at(1);
        self.about(ACQUIRE, at, &[EPOCH, mode, &format!("{LEASE}:{client}-{number}:{owner}"), "10"])
    }

    fn release(&self, at: u64, owner: &str, token: &str) -> bool {
        self.about(RELEASE, at, &[EPOCH, owner, token]) == "1"
    }
}

fn is_granted(reply: &str) -> bool {
    reply.parse::<u64>().is_ok()
}

/// Whether the rule was kept.
type Story = fn(&Scripts<'_>) -> bool;

const RULES: &[(&str, &str, &str, Story)] = &[
    ("a waiting writer stops new readers", "mode == 'x' or its_mode == 'x' then", "mode == 'x' then", |scripts| {
        assert!(is_granted(&scripts.acquire(NOW, "a1", "s")));
        assert!(is_granted(&scripts.acquire(NOW, "a2", "s")), "readers share");
        assert!(!is_granted(&scripts.acquire(NOW, "a3", "x")));
        !is_granted(&scripts.acquire(NOW, "a4", "s"))
    }),
    ("nobody overtakes those who wait", "if admits(mode) and is_next() then", "if admits(mode) then", |scripts| {
        let held = scripts.acquire(NOW, "a1", "x");
        assert!(!is_granted(&scripts.acquire(NOW, "z1", "x")));
        // Nobody hears the message: the lock waits for the waiter to ask again.
        assert!(scripts.release(NOW + 1, "a1", &held));
        !is_granted(&scripts.acquire(NOW + 2, "a2", "x")) && is_granted(&scripts.acquire(NOW + 3, "z1", "x"))
    }),
    ("the dead are handed nothing", "till >= now + 0 and till <= now + ALIVE", "true", |scripts| {
        let held = scripts.acquire(NOW, "a1", "x");
        assert!(!is_granted(&scripts.acquire(NOW, "b1", "x")));
        let later = NOW + 10 * SECOND;
        assert!(scripts.release(later, "a1", &held));
        is_granted(&scripts.acquire(later + 1, "a2", "x"))
    }),
    ("only the holder lets go", "held == token and by == owner and", "held == token and", |scripts| {
        let held = scripts.acquire(NOW, "a1", "x");
        !scripts.release(NOW, "a2", &held) && scripts.release(NOW, "a1", &held)
    }),
    ("only the token of the holding lets go", "held == token and by == owner and", "by == owner and", |scripts| {
        let first = scripts.acquire(NOW, "a1", "x");
        assert!(scripts.release(NOW + 1, "a1", &first));
        let second = scripts.acquire(NOW + 2, "a1", "x");
        !scripts.release(NOW + 3, "a1", &first) && scripts.release(NOW + 3, "a1", &second)
    }),
    ("nothing is done in another epoch", "if s[1] ~= epoch then return {'epoch'} end", "", |scripts| {
        scripts.about(ACQUIRE, NOW, &["6", "x", "1:a-1:a1", "10"]) == "[epoch]"
    }),
    ("a counter that is none is no counter", "if not is_later and not number(s[2])", "if false", |scripts| {
        scripts.redis.command(&["HSET", LOCKS, "c", "9999999999999999"]).unwrap();
        scripts.acquire(NOW, "a1", "x") == "[epoch]"
    }),
    ("what cannot be read is left alone", "number(lease) <= TTL * 1000", "true", |scripts| {
        let record = format!("1:{NOW}:900000000000000:a-1:a1");
        scripts.redis.command(&["HSET", LOCKS, "x:l", &record]).unwrap();
        scripts.acquire(NOW, "a2", "x") == "[unreadable]"
    }),
    ("half a shared lock is none", "call('HLEN', H) == n + 2", "true", |scripts| {
        scripts.acquire(NOW, "a1", "s");
        scripts.acquire(NOW, "a2", "s");
        scripts.redis.command(&["ZREM", &format!("{LOCKS}:z:l"), "a2"]).unwrap();
        is_granted(&scripts.acquire(NOW, "a3", "x"))
    }),
    ("who wrote no ticket does not wait", "till = ticket and call", "till = call", |scripts| {
        let held = scripts.acquire(NOW, "a1", "x");
        assert!(!is_granted(&scripts.acquire(NOW, "a2", "x")));
        scripts.redis.command(&["ZADD", &format!("{LOCKS}:q:l"), "0", "garbage"]).unwrap();
        scripts.release(NOW, "a1", &held) && scripts.acquire(NOW, "a2", "x").parse::<u64>().is_ok()
    }),
    // The clock jumps ahead.
    ("who comes behind the end of the lease does not let go", "since + lease > now + 0", "true", |scripts| {
        let held = scripts.acquire(NOW, "a1", "x");
        !scripts.release(NOW + HOUR, "a1", &held)
    }),
    ("what has ended is not renewed", "since + before > t and 1 or 0", "1", |scripts| {
        let held = scripts.acquire(NOW, "a1", "x");
        let keys = ["", ":h:l", ":z:l"].map(|kind| format!("{LOCKS}{kind}"));
        let (keys, lease) = (keys.each_ref().map(String::as_str), LEASE.to_string());
        let renew = |at| scripts.run(RENEW, at, &keys, &[EPOCH, "a1", &held, &lease]);
        assert_eq!(renew(NOW + LEASE - 1), "[1]");
        renew(NOW + HOUR) == "[0]"
    }),
    ("a lease ends", "if x.since + x.lease <= t then", "if false then", |scripts| {
        let first = scripts.acquire(NOW, "a1", "x");
        assert!(!is_granted(&scripts.acquire(NOW + LEASE - 1, "a2", "x")));
        let second = scripts.acquire(NOW + LEASE, "a2", "x");
        is_granted(&second) && second > first
    }),
    // The clock is set back.
    ("tokens grow", "is_later and not (", "not (", |scripts| {
        let first = scripts.acquire(NOW, "a1", "x");
        assert!(scripts.release(NOW, "a1", &first));
        let second = scripts.acquire(NOW - HOUR, "a2", "x");
        assert!(is_granted(&second));
        second > first
    }),
    ("tokens that are handed over grow", "local till = is_later and ticket", "local till = ticket", |scripts| {
        let first = scripts.acquire(NOW, "a1", "x");
        assert!(!is_granted(&scripts.acquire(NOW - HOUR, "b1", "x")));
        assert!(scripts.release(NOW - HOUR, "a1", &first));
        // By the same owner again: the token that it was handed.
        let second = scripts.acquire(NOW - HOUR, "b1", "x");
        assert!(is_granted(&second));
        second > first
    }),
    ("no lease becomes longer than it is", "if x.since > t then", "if false then", |scripts| {
        scripts.acquire(NOW, "a1", "x");
        assert!(!is_granted(&scripts.acquire(NOW - HOUR, "a2", "x")));
        is_granted(&scripts.acquire(NOW - HOUR + LEASE, "a3", "x"))
    }),
    ("the dead do not live for longer", " or tonumber(till) > t + ALIVE", "", |scripts| {
        scripts.acquire(NOW, "a1", "x");
        assert!(!is_granted(&scripts.acquire(NOW, "b1", "x")));
        assert!(!is_granted(&scripts.acquire(NOW - HOUR, "c1", "x")));
        is_granted(&scripts.acquire(NOW - HOUR + LEASE, "c1", "x"))
    }),
];

#[test]
fn every_rule_of_the_scripts_is_kept_and_missed_when_it_is_gone() {
    let redis = RedisServer::start().unwrap();
    let mut listener = Wire::connect(redis.socket()).unwrap();
    for client in ["a", "b"] {
        listener.request(&["SUBSCRIBE", &format!("{LOCKS}:wake:{client}")]).unwrap();
    }
    for (rule, passage, other, story) in RULES {
        let keeps = |planted| {
            redis.command(&["FLUSHALL"]).unwrap();
            redis.command(&["HSET", LOCKS, "e", EPOCH, "c", "0"]).unwrap();
            story(&Scripts { redis: &redis, planted })
        };
        assert!(
            [ACQUIRE, RELEASE, RENEW].iter().any(|script| script.contains(passage)),
            "{rule}: no passage {passage}"
        );
        assert!(keeps((*passage, *passage)), "{rule}");
        assert!(!keeps((*passage, *other)), "without the passage {passage} this is true nevertheless: {rule}");
    }
}
