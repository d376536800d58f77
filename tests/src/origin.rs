//! A real HTTP origin of a test's own: values under paths, with ETags and `Cache-Control: max-age=60`, that can be told to
//! fail, to hang, or to answer late. Serves on a loopback port while it lives.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Files;

type Failure = Box<dyn Fn(&str) -> Option<u16> + Send + Sync>;

#[derive(Default)]
struct State {
    values: HashMap<String, Bytes>,
    hanging: HashSet<String>,
    failure: Option<Failure>,
    requests: usize,
    /// Answered with 304.
    unchanged: usize,
    by_path: HashMap<String, usize>,
    under_way: usize,
    most_under_way: usize,
    /// What writes were called, by path.
    names: HashMap<String, Vec<String>>,
    cache_control: Option<String>,
    encoding: Option<String>,
    retry_after: Option<String>,
    tls: Option<TlsAcceptor>,
    /// Paths whose next request is answered late, with what was there when it came.
    late: HashSet<String>,
    released: HashSet<String>,
    held: HashSet<String>,
}

/// See the [module](self).
pub struct Origin {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    releases: Arc<Notify>,
    _tasks: JoinSet<()>,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Origin {
    /// An empty one.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("listen on a loopback port")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State { cache_control: Some("max-age=60".to_owned()), ..State::default() }));
        let releases = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let (shared, notified) = (state.clone(), releases.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, releases) = (shared.clone(), notified.clone());
                connections.spawn(async move {
                    let tls = state.lock().tls.clone();
                    let service = service_fn(move |request| late(state.clone(), releases.clone(), request));
                    let server = hyper::server::conn::http1::Builder::new();
                    // The client may go away at any time.
                    let _ = match tls {
                        None => server.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => server.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        Ok(Self { address, state, releases, _tasks: tasks })
    }

    /// The `Idempotency-Key` of each write that came for a path, also of those that failed; empty: it had none.
    pub fn names_of(&self, path: &str) -> Vec<String> {
        self.state.lock().names.get(path).cloned().unwrap_or_default()
    }

    /// Without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on connections begin with TLS, and are shown this certificate.
    pub fn secure(&self, files: &Files) -> Result<()> {
        self.state.lock().tls = Some(TlsAcceptor::from(files.server()?));
        Ok(())
    }

    /// What is stored under a path, percent-encoded as it came.
    pub fn value(&self, path: &str) -> Option<Vec<u8>> {
        self.state.lock().values.get(path).map(|value| value.to_vec())
    }

    /// Puts a value under a path.
    pub fn set(&self, path: &str, value: &str) {
        self.state.lock().values.insert(path.to_owned(), Bytes::copy_from_slice(value.as_bytes()));
    }

    /// What it says of all values from now on; `None`: nothing.
    pub fn cache_control(&self, text: Option<&str>) {
        self.state.lock().cache_control = text.map(str::to_owned);
    }

    /// How it says from now on that all values are packed; `None`: not at all.
    pub fn content_encoding(&self, text: Option<&str>) {
        self.state.lock().encoding = text.map(str::to_owned);
    }

    /// What it says with its failures from now on, of when to come back; `None`: nothing.
    pub fn retry_after(&self, text: Option<&str>) {
        self.state.lock().retry_after = text.map(str::to_owned);
    }

    /// Whether the next request for a path is to be held.
    pub fn is_to_hold(&self, path: &str) -> bool {
        self.state.lock().held.contains(path)
    }

    /// How many requests came for a path.
    pub fn requests_for(&self, path: &str) -> usize {
        self.state.lock().by_path.get(path).copied().unwrap_or(0)
    }

    /// The next request for this path gets the answer of the moment when it came, once that is [released](Self::release).
    pub fn delay_next(&self, path: &str) {
        let mut state = self.state.lock();
        state.released.remove(path);
        state.late.insert(path.to_owned());
    }

    /// The next request for this path is executed when that is [released](Self::release).
    pub fn hold_next(&self, path: &str) {
        let mut state = self.state.lock();
        state.released.remove(path);
        state.held.insert(path.to_owned());
    }

    /// Lets late answers for this path go.
    pub fn release(&self, path: &str) {
        self.state.lock().released.insert(path.to_owned());
        self.releases.notify_waiters();
    }

    /// How many requests came so far.
    pub fn requests(&self) -> usize {
        self.state.lock().requests
    }

    /// How many of them it answered with 304.
    pub fn unchanged(&self) -> usize {
        self.state.lock().unchanged
    }

    /// How many were under way at a time, at most, since this was asked last.
    pub fn most_at_once(&self) -> usize {
        let mut state = self.state.lock();
        let under_way = state.under_way;
        std::mem::replace(&mut state.most_under_way, under_way)
    }

    /// From now on paths are answered with the status that `failure` says, if any.
    pub fn fail_with(&self, failure: impl Fn(&str) -> Option<u16> + Send + Sync + 'static) {
        self.state.lock().failure = Some(Box::new(failure));
    }

    /// From now on it does not fail any more.
    pub fn recover(&self) {
        self.state.lock().failure = None;
    }

    /// From now on this path is never answered.
    pub fn hang_on(&self, path: &str) {
        self.state.lock().hanging.insert(path.to_owned());
    }
}

/// A request, until it is answered or given up.
struct UnderWay(Arc<Mutex<State>>);

impl UnderWay {
    fn begin(state: &Arc<Mutex<State>>) -> Self {
        let mut all = state.lock();
        all.under_way += 1;
        all.most_under_way = all.most_under_way.max(all.under_way);
        drop(all);
        Self(state.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

async fn late(
    state: Arc<Mutex<State>>,
    releases: Arc<Notify>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let _under_way = UnderWay::begin(&state);
    let path = request.uri().path().to_owned();
    let (is_late, is_held) = {
        let mut state = state.lock();
        (state.late.remove(&path), state.held.remove(&path))
    };
    let released = async || loop {
        let notified = releases.notified();
        if state.lock().released.contains(&path) {
            return;
        }
        notified.await;
    };
    if is_held {
        released().await;
    }
    let response = answer(state.clone(), request).await;
    if is_late {
        released().await;
    }
    response
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let status = |status| Response::builder().status(status).body(Full::default()).unwrap_or_default();
    let hangs = {
        let mut state = state.lock();
        state.requests += 1;
        *state.by_path.entry(path.clone()).or_default() += 1;
        if matches!(head.method, Method::PUT | Method::DELETE) {
            let name = head.headers.get("idempotency-key").and_then(|name| name.to_str().ok()).unwrap_or_default();
            state.names.entry(path.clone()).or_default().push(name.to_owned());
        }
        if let Some(code) = state.failure.as_ref().and_then(|failure| failure(&path)) {
            let mut failed = status(StatusCode::from_u16(code).unwrap_or_default());
            let when = state.retry_after.as_ref().and_then(|text| text.parse().ok());
            failed.headers_mut().extend(when.map(|when| (header::RETRY_AFTER, when)));
            return Ok(failed);
        }
        state.hanging.contains(&path)
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let mut state = state.lock();
    Ok(match head.method {
        // As servers do that want to know before they read (RFC 9110, §15.5.12).
        Method::PUT if !head.headers.contains_key(header::CONTENT_LENGTH) => status(StatusCode::LENGTH_REQUIRED),
        Method::PUT => {
            state.values.insert(path, body);
            status(StatusCode::NO_CONTENT)
        }
        Method::DELETE => match state.values.remove(&path) {
            Some(_) => status(StatusCode::NO_CONTENT),
            None => status(StatusCode::NOT_FOUND),
        },
        _ => match state.values.get(&path) {
            None => status(StatusCode::NOT_FOUND),
            Some(value) => {
                let etag = format!("\"{:08x}\"", crc(value));
                let known = head.headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == etag.as_str());
                let mut builder = Response::builder().header(header::ETAG, etag);
                if let Some(text) = &state.cache_control {
                    builder = builder.header(header::CACHE_CONTROL, text);
                }
                if let Some(text) = &state.encoding {
                    builder = builder.header(header::CONTENT_ENCODING, text);
                }
                let (code, body) =
                    if known { (StatusCode::NOT_MODIFIED, Bytes::new()) } else { (StatusCode::OK, value.clone()) };
                let response = builder.status(code).body(Full::new(body)).unwrap_or_default();
                state.unchanged += usize::from(known);
                response
            }
        },
    })
}

/// Tells values apart.
fn crc(value: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
