//! The seam to L3: what a [`MultiTierCache`](crate::MultiTierCache) asks of the tier below, and what that tier owes it.
//!
//! A [`Remote`] reads and writes values under their keys' [names](crate::Name) and reports into [`Coherence`] whatever
//! invalidates local copies. It judges no copy and keeps none for the tiers. It fails with [`RemoteError`].
//!
//! # What an implementation owes
//!
//! * Every invalidation it is told of is reported *inline*: before it hands on any later reply of the same stream.
//! * A lost stream is reported ([`Coherence::lost`]) before any of the requests that waited on it fails.
//! * [`Remote::read`] sends its request after it was called, on the stream that carries the invalidations.
//! * Where copies are [`Tracked`](crate::SourceKind::Tracked), [`Remote::probe`] asks on that stream whether whoever answers
//!   still has the right to, and reports a good answer ([`Sending::proved`]).
//! * [`Remote::store`] stores only under the [`Claim`] that is still the key's own, and only if the key is as it was when
//!   the claim was granted. Every write, removal and expiry through the same L3 ends the claim, in the same step.
//!
//! # An L3 of one's own
//!
//! A table to which everybody writes through this process, so that every write is known here at once
//! ([`SourceKind::Local`]); it keeps what it has until that is overwritten.
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::{Arc, Mutex};
//! use std::time::{Duration, Instant};
//! use caddy_engine::remote::{Claim, Coherence, Fetched, Lifetime, LoadLease, Remote, RemoteFuture};
//! use caddy_engine::{FlushCause, MultiTierCache, SourceKind, TierConfig};
//!
//! #[derive(Default)]
//! struct Table(Mutex<Content>);
//!
//! #[derive(Default)]
//! struct Content {
//!     rows: HashMap<String, String>,
//!     leases: HashMap<String, (u128, Instant)>,
//!     last_lease: u128,
//!     caches: Vec<Coherence>,
//! }
//!
//! impl Content {
//!     /// One step, under the lock: the change, the end of the key's lease, and the death of every copy. `None` removes.
//!     fn put(&mut self, key: &str, value: Option<String>) -> bool {
//!         let old = match value {
//!             Some(value) => self.rows.insert(key.to_owned(), value),
//!             None => self.rows.remove(key),
//!         };
//!         self.leases.remove(key);
//!         self.caches.iter().for_each(|cache| cache.bump(key.as_bytes()));
//!         old.is_some()
//!     }
//! }
//!
//! impl Remote<String, String> for Table {
//!     fn kind(&self) -> SourceKind { SourceKind::Local }
//!
//!     fn attach(&self, coherence: Coherence) { self.0.lock().unwrap().caches.push(coherence); }
//!
//!     fn read<'a>(&'a self, key: &'a String) -> RemoteFuture<'a, Option<Fetched<String>>> {
//!         Box::pin(async {
//!             let value = self.0.lock().unwrap().rows.get(key).cloned();
//!             Ok(value.map(|value| Fetched { value, fresh_for: None, stale_for: Duration::ZERO }))
//!         })
//!     }
//!
//!     fn write<'a>(&'a self, key: &'a String, value: &'a String, lifetime: Lifetime) -> RemoteFuture<'a, ()> {
//!         Box::pin(async move {
//!             let kept = (lifetime.ttl != Some(Duration::ZERO)).then(|| value.clone());
//!             self.0.lock().unwrap().put(key, kept);
//!             Ok(())
//!         })
//!     }
//!
//!     fn remove<'a>(&'a self, key: &'a String) -> RemoteFuture<'a, bool> {
//!         Box::pin(async { Ok(self.0.lock().unwrap().put(key, None)) })
//!     }
//!
//!     fn expire<'a>(&'a self, key: &'a String) -> RemoteFuture<'a, bool> { self.remove(key) }
//!
//!     fn clear(&self) -> RemoteFuture<'_, ()> {
//!         Box::pin(async {
//!             let mut table = self.0.lock().unwrap();
//!             table.rows.clear();
//!             table.leases.clear();
//!             table.caches.iter().for_each(|cache| cache.flush(FlushCause::Overwritten));
//!             Ok(())
//!         })
//!     }
//!
//!     fn claim<'a>(&'a self, key: &'a String, span: Duration) -> RemoteFuture<'a, Claim> {
//!         Box::pin(async move {
//!             let (now, mut table) = (Instant::now(), self.0.lock().unwrap());
//!             if table.leases.get(key).is_some_and(|(_, until)| now < *until) {
//!                 return Ok(Claim::Held);
//!             }
//!             table.last_lease += 1;
//!             let id = table.last_lease;
//!             table.leases.insert(key.clone(), (id, now + span));
//!             let present = table.rows.get(key).map(|row| row.clone().into());
//!             Ok(Claim::Granted(LoadLease { id, present }))
//!         })
//!     }
//!
//!     fn store<'a>(
//!         &'a self,
//!         key: &'a String,
//!         value: &'a String,
//!         _: Lifetime,
//!         lease: &'a LoadLease,
//!     ) -> RemoteFuture<'a, bool> {
//!         Box::pin(async {
//!             let mut table = self.0.lock().unwrap();
//!             // Whatever changes the row ends the lease: that it is there says that the row is as it was.
//!             let is_valid = table.leases.get(key).is_some_and(|(id, until)| *id == lease.id && Instant::now() < *until);
//!             if is_valid {
//!                 table.put(key, Some(value.clone()));
//!             }
//!             Ok(is_valid)
//!         })
//!     }
//!
//!     fn release(&self, key: &String, lease: &LoadLease) {
//!         let mut table = self.0.lock().unwrap();
//!         if table.leases.get(key).is_some_and(|(id, _)| *id == lease.id) {
//!             table.leases.remove(key);
//!         }
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let table = Arc::new(Table::default());
//! let (ours, theirs) = (
//!     MultiTierCache::new(TierConfig::default(), table.clone()),
//!     MultiTierCache::new(TierConfig::default(), table),
//! );
//! ours.insert("user:1".into(), "Ada".into()).await?;
//! assert_eq!(theirs.get("user:1").await?.as_deref(), Some("Ada"));
//! ours.insert("user:1".into(), "Grace".into()).await?;
//! assert_eq!(theirs.get("user:1").await?.as_deref(), Some("Grace"));
//! let loaded = theirs.get_or_load("user:2", async || Ok::<_, std::io::Error>("Alan".to_owned())).await?;
//! assert_eq!(ours.get("user:2").await?, Some(loaded.value));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod in_process;

