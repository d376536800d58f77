//! `LOCK.*`: arguments, answers, and what a session has to do with locks.
//!
//! A LOCK command waits until everything before it is answered, and nothing behind it is taken before it is: what is
//! written under a lock is written before the lock is let go, and what is read under it is read after it was had. The
//! session itself runs the command, with each of its turns. If it ends before the answer, the command is dropped: an
//! acquisition is taken back, and what was being let go is let go in the background.

use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use caddy_contract::LEASE_MIN_MILLIS;
use caddy_engine::locks::{
    Acquire, Blocker, DeadlockDetector, FencingToken, Grant, LockClient, LockError, LockMode, LockStatus, Owner, Wait,
};
use caddy_resp::{Protocol, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending},
};
use crate::{
    commands::Row,
    locks::{Home, LockSession, Locks, LostLock},
    shared::Shared,
};

/// Longest name of a lock, bytes.
const MAX_NAME: usize = 512;
/// Longest name of an owner, bytes.
const MAX_OWNER: usize = 128;
/// Longest lease and longest wait, as in the configuration.
const MAX_MILLIS: u64 = 86_400_000;
/// What LOCK.INFO, LOCK.LIST and LOCK.GRAPH tell at most.
const MAX_SHOWN: usize = 100;
const MAX_LISTED: usize = 1000;
const MAX_EDGES: usize = 1000;

/// A session that has to do with locks; its end lets go of them.
pub(crate) struct Locking {
    shared: Arc<Shared>,
    session: Arc<LockSession>,
    /// The connection as an owner.
    own: Owner,
    /// The named owners that it has spoken for.
    named: HashSet<Owner>,
    /// The command under way.
    running: Option<Running>,
}

struct Running {
    seq: u64,
    answering: Pin<Box<dyn Future<Output = Vec<u8>>>>,
}

impl Drop for Locking {
    fn drop(&mut self) {
        self.shared.locks.leave(&self.own, &self.named, &self.session);
    }
}

impl Locking {
    /// The owner that a request names, or the connection.
    fn speak_for(&mut self, owner: Option<Owner>) -> Owner {
        let Some(owner) = owner else { return self.own.clone() };
        if self.named.insert(owner.clone()) {
            self.shared.locks.join(&owner, &self.session);
        }
        owner
    }

    /// Whose the lock is that this session has under the token, the connection's or a named owner's it spoke for, and
    /// where it lives; each unless the request says so.
    fn find(&self, Claimed { name, owner, token, place }: &Claimed) -> (Owner, Home) {
        let locks = &self.shared.locks;
        let holds = |owner: &&Owner| locks.place_of(name, owner, *token).is_some();
        let owner = owner.as_ref().or_else(|| self.named.iter().find(holds)).unwrap_or(&self.own);
        (owner.clone(), place.or_else(|| locks.place_of(name, owner, *token)).unwrap_or_default())
    }
}

/// A lock that the app says it has.
struct Claimed {
    name: Bytes,
    owner: Option<Owner>,
    token: FencingToken,
    place: Option<Home>,
}

/// What a LOCK command asks for.
enum Wanted {
    Acquire { name: Bytes, owner: Option<Owner>, how: Acquire, place: Home },
    Renew(Claimed, Option<Duration>),
    Release(Claimed),
    Info(Bytes, Home),
    List(Bytes),
    Graph,
}

impl Conversation {
    /// Whether the session waits for a lock.
    pub(crate) fn is_locking(&self) -> bool {
        matches!(self.replies.last_pending(), Some(Pending::Locking { waits: true }))
    }

