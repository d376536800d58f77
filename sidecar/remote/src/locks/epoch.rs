//! The epoch: which incarnation of Redis's data the locks live in.
//!
//! Its mirror in Redis carries the server's run id and replication id. Before the first operation on each connection the
//! sidecar asks the server for both and runs a script that confirms the mirror or finds it void: if there is no mirror
//! (FLUSHALL, eviction, an empty restart, another server), if it is older than what is known (an old dump, an old
//! primary), or if either id is another (restart, failover, resync). Then a new epoch is agreed on, first with the
//! [`EpochAuthority`], if there is one, then in Redis, before any token is issued. While the authority does not answer, a
//! mirror that is not void goes on, and a new epoch waits. A server whose role or data is replaced under a connection is
//! found by a look once a second, sent in front of what issues tokens and answered before it.
//!
//! A server that refuses INFO tells no ids: then the mirror alone is the evidence, and the status says so.

use std::{
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::{
    BootClock, Clock, Moment,
    locks::{BackendError, LockListener},
};
use caddy_resp::{Value, encode};
use parking_lot::Mutex;

use super::{
    authority::EpochAuthority,
    call::{Calls, is_elsewhere},
    decode,
    scripts::{Arguments, Keys, SOURCES, Script, Strings},
};

/// How long a server is believed to be the one that it was.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long somebody else, who agreed on a new epoch, is given to write it into Redis.
const OTHERS_TURN: Duration = Duration::from_millis(100);
/// How often a new epoch is tried to be had before whoever asked is told.
const ROUNDS: usize = 8;
/// How long the authority is not asked again after it did not answer.
const AUTHORITY_REST: Duration = Duration::from_secs(1);

/// What is known of the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochStatus {
    /// Its number; 0: no lock was asked for yet.
    pub epoch: u64,
    /// How often a new one was met or begun since the start, the first not counted.
    pub changes: u64,
    /// Whether the server tells what it is; otherwise the mirror alone shows that data was lost.
    pub has_server_ids: bool,
    /// Where it is agreed on beyond Redis.
    pub authority: Option<Arc<str>>,
    /// Why that could not be asked, the last time; empty if it could.
    pub trouble: Arc<str>,
}

/// What was confirmed, on which connection.
#[derive(Debug)]
pub(super) struct Confirmed {
    pub(super) epoch: u64,
    pub(super) link: u64,
    replication_id: Option<String>,
    shas: Vec<String>,
}

impl Confirmed {
    pub(super) fn sha(&self, script: Script) -> &str {
        self.shas.get(script as usize).map_or("", String::as_str)
    }
}

/// One server, as it describes itself, and its scripts.
struct Server {
    link: u64,
    run_id: Option<String>,
    replication_id: Option<String>,
    shas: Vec<String>,
}

/// What a script said of the mirror.
enum Mirror {
    Confirmed(u64),
    /// Agreed on and written, not in force: whoever agrees on epochs is to be told first.
    Waits(u64),
    New(u64),
    /// The least that a new epoch has to be.
    Void(u64),
}

/// See the module.
#[derive(Default)]
pub(super) struct Epochs {
    authority: Option<Arc<dyn EpochAuthority>>,
    /// The authority is not asked before; why.
    rests: Mutex<Option<(Moment, Arc<str>)>>,
    confirmed: Mutex<Option<Arc<Confirmed>>>,
    /// One confirmation at a time; the others wait for it.
    confirming: tokio::sync::Mutex<()>,
    status: Mutex<EpochStatus>,
    looked: AtomicU64,
    listener: Mutex<Option<Weak<dyn LockListener>>>,
}

impl Epochs {
    pub(super) fn new(authority: Option<Arc<dyn EpochAuthority>>) -> Self {
        let status = EpochStatus { authority: authority.as_ref().map(|them| them.name().into()), ..Default::default() };
        Self { authority, status: Mutex::new(status), ..Self::default() }
    }

    pub(super) fn attach(&self, listener: Weak<dyn LockListener>) {
        *self.listener.lock() = Some(listener);
    }

    pub(super) fn status(&self) -> EpochStatus {
        self.status.lock().clone()
    }

    /// Forgets a confirmation that turned out to be void.
    pub(super) fn doubt(&self, confirmed: &Arc<Confirmed>) {
        self.confirmed.lock().take_if(|current| Arc::ptr_eq(current, confirmed));
    }

