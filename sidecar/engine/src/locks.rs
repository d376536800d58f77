//! Locks for the processes of a cluster: exclusive and shared, fair, reentrant, leased, with fencing tokens.
//!
//! What a lock *is* lies behind a [`LockBackend`]: [`InProcess`] here, `RedisLocks` in `caddy-remote`. What it means to
//! hold one is [`LockClient`]'s: it asks, waits, counts reentrant holds, renews leases, and says so when a lock was lost.
//! [`DistributedMutex`] and [`DistributedRwLock`] are its guarded faces, [`DeadlockDetector`] finds owners that wait for
//! each other in a circle.
//!
//! What is promised: of two owners whose modes exclude each other, the later one's [`FencingToken`] is greater, always;
//! and a client calls a lock its own only for less time than the backend keeps it, counted from *before* the request was
//! sent. What is not: that an owner which was suspended notices before its next step. Whoever writes to what a lock
//! guards hands the token along and lets the other side refuse older ones.
//!
//! ```
//! use std::sync::Arc;
//! use caddy_engine::locks::{DistributedMutex, InProcess, LockClient, LockConfig, Owner, StdTimer};
//!
//! # fn block_on<T>(future: impl Future<Output = T>) -> T {
//! #     let mut future = std::pin::pin!(future);
//! #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
//! #     loop { if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut cx) { return value; } }
//! # }
//! let timer = Arc::new(StdTimer);
//! let backend = InProcess::new(timer.clone());
//! let client = LockClient::new(backend, timer, LockConfig::default(), "doc");
//! // A runtime runs `client.run()` beside: it renews leases and notices lost locks.
//! let mutex = DistributedMutex::new(client, "orders".to_owned());
//! block_on(async {
//!     let guard = mutex.lock(&Owner::new("worker-1")).await?;
//!     println!("held under token {}", guard.token());
//!     guard.unlock().await
//! })?;
//! # Ok::<(), caddy_engine::locks::LockError>(())
//! ```

mod attempt;
mod backend;
mod client;
mod config;
mod deadlock;
mod error;
mod guard;
mod holdings;
mod in_process;
mod keeper;
mod signal;
mod table;
mod token;
mod types;

pub use crate::timer::{StdTimer, Timer};
pub use backend::{Answer, Ask, BackendError, Claim, LockBackend, LockListener, Reply};
pub use client::{Acquire, Grant, LockClient, LockWatcher};
pub use config::{LockConfig, LockLimits};
pub use deadlock::{Blocker, Deadlock, DeadlockDetector, Wait};
pub use error::LockError;
pub use guard::{DistributedMutex, DistributedRwLock, LockGuard};
pub use holdings::{LockStats, LostReason};
pub use in_process::InProcess;
pub use token::{FencingToken, ParseTokenError};
pub use types::{HolderStatus, LockKey, LockMode, LockStatus, Owner, Ticket, WaiterStatus};
