//! A store in PostgreSQL: three statements of the app's own, prepared on every connection. [`PostgresConfig`] says what each
//! has to be.
//!
//! Many keys are one statement, so a batch costs one round trip and is stored whole or not at all. A load is asked once more
//! when its connection turns out to be dead; a write never is. Fails with [`StoreError`].

mod bounded;
mod connections;
mod values;

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use caddy_engine::store::{BATCH_BYTES, BackingStore, Loaded, StoreError, StoreFuture, Stored};
use deadpool::managed::{Object, Pool, Timeouts};
use futures::TryStreamExt;
use thiserror::Error;
use tokio_postgres::{
    Row,
    config::{Host, SslMode},
    error::SqlState,
    types::ToSql,
};

use self::connections::{Connected, Connector, no_connection};
use self::values::Column;
use super::http::last_of_each;
use super::{StoreKey, StoreValue};
use crate::tls::{Tls, TlsOptions};

/// Rows of one statement.
const ROWS: usize = 5_000;
const TOO_LARGE: &str = " (maxValueBytes)";

/// Where the database is and what to say to it.
#[derive(Debug, Clone)]
pub struct PostgresConfig {
    /// `postgresql://user@host:5432/database`.
    pub url: String,
    /// Holds the password, read whenever a connection is made.
    pub password_file: Option<PathBuf>,
    /// Given: nothing is sent without TLS.
    pub tls: Option<TlsOptions>,
    /// Has one parameter, an array of keys, and returns key, value and, if it likes, milliseconds of freshness:
    /// `SELECT key, value FROM users WHERE key = ANY($1)`.
    pub load: String,
    /// Has two parameters, arrays of keys and of their values; without it the store is read-only:
    /// `INSERT INTO users SELECT * FROM unnest($1::text[], $2::bytea[]) ON CONFLICT (key) DO UPDATE SET value = excluded.value`.
    pub store: Option<String>,
    /// Has one parameter, an array of keys: `DELETE FROM users WHERE key = ANY($1)`.
    pub delete: Option<String>,
    /// Connections at a time.
    pub max_connections: usize,
    /// How long a call may take, waiting for a connection included.
    pub timeout: Duration,
    /// The largest value that is taken.
    pub max_value_bytes: usize,
}

impl PostgresConfig {
    /// A read-only store with 4 connections, a timeout of 1 s and values of up to 1 MiB.
    pub fn new(url: impl Into<String>, load: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password_file: None,
            tls: None,
            load: load.into(),
            store: None,
            delete: None,
            max_connections: 4,
            timeout: Duration::from_secs(1),
            max_value_bytes: 1 << 20,
        }
    }
}

/// Why there is no such store.
#[derive(Debug, Error)]
pub enum PostgresConfigError {
    /// The URL is none.
    #[error("the URL of the database is not valid: {0}; it looks like postgresql://user@host:5432/database")]
    Url(String),
    /// They are connected to in different ways.
    #[error("the URL of the database names Unix sockets and other hosts; give one kind")]
    MixedHosts,
    /// It would wait for ever.
    #[error("maxConnections must be at least 1")]
    NoConnections,
}

/// A store in PostgreSQL: three statements of the app's own ([`PostgresConfig`]), prepared on every connection.
///
/// Keys may be `text` or `bytea`, values also `json` and `jsonb`; what the statements say is checked when a connection is
/// made. Many keys are one statement, so a batch costs one round trip and is stored whole or not at all
/// (5,000 rows at a time). A load is asked once more when its connection turns out to be dead; a write never is. A value
/// that is larger than it may be is refused; of one that is far larger no more than its length is read.
#[derive(Debug)]
pub struct PostgresStore {
    pool: Pool<Connector>,
    timeout: Duration,
}

impl PostgresStore {
    /// Connects when it is first asked.
    pub fn new(config: PostgresConfig) -> Result<Self, PostgresConfigError> {
        if config.max_connections == 0 {
            return Err(PostgresConfigError::NoConnections);
        }
        // The password is in the URL, or might be: errors name the part, not the text.
        let mut target = tokio_postgres::Config::from_str(&config.url)
            .map_err(|error| PostgresConfigError::Url(with_cause(&error)))?;
        target.connect_timeout(config.timeout).application_name("caddy-cache");
        let sockets = target.get_hosts().iter().filter(|host| matches!(host, Host::Unix(_))).count();
        if sockets > 0 && (sockets < target.get_hosts().len() || !target.get_hostaddrs().is_empty()) {
            return Err(PostgresConfigError::MixedHosts);
        }
        let wants_tls = config.tls.is_some() || target.get_ssl_mode() == SslMode::Require;
        let tls = wants_tls.then(|| Tls::new(config.tls.unwrap_or_default()));
        if tls.is_some() {
            target.ssl_mode(SslMode::Require);
        }
        let connector = Connector {
            target,
            password_file: config.password_file,
            tls,
            load: config.load,
            store: config.store,
            delete: config.delete,
            max_value_bytes: config.max_value_bytes,
        };
        let timeout = Some(config.timeout);
        let pool = Pool::builder(connector)
            .max_size(config.max_connections)
            .runtime(deadpool::Runtime::Tokio1)
            .timeouts(Timeouts { wait: timeout, create: timeout, recycle: timeout })
            .build()
            .map_err(|error| PostgresConfigError::Url(error.to_string()))?;
        Ok(Self { pool, timeout: config.timeout })
    }

