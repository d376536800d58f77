//! Connections to PostgreSQL, each with the store's statements: how they are made, what the statements have to be, and what
//! it means if there is none.
//!
//! Owns nothing of the pool that keeps them, and never asks again. A connection is over TLS, over TCP or to a Unix socket; all
//! of them are [bounded](super::bounded).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use caddy_engine::store::StoreError;
use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio_postgres::{
    Client, NoTls, SimpleQueryMessage, Socket, Statement,
    config::{Host, SslMode, TargetSessionAttrs},
    tls::MakeTlsConnect,
    types::Type,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::bounded::{Bound, Bounded, Plain, Secured};
use super::values::{VALUES, array_of};
use super::{TOO_LARGE, failed, is_passing, with_cause};
use crate::stores::StoreKey;
use crate::tls::{Tls, TlsError};

/// What a row, or anything else that the server says, may have beside a value.
const BESIDE: usize = 1 << 20;
/// Where a server listens if the URL does not say it.
const PORT: u16 = 5432;

/// Makes connections for the pool.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) target: tokio_postgres::Config,
    pub(super) password_file: Option<PathBuf>,
    pub(super) tls: Option<Tls>,
    pub(super) load: String,
    pub(super) store: Option<String>,
    pub(super) delete: Option<String>,
    pub(super) max_value_bytes: usize,
}

/// A connection with its statements.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) client: Client,
    bound: Bound,
    /// See [`spend`](Self::spend).
    is_spent: AtomicBool,
    pub(super) keys: Keys,
    pub(super) load: Statement,
    pub(super) store: Option<Statement>,
    pub(super) delete: Option<Statement>,
}

/// What can be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Text,
    Bytes,
}

impl Keys {
    fn types(self) -> &'static [Type] {
        match self {
            Self::Text => &[Type::TEXT, Type::VARCHAR],
            Self::Bytes => &[Type::BYTEA],
        }
    }

    /// PostgreSQL's text is UTF-8 without NUL.
    pub(super) fn can_be(self, key: &[u8]) -> bool {
        self == Self::Bytes || (std::str::from_utf8(key).is_ok() && !key.contains(&0))
    }

    pub(super) fn check(self, key: &[u8]) -> Result<(), StoreError> {
        if self.can_be(key) {
            return Ok(());
        }
        let reason = format!("the key {} is no text; make the statements take bytea[]", key.escape_ascii());
        Err(StoreError::Refused { reason: reason.into() })
    }
}

