//! Locks that live in Redis: the [`LockBackend`] whose state every sidecar of a domain shares.
//!
//! Each operation is one script, so that a lock is never half taken; the scripts read Redis's own clock. All keys of a
//! domain's locks begin with `caddy:{<domain>}:locks` and lie in one slot, with the epoch that every script checks: no
//! token is issued under an epoch that this connection has not confirmed (see `locks/epoch.rs`). Who lets go hands the lock to the
//! next waiter in the same step, and a message on that one's channel tells it; who missed it asks again within a second.
//!
//! In a cluster they are wherever that slot is: whoever made the locks says so, and a slot that moves is a new epoch, since
//! the server is another.
//!
//! An answer that is lost, or that came over another connection than the one whose epoch was confirmed, is an error: the
//! client takes the acquisition back by its ticket.

mod authority;
mod call;
mod decode;
mod epoch;
mod foreign;
mod scripts;

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::locks::{
    Answer, Ask, BackendError, Claim, FencingToken, LockBackend, LockListener, LockMode, LockStatus, Reply, Ticket,
};
use caddy_resp::Value;

pub use self::authority::{Agreed, Agreement, EpochAuthority};
pub use self::call::LockLane;
pub use self::epoch::EpochStatus;
use self::{
    call::Calls,
    epoch::Epochs,
    foreign::Foreign,
    scripts::{Arguments, Keys, Script, Strings},
};
use crate::Target;

/// Longest queue of one lock.
const MAX_QUEUE: usize = 100_000;
/// Holders and waiters of one lock that a status tells; as many as may wait.
const MAX_SHOWN: usize = MAX_QUEUE;
/// After which a waiter asks again, should its wake-up have been lost.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often an operation is repeated when it met a new epoch.
const ATTEMPTS: usize = 3;

/// See the module.
pub struct RedisLocks {
    calls: Calls,
    epochs: Epochs,
    foreign: Foreign,
    keys: Keys,
    client: Arc<str>,
}

impl RedisLocks {
    /// Locks of `domain` for the client of this name (unique, without a dash). Without an authority epochs are agreed on in
    /// Redis alone.
    pub fn new(domain: &str, client: &str, authority: Option<Arc<dyn EpochAuthority>>) -> Arc<Self> {
        let keys = Keys::new(domain);
        let calls = Calls::new(keys.channel(client));
        let epochs = Epochs::new(authority);
        Arc::new(Self { calls, epochs, foreign: Foreign::default(), keys, client: client.into() })
    }

    /// Where the locks are, from now on: the connection to there, which the caller has to poll. The one that there was ends
    /// by itself. Nothing is sent before the next operation.
    pub fn connect(&self, target: Arc<Target>) -> LockLane {
        self.calls.connect(target)
    }

    /// The key that says which slot of a cluster has the locks: all are in one.
    pub fn key(&self) -> Bytes {
        self.keys.all()
    }

    /// Done when a server says, or may have meant by its silence, that the locks are not there.
    pub async fn doubtful(&self) {
        self.calls.doubtful().await;
    }

    /// What is known of the epoch, in words for people.
    pub fn epoch(&self) -> EpochStatus {
        self.epochs.status()
    }

    /// Names of locks that are held or waited for and match a Redis glob, sorted, at most `most`.
    pub async fn names(&self, pattern: &[u8], most: usize) -> Result<Vec<Bytes>, BackendError> {
        let mut names = BTreeSet::new();
        let mut cursor = b"0".to_vec();
        let (all, fields) = (self.keys.all(), [b"[xq]:", pattern].concat());
        loop {
            let args: [&[u8]; 7] = [b"HSCAN", &all, &cursor, b"MATCH", &fields, b"COUNT", b"1000"];
            let (_, replies) = self.calls.send(&[&args]).await?;
            let (value, _) = Value::decode(&replies[0]).map_err(|_| decode::unexpected(&replies[0]))?;
            let [next, page] = value.as_elements().unwrap_or_default() else {
                return Err(decode::unexpected(&replies[0]));
            };
            let fields = page.as_elements().unwrap_or_default().iter().step_by(2).filter_map(Value::as_bytes);
            names.extend(fields.filter_map(|field| field.get(2..)).map(Bytes::copy_from_slice));
            cursor = next.as_bytes().unwrap_or(b"0").to_vec();
            if cursor == b"0" || names.len() >= most {
                return Ok(names.into_iter().take(most).collect());
            }
        }
    }

