//! The section `stores`.

use super::{RawTls, text};
use serde::{Deserialize, Serialize};

/// A database of the app's, which keyspaces name: exactly one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawStore {
    /// Name by which keyspaces refer to it.
    pub name: String,
    /// Behind HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<RawHttpStore>,
    /// In PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<RawPostgresStore>,
    /// Calls of one sidecar at a time.
    pub max_concurrent: u32,
    /// Loads of one sidecar that may wait for their turn; further ones fail at once.
    pub max_queued: u32,
    /// When it is left alone for a while.
    pub breaker: RawBreaker,
}

/// When a store that fails is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawBreaker {
    /// Failures in a row after which it is not asked; 0 means never.
    pub failures: u32,
    /// For how long; then one call tries it.
    pub pause: String,
}

/// One URL per key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawHttpStore {
    /// `http://` or `https://`, with `{key}` where the percent-encoded key goes.
    pub url: String,
    /// Sent with every request.
    pub headers: Vec<RawHeader>,
    /// Deadline of one request, its body included.
    pub timeout: String,
    /// How often a request is sent again after a failure that may pass.
    pub retries: u32,
    /// Pause before the first repetition; it doubles each time.
    pub backoff: String,
    /// The largest body that is taken.
    #[serde(deserialize_with = "text")]
    pub max_value_bytes: String,
    /// Whom to trust and what to show, for `https://`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RawTls>,
}

/// A header of every request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// File that holds the value instead, read for each request.
    pub value_file: String,
}

/// Statements of the app's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawPostgresStore {
    /// `postgresql://user@host:5432/database`.
    pub url: String,
    /// File that holds the password, read on each connect.
    pub password_file: String,
    /// TLS; without it connections are plain text unless the URL asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RawTls>,
    /// Statement with one parameter, an array of keys; gives rows of key, value and, if it likes, milliseconds of freshness.
    pub load: String,
    /// Statement with two parameters, arrays of keys and of values; empty: nothing is written.
    pub store: String,
    /// Statement with one parameter, an array of keys; empty: nothing is removed.
    pub delete: String,
    /// Connections of one sidecar.
    pub max_connections: u32,
    /// Deadline of a call, the wait for a connection included.
    pub timeout: String,
    /// The largest value that is taken.
    #[serde(deserialize_with = "text")]
    pub max_value_bytes: String,
}

// === defaults ===

impl Default for RawStore {
    fn default() -> Self {
        Self {
            name: String::new(),
            http: None,
            postgres: None,
            max_concurrent: 64,
            max_queued: 1024,
            breaker: RawBreaker::default(),
        }
    }
}

impl Default for RawBreaker {
    fn default() -> Self {
        Self { failures: 10, pause: "5s".into() }
    }
}

impl Default for RawHttpStore {
    fn default() -> Self {
        Self {
            url: String::new(),
            headers: Vec::new(),
            timeout: "1s".into(),
            retries: 2,
            backoff: "50ms".into(),
            max_value_bytes: "1Mi".into(),
            tls: None,
        }
    }
}

impl Default for RawPostgresStore {
    fn default() -> Self {
        Self {
            url: String::new(),
            password_file: String::new(),
            tls: None,
            load: String::new(),
            store: String::new(),
            delete: String::new(),
            max_connections: 4,
            timeout: "1s".into(),
            max_value_bytes: "1Mi".into(),
        }
    }
}