    pub(super) fn lock_command(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let shared = self.worker.shared.clone();
        let wanted = match wanted(row.name, args, shared.locks.is_embedded()) {
            Ok(wanted) => wanted,
            Err(message) => {
                self.reply_error(&message);
                return Flow::Done;
            }
        };
        let locking = self.locking.get_or_insert_with(|| {
            let session = Locks::session(self.mailbox.clone());
            let own = shared.locks.owner_of(self.client.shown().id);
            shared.locks.join(&own, &session);
            Box::new(Locking { shared: shared.clone(), session, own, named: HashSet::new(), running: None })
        });
        // RESP2 has no pushes: the next LOCK command is where the app hears of it, instead of going on unaware.
        let lost = locking.session.take_lost();
        if let Some(first) = lost.first() {
            let text = format!(
                "FENCED {}: do not go on as if it were held; this command was not executed, send it again",
                describe_lost(first, lost.len())
            );
            self.reply_error(&text);
            return Flow::Done;
        }
        let waits = matches!(wanted, Wanted::Acquire { .. });
        let (task, place) = wanted.located(locking);
        let client = match shared.locks.client(place) {
            Ok(client) => client.clone(),
            Err(refusal) => {
                self.reply_error(&format!("ERR {refusal}"));
                return Flow::Done;
            }
        };
        let request = Request { shared, client, task, protocol: self.client.protocol };
        let seq = self.replies.expect(Pending::Locking { waits });
        // Begun by the turn that took it.
        locking.running = Some(Running { seq, answering: Box::pin(request.answer()) });
        Flow::Done
    }

    /// Goes on with the command under way: whether it is answered now.
    pub(crate) fn poll_locking(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(locking) = &mut self.locking else { return false };
        let Some(Running { seq, answering }) = &mut locking.running else { return false };
        let Poll::Ready(reply) = answering.as_mut().poll(cx) else { return false };
        let seq = *seq;
        locking.running = None;
        self.complete(seq, reply.into());
        true
    }

    /// Locks were lost: a RESP3 app hears of it at once.
    pub(super) fn locks_lost(&mut self) {
        if self.client.protocol != Protocol::Resp3 {
            return;
        }
        let Some(locking) = &self.locking else { return };
        for LostLock { name, token, reason } in locking.session.take_lost() {
            self.reply(|out| {
                encode::push_header(out, Protocol::Resp3, 4);
                encode::bulk(out, b"lock-lost");
                encode::bulk(out, &name);
                encode::bulk(out, token.to_string().as_bytes());
                encode::bulk(out, reason.text().as_bytes());
            });
        }
    }
}

fn describe_lost(lost: &LostLock, count: usize) -> String {
    let (name, token, reason) = (lost.name.escape_ascii(), lost.token, lost.reason.text());
    let others = match count {
        0 | 1 => String::new(),
        2 => " (and 1 other)".to_owned(),
        _ => format!(" (and {} others)", count - 1),
    };
    format!("the lock '{name}' held under {token} was lost{others}: {reason}")
}

// === arguments ===

fn wanted(command: &str, args: Args<'_>, is_embedded: bool) -> Result<Wanted, String> {
    let name = || {
        let name = args.get(1);
        match name.len() {
            0 => Err("ERR the name of a lock must not be empty".to_owned()),
            1..=MAX_NAME => Ok(Bytes::copy_from_slice(name)),
            length => Err(format!("LIMIT the name of a lock has {length} bytes; at most {MAX_NAME} are allowed")),
        }
    };
    let token = || {
        let text = std::str::from_utf8(args.get(2)).unwrap_or_default();
        text.parse::<FencingToken>().map_err(|error| format!("FENCED '{}' is {error}", args.get(2).escape_ascii()))
    };
    match command {
        "lock.acquire" => {
            let Options { mode, owner, lease, wait, place } = Options::read(args, 2, command, is_embedded)?;
            let place = place.unwrap_or_default();
            if place == Home::Lease && mode == LockMode::Shared {
                return Err("ERR BACKEND lease has no SHARED locks; use BACKEND redis".to_owned());
            }
            Ok(Wanted::Acquire { name: name()?, owner, how: Acquire { mode, timeout: wait, lease }, place })
        }
        "lock.renew" => {
            let Options { owner, lease, place, .. } = Options::read(args, 3, command, is_embedded)?;
            Ok(Wanted::Renew(Claimed { name: name()?, owner, token: token()?, place }, lease))
        }
        "lock.release" => {
            let Options { owner, place, .. } = Options::read(args, 3, command, is_embedded)?;
            Ok(Wanted::Release(Claimed { name: name()?, owner, token: token()?, place }))
        }
        "lock.info" => {
            let Options { place, .. } = Options::read(args, 2, command, is_embedded)?;
            Ok(Wanted::Info(name()?, place.unwrap_or_default()))
        }
        "lock.list" if args.len() <= 2 => {
            Ok(Wanted::List(if args.len() == 2 { Bytes::copy_from_slice(args.get(1)) } else { "*".into() }))
        }
        "lock.list" => Err("ERR syntax error; LOCK.LIST [pattern]".to_owned()),
        _ => Ok(Wanted::Graph),
    }
}

