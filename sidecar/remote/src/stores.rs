//! Stores beyond the pod: the app's database behind HTTP ([`HttpStore`]) or in PostgreSQL ([`PostgresStore`]).
//!
//! Keys are the bytes of Redis keys, values the bytes that GET answers. Both keep connections of their own, bounded in
//! number and in time, and re-read secrets from their files whenever they connect.

mod http;
mod postgres;
mod transport;

pub use http::{HttpConfig, HttpConfigError, HttpStore};
pub use postgres::{PostgresConfig, PostgresConfigError, PostgresStore};

/// A key as its bytes.
pub type StoreKey = bytes::Bytes;
/// A value as its bytes.
pub type StoreValue = bytes::Bytes;
