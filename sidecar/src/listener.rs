//! Where apps connect: a Unix socket, and if asked for a port on 127.0.0.1.

use std::{
    fs,
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use caddy_remote::Socket;
use tokio::net::{TcpListener, UnixListener, UnixStream};

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
    Unix(std::os::unix::net::UnixStream, String),
    Tcp(std::net::TcpStream, String),
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
                let peer = describe(&stream);
                Ok(Accepted::Unix(stream.into_std()?, peer))
            }
            accepted = tcp => {
                let (stream, address) = accepted?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream.into_std()?, address.to_string()))
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

/// Who connected, from the kernel's word: user and process.
fn describe(stream: &UnixStream) -> String {
    match stream.peer_cred() {
        Ok(credentials) => match credentials.pid() {
            Some(pid) => format!("unix:uid={},pid={pid}", credentials.uid()),
            None => format!("unix:uid={}", credentials.uid()),
        },
        Err(_) => "unix:unknown".to_owned(),
    }
}

impl Accepted {
    pub(crate) fn peer(&self) -> &str {
        match self {
            Self::Unix(_, peer) | Self::Tcp(_, peer) => peer,
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
