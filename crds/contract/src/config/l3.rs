//! The section `l3`: where the tier is that the sidecars of a cluster share.

use super::{
    SOCKET_PATH_MAX,
    reader::{Reader, named},
};
use crate::{RawL3, RawRedis, RawSentinel, RawTls, RedisMode, SentinelTls};
use std::{fmt, path::PathBuf, time::Duration};

/// The tier that the sidecars of a cluster share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum L3 {
    /// In this process: each sidecar has its own data.
    Embedded,
    /// A Redis or Valkey.
    Redis(Box<Redis>),
}

/// A Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// How its nodes form one store.
    pub mode: RedisMode,
    /// At least one; exactly one in mode `Standalone`, every Sentinel in mode `Sentinel`, in mode `Cluster` those to ask for
    /// the others, in order.
    pub endpoints: Vec<Endpoint>,
    /// Set in mode `Sentinel`, and only there.
    pub sentinel: Option<Sentinel>,
    /// User for AUTH; none means Redis's default user.
    pub username: Option<String>,
    /// File that holds the user, read on each connect.
    pub username_file: Option<PathBuf>,
    /// File that holds the password, read on each connect, so that a rotated Secret is used.
    pub password_file: Option<PathBuf>,
    /// TLS; none means plain text.
    pub tls: Option<Tls>,
    /// Deadline of a connect with its handshake.
    pub connect_timeout: Duration,
    /// Deadline of a command.
    pub timeout: Duration,
}

/// How to ask the Sentinels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinel {
    /// What they call the primary.
    pub master_name: String,
    /// User for AUTH at the Sentinels.
    pub username: Option<String>,
    /// File that holds that user.
    pub username_file: Option<PathBuf>,
    /// File that holds their password.
    pub password_file: Option<PathBuf>,
    /// Whether TLS, where it is set for Redis, is used towards the Sentinels too.
    pub tls: SentinelTls,
}

/// TLS towards a Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that are trusted; none means the system's.
    pub ca_file: Option<PathBuf>,
    /// Files of the certificate that is shown to the server, and of its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must be for; none means the endpoint's host.
    pub server_name: Option<String>,
}

/// Address of an L3 node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host name or address (IPv6 without brackets) and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    /// Reads `host:port`, `[v6]:port` or `unix:/path`; the error says what to write.
    fn from_str(text: &str) -> Result<Self, String> {
        let unclear = || format!("{text:?} is not an endpoint; write host:port (e.g. redis.shop:6379) or unix:/path");
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let fits = path.starts_with('/') && path.len() <= SOCKET_PATH_MAX;
            return fits.then(|| Self::Unix(path.into())).ok_or_else(unclear);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(unclear)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(unclear)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let named = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/@[]?#".contains(c));
        if !named || (host.contains(':') && bracketed.is_none()) {
            return Err(unclear());
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl Reader {
    pub(super) fn l3(&mut self, raw: &RawL3) -> L3 {
        match (&raw.embedded, &raw.redis) {
            (Some(_), None) => L3::Embedded,
            (None, Some(redis)) => L3::Redis(Box::new(self.redis(redis))),
            (Some(_), Some(_)) => {
                self.faults.add("l3", "has both embedded and redis; keep exactly one");
                L3::Embedded
            }
            (None, None) => {
                self.faults.add(
                    "l3",
                    "must have exactly one of embedded, redis; write e.g. `l3: {redis: {endpoints: [\"redis:6379\"]}}`",
                );
                L3::Embedded
            }
        }
    }

    fn redis(&mut self, raw: &RawRedis) -> Redis {
        let mut endpoints = Vec::new();
        for (n, text) in raw.endpoints.iter().enumerate() {
            match text.parse() {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => self.faults.add(format!("l3.redis.endpoints[{n}]"), message),
            }
        }
        match raw.mode {
            RedisMode::Standalone => self.check(
                raw.endpoints.len() == 1,
                "l3.redis.endpoints",
                format!("has {}; mode Standalone takes exactly one", raw.endpoints.len()),
            ),
            RedisMode::Cluster => self.check(
                !raw.endpoints.is_empty(),
                "l3.redis.endpoints",
                "is empty; mode Cluster takes one or more nodes to ask for the others",
            ),
            RedisMode::Sentinel => {
                self.check(
                    !raw.endpoints.is_empty(),
                    "l3.redis.endpoints",
                    "is empty; mode Sentinel takes the addresses of all Sentinels",
                );
            }
        }
        let sentinel = raw.sentinel.as_ref().map(|sentinel| self.sentinel(sentinel));
        self.check(
            sentinel.is_some() == (raw.mode == RedisMode::Sentinel),
            "l3.redis.sentinel",
            "belongs to mode Sentinel, which needs it; write e.g. `mode: Sentinel, sentinel: {masterName: mymaster}`",
        );
        self.check(
            raw.username.is_empty() || raw.username_file.is_empty(),
            "l3.redis.usernameFile",
            "stands beside username; keep one of them",
        );
        let tls = raw.tls.as_ref().map(|tls| self.tls("l3.redis.tls", tls));
        let over_unix = raw.endpoints.iter().any(|endpoint| endpoint.starts_with("unix:"));
        self.check(
            tls.is_none() || !over_unix,
            "l3.redis.tls",
            "is for endpoints host:port; a Redis speaks no TLS on a Unix socket",
        );
        Redis {
            mode: raw.mode,
            endpoints,
            sentinel,
            username: named(&raw.username),
            username_file: named(&raw.username_file),
            password_file: named(&raw.password_file),
            tls,
            connect_timeout: self.time("l3.redis.connectTimeout", &raw.connect_timeout, 10),
            timeout: self.time("l3.redis.timeout", &raw.timeout, 10),
        }
    }

    fn sentinel(&mut self, raw: &RawSentinel) -> Sentinel {
        let plain = !raw.master_name.is_empty() && !raw.master_name.chars().any(char::is_whitespace);
        self.check(plain, "l3.redis.sentinel.masterName", "must be what the Sentinels call the primary, e.g. mymaster");
        self.check(
            raw.username.is_empty() || raw.username_file.is_empty(),
            "l3.redis.sentinel.usernameFile",
            "stands beside username; keep one of them",
        );
        Sentinel {
            master_name: raw.master_name.clone(),
            username: named(&raw.username),
            username_file: named(&raw.username_file),
            password_file: named(&raw.password_file),
            tls: raw.tls,
        }
    }

    pub(super) fn tls(&mut self, path: &str, raw: &RawTls) -> Tls {
        self.check(
            raw.cert_file.is_empty() == raw.key_file.is_empty(),
            &format!("{path}.certFile"),
            "must stand together with keyFile; a certificate is of use only with its key",
        );
        Tls {
            ca_file: named(&raw.ca_file),
            client_certificate: named(&raw.cert_file).zip(named(&raw.key_file)),
            server_name: named(&raw.server_name),
        }
    }
}
