//! Where apps connect: a Unix socket, and if asked for a port on 127.0.0.1.

use std::{
    fmt, fs,
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use caddy_remote::Socket;
use tokio::net::{TcpListener, UnixListener, UnixStream, unix::UCred};

/// Why the sidecar cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process answers on the socket.
    #[error("{path} is in use by another process; stop it, or choose another path with --socket or listen.socket")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has its name.
    #[error("{path} exists and is not a socket; remove it, or choose another path with --socket or listen.socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot listen on {address}")]
    Bind {
        /// The path or address.
        address: String,
        /// Why.
        source: io::Error,
    },
}

/// The open listeners.
pub(crate) struct Listeners {
    unix: UnixListener,
    path: PathBuf,
    tcp: Option<TcpListener>,
}

/// A connection that has just been accepted; it can be moved to another thread's runtime.
pub(crate) enum Accepted {
    Unix(std::os::unix::net::UnixStream, Peer),
    Tcp(std::net::TcpStream, Peer),
}

/// Who connected, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// User and process, where it says them; a process of another pid namespace has none.
    Unix { uid: Option<u32>, pid: Option<i32> },
    /// From a port of 127.0.0.1.
    Tcp { port: u16 },
}

impl Listeners {
    /// Opens them. A socket file that nobody answers on (left by a sidecar that was killed) is replaced.
    pub(crate) async fn open(path: &Path, tcp_port: Option<u16>) -> Result<Self, ListenError> {
        clear_stale(path).await?;
        let bind = |address: String| move |source| ListenError::Bind { address, source };
        let unix = UnixListener::bind(path).map_err(bind(path.display().to_string()))?;
        // Every user of the pod may connect: the directory is mounted in this pod only.
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(bind(path.display().to_string()))?;
        let tcp = match tcp_port {
            Some(port) => {
                let address = (Ipv4Addr::LOCALHOST, port);
                Some(TcpListener::bind(address).await.map_err(bind(format!("127.0.0.1:{port}")))?)
            }
            None => None,
        };
        Ok(Self { unix, path: path.to_owned(), tcp })
    }

    /// The next connection. Errors of single connections are over with them.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        let tcp = async {
            match &self.tcp {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.unix.accept() => {
                let (stream, _) = accepted?;
                let peer = Peer::of(&stream);
                Ok(Accepted::Unix(stream.into_std()?, peer))
            }
            accepted = tcp => {
                let (stream, address) = accepted?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream.into_std()?, Peer::Tcp { port: address.port() }))
            }
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // Best effort: a file that stays is recognised as stale by the next start.
        let _ = fs::remove_file(&self.path);
    }
}

async fn clear_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(ListenError::InUse { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(|source| ListenError::Bind { address: path.display().to_string(), source })
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        Self::Unix { uid: credentials.as_ref().map(UCred::uid), pid: credentials.as_ref().and_then(UCred::pid) }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid: Some(uid), pid: Some(pid) } => write!(f, "unix:uid={uid},pid={pid}"),
            Self::Unix { uid: Some(uid), pid: None } => write!(f, "unix:uid={uid}"),
            Self::Unix { uid: None, .. } => f.write_str("unix:unknown"),
            Self::Tcp { port } => write!(f, "{}:{port}", Ipv4Addr::LOCALHOST),
        }
    }
}

impl Accepted {
    pub(crate) fn peer(&self) -> Peer {
        match self {
            Self::Unix(_, peer) | Self::Tcp(_, peer) => *peer,
        }
    }

    /// Registers the connection with the runtime of the calling thread.
    pub(crate) fn register(self) -> io::Result<Socket> {
        Socket::new(match self {
            Self::Unix(stream, _) => stream.into(),
            Self::Tcp(stream, _) => stream.into(),
        })
    }

    /// One last word to somebody who cannot be served.
    pub(crate) fn refuse(self, message: &[u8]) {
        // It fits into the socket's buffer; if the app is gone already there is nobody to tell.
        let _ = match self {
            Self::Unix(mut stream, _) => stream.write_all(message),
            Self::Tcp(mut stream, _) => stream.write_all(message),
        };
    }
}
