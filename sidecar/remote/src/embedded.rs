//! The embedded L3: an in-process Redis of strings, keys, expiry and pub/sub, for development and tests.
//!
//! Answers as Redis 7 does, error texts included (a differential test holds it to a real server). It
//! keeps everything until it is deleted or expires: memory is **not** bounded, nothing is persistent,
//! and every process has its own data. Commands beyond its reach say what to do. It never blocks: one
//! lock, held for one command.

#![expect(clippy::unnecessary_wraps, reason = "all commands have one type, also those that cannot fail")]

mod arguments;
mod big;
mod catalogue;
mod channels;
mod data;
mod expiry;
mod extended;
mod keys;
mod lcs;
mod strings;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use caddy_resp::{Protocol, encode};
use parking_lot::Mutex;

use self::{arguments::Fault, catalogue::COMMANDS, channels::Channels, data::Database};

pub use self::{channels::Listener, strings::part_of};

/// Databases that SELECT can choose, as in Redis by default.
const DATABASES: usize = 16;

/// Wall-clock time in milliseconds since 1970: EXPIREAT takes such times.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// An in-process Redis; see the [module](self).
///
/// ```
/// use std::sync::Arc;
/// use caddy_remote::embedded::Embedded;
/// use caddy_resp::Protocol;
///
/// let store = Embedded::new(Arc::new(|| 0));
/// let mut out = Vec::new();
/// store.execute(0, Protocol::Resp2, &[b"SET", b"k", b"v"], &mut out);
/// store.execute(0, Protocol::Resp2, &[b"GET", b"k"], &mut out);
/// assert_eq!(out, b"+OK\r\n$1\r\nv\r\n");
/// ```
pub struct Embedded {
    clock: WallClock,
    databases: Mutex<Vec<Database>>,
    channels: Channels,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

/// One command under way.
struct Call<'a> {
    databases: &'a mut [Database],
    channels: &'a Channels,
    /// Index of the connection's database.
    database: usize,
    protocol: Protocol,
    /// As Redis spells it.
    name: &'static str,
    args: &'a [&'a [u8]],
    /// Milliseconds since 1970.
    now: i64,
    out: &'a mut Vec<u8>,
}

impl Call<'_> {
    /// The connection's database.
    fn db(&mut self) -> &mut Database {
        &mut self.databases[self.database]
    }
}

impl Embedded {
    /// An empty store.
    pub fn new(clock: WallClock) -> Self {
        let databases = Mutex::new((0..DATABASES).map(|_| Database::default()).collect());
        Self { clock, databases, channels: Channels::default() }
    }

    /// Somebody who can subscribe, and is handed messages as they are to go out.
    pub fn listener(&self, protocol: Protocol, deliver: impl Fn(Bytes) + Send + Sync + 'static) -> Listener {
        self.channels.listener(protocol, Box::new(deliver))
    }

    /// Executes one command (its name is argument 0) in `database` and appends the reply to `out`.
    ///
    /// What belongs to a connection (SELECT's effect, HELLO, CLIENT) is the caller's; SELECT is only
    /// checked here.
    pub fn execute(&self, database: u32, protocol: Protocol, args: &[&[u8]], out: &mut Vec<u8>) {
        let before = out.len();
        if let Err(fault) = self.attempt(database, protocol, args, out) {
            out.truncate(before);
            encode::error(out, fault.to_string());
        }
    }

