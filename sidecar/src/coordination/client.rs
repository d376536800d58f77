//! The API server, as little of it as Leases and CacheInvalidations need: one request per connection, JSON, the identity's token.
//!
//! Token and certificate authority are read anew for each request: kubelet replaces them while the sidecar runs. It never
//! retries and has no deadline; callers have both. It fails with a [`Reply`], which says whether the request may have
//! been done.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use caddy_contract::coordination::{CA, TOKEN};
use caddy_lease::{Reply, snapshot};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Largest answer that is read.
const ANSWER_MAX: usize = 8 << 20;

/// Why nothing was sent, or no answer came.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("there is no token yet in {0}; the operator makes it, and kubelet brings it within about a minute")]
    NoToken(PathBuf),
    #[error("failed to read the certificate authority {0}")]
    Authority(PathBuf),
    #[error("failed to reach the API server at {0}: {1}")]
    Connect(String, std::io::Error),
    #[error("the API server's certificate cannot be used: {0}")]
    Tls(String),
    #[error("the API server's answer cannot be used: {0}")]
    Answer(String),
}

/// An answer as it came.
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

/// A request that was refused, or got no answer (status 0).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) reason: String,
}

/// See the module.
#[derive(Debug)]
pub(super) struct ApiClient {
    host: String,
    port: u16,
    identity: PathBuf,
    traffic: Traffic,
}

/// What was asked of the API server. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic {
    /// Reads.
    pub(crate) reads: Counter,
    /// Writes.
    pub(crate) writes: Counter,
    /// Those of both that were refused or got no answer.
    pub(crate) failures: Counter,
}

impl ApiClient {
    /// The API server that Kubernetes names to every container.
    pub(super) fn from_environment(identity: &Path, traffic: Traffic) -> Option<Self> {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok().filter(|host| !host.is_empty())?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(443);
        let identity = identity.to_path_buf();
        Some(Self { host, port, identity, traffic })
    }

    /// One on this machine, with the identity in `directory`.
    #[cfg(test)]
    pub(super) fn local(directory: &Path, port: u16) -> Self {
        Self { host: "127.0.0.1".into(), port, identity: directory.to_path_buf(), traffic: Traffic::default() }
    }

    /// Whether there is a token to ask with.
    pub(super) fn has_identity(&self) -> bool {
        self.token().is_ok()
    }

    /// Reads a Lease.
    pub(super) async fn get(&self, path: &str) -> Reply {
        self.lease(Method::GET, path, None).await
    }

    /// Changes a Lease by a merge patch.
    pub(super) async fn patch(&self, path: &str, patch: &Value) -> Reply {
        let path = format!("{path}?fieldManager=caddy-sidecar");
        self.lease(Method::PATCH, &path, Some(("application/merge-patch+json", patch))).await
    }

    /// Makes a Lease; [`Reply::Conflict`] if there is one.
    pub(super) async fn create(&self, path: &str, lease: &Value) -> Reply {
        let path = format!("{path}?fieldManager=caddy-sidecar");
        self.lease(Method::POST, &path, Some(("application/json", lease))).await
    }

    /// Anything else than Leases: the answer's JSON.
    pub(super) async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, Refused> {
        let answer = self.counted(method, path, body).await;
        let refused = match answer {
            Ok(Answer { status, body, .. }) => {
                let value: Value = serde_json::from_slice(&body).unwrap_or_default();
                if status.is_success() {
                    return Ok(value);
                }
                Refused { status: status.as_u16(), reason: words(status, &value) }
            }
            Err(error) => Refused { status: 0, reason: error.to_string() },
        };
        self.traffic.failures.inc();
        Err(refused)
    }

    async fn lease(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Reply {
        let reply = match self.counted(method, path, body).await {
            Ok(answer) => judge(answer.status, answer.retry_after, &answer.body),
            // Nothing is sent and nothing is wrong yet.
            Err(error @ ClientError::NoToken(_)) => return Reply::Denied(error.to_string()),
            Err(error) => Reply::Unknown(error.to_string()),
        };
        if matches!(reply, Reply::Unknown(_) | Reply::Denied(_) | Reply::Busy(_)) {
            self.traffic.failures.inc();
        }
        reply
    }

    async fn counted(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Answer, ClientError> {
        let token = self.token()?;
        if method == Method::GET {
            self.traffic.reads.inc()
        } else {
            self.traffic.writes.inc()
        };
        self.exchange(method, path, &token, body).await
    }

    fn token(&self) -> Result<String, ClientError> {
        let path = self.identity.join(TOKEN);
        let token = std::fs::read_to_string(&path).unwrap_or_default();
        let token = token.trim();
        if token.is_empty() { Err(ClientError::NoToken(path)) } else { Ok(token.to_owned()) }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer, ClientError> {
        let answer = |error: &dyn std::fmt::Display| ClientError::Answer(error.to_string());
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| answer(&error))?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.authority())
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .header(header::USER_AGENT, concat!("caddy-sidecar/", env!("CARGO_PKG_VERSION")));
        if let Some((kind, _)) = body {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let bytes = body.map(|(_, value)| value.to_string()).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(bytes))).map_err(|error| answer(&error))?;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(|error| answer(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|error| answer(&error))?;
            Ok(Answer { status: head.status, retry_after: retry_after(&head.headers), body: body.to_bytes() })
        };
        // The connection ends when its only sender is dropped.
        let (reply, _) = tokio::join!(exchange, connection);
        reply
    }

