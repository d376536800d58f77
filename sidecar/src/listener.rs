//! Where apps connect: a Unix socket, and if asked for a port on 127.0.0.1.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

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

/// An app's connection on its worker's runtime.
pub(crate) enum ClientStream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Accepted {
    pub(crate) fn peer(&self) -> &str {
        match self {
            Self::Unix(_, peer) | Self::Tcp(_, peer) => peer,
        }
    }

    /// Registers the connection with the runtime of the calling thread.
    pub(crate) fn register(self) -> io::Result<ClientStream> {
        Ok(match self {
            Self::Unix(stream, _) => ClientStream::Unix(UnixStream::from_std(stream)?),
            Self::Tcp(stream, _) => ClientStream::Tcp(TcpStream::from_std(stream)?),
        })
    }

    /// One last word to somebody who cannot be served.
    pub(crate) fn refuse(self, message: &[u8]) {
        use io::Write;
        // It fits into the socket's buffer; if the app is gone already there is nobody to tell.
        let _ = match self {
            Self::Unix(mut stream, _) => stream.write_all(message),
            Self::Tcp(mut stream, _) => stream.write_all(message),
        };
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