    fn attempt(&self, database: u32, protocol: Protocol, args: &[&[u8]], out: &mut Vec<u8>) -> Result<(), Fault> {
        let Some(name) = args.first() else { return Err(Fault::NeedsRedis(String::new())) };
        let command = COMMANDS
            .iter()
            .find(|command| command.name.as_bytes().eq_ignore_ascii_case(name))
            .ok_or_else(|| Fault::NeedsRedis(String::from_utf8_lossy(&name[..name.len().min(128)]).into_owned()))?;
        let arity = usize::from(command.arity.unsigned_abs());
        if args.len() < arity || (command.arity > 0 && args.len() != arity) {
            return Err(Fault::Arity(command.name));
        }
        let database = database as usize;
        if database >= DATABASES {
            return Err(Fault::DatabaseOutOfRange);
        }
        let now = i64::try_from((self.clock)()).unwrap_or(i64::MAX);
        let mut databases = self.databases.lock();
        for database in databases.iter_mut() {
            database.expire(now);
        }
        let channels = &self.channels;
        let name = command.name;
        let mut call = Call { databases: &mut databases, channels, database, protocol, name, args, now, out };
        (command.run)(&mut call)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use caddy_resp::Protocol;

    use super::Embedded;

    /// A store whose clock the test turns.
    fn store() -> (Embedded, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(1_000_000));
        let clock = Arc::clone(&now);
        (Embedded::new(Arc::new(move || clock.load(Ordering::Relaxed))), now)
    }

    fn run(store: &Embedded, line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut out = Vec::new();
        store.execute(0, Protocol::Resp2, &args, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_key_lives_until_its_deadline_has_passed() {
        let (store, now) = store();
        assert_eq!(run(&store, "SET k v PX 100"), "+OK\r\n");
        now.store(1_000_100, Ordering::Relaxed);
        assert_eq!(run(&store, "PTTL k"), ":0\r\n");
        assert_eq!(run(&store, "GET k"), "$1\r\nv\r\n");
        now.store(1_000_101, Ordering::Relaxed);
        assert_eq!(run(&store, "GET k"), "$-1\r\n");
        assert_eq!(run(&store, "PTTL k"), ":-2\r\n");
        assert_eq!(run(&store, "DBSIZE"), ":0\r\n");
    }

    #[test]
    fn what_it_cannot_do_says_what_to_do() {
        let (store, _) = store();
        let reply = run(&store, "LPUSH k v");
        assert_eq!(reply, "-ERR 'LPUSH' needs a Redis L3: start with --redis URL, or set spec.l3.redis\r\n");
        assert!(run(&store, "FL\r\nUSH").starts_with("-ERR 'FL  USH' needs"));
    }

    #[test]
    fn resp3_has_its_own_null() {
        let (store, _) = store();
        let mut out = Vec::new();
        store.execute(0, Protocol::Resp3, &[b"GET", b"k"], &mut out);
        assert_eq!(out, b"_\r\n");
    }

    #[test]
    fn databases_are_apart() {
        let (store, _) = store();
        let mut out = Vec::new();
        store.execute(3, Protocol::Resp2, &[b"SET", b"k", b"v"], &mut out);
        assert_eq!(run(&store, "EXISTS k"), ":0\r\n");
        assert_eq!(run(&store, "SWAPDB 0 3"), "+OK\r\n");
        assert_eq!(run(&store, "EXISTS k"), ":1\r\n");
        store.execute(16, Protocol::Resp2, &[b"DBSIZE"], &mut out);
        assert!(out.ends_with(b"-ERR DB index is out of range\r\n"));
    }

    #[test]
    fn a_scan_meets_every_key_that_stays() {
        let (store, _) = store();
        for n in 0..500 {
            run(&store, &format!("SET key:{n} v"));
        }
        let (mut cursor, mut seen) = (0_u64, std::collections::BTreeSet::new());
        for step in 0.. {
            let reply = run(&store, &format!("SCAN {cursor} COUNT 7"));
            let (value, _) = caddy_resp::Value::decode(reply.as_bytes()).unwrap();
            let [next, keys] = value.as_elements().unwrap() else { panic!("{reply}") };
            seen.extend(keys.as_elements().unwrap().iter().map(|key| key.as_bytes().unwrap().to_vec()));
            // Keys that come and go while it runs must not disturb it.
            run(&store, &format!("SET passing:{step} v"));
            run(&store, &format!("DEL passing:{}", step / 2));
            cursor = next.as_integer().and_then(|next| u64::try_from(next).ok()).unwrap();
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(seen.iter().filter(|key| key.starts_with(b"key:")).count(), 500);
    }
}
