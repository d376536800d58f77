//! A coherent cache of three tiers for Rust programs: what it serves is current, or provably no older than you allow.
//!
//! Like a processor: each thread has a small lock-free **L1**, all threads of a process share a bounded **L2**, and what
//! lies below, **L3**, is where values live: in this process, in Redis, or wherever a [`Remote`] leads. A write anywhere
//! kills the copies everywhere. No network here, no Kubernetes; time is injected.
//!
//! # A cache
//!
//! [`MultiTierCache`] is the whole of it behind one cloneable handle.
//!
//! ```
//! use caddy_engine::{LoadedFrom, MultiTierCache, TierConfig, TierSize};
//! use std::time::Duration;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let cache = MultiTierCache::<String, String>::in_process(TierConfig {
//!     l2: TierSize::new(50_000, 256 << 20),
//!     ttl: Some(Duration::from_secs(60)),
//!     stale_if_error: Duration::from_secs(600),
//!     ..TierConfig::default()
//! });
//!
//! // Write to L3; the first read brings the value into L2, ten more into this thread's L1.
//! cache.insert("user:1".into(), "Ada".into()).await?;
//! assert_eq!(cache.get("user:1").await?.as_deref(), Some("Ada"));
//!
//! // However many ask at once, here or in other processes, one loads.
//! let user = cache.get_or_load("user:2", async || Ok::<_, std::io::Error>("Grace".to_owned())).await?;
//! assert_eq!((user.value.as_str(), user.from), ("Grace", LoadedFrom::Loader));
//!
//! // When the database is away, the last value stands in, and says so.
//! cache.expire("user:2").await?;
//! let user = cache.get_or_load("user:2", async || Err(std::io::Error::other("no database"))).await?;
//! assert!(user.is_stale());
//!
//! // `remove` leaves nothing to stand in.
//! cache.remove("user:2").await?;
//! assert_eq!(cache.get("user:2").await?, None);
//! println!("{:.0} % of reads answered locally: {:?}", 100.0 * cache.hit_rate(), cache.tier_sizes());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it promises
//!
//! * **Read your writes.** When a write has returned, no read that begins after it, on any thread, sees what was before.
//! * **Bounded staleness.** A copy is served only while its L3 was proven current within
//!   [`max_staleness`](TierConfig::max_staleness): also when connections break, clocks jump or the machine sleeps. An L3
//!   in this process is always current.
//! * **No resurrection.** A copy enters only under a [`FillToken`] taken before its read was sent; one that was overtaken by
//!   a write is dropped. The same holds for what loaders bring ([`Remote::claim`]).
//! * **Bounded memory.** Keys, values, metadata and what is in flight never exceed the budget together.
//! * **Bounded waiting.** Whoever waits, for L3 or for a loader, has a deadline. Loaders may panic, hang or go away.
//!
//! # Where to go from here
//!
//! * [`remote`]: what an L3 has to be. `RedisRemote` in `caddy-remote` is one over Redis or Valkey, coherent by tracking.
//! * [`store`]: what the app's own database has to be; `caddy-remote` has HTTP and PostgreSQL.
//! * [`invalidation`]: many keys at once, by pattern, and what others are told of it.
//! * [`generations`]: copies that depend on named versions, so that one write invalidates any number of them.
//! * [`codec`]: values as bytes, with checksums, compression and schema versions.
//! * [`kernel`]: how coherence works, and the parts for programs that own their event loop, as the CADDY sidecar does: a
//!   [`Worker`] per thread (L1) in front of a shared [`Cache`] (L2), and [`Flights`] for single flight.
//! * `examples/stampede.rs` here, and `examples/shared.rs` in `caddy-remote`: programs to run and to change.
//!
//! # The parts, by hand
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

pub mod absence;
mod cache;
mod clock;
pub mod codec;
#[doc(hidden)]
pub mod crash;
mod entry;
mod flights;
pub mod generations;
pub mod glob;
mod guards;
mod hash;
mod hold;
pub mod hot;
mod in_flight;
pub mod invalidation;
pub mod kernel;
mod l1;
mod l2;
pub mod locks;
mod multi_tier;
mod name;
mod policy;
mod prefetch;
pub mod remote;
pub mod reuse;
mod slab;
mod stats;
pub mod store;
pub mod strategy;
mod sync;
mod timer;
mod weigh;
mod worker;

pub use cache::{Cache, CacheConfig, FillRefused, TieringConfig, Why};
pub use clock::{BootClock, Clock, ManualClock, Moment};
pub use entry::{Entry, Shared};
pub use flights::{FlightId, Flights, FlightsConfig, Joined, Landed, Wanted};
pub use guards::{Guard, Guards};
pub use hash::{KeyHash, TierHash};
pub use hold::{Hold, Packed, PackedRef, same_bytes};
pub use in_flight::Held;
pub use kernel::{
    Currency, FillToken, FlushCause, Incarnation, Kernel, KernelConfig, KernelError, Sent, SourceId, SourceKind,
    Verdict,
};
pub use l1::L1Config;
pub use l2::{GroupSize, L2Config};
pub use multi_tier::{
    CacheError, CacheKey, CacheStats, CacheTier, CacheValue, Demotions, Evictions, LoadError, Loaded, LoadedFrom,
    MultiTierCache, Refusals, TierConfig, TierSize, TierSizes, TierStats,
};
pub use name::Name;
pub use policy::PolicyKind;
pub use remote::{Coherence, InProcess, Lifetime, Remote, RemoteError};
pub use stats::{Counter, Stats};
pub use timer::{ManualTimer, Sleep, StdTimer, Timer, TokioTimer};
pub use weigh::Weigh;
pub use worker::{Doubt, Hit, Lookup, Miss, Tier, Uncertain, Worker};
