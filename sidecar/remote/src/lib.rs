//! What lies beyond the pod: connections to a Redis or Valkey, the embedded L3, and the app's database ([`stores`]).
//!
//! A [`Lane`] is one logical upstream connection. It connects, performs the handshake, keeps requests and replies in
//! order, reconnects with backoff, and tells its [`Handler`] what it saw: replies, pushes, that it came up, that it
//! was lost. It knows nothing of caches: what a push or a loss means is the handler's.
//!
//! Lanes are polled, not spawned. Whoever owns several of them decides the order in which they are read, and the
//! sidecar's promise that pushes are applied before replies of other connections are handed on rests on that order.

mod breaker;
pub mod cluster;
pub mod embedded;
mod files;
pub mod guarded;
mod handshake;
pub mod journal;
mod l3;
mod lane;
pub mod leases;
pub mod locks;
pub mod ranges;
mod sentinel;
mod socket;
pub mod stores;
mod stream;
mod target;
mod tls;
pub mod writes;

pub use breaker::Breaker;
pub use handshake::{ConnectError, Role, ServerInfo};
pub use l3::{Driver, RedisNames, RedisRemote};
pub use lane::{COPIED, Handler, Lane, LaneHandle, LaneState, Loss, Request, Setup, lane};
pub use sentinel::{SentinelWatch, Sentinels, Verdict};
pub use socket::Socket;
pub use target::{Credential, Endpoint, Login, Mode, Target, Tracking};
pub use tls::{Tls, TlsError, TlsOptions};
