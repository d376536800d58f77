//! A small HTTP/1.1 server for both ports of the operator: bounded connections, bounded time, TLS if wanted.
//!
//! It fails only when the address cannot be bound; a broken connection is that client's affair.

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at one time; more wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time between requests on one connection. Longer than the 90 s after which the API server closes idle connections
/// itself: were we first, a request could cross with our close and fail, and its pod would miss its sidecar.
const IDLE: Duration = Duration::from_mins(3);
/// Time that open connections get to finish after the shutdown began.
const DRAIN: Duration = Duration::from_secs(5);

/// A response with a body that is there already.
pub type Reply = Response<Full<Bytes>>;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be bound.
    #[error("failed to listen on {address}; is it taken by another process?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Binds an address.
///
/// # Errors
/// When that fails.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Bind { address, source })
}

/// Serves `handler` until the shutdown; with `tls`, over TLS.
pub async fn serve<F>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    handler: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    shutdown: CancellationToken,
) where
    F: Future<Output = Reply> + Send + 'static,
{
    let acceptor = tls.map(TlsAcceptor::from);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = shutdown.cancelled() => break,
            place = places.clone().acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: give others time to return theirs.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, handler, shutdown) = (acceptor.clone(), handler.clone(), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            connection(stream, acceptor, handler, shutdown).await;
        });
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(DRAIN, drained).await;
}

async fn connection<F>(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    handler: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    shutdown: CancellationToken,
) where
    F: Future<Output = Reply> + Send + 'static,
{
    let Some(acceptor) = acceptor else { return requests(stream, handler, shutdown).await };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, handler, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

async fn requests<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    shutdown: CancellationToken,
) where
    F: Future<Output = Reply> + Send + 'static,
{
    let service = service_fn(move |request| {
        let reply = handler(request);
        async move { Ok::<_, Infallible>(reply.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// A plain-text reply.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

/// A reply of any type.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    reply
}