    async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ClientError> {
        let path = self.identity.join(CA);
        let mut roots = RootCertStore::empty();
        let unreadable = |_| ClientError::Authority(path.clone());
        for certificate in CertificateDer::pem_file_iter(&path).map_err(unreadable)? {
            roots.add(certificate.map_err(unreadable)?).map_err(|_| ClientError::Authority(path.clone()))?;
        }
        let tls = |error: &dyn std::fmt::Display| ClientError::Tls(error.to_string());
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(self.host.clone()).map_err(|error| tls(&error))?;
        let unreachable = |error| ClientError::Connect(self.authority(), error);
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(unreachable)
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn retry_after(headers: &hyper::HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// A refusal in the API server's words.
fn words(status: StatusCode, value: &Value) -> String {
    format!("{} ({})", value["message"].as_str().unwrap_or("no reason given"), status.as_u16())
}

/// What an answer means.
fn judge(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Reply {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let words = || words(status, &value);
    match status.as_u16() {
        200..=299 => match snapshot(&value) {
            Ok(snapshot) => Reply::Lease(snapshot),
            Err(error) => Reply::Unknown(error.to_owned()),
        },
        404 => Reply::Missing,
        409 => Reply::Conflict,
        429 => Reply::Busy(retry_after),
        503 if retry_after.is_some() => Reply::Busy(retry_after),
        400..=499 => Reply::Denied(words()),
        _ => Reply::Unknown(words()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, retry_after: Option<u64>, body: &str) -> Reply {
        judge(StatusCode::from_u16(status).unwrap(), retry_after.map(Duration::from_secs), body.as_bytes())
    }

    #[test]
    fn answers_say_whether_it_may_have_been_done() {
        let lease = r#"{"metadata": {"uid": "u", "resourceVersion": "3"}, "spec": {}}"#;
        assert!(matches!(judged(200, None, lease), Reply::Lease(found) if found.version == "3"));
        assert!(matches!(judged(201, None, lease), Reply::Lease(_)));
        assert!(matches!(judged(200, None, "half an answ"), Reply::Unknown(_)));
        assert_eq!((judged(404, None, ""), judged(409, None, "")), (Reply::Missing, Reply::Conflict));
        assert_eq!(judged(429, Some(7), ""), Reply::Busy(Some(Duration::from_secs(7))));
        assert_eq!(judged(503, Some(1), ""), Reply::Busy(Some(Duration::from_secs(1))));
        assert_eq!(
            judged(403, None, r#"{"message": "leases is forbidden"}"#),
            Reply::Denied("leases is forbidden (403)".into())
        );
        assert!(matches!(judged(401, None, ""), Reply::Denied(_)));
        assert!(matches!(judged(500, None, ""), Reply::Unknown(_)));
        assert!(matches!(judged(503, None, ""), Reply::Unknown(_)));
    }

    #[tokio::test]
    async fn without_a_token_nothing_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let client = ApiClient::local(directory.path(), 1);
        assert!(!client.has_identity());
        assert!(matches!(client.get("/x").await, Reply::Denied(reason) if reason.contains("no token yet")));
        assert_eq!(client.traffic.reads.get(), 0);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_no_certain_refusal() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(TOKEN), "t\n").unwrap();
        let client = ApiClient::local(directory.path(), 1);
        assert!(matches!(client.get("/x").await, Reply::Unknown(reason) if reason.contains("certificate authority")));
        std::fs::write(directory.path().join(CA), "").unwrap();
        assert!(matches!(client.get("/x").await, Reply::Unknown(reason) if reason.contains("failed to reach")));
        assert_eq!((client.traffic.reads.get(), client.traffic.failures.get()), (2, 2));
    }
}
