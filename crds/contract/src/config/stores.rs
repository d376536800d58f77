//! The section `stores`: the app's databases, which keyspaces name.

use super::{
    Tls,
    reader::{Reader, named},
};
use crate::{ByteSize, RawHttpStore, RawPostgresStore, RawStore, RawTls};
use std::{collections::HashSet, path::PathBuf, time::Duration};

/// A database of the app's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Name by which keyspaces refer to it, unique.
    pub name: String,
    /// Where it is.
    pub kind: StoreKind,
    /// Calls of one sidecar at a time, at least 1.
    pub max_concurrent: usize,
    /// Loads that may wait for their turn.
    pub max_queued: usize,
    /// Failures in a row after which it is not asked; none: never.
    pub breaker_failures: Option<u32>,
    /// For how long.
    pub breaker_pause: Duration,
}

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// Behind HTTP.
    Http(Box<HttpStore>),
    /// In PostgreSQL.
    Postgres(Box<PostgresStore>),
}

/// One URL per key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpStore {
    /// With `{key}` once.
    pub url: String,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    /// The same, with values from files.
    pub header_files: Vec<(String, PathBuf)>,
    /// Deadline of one request.
    pub timeout: Duration,
    /// Repetitions after failures that may pass.
    pub retries: u32,
    /// Pause before the first.
    pub backoff: Duration,
    /// The largest value that is taken.
    pub max_value_bytes: ByteSize,
    /// For `https://`.
    pub tls: Option<Tls>,
}

/// Statements of the app's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresStore {
    /// Where it is.
    pub url: String,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// TLS.
    pub tls: Option<Tls>,
    /// Loads values.
    pub load: String,
    /// Stores them.
    pub store: Option<String>,
    /// Removes them.
    pub delete: Option<String>,
    /// Connections, at least 1.
    pub max_connections: usize,
    /// Deadline of a call.
    pub timeout: Duration,
    /// The largest value that is taken.
    pub max_value_bytes: ByteSize,
}

impl Store {
    /// The largest value that it gives, and is given.
    pub fn max_value_bytes(&self) -> ByteSize {
        match &self.kind {
            StoreKind::Http(store) => store.max_value_bytes,
            StoreKind::Postgres(store) => store.max_value_bytes,
        }
    }

    /// Whether values can be written to it.
    pub fn is_writable(&self) -> bool {
        match &self.kind {
            StoreKind::Http(_) => true,
            StoreKind::Postgres(store) => store.store.is_some() && store.delete.is_some(),
        }
    }
}

impl Reader {
    pub(super) fn stores(&mut self, raw: &[RawStore]) -> Vec<Store> {
        let mut names = HashSet::new();
        let mut stores = Vec::new();
        for (n, store) in raw.iter().enumerate() {
            let path = format!("stores[{n}]");
            let (name, at) = (&store.name, format!("{path}.name"));
            let plain = (1..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !name.starts_with('-')
                && !name.ends_with('-');
            self.check(
                plain,
                &at,
                format!(
                    "{name:?} must be 1 to 63 small letters, digits and `-`, as in the name of a Kubernetes object"
                ),
            );
            self.check(names.insert(name), &at, format!("{name:?} is taken by an earlier store; names are unique"));
            let kind = match (&store.http, &store.postgres) {
                (Some(http), None) => StoreKind::Http(Box::new(self.http_store(&format!("{path}.http"), http))),
                (None, Some(postgres)) => {
                    StoreKind::Postgres(Box::new(self.postgres_store(&format!("{path}.postgres"), postgres)))
                }
                _ => {
                    self.check(false, &path, "must have exactly one of http, postgres");
                    continue;
                }
            };
            let failures = self.within(&format!("{path}.breaker.failures"), store.breaker.failures, 0, 1_000_000);
            stores.push(Store {
                name: name.clone(),
                kind,
                max_concurrent: self.within(&format!("{path}.maxConcurrent"), store.max_concurrent, 1, 10_000) as usize,
                max_queued: self.within(&format!("{path}.maxQueued"), store.max_queued, 0, 1_000_000) as usize,
                breaker_failures: (failures > 0).then_some(failures),
                breaker_pause: self.time(&format!("{path}.breaker.pause"), &store.breaker.pause, 10),
            });
        }
        stores
    }

    fn http_store(&mut self, path: &str, raw: &RawHttpStore) -> HttpStore {
        let is_url = raw.url.starts_with("http://") || raw.url.starts_with("https://");
        self.check(
            is_url && raw.url.matches("{key}").count() == 1,
            &format!("{path}.url"),
            format!("{:?} must begin with http:// or https:// and contain {{key}} once, where the key goes", raw.url),
        );
        let (mut headers, mut header_files) = (Vec::new(), Vec::new());
        for (n, header) in raw.headers.iter().enumerate() {
            self.check(
                !header.name.is_empty() && header.value.is_empty() != header.value_file.is_empty(),
                &format!("{path}.headers[{n}]"),
                "must have a name and exactly one of value, valueFile",
            );
            if let Some(file) = named(&header.value_file) {
                header_files.push((header.name.clone(), file));
            } else {
                headers.push((header.name.clone(), header.value.clone()));
            }
        }
        HttpStore {
            url: raw.url.clone(),
            headers,
            header_files,
            timeout: self.time(&format!("{path}.timeout"), &raw.timeout, 10),
            retries: self.within(&format!("{path}.retries"), raw.retries, 0, 10),
            backoff: self.time(&format!("{path}.backoff"), &raw.backoff, 1),
            max_value_bytes: self.size_from(&format!("{path}.maxValueBytes"), &raw.max_value_bytes, ByteSize::new(1)),
            tls: self.store_tls(path, raw.tls.as_ref()),
        }
    }

    fn postgres_store(&mut self, path: &str, raw: &RawPostgresStore) -> PostgresStore {
        let is_url = raw.url.starts_with("postgresql://") || raw.url.starts_with("postgres://");
        self.check(
            is_url,
            &format!("{path}.url"),
            "must look like postgresql://user@host:5432/database (the password comes from passwordFile)",
        );
        self.check(
            !raw.load.is_empty(),
            &format!("{path}.load"),
            "must be a statement with one parameter, e.g. SELECT key, value FROM users WHERE key = ANY($1)",
        );
        PostgresStore {
            url: raw.url.clone(),
            password_file: named(&raw.password_file),
            tls: self.store_tls(path, raw.tls.as_ref()),
            load: raw.load.clone(),
            store: named(&raw.store),
            delete: named(&raw.delete),
            max_connections: self.within(&format!("{path}.maxConnections"), raw.max_connections, 1, 1000) as usize,
            timeout: self.time(&format!("{path}.timeout"), &raw.timeout, 10),
            max_value_bytes: self.size_from(&format!("{path}.maxValueBytes"), &raw.max_value_bytes, ByteSize::new(1)),
        }
    }

    fn store_tls(&mut self, path: &str, raw: Option<&RawTls>) -> Option<Tls> {
        raw.map(|tls| self.tls(&format!("{path}.tls"), tls))
    }
}
