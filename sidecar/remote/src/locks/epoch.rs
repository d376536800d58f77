//! The epoch: which incarnation of Redis's data the locks live in.
//!
//! Its mirror in Redis carries the server's run id and replication id. Before the first operation on each connection the
//! sidecar asks the server for both and runs a script that confirms the mirror or begins a new epoch: if there is no
//! mirror (FLUSHALL, eviction, an empty restart, another server), if it is older than what is known here (an old dump),
//! or if either id is another (restart, failover, resync). A server whose role or data is replaced under a connection is
//! found by a look once a second, sent in front of an acquisition and answered before it.
//!
//! A server that refuses INFO tells no ids: then the mirror alone is the evidence, and the status says so.

use std::{
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
    call::Calls,
    decode,
    scripts::{Arguments, Keys, SOURCES, Script},
};

/// How long a server is believed to be the one that it was.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is known of the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochStatus {
    /// Its number; 0: no lock was asked for yet.
    pub epoch: u64,
    /// How often a new one was met or begun since the start, the first not counted.
    pub changes: u64,
    /// Whether the server tells what it is; otherwise the mirror alone shows that data was lost.
    pub has_server_ids: bool,
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

/// See the module.
#[derive(Default)]
pub(super) struct Epochs {
    confirmed: Mutex<Option<Arc<Confirmed>>>,
    /// One confirmation at a time; the others wait for it.
    confirming: tokio::sync::Mutex<()>,
    status: Mutex<EpochStatus>,
    looked: AtomicU64,
    listener: Mutex<Option<Weak<dyn LockListener>>>,
}

impl Epochs {
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
        let mut commands: Vec<Vec<&[u8]>> = vec![vec![b"INFO", b"server"], vec![b"INFO", b"replication"]];
        commands.extend(SOURCES.iter().map(|source| vec![b"SCRIPT" as &[u8], b"LOAD", source.as_bytes()]));
        let commands: Vec<&[&[u8]]> = commands.iter().map(Vec::as_slice).collect();
        let (link, replies) = calls.send(&commands).await?;
        let [server, replication, loaded @ ..] = replies.as_slice() else {
            return Err(decode::unexpected(b"too few replies"));
        };
        let shas = loaded.iter().map(|reply| decode::text(reply)).collect::<Result<Vec<_>, _>>()?;
        let (run_id, replication_id) = (field(server, "run_id:"), field(replication, "master_replid:"));
        if field(replication, "role:").is_some_and(|role| role != "master") {
            return Err(BackendError("Redis is a replica; point the endpoint at the primary".into()));
        }
        let known = self.status.lock().epoch;
        let ids = run_id.as_deref().zip(replication_id.as_deref());
        let (run, replica) = ids.unwrap_or(("", ""));
        let args = Arguments::without_epoch().with(known.to_string()).with(run).with(replica);
        let sha = shas.get(Script::Epoch as usize).map_or("", String::as_str);
        let request = args.request(sha, &[keys.epoch()], "");
        let (confirmed_link, replies) = calls.send_raw(request.into(), 1).await?;
        if confirmed_link != link {
            return Err(BackendError(
                "the connection to Redis was replaced while locks were prepared; ask again".into(),
            ));
        }
        let (epoch, is_new) = decode::epoch(&replies[0])?;
        let has_server_ids = ids.is_some();
        let confirmed = Arc::new(Confirmed { epoch, link, replication_id, shas });
        self.note(epoch, is_new, has_server_ids);
        *self.confirmed.lock() = Some(confirmed.clone());
        self.looked.store(BootClock.now().as_nanos(), Ordering::Relaxed);
        let listener = self.listener.lock().as_ref().and_then(Weak::upgrade);
        if let Some(listener) = listener {
            listener.epoch(epoch);
        }
        Ok(confirmed)
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
