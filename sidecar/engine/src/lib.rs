//! The cache itself: tiers, coherence kernel, single flight; no network, no Kubernetes, injected clock.
//!
//! Like a processor: each worker thread has a small lock-free **L1** ([`Worker`]), all share a bounded **L2**
//! ([`Cache`]), and what lies below (**L3**) is the caller's. L1 points into L2 and owns nothing. Whether a copy may be
//! served is decided by the coherence [`kernel`] in a few loads: its key's stamp, its source's flush count and its
//! source's currency proof. A copy enters only under a [`FillToken`] taken before its read was sent.
//!
//! ```
//! use caddy_engine::{Cache, CacheConfig, Clock, KeyHash, Lookup, ManualClock, Moment, SourceKind};
//!
//! let clock = ManualClock::default();
//! let cache = Cache::<Vec<u8>, Vec<u8>>::new(CacheConfig::default());
//! let source = cache.kernel().register(SourceKind::Local)?;
//! let mut worker = cache.worker();
//!
//! let key = b"user:1".as_slice();
//! let key_hash = KeyHash::of(key);
//! let hash = key_hash.tier(0);
//!
//! // A miss: take the token, read what lies below, fill.
//! assert!(matches!(worker.lookup(hash, &key.to_vec(), clock.now()), Lookup::Miss(_)));
//! let token = cache.kernel().begin_fill(source, key_hash, clock.now());
//! cache.fill(&token, hash, key.to_vec(), b"Ada".to_vec(), Moment::NEVER, clock.now())?;
//!
//! let Lookup::Hit(hit) = worker.lookup(hash, &key.to_vec(), clock.now()) else { unreachable!() };
//! assert_eq!(hit.entry.value(), b"Ada");
//!
//! // A write or an invalidation push, from anywhere: every copy is dead.
//! cache.kernel().bump(key_hash);
//! assert!(matches!(worker.lookup(hash, &key.to_vec(), clock.now()), Lookup::Miss(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod clock;
pub mod codec;
mod entry;
mod flights;
pub mod glob;
mod guards;
mod hash;
pub mod kernel;
mod l1;
mod l2;
pub mod locks;
mod policy;
mod slab;
mod stats;
mod sync;
mod weigh;
mod worker;

pub use cache::{Cache, CacheConfig, FillRefused, TieringConfig, Why};
pub use clock::{BootClock, Clock, ManualClock, Moment};
pub use entry::{Entry, Shared};
pub use flights::{FlightId, Flights, FlightsConfig, Joined, Landed, Wanted};
pub use guards::{Guard, Guards};
pub use hash::{KeyHash, TierHash};
pub use kernel::{
    Currency, FillToken, FlushCause, Incarnation, Kernel, KernelConfig, KernelError, Sent, SourceId, SourceKind,
    Verdict,
};
pub use l1::L1Config;
pub use l2::{GroupSize, L2Config};
pub use policy::PolicyKind;
pub use stats::{Counter, Stats};
pub use weigh::Weigh;
pub use worker::{Doubt, Hit, Lookup, Miss, Tier, Uncertain, Worker};