/// What may follow the name.
#[derive(Default)]
struct Options {
    mode: LockMode,
    owner: Option<Owner>,
    lease: Option<Duration>,
    wait: Option<Duration>,
    place: Option<Home>,
}

impl Options {
    fn read(args: Args<'_>, mut at: usize, command: &str, is_embedded: bool) -> Result<Self, String> {
        let mut options = Self::default();
        let acquires = command == "lock.acquire";
        while at < args.len() {
            let has_value = at + 1 < args.len();
            match args.get(at).to_ascii_uppercase().as_slice() {
                b"SHARED" if acquires => options.mode = LockMode::Shared,
                b"EXCLUSIVE" if acquires => options.mode = LockMode::Exclusive,
                b"OWNER" if has_value && command != "lock.info" => {
                    options.owner = Some(owner(args.get(at + 1))?);
                    at += 1;
                }
                b"LEASE" if has_value && (acquires || command == "lock.renew") => {
                    options.lease = Some(millis("LEASE", args.get(at + 1), LEASE_MIN_MILLIS)?);
                    at += 1;
                }
                b"WAIT" if has_value && acquires => {
                    options.wait = Some(millis("WAIT", args.get(at + 1), 0)?);
                    at += 1;
                }
                b"BACKEND" if has_value => {
                    options.place = Some(place(args.get(at + 1), is_embedded)?);
                    at += 1;
                }
                other => {
                    let usage = match command {
                        "lock.acquire" => {
                            "LOCK.ACQUIRE name [SHARED|EXCLUSIVE] [OWNER id] [LEASE ms] [WAIT ms] [BACKEND redis|lease]"
                        }
                        "lock.renew" => "LOCK.RENEW name token [LEASE ms] [OWNER id] [BACKEND redis|lease]",
                        "lock.info" => "LOCK.INFO name [BACKEND redis|lease]",
                        _ => "LOCK.RELEASE name token [OWNER id] [BACKEND redis|lease]",
                    };
                    let shown = &other[..other.len().min(64)];
                    return Err(format!("ERR syntax error at '{}'; {usage}", shown.escape_ascii()));
                }
            }
            at += 1;
        }
        Ok(options)
    }
}

fn owner(name: &[u8]) -> Result<Owner, String> {
    let text = std::str::from_utf8(name).unwrap_or_default();
    if !(1..=MAX_OWNER).contains(&name.len()) || !name.iter().all(u8::is_ascii_graphic) {
        return Err(format!("ERR an OWNER is 1 to {MAX_OWNER} printable ASCII characters without spaces"));
    }
    if text.starts_with("conn:") {
        return Err("ERR an OWNER must not begin with 'conn:': so begin connections that are owners".to_owned());
    }
    Ok(Owner::new(text))
}

fn millis(option: &str, text: &[u8], least: u64) -> Result<Duration, String> {
    let millis = caddy_resp::parse_i64(text).and_then(|millis| u64::try_from(millis).ok());
    match millis.filter(|millis| (least..=MAX_MILLIS).contains(millis)) {
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err(format!("ERR {option} takes milliseconds, {least} to {MAX_MILLIS}")),
    }
}