    /// Runs a script about one lock, and tells what is not its own there.
    async fn run_on(&self, name: &Bytes, script: Script, args: &Arguments) -> Result<(u64, Bytes), BackendError> {
        let (epoch, reply) = self.ask(script, &self.keys.of(name), args).await?;
        let told = match () {
            () if decode::is_unreadable(&reply) => Some(foreign::record(&self.keys, name)),
            () if decode::is_wrong_type(&reply) => self.foreign_key(name).await,
            () => None,
        };
        match (told, reply.strip_prefix(b"-")) {
            (Some(told), _) => {
                self.foreign.found(name, &told.to_string());
                Err(told)
            }
            (None, Some(message)) => Err(decode::refused(message)),
            (None, None) => Ok((epoch, reply)),
        }
    }

    /// The key of a type that it must not be of, unless that was mended meanwhile.
    async fn foreign_key(&self, name: &Bytes) -> Option<BackendError> {
        let parts = self.keys.parts_of(name);
        let commands = parts.each_ref().map(|part| [b"TYPE" as &[u8], &part.key]);
        let (_, replies) = self.calls.send(&commands.each_ref().map(|command| &command[..])).await.ok()?;
        foreign::key(name, &parts, &replies)
    }

    /// Runs a script that is about no lock, or about many.
    async fn run(&self, script: Script, keys: &Strings, args: &Arguments) -> Result<(u64, Bytes), BackendError> {
        let (epoch, reply) = self.ask(script, keys, args).await?;
        match reply.strip_prefix(b"-") {
            Some(message) => Err(decode::refused(message)),
            None => Ok((epoch, reply)),
        }
    }

    /// Has a script run under a confirmed epoch; the reply may be an error of Redis's. An answer that came over a connection
    /// made since is refused.
    async fn ask(&self, script: Script, keys: &Strings, args: &Arguments) -> Result<(u64, Bytes), BackendError> {
        for _ in 0..ATTEMPTS {
            let confirmed = self.epochs.confirm(&self.calls, &self.keys).await?;
            let request = args.request(confirmed.sha(script), keys, confirmed.epoch);
            let vouches_for_tokens = matches!(script, Script::Acquire | Script::Release | Script::Status);
            let check = vouches_for_tokens && self.epochs.is_check_due();
            let (link, mut replies) = if check {
                self.calls.send_raw(epoch::with_check(&request), 2).await?
            } else {
                self.calls.send_raw(request.into(), 1).await?
            };
            let reply = replies.pop().unwrap_or_default();
            // What was issued, or let go, by another server's data is void under the epoch that comes next.
            if check && !self.epochs.is_same_server(&confirmed, &replies[0]) {
                self.epochs.doubt(&confirmed);
                continue;
            }
            if link != confirmed.link {
                return Err(BackendError::Unavailable(
                    "the connection to Redis was replaced while it answered; ask again".into(),
                ));
            }
            if call::is_elsewhere(&reply) {
                self.calls.elsewhere(link).await;
                continue;
            }
            if decode::needs_confirmation(&reply) {
                self.epochs.doubt(&confirmed);
                continue;
            }
            return Ok((confirmed.epoch, reply));
        }
        Err(BackendError::Unavailable(
            "the server or the epoch of the locks keeps changing; see whether several Redis servers share an address, or \
             whether a slot is moving, then try again"
                .into(),
        ))
    }

    async fn duty(&self, lease: Duration) -> Result<Bytes, BackendError> {
        let args = Arguments::without_epoch().with(&*self.client).with(lease.as_millis().to_string());
        let args = args.with(self.keys.channels());
        let (_, reply) = self.run(Script::Duty, &Strings::default().with(&[&self.keys.duty()]), &args).await?;
        Ok(reply)
    }

    async fn status_of(&self, name: &Bytes) -> Result<LockStatus<Bytes>, BackendError> {
        Ok(self.status_and_epoch(name).await?.0)
    }

    async fn status_and_epoch(&self, name: &Bytes) -> Result<(LockStatus<Bytes>, u64), BackendError> {
        let args = Arguments::default().with(MAX_SHOWN.to_string());
        let (epoch, reply) = self.run_on(name, Script::Status, &args).await?;
        match decode::left_out(&reply) {
            0 => self.foreign.is_gone(name),
            _ => self.foreign.found(name, &foreign::entries(name)),
        }
        Ok((decode::status(name, epoch, &reply)?, epoch))
    }

    /// What a token is worth at this moment.
    pub async fn standing(&self, name: &Bytes, token: FencingToken) -> Result<Standing, BackendError> {
        let (status, epoch) = self.status_and_epoch(name).await?;
        Ok(match token.epoch() == epoch {
            false => Standing::OtherEpoch(epoch),
            true if status.holders.iter().any(|holder| holder.token == token) => Standing::Held,
            true => Standing::NotHeld,
        })
    }
}

/// What a fencing token is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The lock is held under it.
    Held,
    /// It is of this epoch, and the lock is not held under it, or not any more.
    NotHeld,
    /// It is of another epoch than this, which is in force.
    OtherEpoch(u64),
}