    /// Runs `work` on a connection; one that did not finish in time, or that nobody waits for any more, is closed: the next
    /// answer on it would be this one's.
    async fn on<T>(
        &self,
        connected: Result<Object<Connector>, StoreError>,
        work: impl AsyncFnOnce(&Connected) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut busy = Busy(None);
        let connected = &*busy.0.insert(connected?);
        if let Ok(done) = tokio::time::timeout(self.timeout, work(connected)).await {
            // Back into the pool, if that is where it can be of use: another server may be the primary now.
            if !done.as_ref().is_err_and(StoreError::is_transient) && !connected.is_spent() {
                busy.0 = None;
            }
            return done;
        }
        Err(StoreError::Unavailable { reason: format!("no answer within {} ms", self.timeout.as_millis()).into() })
    }

    async fn connection(&self) -> Result<Object<Connector>, StoreError> {
        self.pool.get().await.map_err(no_connection)
    }

    /// The same for a write: without a connection nothing is said about what is written.
    async fn connection_to_write(&self) -> Result<Object<Connector>, StoreError> {
        self.connection().await.map_err(StoreError::as_passing)
    }

    /// No more than one value beyond `most` bytes; what is left then, another call is for.
    async fn load(&self, keys: &[StoreKey], most: usize) -> Result<Vec<Loaded<StoreValue>>, StoreError> {
        let (mut found, mut bytes) = (HashMap::with_capacity(keys.len()), 0);
        let mut is_all = true;
        for keys in keys.chunks(ROWS) {
            self.on(self.connection().await, async |connected| {
                let asked = keys.iter().filter(|key| connected.keys.can_be(key));
                let asked: Vec<Column<'_>> = asked.map(|key| Column(key)).collect();
                let not_read = |error| connected.too_large(keys).unwrap_or_else(|| self.failed(&error));
                let rows = connected.client.query_raw(&connected.load, [&asked]).await.map_err(not_read)?;
                let mut rows = std::pin::pin!(rows);
                while let Some(row) = rows.try_next().await.map_err(not_read)? {
                    let Some((key, loaded)) = read(&row)? else { continue };
                    let largest = self.pool.manager().max_value_bytes;
                    if loaded.value.len() > largest {
                        let reason = format!("the value of {} has more than {largest} bytes", key.escape_ascii());
                        return Err(StoreError::Refused { reason: (reason + TOO_LARGE).into() });
                    }
                    bytes += key.len() + loaded.value.len();
                    if bytes > most && !found.is_empty() {
                        // Nobody reads the other rows.
                        connected.spend();
                        is_all = false;
                        break;
                    }
                    found.insert(key, loaded);
                }
                Ok(())
            })
            .await?;
            if !is_all {
                break;
            }
        }
        // A key may be asked for twice.
        let loaded = keys.iter().map(|key| match found.get(key.as_ref()).cloned() {
            None if !is_all => Loaded::Left,
            found => found.into(),
        });
        Ok(loaded.collect())
    }

    /// The same once more where what lay in the pool is of no use: a server that was started anew has closed it.
    async fn load_again(&self, keys: &[StoreKey], most: usize) -> Result<Vec<Loaded<StoreValue>>, StoreError> {
        match self.load(keys, most).await {
            Err(error) if error.is_transient() => self.load(keys, most).await,
            done => done,
        }
    }
}

/// A connection with something under way; dropped, it is closed.
struct Busy(Option<Object<Connector>>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(connected) = self.0.take() {
            drop(Object::take(connected));
        }
    }
}

/// A value and its key.
type Named = (Vec<u8>, Stored<StoreValue>);