pub use in_process::InProcess;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use crate::hash::KeyHash;
use crate::invalidation::KeyPattern;
use crate::kernel::{FlushCause, Incarnation, Kernel, Sent, SourceId, SourceKind};
use crate::timer::Timer;

/// What a [`Remote`]'s methods return. Dropping it gives up waiting, not the request: a write may still happen.
pub type RemoteFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// Why L3 did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RemoteError {
    /// It was not sent, or no answer came: a write may have happened.
    #[error("L3 did not answer: {reason}; see whether it is reachable, and what a write did before repeating it")]
    Unreachable {
        /// What went wrong.
        reason: Arc<str>,
    },
    /// It answered with an error.
    #[error("L3 refused: {reason}")]
    Refused {
        /// Its words.
        reason: Arc<str>,
    },
    /// The value cannot be given the form in which L3 keeps it.
    #[error("failed to encode the value for L3: {reason}")]
    Encode {
        /// The codec's words.
        reason: Arc<str>,
    },
    /// L3 has no room for a value of this size.
    #[error("the value is larger than L3 takes ({bytes} bytes, at most {max}): raise its budget or store less")]
    TooLarge {
        /// Bytes of the value.
        bytes: usize,
        /// What L3 takes.
        max: usize,
    },
}

/// How long L3 keeps a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// How long it is fresh; `None`: until it is overwritten or evicted. Zero: not at all, which removes the key.
    pub ttl: Option<Duration>,
    /// How long after that it is kept for when a load fails. Without `ttl` only
    /// [`expire`](crate::MultiTierCache::expire) makes a value stale.
    pub stale: Duration,
}

impl Lifetime {
    /// Until it is overwritten or evicted.
    pub const FOREVER: Self = Self { ttl: None, stale: Duration::ZERO };

    /// Fresh for `ttl`, then gone.
    pub const fn of(ttl: Duration) -> Self {
        Self { ttl: Some(ttl), stale: Duration::ZERO }
    }

    /// Kept for `stale` beyond its freshness.
    #[must_use]
    pub const fn stale_for(self, stale: Duration) -> Self {
        Self { ttl: self.ttl, stale }
    }
}

/// What L3 answered to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched<V> {
    /// The value.
    pub value: V,
    /// How long it is fresh, counted from before the read was sent; zero: it is stale. `None`: it does not expire.
    pub fresh_for: Option<Duration>,
    /// How long it may then be served marked as stale.
    pub stale_for: Duration,
}

/// Whether the caller is the one in the cluster who loads a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is; [`Remote::store`] accepts what it loads while nothing else happens to the key.
    Granted(LoadLease),
    /// Somebody else is: look again soon.
    Held,
}

/// The right to store what is being loaded; L3's record of it is removed by whatever else happens to the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadLease {
    /// Tells this lease from every other one of the key.
    pub id: u128,
    /// What was stored when it was given, as L3 keeps it; `None`: nothing.
    pub present: Option<Bytes>,
}

/// The tier below: shared by all caches of a cluster, or in this process.
///
/// [`InProcess`] is one; `caddy-remote` has one over Redis. See the [module](self) for what it owes.
pub trait Remote<K, V>: Send + Sync {
    /// How copies of its values are kept current.
    fn kind(&self) -> SourceKind;