fn place(name: &[u8], is_embedded: bool) -> Result<Home, String> {
    match name.to_ascii_lowercase().as_slice() {
        b"redis" if is_embedded => {
            Err("ERR BACKEND redis needs a Redis L3: start with --redis URL, or set spec.l3.redis".to_owned())
        }
        b"redis" => Ok(Home::L3),
        b"lease" => Ok(Home::Lease),
        _ => Err("ERR BACKEND is redis or lease".to_owned()),
    }
}

// === answers ===

/// As [`Wanted`], with owner and place known.
enum Task {
    Acquire(Bytes, Owner, Acquire),
    Renew(Bytes, Owner, FencingToken, Option<Duration>),
    Release(Bytes, Owner, FencingToken),
    Info(Bytes),
    List(Bytes),
    Graph,
}

impl Wanted {
    fn located(self, locking: &mut Locking) -> (Task, Home) {
        match self {
            Self::Acquire { name, owner, how, place } => (Task::Acquire(name, locking.speak_for(owner), how), place),
            Self::Renew(claimed, lease) => {
                let (owner, place) = locking.find(&claimed);
                (Task::Renew(claimed.name, owner, claimed.token, lease), place)
            }
            Self::Release(claimed) => {
                let (owner, place) = locking.find(&claimed);
                (Task::Release(claimed.name, owner, claimed.token), place)
            }
            Self::Info(name, place) => (Task::Info(name), place),
            Self::List(pattern) => (Task::List(pattern), Home::L3),
            Self::Graph => (Task::Graph, Home::L3),
        }
    }
}

/// A LOCK command under way.
struct Request {
    shared: Arc<Shared>,
    client: Arc<LockClient<Bytes>>,
    task: Task,
    protocol: Protocol,
}

impl Request {
    async fn answer(self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Err((error, name)) = self.run(&mut out).await {
            encode::error(&mut out, error_text(&error, name));
        }
        out
    }

    async fn run(&self, out: &mut Vec<u8>) -> Result<(), (LockError, &[u8])> {
        let (locks, client, protocol) = (&self.shared.locks, &self.client, self.protocol);
        match &self.task {
            Task::Acquire(name, owner, how) => {
                let grant = client.acquire(name, owner, *how).await.map_err(|error| (error, &**name))?;
                encode_grant(grant, out);
            }
            Task::Renew(name, owner, token, lease) => {
                let renewed = client.renew(name, owner, *token, *lease).await;
                encode_grant(renewed.map_err(|error| (error, &**name))?, out);
            }
            Task::Release(name, owner, token) => {
                let left = client.release(name, owner, *token).await.map_err(|error| (error, &**name))?;
                encode::integer(out, left.into());
            }
            Task::Info(name) => {
                let status = client.status(name).await.map_err(|error| (error, &**name))?;
                encode_info(&status, locks.epoch().epoch, protocol, out);
            }
            Task::List(pattern) => {
                let unavailable = |error| (LockError::Unavailable(error), &b""[..]);
                let names = locks.names(pattern, MAX_LISTED).await.map_err(unavailable)?;
                let (mut count, mut rows) = (0, Vec::new());
                for name in &names {
                    match client.status(name).await {
                        // Left over from a holder that died: gone now.
                        Ok(status) if status.holders.is_empty() && status.waiters.is_empty() => continue,
                        Ok(status) => encode_row(&status, protocol, &mut rows),
                        Err(LockError::Unreadable(_)) => encode_unreadable(name, &mut rows),
                        Err(error) => return Err((error, &b""[..])),
                    }
                    count += 1;
                }
                encode::array_header(out, count);
                out.extend_from_slice(&rows);
            }
            Task::Graph => {
                let locks = client.contended().await.map_err(|error| (error, &b""[..]))?;
                let waits = DeadlockDetector::waits(&locks);
                encode::array_header(out, waits.len().min(MAX_EDGES));
                for wait in waits.iter().take(MAX_EDGES) {
                    encode_wait(wait, out);
                }
            }
        }
        Ok(())
    }
}

