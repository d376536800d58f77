//! `spec.stores`: the app's databases, which keyspaces name.

use super::{PasswordKey, RedisTls};
use crate::quantity::{Period, Size};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A database of the app's; exactly one of `http` and `postgres`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// Name by which keyspaces refer to it; unique.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Behind HTTP: GET of one URL per key. 404 and 410 say that there is none, Cache-Control how long a value is fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpStore>,
    /// In PostgreSQL: statements of your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresStore>,
    /// Calls of one sidecar at a time.
    #[serde(default = "max_concurrent")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_concurrent: i32,
    /// Loads of one sidecar that may wait for their turn; further ones fail at once.
    #[serde(default = "max_queued")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_queued: i32,
    /// When a store that fails is left alone for a while.
    #[serde(default)]
    pub breaker: Breaker,
}

/// When a store that fails is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Breaker {
    /// Failures in a row after which it is not asked; 0 means never.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub failures: i32,
    /// For how long, 10ms to 24h; then one call tries it.
    pub pause: Period,
}

/// One URL per key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpStore {
    /// `http://` or `https://`, seen from the pod, with `{key}` where the percent-encoded key goes:
    /// `http://127.0.0.1:8080/cache/{key}`.
    #[schemars(length(min = 13, max = 2048), regex(pattern = r"^https?://[^{}]+\{key\}[^{}]*$"))]
    pub url: String,
    /// Sent with every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HttpHeader>,
    /// Deadline of one request, its body included; 10ms to 24h.
    #[serde(default = "timeout")]
    pub timeout: Period,
    /// How often a request is sent again after a failure that may pass.
    #[serde(default = "retries")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: i32,
    /// Pause before the first repetition, 1ms to 24h; twice as long each time.
    #[serde(default = "backoff")]
    pub backoff: Period,
    /// The largest value that is loaded or written; a larger one is an error.
    #[serde(default = "max_value_bytes")]
    pub max_value_bytes: Size,
    /// Whom to trust and what to show, for `https://`; absent: the authorities of the sidecar's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
}

/// A header; exactly one of `value` and `secretRef`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpHeader {
    /// Its name, e.g. `authorization`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[-A-Za-z0-9_]+$"))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub value: Option<String>,
    /// Secret of this namespace that holds the value. It is mounted into the sidecar only, and read for each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<PasswordKey>,
}

/// Statements of your own, prepared on each connection. Keys are `text` or `bytea`, values also `json` and `jsonb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresStore {
    /// `postgresql://user@host:5432/database`, without a password.
    #[schemars(length(min = 14, max = 2048), regex(pattern = r"^postgres(ql)?://.+$"))]
    pub url: String,
    /// Secret of this namespace that holds the password. It is mounted into the sidecar only, and read on each connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<PasswordKey>,
    /// TLS; absent: plain text, unless the URL says `sslmode=require`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
    /// One parameter, an array of keys; rows of key, value and, if it likes, milliseconds of freshness:
    /// `SELECT key, value FROM users WHERE key = ANY($1)`.
    #[schemars(length(min = 1, max = 8192))]
    pub load: String,
    /// Two parameters, arrays of keys and of values; absent: nothing is written to this store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub store: Option<String>,
    /// One parameter, an array of keys; absent: nothing is removed from this store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub delete: Option<String>,
    /// Connections of one sidecar.
    #[serde(default = "max_connections")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_connections: i32,
    /// Deadline of a call, the wait for a connection included; 10ms to 24h.
    #[serde(default = "timeout")]
    pub timeout: Period,
    /// The largest value that is loaded or written; a larger one is an error.
    #[serde(default = "max_value_bytes")]
    pub max_value_bytes: Size,
}

// === defaults ===

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 10, pause: "5s".into() }
    }
}

fn max_concurrent() -> i32 {
    64
}

fn max_queued() -> i32 {
    1024
}

fn max_connections() -> i32 {
    4
}

fn retries() -> i32 {
    2
}

fn timeout() -> Period {
    "1s".into()
}

fn backoff() -> Period {
    "50ms".into()
}

fn max_value_bytes() -> Size {
    "1Mi".into()
}