    /// The epoch of the connection that there is, confirmed on it.
    pub(super) async fn confirm(&self, calls: &Calls, keys: &Keys) -> Result<Arc<Confirmed>, BackendError> {
        if let Some(confirmed) = self.current(calls) {
            return Ok(confirmed);
        }
        let _only = self.confirming.lock().await;
        if let Some(confirmed) = self.current(calls) {
            return Ok(confirmed);
        }
        let server = Self::meet(calls).await?;
        let (epoch, is_new) = match &self.authority {
            None => self.in_redis_alone(&server, calls, keys).await?,
            Some(authority) => self.agreed(&**authority, &server, calls, keys).await?,
        };
        let Server { link, run_id, replication_id, shas } = server;
        self.note(epoch, is_new, run_id.is_some());
        let confirmed = Arc::new(Confirmed { epoch, link, replication_id, shas });
        *self.confirmed.lock() = Some(confirmed.clone());
        self.looked.store(BootClock.now().as_nanos(), Ordering::Relaxed);
        let listener = self.listener.lock().as_ref().and_then(Weak::upgrade);
        if let Some(listener) = listener {
            listener.epoch(epoch);
        }
        Ok(confirmed)
    }

    /// Who the server is, and its scripts loaded.
    async fn meet(calls: &Calls) -> Result<Server, BackendError> {
        let mut commands: Vec<Vec<&[u8]>> = vec![vec![b"INFO", b"server"], vec![b"INFO", b"replication"]];
        commands.extend(SOURCES.iter().map(|source| vec![b"SCRIPT" as &[u8], b"LOAD", source.as_bytes()]));
        let commands: Vec<&[&[u8]]> = commands.iter().map(Vec::as_slice).collect();
        let (link, replies) = calls.send(&commands).await?;
        let [server, replication, loaded @ ..] = replies.as_slice() else {
            return Err(decode::unexpected(b"too few replies"));
        };
        if field(replication, "role:").is_some_and(|role| role != "master") {
            return Err(BackendError::Unavailable("Redis is a replica; point the endpoint at the primary".into()));
        }
        let shas = loaded.iter().map(|reply| decode::text(reply)).collect::<Result<Vec<_>, _>>()?;
        let ids = field(server, "run_id:").zip(field(replication, "master_replid:"));
        let (run_id, replication_id) = ids.unzip();
        Ok(Server { link, run_id, replication_id, shas })
    }

    /// Runs the script; `begin` says which epoch to begin if the mirror is void.
    async fn mirror(
        &self,
        server: &Server,
        calls: &Calls,
        keys: &Keys,
        known: u64,
        begin: &str,
    ) -> Result<Mirror, BackendError> {
        let id = |id: &Option<String>| id.clone().unwrap_or_default();
        let args = Arguments::without_epoch()
            .with(known.to_string())
            .with(id(&server.run_id))
            .with(id(&server.replication_id))
            .with(begin);
        let sha = server.shas.get(Script::Epoch as usize).map_or("", String::as_str);
        let request = args.request(sha, &Strings::default().with(&[&keys.all()]), 0);
        let (link, replies) = calls.send_raw(request.into(), 1).await?;
        if link != server.link {
            return Err(BackendError::Unavailable(
                "the connection to Redis was replaced while locks were prepared; ask again".into(),
            ));
        }
        if is_elsewhere(&replies[0]) {
            calls.elsewhere(link).await;
            return Err(BackendError::Unavailable("the slot of the locks moved to another node; try again".into()));
        }
        let (epoch, outcome) = decode::epoch(&replies[0])?;
        match outcome.as_str() {
            "confirmed" => Ok(Mirror::Confirmed(epoch)),
            "waits" => Ok(Mirror::Waits(epoch)),
            "new" => Ok(Mirror::New(epoch)),
            _ => Ok(Mirror::Void(epoch)),
        }
    }

    async fn in_redis_alone(&self, server: &Server, calls: &Calls, keys: &Keys) -> Result<(u64, bool), BackendError> {
        let known = self.status.lock().epoch;
        match self.mirror(server, calls, keys, known, "next").await? {
            Mirror::Confirmed(epoch) | Mirror::Waits(epoch) => Ok((epoch, false)),
            Mirror::New(epoch) => Ok((epoch, true)),
            Mirror::Void(_) => Err(decode::unexpected(b"void")),
        }
    }