#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("cannot read the password from {path}: {error}")]
    Password { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot connect: {}", with_cause(.0))]
    Connect(tokio_postgres::Error),
    #[error("the '{statement}' statement is refused: {}", with_cause(error))]
    Prepare { statement: &'static str, error: tokio_postgres::Error },
    #[error("the '{statement}' statement must have {wanted}; it has ({has})")]
    Types { statement: &'static str, wanted: &'static str, has: String },
    #[error("cannot connect to {path}: {error}")]
    Socket { path: PathBuf, error: std::io::Error },
    #[error("the server at {path} is not what target_session_attrs asks for")]
    Session { path: PathBuf },
}

impl Connected {
    /// It is of no further use: what it says next belongs to nobody, or its statements are not what they were.
    pub(super) fn spend(&self) {
        self.is_spent.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_spent(&self) -> bool {
        self.is_spent.load(Ordering::Relaxed)
    }

    /// Why nothing more comes over it, if that is a row of those that were asked for. No two questions are told the same: who
    /// looks for that row by asking for fewer knows that he has not found all there are.
    pub(super) fn too_large(&self, asked: &[StoreKey]) -> Option<StoreError> {
        let (bytes, first) = (self.bound.exceeded()?, asked.first()?.escape_ascii());
        let which = if asked.len() == 1 {
            format!("the row of {first}")
        } else {
            format!("a row of {} from {first} on", asked.len())
        };
        let reason = format!("{which} has {bytes} bytes, which is more than a value may have{TOO_LARGE}");
        Some(StoreError::Refused { reason: reason.into() })
    }
}

impl managed::Manager for Connector {
    type Type = Connected;
    type Error = ConnectError;

    async fn create(&self) -> Result<Connected, ConnectError> {
        let (client, bound) = self.connect().await?;
        let load = prepare(&client, "load", &self.load).await?;
        let keys = match load.params() {
            [keys] if array_of(keys, Keys::Text.types()) => Keys::Text,
            [keys] if array_of(keys, Keys::Bytes.types()) => Keys::Bytes,
            other => return Err(types("load", "one parameter, text[] or bytea[]", other)),
        };
        let columns: Vec<Type> = load.columns().iter().map(|column| column.type_().clone()).collect();
        let is_row = |key: &Type, value: &Type| keys.types().contains(key) && VALUES.contains(value);
        match columns.as_slice() {
            [key, value] | [key, value, Type::INT8] if is_row(key, value) => {}
            other => {
                return Err(types(
                    "load",
                    "columns key (of the parameter's type), value (bytea, text, json or jsonb) and, if any, bigint milliseconds",
                    other,
                ));
            }
        }
        let mut connected =
            Connected { client, bound, is_spent: AtomicBool::new(false), keys, load, store: None, delete: None };
        if let Some(text) = &self.store {
            let store = prepare(&connected.client, "store", text).await?;
            match store.params() {
                [of, values, names @ ..]
                    if array_of(of, keys.types()) && array_of(values, &VALUES) && are_names(names) => {}
                other => {
                    return Err(types(
                        "store",
                        "two or three parameters: keys as in 'load', an array of values and, if any, text[] for the names of the writes",
                        other,
                    ));
                }
            }
            connected.store = Some(store);
        }
        if let Some(text) = &self.delete {
            let delete = prepare(&connected.client, "delete", text).await?;
            match delete.params() {
                [of, names @ ..] if array_of(of, keys.types()) && are_names(names) => {}
                other => {
                    return Err(types(
                        "delete",
                        "one or two parameters: keys as in 'load' and, if any, text[] for the names of the writes",
                        other,
                    ));
                }
            }
            connected.delete = Some(delete);
        }
        Ok(connected)
    }

    async fn recycle(&self, connected: &mut Connected, _: &Metrics) -> RecycleResult<ConnectError> {
        if connected.client.is_closed() {
            return Err(RecycleError::message("the server closed the connection"));
        }
        Ok(())
    }
}

impl Connector {
    async fn connect(&self) -> Result<(Client, Bound), ConnectError> {
        let mut target = self.target.clone();
        if let Some(path) = &self.password_file {
            let text = tokio::fs::read(path).await;
            let text = text.map_err(|error| ConnectError::Password { path: path.clone(), error })?;
            target.password(text.trim_ascii_end());
        }
        let bound = Bound::new(self.max_value_bytes.saturating_add(BESIDE));
        let client = if let Some(tls) = &self.tls {
            let tls = WithName { made: MakeRustlsConnect::new((*tls.config()?).clone()), tls };
            connect(&target, Secured(tls, bound.clone())).await?
        } else if matches!(target.get_hosts(), [Host::Unix(_), ..]) {
            connect_to_sockets(&target, &bound).await?
        } else {
            Plain::prepare(&mut target);
            connect(&target, Plain(bound.clone())).await?
        };
        Ok((client, bound))
    }
}

async fn connect<T>(target: &tokio_postgres::Config, tls: T) -> Result<Client, ConnectError>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, connection) = target.connect(tls).await.map_err(ConnectError::Connect)?;
    drive(connection);
    Ok(client)
}

/// The same where the hosts are directories of Unix sockets, which the driver would not hand over: the first that is as wanted.
async fn connect_to_sockets(target: &tokio_postgres::Config, bound: &Bound) -> Result<Client, ConnectError> {
    let ports = target.get_ports();
    let mut failed = None;
    for (at, host) in target.get_hosts().iter().enumerate() {
        let Host::Unix(directory) = host else { continue };
        let port = ports.get(at).or_else(|| ports.first()).copied().unwrap_or(PORT);
        match connect_to_socket(target, directory.join(format!(".s.PGSQL.{port}")), bound.clone()).await {
            Ok(client) => return Ok(client),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| unreachable!("the URL names a socket")))
}

