//! Where a Redis is and how to get in: addresses and credentials. Resolves and connects nothing.

use std::{fmt, path::PathBuf, time::Duration};

/// The address of one Redis server.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Where the password comes from.
#[derive(Clone)]
pub enum Password {
    /// Known from the start (a URL given by hand).
    Inline(String),
    /// Read at every connect, so that it may rotate; a trailing newline is not part of it.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(…)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// One Redis server, and all that is needed to talk to it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its address.
    pub endpoint: Endpoint,
    /// The ACL user; `None` is Redis's `default` user.
    pub username: Option<String>,
    /// The password; `None` sends no AUTH.
    pub password: Option<Password>,
    /// Bound on name resolution, connect and handshake together.
    pub connect_timeout: Duration,
    /// How long a request may go unanswered before the connection counts as lost.
    pub response_timeout: Duration,
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
        assert!(!format!("{:?}", Password::Inline("s3cret".into())).contains("s3cret"));
    }
}