fn error_text(error: &LockError, name: &[u8]) -> String {
    let name = name.escape_ascii();
    match error {
        LockError::TimedOut(_) => format!("LOCKTIMEOUT '{name}': {error}"),
        LockError::Deadlock(_) => format!("DEADLOCK {error}"),
        LockError::NotHeld => format!("FENCED '{name}': {error}"),
        LockError::Upgrade(_) => format!("ERR '{name}' is {error}"),
        LockError::Limit { .. } => format!("LIMIT '{name}': {error}"),
        LockError::Unavailable(_) => format!("NOTREADY {error}"),
        LockError::Unreadable(_) => format!("ERR {error}"),
        LockError::Abandoned => format!("ERR '{name}': {error}"),
    }
}

fn encode_grant(grant: Grant, out: &mut Vec<u8>) {
    encode::array_header(out, 2);
    encode::bulk(out, grant.token.to_string().as_bytes());
    encode::integer(out, whole_millis(grant.remaining));
}

fn whole_millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn encode_info(status: &LockStatus<Bytes>, epoch: u64, protocol: Protocol, out: &mut Vec<u8>) {
    encode::map_header(out, protocol, 6);
    let mut field = |name: &str, write: &mut dyn FnMut(&mut Vec<u8>)| {
        encode::bulk(out, name.as_bytes());
        write(out);
    };
    field("name", &mut |out| encode::bulk(out, &status.name));
    field("epoch", &mut |out| encode::integer(out, epoch.cast_signed()));
    field("holder_count", &mut |out| encode::integer(out, count(status.holders.len())));
    field("waiter_count", &mut |out| encode::integer(out, count(status.waiters.len())));
    field("holders", &mut |out| {
        encode::array_header(out, status.holders.len().min(MAX_SHOWN));
        for holder in status.holders.iter().take(MAX_SHOWN) {
            encode::array_header(out, 4);
            encode::bulk(out, holder.owner.as_str().as_bytes());
            encode::bulk(out, holder.mode.name().as_bytes());
            encode::bulk(out, holder.token.to_string().as_bytes());
            encode::integer(out, whole_millis(holder.remaining));
        }
    });
    field("waiters", &mut |out| {
        encode::array_header(out, status.waiters.len().min(MAX_SHOWN));
        for waiter in status.waiters.iter().take(MAX_SHOWN) {
            encode::array_header(out, 2);
            encode::bulk(out, waiter.owner.as_str().as_bytes());
            encode::bulk(out, waiter.mode.name().as_bytes());
        }
    });
}

/// `[name, mode, holders, waiters]`
fn encode_row(status: &LockStatus<Bytes>, protocol: Protocol, out: &mut Vec<u8>) {
    encode::array_header(out, 4);
    encode::bulk(out, &status.name);
    match status.holders.first() {
        Some(holder) => encode::bulk(out, holder.mode.name().as_bytes()),
        None => encode::null(out, protocol),
    }
    encode::integer(out, count(status.holders.len()));
    encode::integer(out, count(status.waiters.len()));
}

/// `[name, UNREADABLE, 0, 0]`: LOCK.INFO says why.
fn encode_unreadable(name: &[u8], out: &mut Vec<u8>) {
    encode::array_header(out, 4);
    encode::bulk(out, name);
    encode::bulk(out, b"UNREADABLE");
    encode::integer(out, 0);
    encode::integer(out, 0);
}

/// `[waiter, lock, HOLDER|WAITER, who is in the way]`
fn encode_wait(wait: &Wait<Bytes>, out: &mut Vec<u8>) {
    encode::array_header(out, 4);
    encode::bulk(out, wait.owner.as_str().as_bytes());
    encode::bulk(out, &wait.name);
    encode::bulk(out, if matches!(wait.blocker, Blocker::Holder(_)) { b"HOLDER" } else { b"WAITER" });
    encode::bulk(out, wait.behind.as_str().as_bytes());
}
