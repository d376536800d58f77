//! A real HTTP origin of a test's own: values under paths, with ETags and `Cache-Control: max-age=60`, that can be told to
//! fail or to hang. Serves on a loopback port while it lives.

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
use tokio::{net::TcpListener, task::JoinSet};

type Failure = Box<dyn Fn(&str) -> Option<u16> + Send + Sync>;

#[derive(Default)]
struct State {
    values: HashMap<String, Bytes>,
    hanging: HashSet<String>,
    failure: Option<Failure>,
    requests: usize,
}

/// See the [module](self).
pub struct Origin {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
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
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = JoinSet::new();
        let shared = state.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    // The client may go away at any time.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { address, state, _tasks: tasks })
    }

    /// Without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What is stored under a path, percent-encoded as it came.
    pub fn value(&self, path: &str) -> Option<Vec<u8>> {
        self.state.lock().values.get(path).map(|value| value.to_vec())
    }

    /// How many requests came so far.
    pub fn requests(&self) -> usize {
        self.state.lock().requests
    }

    /// From now on paths are answered with the status that `failure` says, if any.
    pub fn fail_with(&self, failure: impl Fn(&str) -> Option<u16> + Send + Sync + 'static) {
        self.state.lock().failure = Some(Box::new(failure));
    }

    /// From now on this path is never answered.
    pub fn hang_on(&self, path: &str) {
        self.state.lock().hanging.insert(path.to_owned());
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let status = |status| Response::builder().status(status).body(Full::default()).unwrap_or_default();
    let hangs = {
        let mut state = state.lock();
        state.requests += 1;
        if let Some(code) = state.failure.as_ref().and_then(|failure| failure(&path)) {
            return Ok(status(StatusCode::from_u16(code).unwrap_or_default()));
        }
        state.hanging.contains(&path)
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let mut state = state.lock();
    Ok(match head.method {
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
                let builder =
                    Response::builder().header(header::ETAG, etag).header(header::CACHE_CONTROL, "max-age=60");
                let (code, body) =
                    if known { (StatusCode::NOT_MODIFIED, Bytes::new()) } else { (StatusCode::OK, value.clone()) };
                builder.status(code).body(Full::new(body)).unwrap_or_default()
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