fn micros(lease: Duration) -> String {
    lease.as_micros().to_string()
}

const fn mode(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Shared => "s",
        LockMode::Exclusive => "x",
    }
}

impl LockBackend<Bytes> for RedisLocks {
    fn attach(&self, listener: Weak<dyn LockListener>) {
        self.epochs.attach(listener.clone());
        self.calls.attach(listener);
    }

    fn acquire<'a>(&'a self, ask: &'a Ask<Bytes>) -> Reply<'a, Answer> {
        Box::pin(async move {
            if ask.waits {
                self.calls.subscribe();
            }
            // Who asks goes as one text, which is what a record and a queue have of it.
            let args = Arguments::default()
                .with(mode(ask.mode))
                .with(format!("{}:{}:{}", ask.lease.as_micros(), ask.ticket, ask.owner.as_str()))
                .with(if ask.waits { MAX_QUEUE } else { 0 }.to_string());
            let (epoch, reply) = self.run_on(&ask.name, Script::Acquire, &args).await?;
            decode::answer(epoch, &reply, LOOK_AGAIN, MAX_QUEUE)
        })
    }

    fn cancel<'a>(&'a self, ask: &'a Ask<Bytes>) -> Reply<'a, ()> {
        Box::pin(async move {
            let args = Arguments::default()
                .with(ask.owner.as_str())
                .with(ask.ticket.to_string())
                .with(mode(ask.mode))
                .with(micros(ask.lease));
            self.run_on(&ask.name, Script::Cancel, &args).await.map(|_| ())
        })
    }

    fn renew<'a>(&'a self, claims: &'a [Claim<Bytes>]) -> Reply<'a, Vec<bool>> {
        Box::pin(async move {
            let keys = self.keys.of_renewals(claims.iter().map(|claim| &claim.name));
            let mut args = Arguments::default();
            for claim in claims {
                let counter = claim.token.counter().to_string();
                args = args.with(claim.owner.as_str()).with(counter).with(micros(claim.lease));
            }
            let (epoch, reply) = self.run(Script::Renew, &keys, &args).await?;
            let renewed = decode::flags(&reply)?;
            let is_held = |(renewed, claim): (bool, &Claim<Bytes>)| renewed && claim.token.epoch() == epoch;
            Ok(renewed.into_iter().zip(claims).map(is_held).collect())
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim<Bytes>) -> Reply<'a, bool> {
        Box::pin(async move {
            let args = Arguments::default().with(claim.owner.as_str()).with(claim.token.counter().to_string());
            if self.epochs.confirm(&self.calls, &self.keys).await?.epoch != claim.token.epoch() {
                return Ok(false);
            }
            let (_, reply) = self.run_on(&claim.name, Script::Release, &args).await?;
            decode::flag(&reply)
        })
    }

    fn keep_waiting(&self) -> Reply<'_, ()> {
        Box::pin(async move {
            self.calls.subscribe();
            let args = Arguments::without_epoch().with(&*self.client);
            self.run(Script::Beat, &Strings::default().with(&[&self.keys.live()]), &args).await.map(|_| ())
        })
    }

    fn status<'a>(&'a self, name: &'a Bytes) -> Reply<'a, LockStatus<Bytes>> {
        Box::pin(self.status_of(name))
    }

    fn contended(&self) -> Reply<'_, Vec<LockStatus<Bytes>>> {
        Box::pin(async move {
            let index = self.keys.contended();
            let (_, replies) = self.calls.send(&[&[b"SMEMBERS" as &[u8], &index]]).await?;
            let mut locks = Vec::new();
            for name in decode::texts(&replies[0])? {
                match self.status_of(&name).await {
                    Ok(status) => locks.push(status),
                    Err(BackendError::Unreadable(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(locks)
        })
    }

    fn take_duty(&self, lease: Duration) -> Reply<'_, bool> {
        Box::pin(async move {
            let reply = self.duty(lease).await?;
            Ok(&*reply == b":1\r\n")
        })
    }

    fn leave_duty(&self) -> Reply<'_, ()> {
        Box::pin(async move { self.duty(Duration::ZERO).await.map(|_| ()) })
    }

    fn break_deadlock<'a>(&'a self, name: &'a Bytes, ticket: &'a Ticket, cycle: &'a str) -> Reply<'a, bool> {
        Box::pin(async move {
            let args = Arguments::default().with(ticket.to_string()).with(cycle);
            let (_, reply) = self.run_on(name, Script::Expel, &args).await?;
            decode::flag(&reply)
        })
    }
}

/// The token with a script's counter.
fn token(epoch: u64, counter: Option<&[u8]>) -> Option<FencingToken> {
    let counter = std::str::from_utf8(counter?).ok()?.parse().ok()?;
    Some(FencingToken::new(epoch, counter))
}
