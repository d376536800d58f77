//! Health and metrics over HTTP. Never data, never L3's state as health: an outage of Redis must not restart a pod.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, header, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::{metrics, shared::Shared, supervisor::Supervisor, warm};

/// What an HTTP client may have open at a time; scrapes and probes need one or two.
const MAX_CONNECTIONS: usize = 32;

/// Serves until the sidecar ends.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, supervisor: Supervisor) {
    let permits = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin port");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, answering) = (shared.clone(), supervisor.clone());
        supervisor.spawn_local("admin connection", async move {
            let service = service_fn(|request| {
                let response = answer(&request, &shared, &answering);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(hyper_util::rt::TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an admin connection ended");
            }
            drop(permit);
        });
    }
}

/// Opens the port; with `fall_back`, another one if it is taken.
pub(crate) async fn bind(address: SocketAddr, fall_back: bool) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if fall_back && error.kind() == std::io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::new(address.ip(), 0)).await
        }
        other => other,
    }
}

fn answer<B>(request: &Request<B>, shared: &Shared, supervisor: &Supervisor) -> Response<Full<Bytes>> {
    let text = |status, body: String| respond(status, "text/plain; charset=utf-8", body);
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/healthz" => match supervisor.failure() {
            None => text(StatusCode::OK, "ok\n".to_owned()),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        // The port opens after the socket does.
        "/readyz" => text(StatusCode::OK, "ok\n".to_owned()),
        // What only the startup probe waits for.
        "/startupz" if warm::has_started(shared) => text(StatusCode::OK, "ok\n".to_owned()),
        "/startupz" => {
            let said = format!("{} percent of what is to be read first is read\n", shared.warming.percent());
            text(StatusCode::SERVICE_UNAVAILABLE, said)
        }
        "/metrics" => respond(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics::render(shared, supervisor),
        ),
        _ => text(StatusCode::NOT_FOUND, "try /healthz, /readyz, /startupz or /metrics\n".to_owned()),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