async fn connect_to_socket(
    target: &tokio_postgres::Config,
    path: PathBuf,
    bound: Bound,
) -> Result<Client, ConnectError> {
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => Bounded::plain(stream, bound),
        Err(error) => return Err(ConnectError::Socket { path, error }),
    };
    let mut target = target.clone();
    let wanted = target.get_target_session_attrs();
    let (client, connection) =
        target.ssl_mode(SslMode::Disable).connect_raw(stream, NoTls).await.map_err(ConnectError::Connect)?;
    drive(connection);
    if wanted == TargetSessionAttrs::Any {
        return Ok(client);
    }
    let told = client.simple_query("SHOW transaction_read_only").await.map_err(ConnectError::Connect)?;
    let is = |value| matches!(&told[..], [.., SimpleQueryMessage::Row(row), _] if row.get(0) == Some(value));
    let fits = if wanted == TargetSessionAttrs::ReadWrite { is("off") } else { is("on") };
    if fits { Ok(client) } else { Err(ConnectError::Session { path }) }
}

/// TLS with a server whose certificate is for the name that the configuration says.
struct WithName<'a> {
    made: MakeRustlsConnect,
    tls: &'a Tls,
}

impl<S> MakeTlsConnect<S> for WithName<'_>
where
    MakeRustlsConnect: MakeTlsConnect<S>,
{
    type Stream = <MakeRustlsConnect as MakeTlsConnect<S>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<S>>::TlsConnect;
    type Error = <MakeRustlsConnect as MakeTlsConnect<S>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self::TlsConnect, Self::Error> {
        self.made.make_tls_connect(self.tls.name_for(host))
    }
}

/// Moves a connection's bytes until its client is dropped or the server is gone; what goes wrong, the client's calls tell.
#[expect(clippy::disallowed_methods, reason = "the pool that owns the client bounds them; the end shows in the client")]
fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = with_cause(&error), "a connection to PostgreSQL ended");
        }
    });
}

async fn prepare(client: &Client, statement: &'static str, text: &str) -> Result<Statement, ConnectError> {
    client.prepare(text).await.map_err(|error| ConnectError::Prepare { statement, error })
}

/// Nothing, or one parameter for the names of writes.
fn are_names(parameters: &[Type]) -> bool {
    match parameters {
        [] => true,
        [names] => array_of(names, &[Type::TEXT]),
        _ => false,
    }
}

fn types(statement: &'static str, wanted: &'static str, has: &[Type]) -> ConnectError {
    let has: Vec<_> = has.iter().map(Type::name).collect();
    ConnectError::Types { statement, wanted, has: has.join(", ") }
}

pub(super) fn no_connection(error: PoolError<ConnectError>) -> StoreError {
    match error {
        PoolError::Backend(ConnectError::Connect(error)) => failed(&error),
        PoolError::Backend(error @ ConnectError::Prepare { .. }) => match &error {
            ConnectError::Prepare { error: cause, .. } if is_passing(cause) => {
                StoreError::Unavailable { reason: error.to_string().into() }
            }
            _ => StoreError::Refused { reason: error.to_string().into() },
        },
        PoolError::Backend(error @ (ConnectError::Socket { .. } | ConnectError::Session { .. })) => {
            StoreError::Unavailable { reason: error.to_string().into() }
        }
        PoolError::Backend(error) => StoreError::Refused { reason: error.to_string().into() },
        PoolError::Timeout(managed::TimeoutType::Wait) => {
            StoreError::Unavailable { reason: "all its connections are busy (maxConnections)".into() }
        }
        other => StoreError::Unavailable { reason: other.to_string().into() },
    }
}