    /// Called once for every cache built over it: invalidations are reported to `coherence` from now on.
    fn attach(&self, coherence: Coherence);

    /// Reads what is fresh or stale under `key`.
    fn read<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, Option<Fetched<V>>>;

    /// Stores `value` in place of whatever is there; a lifetime of zero removes it.
    fn write<'a>(&'a self, key: &'a K, value: &'a V, lifetime: Lifetime) -> RemoteFuture<'a, ()>;

    /// Removes the value, fresh or stale. `true`: there was one.
    fn remove<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, bool>;

    /// Makes the value stale now: kept for as long as its lifetime said, gone if that was zero. `true`: there was one.
    fn expire<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, bool>;

    /// Removes everything.
    fn clear(&self) -> RemoteFuture<'_, ()>;

    /// Removes every value whose key's name `pattern` has, one by one: what is written meanwhile may stay or go. Tells how
    /// many it removed.
    fn remove_matching<'a>(&'a self, pattern: &'a KeyPattern) -> RemoteFuture<'a, u64> {
        let _ = pattern;
        Box::pin(async { Err(RemoteError::Refused { reason: "this L3 cannot find keys by pattern".into() }) })
    }

    /// Asks for the right to load `key` for at most `span`, unless somebody has it.
    fn claim<'a>(&'a self, key: &'a K, span: Duration) -> RemoteFuture<'a, Claim>;

    /// Stores what was loaded under `lease` and ends it. `false`: refused, the key is not what it was; see the
    /// [module](self).
    fn store<'a>(
        &'a self,
        key: &'a K,
        value: &'a V,
        lifetime: Lifetime,
        lease: &'a LoadLease,
    ) -> RemoteFuture<'a, bool>;

    /// Gives `lease` back unused, so that another may load at once. Without waiting: it is called when whoever loaded went
    /// away. Where it fails the lease runs out.
    fn release(&self, key: &K, lease: &LoadLease);

    /// Sends a currency probe without waiting, and reports its answer ([`Sending::proved`]). Nothing to do where nothing
    /// has to be proved.
    fn probe(&self, sending: Sending) {
        drop(sending);
    }

    /// Entries and bytes it holds, where it can tell at once.
    fn sizes(&self) -> Option<(usize, usize)> {
        None
    }
}

/// Whatever has a kernel; hides the types of keys and values from [`Coherence`].
pub(crate) trait HasKernel: Send + Sync {
    fn kernel(&self) -> &Kernel;
}

/// Where a [`Remote`] reports what it hears: one cache's kernel and the source that it is there.
///
/// Outliving the cache is fine: reports then go nowhere.
#[derive(Clone)]
pub struct Coherence {
    of: Weak<dyn HasKernel>,
    source: SourceId,
    timer: Arc<dyn Timer>,
}

impl std::fmt::Debug for Coherence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coherence").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Coherence {
    pub(crate) fn new(of: Weak<dyn HasKernel>, source: SourceId, timer: Arc<dyn Timer>) -> Self {
        Self { of, source, timer }
    }

    fn tell<T>(&self, what: impl FnOnce(&Kernel) -> T) -> Option<T> {
        self.of.upgrade().map(|of| what(of.kernel()))
    }

    /// Whether the cache is gone and nothing need be reported any more.
    pub fn is_gone(&self) -> bool {
        self.of.strong_count() == 0
    }

    /// The key named `name` was written, removed or may have been: kills every copy of it and every fill in flight.
    pub fn bump(&self, name: &[u8]) {
        self.tell(|kernel| kernel.bump(KeyHash::of(name)));
    }

    /// Everything was replaced, or invalidations were missed although the stream goes on.
    pub fn flush(&self, cause: FlushCause) {
        self.tell(|kernel| kernel.flush(self.source, cause));
    }

    /// The stream of invalidations is up. `None`: the cache is gone.
    pub fn connected(&self) -> Option<Incarnation> {
        self.tell(|kernel| kernel.connected(self.source))
    }

    /// The stream ended; call before any request that waits on it fails.
    pub fn lost(&self, incarnation: Incarnation) {
        self.tell(|kernel| kernel.lost(self.source, incarnation));
    }

    /// L3 has lost its right to answer (another role): copies die, and nothing counts as proved until the next proof.
    pub fn lapse(&self) {
        self.tell(|kernel| kernel.lapse(self.source));
    }

    pub(crate) fn sending(&self, sent: Sent) -> Sending {
        Sending { coherence: self.clone(), sent }
    }
}

/// What a request on the stream of invalidations is sent under: made just before.
#[derive(Clone, Debug)]
pub struct Sending {
    coherence: Coherence,
    sent: Sent,
}

impl Sending {
    /// The reply is in, every invalidation before it has been reported, and whoever sent it has the right to answer: what
    /// was overwritten before the request was sent is dead here.
    pub fn proved(&self) {
        self.coherence.tell(|kernel| kernel.proved(&self.sent, self.coherence.timer.now()));
    }
}
