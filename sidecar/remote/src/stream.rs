//! A byte stream to a server, over TCP, TLS or a Unix socket.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use tokio_rustls::client::TlsStream;

use crate::{ConnectError, Endpoint, Socket, Tls};

/// An enum and not a trait object: every read of every connection goes through it.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(Socket),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(crate) async fn connect(endpoint: &Endpoint, tls: Option<&Tls>) -> Result<Self, ConnectError> {
        let unreached =
            |source| ConnectError::Connect { endpoint: endpoint.to_string(), source: std::sync::Arc::new(source) };
        match endpoint {
            Endpoint::Tcp { host, port } => {
                let stream = tcp(host, *port).await.map_err(unreached)?;
                let Some(tls) = tls else { return Ok(Self::Tcp(stream)) };
                let stream = tls
                    .connect(host, stream)
                    .await
                    .map_err(|source| ConnectError::Tls { endpoint: endpoint.to_string(), source })?;
                Ok(Self::Tls(Box::new(stream)))
            }
            // No wire to protect; whoever configures both is told so when the configuration is read.
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreached)?;
                Ok(Self::Unix(Socket::unix(stream).map_err(unreached)?))
            }
        }
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    // Requests are batched by us; Nagle would only add a round trip to them.
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    Ok(stream)
}

/// Makes the kernel notice a peer that is gone without a word, also where no request has a deadline (subscribers).
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    // What was sent and is not acknowledged for so long will not be.
    Ok(sockopt::set_tcp_user_timeout(stream, 20_000)?)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => AsyncRead::poll_read(Pin::new(stream), cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => stream.poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
