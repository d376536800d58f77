//! The sidecar's configuration file: what the operator writes and the sidecar reads.
//!
//! Owns the file's shape ([`RawConfig`]), its meaning ([`Config`]) and the only way from one to the other
//! ([`parse`], [`RawConfig::parse`]): *parse, don't validate*. It never touches a file, a socket or Kubernetes, and
//! depends on nothing of ours. It fails with [`Faults`]: every fault of the file at once, each with its path.
//!
//! The contract only grows. Pods injected long ago read what today's operator writes, so in the operator's files
//! (marked by a top-level `configGeneration`) an unknown field is returned in [`Parsed::ignored`]; in a file written
//! by hand it is a fault, since there it is a typing mistake. `golden/` keeps a file of every released contract.
//!
//! ```
//! let parsed = caddy_contract::parse("l1: {maxBytes: 32Mi}").unwrap();
//! assert_eq!(parsed.config.l1.max_bytes.bytes(), 32 << 20);
//!
//! let faults = caddy_contract::parse("l2: {maxBytes: 64Mx}\nworkers: many").unwrap_err();
//! assert_eq!(faults.len(), 2);
//! assert!(faults.to_string().contains(r#"l2.maxBytes: "64Mx" is neither a size nor"#));
//! ```

mod auth;
mod config;
pub mod coordination;
mod fault;
pub mod invalidation;
mod quantity;
mod raw;
mod read;

pub use auth::{Auth, CATEGORIES, CommandRule, Commands, RawAuth, RawUser, User};
pub use config::{
    Admin, Behind, Cluster, Compression, Config, Consistency, Endpoint, HttpStore, Keyspace, Kubernetes, L1, L2, L3,
    LEASE_MIN_MILLIS, Limits, Listen, Loading, Locks, NegativeFilter, PostgresStore, Redis, Sentinel, Store, StoreKind,
    TAG_BYTES, TAGS_MAX, TagTemplate, Tiering, Tls, Warming, stars,
};
pub use fault::{Fault, Faults};
pub use quantity::{Budget, ByteSize, QuantityError, parse_duration};
pub use raw::{
    Algorithm, CacheMode, Coherence, Durability, KeyspaceMode, L2Policy, OnUncertain, RawAdmin, RawBreaker, RawCluster,
    RawCompression, RawConfig, RawConsistency, RawEmbedded, RawHeader, RawHttpStore, RawKeyspace, RawKubernetes, RawL1,
    RawL2, RawL3, RawLimits, RawListen, RawLockLimits, RawLocks, RawNegativeFilter, RawPostgresStore, RawRedis,
    RawSentinel, RawStore, RawTiering, RawTls, RawWarming, RawWriteBehind, RedisMode, SentinelTls, Strategy,
    WRITE_BEHIND_DIR,
};
pub use read::{Parsed, parse};

/// Where the sidecar listens inside a pod; apps find it in `CADDY_SOCKET`.
pub const SOCKET_PATH: &str = "/run/caddy/cache.sock";

/// Port of health and metrics in every process of ours.
pub const ADMIN_PORT: u16 = 9464;