/// Key, value and freshness of a row that [`Connector::create`] has seen the types of; without a value there is none.
fn read(row: &Row) -> Result<Option<Named>, StoreError> {
    let malformed = |error: tokio_postgres::Error| StoreError::Malformed { reason: with_cause(&error).into() };
    let key: Option<Column<'_>> = row.try_get(0).map_err(malformed)?;
    let value: Option<Column<'_>> = row.try_get(1).map_err(malformed)?;
    let Some((key, value)) = key.zip(value) else { return Ok(None) };
    let mut loaded = Stored::new(StoreValue::copy_from_slice(value.0));
    if row.len() > 2 {
        let millis: Option<i64> = row.try_get(2).map_err(malformed)?;
        loaded.fresh_for = millis.map(|millis| Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
    }
    Ok(Some((key.0.to_vec(), loaded)))
}

impl BackingStore<StoreKey, StoreValue> for PostgresStore {
    fn load_many<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<Option<Stored<StoreValue>>>> {
        Box::pin(async move {
            let loaded = self.load_again(keys, usize::MAX).await?.into_iter().map(|loaded| match loaded {
                Loaded::Found(found) => Some(found),
                Loaded::Absent | Loaded::Left => None,
            });
            Ok(loaded.collect())
        })
    }

    fn load_some<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<Loaded<StoreValue>>>
    where
        StoreValue: 'a,
    {
        Box::pin(self.load_again(keys, BATCH_BYTES))
    }

    fn store_many<'a>(&'a self, entries: &'a [(StoreKey, StoreValue)]) -> StoreFuture<'a, ()> {
        self.store_named(entries, &[])
    }

    fn delete_many<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, ()> {
        self.delete_named(keys, &[])
    }

    /// Whether a statement has a parameter for them.
    fn takes_names(&self) -> bool {
        let connector = self.pool.manager();
        let has =
            |statement: &Option<String>, parameter| statement.as_ref().is_some_and(|text| text.contains(parameter));
        has(&connector.store, "$3") || has(&connector.delete, "$2")
    }

    fn store_named<'a>(&'a self, entries: &'a [(StoreKey, StoreValue)], names: &'a [String]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            for rows in last_of_each(entries).chunks(ROWS) {
                self.on(self.connection_to_write().await, async |connected| {
                    let Some(store) = &connected.store else { return Err(read_only("store")) };
                    for at in rows {
                        connected.keys.check(&entries[*at].0)?;
                    }
                    let keys: Vec<_> = rows.iter().map(|at| Column(&entries[*at].0)).collect();
                    let values: Vec<_> = rows.iter().map(|at| Column(&entries[*at].1)).collect();
                    let names: Vec<_> = rows.iter().map(|at| names.get(*at)).collect();
                    let all: [&(dyn ToSql + Sync); 3] = [&keys, &values, &names];
                    let parameters = &all[..store.params().len()];
                    connected
                        .client
                        .execute(store, parameters)
                        .await
                        .map(drop)
                        .map_err(|error| self.not_written(&error))
                })
                .await?;
            }
            Ok(())
        })
    }

    fn delete_named<'a>(&'a self, keys: &'a [StoreKey], names: &'a [String]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let all: Vec<_> = (0..keys.len()).collect();
            for rows in all.chunks(ROWS) {
                self.on(self.connection_to_write().await, async |connected| {
                    let Some(delete) = &connected.delete else { return Err(read_only("delete")) };
                    let rows = || rows.iter().filter(|at| connected.keys.can_be(&keys[**at]));
                    let keys: Vec<_> = rows().map(|at| Column(&keys[*at])).collect();
                    let names: Vec<_> = rows().map(|at| names.get(*at)).collect();
                    let all: [&(dyn ToSql + Sync); 2] = [&keys, &names];
                    let parameters = &all[..delete.params().len()];
                    connected
                        .client
                        .execute(delete, parameters)
                        .await
                        .map(drop)
                        .map_err(|error| self.not_written(&error))
                })
                .await?;
            }
            Ok(())
        })
    }
}

fn read_only(statement: &str) -> StoreError {
    StoreError::Refused { reason: format!("the store has no '{statement}' statement: it is read-only").into() }
}

// === errors ===

fn failed(error: &tokio_postgres::Error) -> StoreError {
    let reason = with_cause(error).into();
    if is_passing(error) { StoreError::Unavailable { reason } } else { StoreError::Refused { reason } }
}

impl PostgresStore {
    /// Why a statement has failed. What the server has lost of one it has lost of all that were prepared until now.
    fn failed(&self, error: &tokio_postgres::Error) -> StoreError {
        if !is_outdated(error) {
            return failed(error);
        }
        self.pool.retain(|_, _| false);
        failed(error).as_passing()
    }

    /// Why a write has failed: refused is what was written, not whoever writes it, or where, or how. Rights may be about a
    /// row.
    fn not_written(&self, error: &tokio_postgres::Error) -> StoreError {
        let is_about_rows = error.code().is_some_and(|state| {
            let class = &state.code()[..2];
            *state == SqlState::INSUFFICIENT_PRIVILEGE || !matches!(class, "25" | "28" | "3D" | "3F" | "42")
        });
        let failed = self.failed(error);
        if is_about_rows { failed } else { failed.as_passing() }
    }
}

/// Whether the same may succeed later: the connection, the server's resources, or another transaction were in the way.
fn is_passing(error: &tokio_postgres::Error) -> bool {
    let Some(state) = error.code() else { return true };
    let class = &state.code()[..2];
    matches!(class, "08" | "40" | "53" | "57" | "58") || *state == SqlState::LOCK_NOT_AVAILABLE
}

/// Whether the statement would be another if it were prepared now: its columns have changed ("cached plan must not change result
/// type"), or the server does not know it any more, as behind a pooler.
fn is_outdated(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| {
        *state == SqlState::FEATURE_NOT_SUPPORTED || *state == SqlState::INVALID_SQL_STATEMENT_NAME
    })
}

/// tokio-postgres says "db error" and keeps what the server said for the cause.
fn with_cause(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