    /// First with the authority, then in Redis; and it is in force when the authority was told of that. So nobody who saw
    /// it agreed on, and not in Redis, goes past it behind its first token: either that one, or who tells, comes too late.
    async fn agreed(
        &self,
        authority: &dyn EpochAuthority,
        server: &Server,
        calls: &Calls,
        keys: &Keys,
    ) -> Result<(u64, bool), BackendError> {
        let known = self.status.lock().epoch;
        if let Mirror::Void(_) = self.mirror(server, calls, keys, known, "").await? {
            // Others meet the same server in this moment.
            tokio::time::sleep(random_part(authority.spread())).await;
        }
        let (mut waited, mut is_new) = (false, false);
        for _ in 0..ROUNDS {
            let agreed = self.ask(authority.greatest()).await;
            let greatest = agreed.as_ref().map_or(known, |agreed| known.max(agreed.epoch));
            let mirror = self.mirror(server, calls, keys, greatest, "").await?;
            let (agreed, least) = match (agreed, mirror) {
                (Ok(agreed), Mirror::Confirmed(epoch)) if epoch <= agreed.epoch => return Ok((epoch, is_new)),
                (Ok(agreed), Mirror::Waits(epoch)) if epoch <= agreed.epoch => {
                    if self.ask(authority.begin(&agreed)).await == Ok(true)
                        && let Mirror::Confirmed(epoch) = self.mirror(server, calls, keys, epoch, "begun").await?
                    {
                        return Ok((epoch, is_new));
                    }
                    continue;
                }
                (Ok(agreed), Mirror::Waits(epoch)) => {
                    let _ = self.ask(authority.raise(&agreed, epoch)).await;
                    continue;
                }
                (Ok(agreed), Mirror::Confirmed(epoch)) => {
                    // From before there was an authority, or its record was deleted: it catches up.
                    if self.ask(authority.raise(&agreed, epoch)).await != Ok(false) {
                        return Ok((epoch, false));
                    }
                    continue;
                }
                (Err(_), Mirror::Confirmed(epoch)) => return Ok((epoch, false)),
                (Ok(agreed), Mirror::Void(least)) => (agreed, least),
                (Err(reason), Mirror::Void(_) | Mirror::Waits(_)) => {
                    return Err(BackendError::Unavailable(
                        format!(
                            "a new epoch of the locks has to be agreed on and noted in the Lease {}, which cannot be \
                             asked: {reason}; see whether the API server answers, then try again",
                            authority.name()
                        )
                        .into(),
                    ));
                }
                (_, Mirror::New(_)) => return Err(decode::unexpected(b"new")),
            };
            // What is agreed on and not in Redis yet may be under way there.
            if !std::mem::replace(&mut waited, true) {
                tokio::time::sleep(OTHERS_TURN / 2 + random_part(OTHERS_TURN)).await;
                continue;
            }
            if self.ask(authority.raise(&agreed, least)).await != Ok(true) {
                continue;
            }
            self.mirror(server, calls, keys, least, &least.to_string()).await?;
            is_new = true;
        }
        Err(BackendError::Unavailable(
            format!("no new epoch of the locks could be agreed on in {}; try again", authority.name()).into(),
        ))
    }

    /// Asks the authority, unless it did not answer just now.
    async fn ask<T>(&self, question: impl Future<Output = Result<T, String>>) -> Result<T, Arc<str>> {
        if let Some((until, reason)) = &*self.rests.lock()
            && BootClock.now() < *until
        {
            return Err(reason.clone());
        }
        let answer = question.await.map_err(Arc::<str>::from);
        let trouble = answer.as_ref().err().cloned();
        if let Some(reason) = &trouble {
            tracing::warn!(reason = &**reason, "the epoch of the locks cannot be agreed on beyond Redis");
        }
        *self.rests.lock() = trouble.clone().map(|reason| (BootClock.now() + AUTHORITY_REST, reason));
        self.status.lock().trouble = trouble.unwrap_or_default();
        answer
    }

    fn current(&self, calls: &Calls) -> Option<Arc<Confirmed>> {
        self.confirmed.lock().as_ref().filter(|confirmed| confirmed.link == calls.link()).cloned()
    }

    fn note(&self, epoch: u64, is_new: bool, has_server_ids: bool) {
        let mut status = self.status.lock();
        let before = std::mem::replace(&mut status.epoch, epoch);
        if before != 0 && before != epoch {
            status.changes += 1;
            tracing::warn!(before, epoch, "the data that locks live in was lost or replaced: all locks are void");
        } else if before == 0 {
            tracing::info!(epoch, is_new, has_server_ids, "locks are ready");
        }
        status.has_server_ids = has_server_ids;
    }

    // === the look at a live connection ===

    /// Whether the next acquisition has to look first; whoever is told so does.
    pub(super) fn is_check_due(&self) -> bool {
        let now = BootClock.now();
        let looked = self.looked.load(Ordering::Relaxed);
        now.since(Moment::from_nanos(looked)) >= LOOK_EVERY
            && self.looked.compare_exchange(looked, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether the server's reply to the look shows the same data as before.
    #[expect(clippy::unused_self, reason = "reads as a question to the epochs")]
    pub(super) fn is_same_server(&self, confirmed: &Confirmed, reply: &[u8]) -> bool {
        match &confirmed.replication_id {
            None => true,
            id => field(reply, "role:").is_some_and(|role| role == "master") && field(reply, "master_replid:") == *id,
        }
    }
}

/// Between nothing and all of it.
fn random_part(time: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    time.mul_f64((RandomState::new().hash_one(0) % 1000) as f64 / 1000.0)
}

/// A request behind a look at who answers it.
pub(super) fn with_check(request: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(request.len() + 40);
    encode::command(&mut bytes, ["INFO", "replication"]);
    bytes.extend_from_slice(request);
    bytes.into()
}

/// A field of a reply to INFO.
fn field(reply: &[u8], name: &str) -> Option<String> {
    let (value, _) = Value::decode(reply).ok()?;
    let text = std::str::from_utf8(value.as_bytes()?).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}
