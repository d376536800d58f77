//! Where a Redis is and how to get in: addresses and credentials. Resolves and connects nothing.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::runtime::Handle;

use crate::{ConnectError, Tls, breaker::Breaker, sentinel::Sentinels};

/// The address of one Redis server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Over TCP; the host is resolved anew at each connect.
    Tcp {
        /// A host name or an address, IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// Over a Unix socket.
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

/// How tracked connections learn of writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracking {
    /// The server tells who has read a key.
    Keys,
    /// The server tells every write to keys with one of these prefixes; none: to all keys.
    Broadcast(Vec<String>),
    /// It tells nothing.
    Nothing,
}

/// A user name or a password, and where it comes from.
#[derive(Clone)]
pub enum Credential {
    /// Known from the start.
    Inline(String),
    /// Read at every connect, so that it may rotate; a trailing newline is not part of it.
    File(PathBuf),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(…)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// How a server and others form one store: a server that says otherwise is not the one that was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is the whole store.
    Standalone,
    /// It has a part of the slots.
    Cluster,
    /// It holds no data and watches those that do.
    Sentinel,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standalone => "Standalone",
            Self::Cluster => "Cluster",
            Self::Sentinel => "Sentinel",
        })
    }
}

impl Credential {
    /// Its text at this moment.
    pub(crate) fn read(&self) -> Result<String, ConnectError> {
        match self {
            Self::Inline(text) => Ok(text.clone()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConnectError::ReadCredential {
                    path: path.display().to_string(),
                    source: Arc::new(source),
                })?;
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }
}

/// Who logs in.
#[derive(Debug, Clone, Default)]
pub struct Login {
    /// The ACL user; `None` is Redis's `default` user.
    pub username: Option<Credential>,
    /// The password; `None` sends no AUTH.
    pub password: Option<Credential>,
}

/// User and password as they were at some moment.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Answers {
    pub(crate) username: String,
    pub(crate) password: String,
}

impl Login {
    /// What to answer to a server that asks now; `None`: nothing.
    pub(crate) fn read(&self) -> Result<Option<Answers>, ConnectError> {
        let Some(password) = &self.password else { return Ok(None) };
        let username = self.username.as_ref().map_or_else(|| Ok("default".to_owned()), Credential::read)?;
        Ok(Some(Answers { username, password: password.read()? }))
    }
}

impl Login {
    fn files(&self) -> impl Iterator<Item = &Path> + Clone {
        [&self.username, &self.password].into_iter().filter_map(|credential| match credential {
            Some(Credential::File(path)) => Some(path.as_path()),
            _ => None,
        })
    }
}

/// One Redis server, and all that is needed to talk to it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its address.
    pub endpoint: Endpoint,
    /// What it has to be.
    pub mode: Mode,
    /// Who knows the address of the primary; `endpoint` is then for messages only.
    pub sentinels: Option<Arc<Sentinels>>,
    /// How tracked connections learn of writes.
    pub tracking: Tracking,
    /// As whom.
    pub login: Login,
    /// TLS for connections over TCP; `None`: plain text.
    pub tls: Option<Arc<Tls>>,
    /// Bound on name resolution, connect and handshake together.
    pub connect_timeout: Duration,
    /// How long a request may go unanswered before the connection counts as lost.
    pub response_timeout: Duration,
    /// What all connections to it know together; whatever has another address has another one.
    pub breaker: Arc<Breaker>,
    /// Where its connections' timers run; `None`: on their own threads. A thread on which one runs goes to sleep with a
    /// timeout, and pays for a timer of the kernel's each time.
    pub timers: Option<Handle>,
}

impl Target {
    /// A standalone server at `endpoint` as one finds it: no login, no TLS, tracking by key, five seconds for each thing.
    pub fn new(endpoint: Endpoint) -> Self {
        const PATIENCE: Duration = Duration::from_secs(5);
        Self {
            endpoint,
            mode: Mode::Standalone,
            sentinels: None,
            tracking: Tracking::Keys,
            login: Login::default(),
            tls: None,
            connect_timeout: PATIENCE,
            response_timeout: PATIENCE,
            breaker: Arc::default(),
            timers: None,
        }
    }

    /// The same, of another server.
    #[must_use]
    pub fn at(&self, endpoint: Endpoint) -> Self {
        Self { endpoint, breaker: Arc::default(), ..self.clone() }
    }

    /// The files that decide whether a connection can be had.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> + Clone {
        self.login.files().chain(self.tls.iter().flat_map(|tls| tls.files()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_printed_as_they_are_written() {
        let tcp = |host: &str| Endpoint::Tcp { host: host.into(), port: 6379 };
        assert_eq!(tcp("redis").to_string(), "redis:6379");
        assert_eq!(tcp("::1").to_string(), "[::1]:6379");
        assert_eq!(Endpoint::Unix("/run/r.sock".into()).to_string(), "unix:/run/r.sock");
    }

    #[test]
    fn a_password_is_never_printed() {
        assert!(!format!("{:?}", Credential::Inline("s3cret".into())).contains("s3cret"));
    }
}
