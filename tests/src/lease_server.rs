//! As much of a Kubernetes API server as Leases need, over TLS on a loopback port: versions, merge patches, conflicts,
//! creation times. It can be away, and its Leases can be looked at, changed and deleted behind everybody's back.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::{
    certificates::Authority,
    e2e::eventually,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

#[derive(Default)]
struct State {
    leases: Mutex<Store>,
    away: AtomicBool,
    ends: Notify,
}

#[derive(Default)]
struct Store {
    leases: BTreeMap<String, Value>,
    /// Grows with every write, as etcd's revision does.
    version: u64,
    uids: u64,
    /// Seconds added to the time at which Leases are made.
    clock: u64,
    requests: u64,
}

/// See the [module](self).
pub struct LeaseServer {
    port: u16,
    identity: tempfile::TempDir,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for LeaseServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseServer").field("port", &self.port).finish_non_exhaustive()
    }
}

impl LeaseServer {
    /// An empty one, and the identity of a sidecar that may ask it.
    pub fn start() -> Result<Self> {
        let identity = tempfile::tempdir()?;
        let authority = Authority::create()?;
        authority.write(&identity.path().join("ca.crt"))?;
        std::fs::write(identity.path().join("token"), "a token")?;
        let files = authority.issue(&identity.path().join("server"), &["127.0.0.1"])?;
        let chain = CertificateDer::pem_file_iter(&files.certificate)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&files.key)?;
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("listen on a loopback port")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let state = Arc::new(State::default());
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, TlsAcceptor::from(Arc::new(tls)), shared.clone()) => {}
                    () = shared.ends.notified() => {}
                }
            });
        });
        Ok(Self { port, identity, state, thread: Some(thread) })
    }

    /// Options of a sidecar in a pod that has this API server.
    pub fn pod(&self, options: SidecarOptions, name: &str) -> SidecarOptions {
        let identity: &Path = self.identity.path();
        options
            .section(&format!("kubernetes: {{identityDir: {}, members: 2}}", identity.display()))
            .variable("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .variable("KUBERNETES_SERVICE_PORT", &self.port.to_string())
            .variable("CADDY_POD_NAME", name)
            .variable("CADDY_POD_UID", name)
    }

    /// Starts it and waits until it knows who it is: before, it does without an API server.
    pub fn start_pod(&self, options: SidecarOptions, name: &str) -> Result<Sidecar> {
        let member = format!("caddy-member-{name}");
        self.delete(&member);
        let sidecar = self.pod(options, name).start()?;
        eventually("its Lease is there", SOON, || self.lease(&member).with_context(|| format!("no {member}")))?;
        Ok(sidecar)
    }

    /// A Lease as it is now.
    pub fn lease(&self, name: &str) -> Option<Value> {
        self.state.leases.lock().leases.get(name).cloned()
    }

    /// Names of all Leases.
    pub fn names(&self) -> Vec<String> {
        self.state.leases.lock().leases.keys().cloned().collect()
    }

    /// Deletes one; whether it was there.
    pub fn delete(&self, name: &str) -> bool {
        let mut store = self.state.leases.lock();
        store.version += 1;
        store.leases.remove(name).is_some()
    }

    /// Leases that are made from now on say that they were made so many seconds later.
    pub fn advance_clock(&self, seconds: u64) {
        self.state.leases.lock().clock += seconds;
    }

    /// Whether it takes requests and never answers them.
    pub fn set_away(&self, away: bool) {
        self.state.away.store(away, Ordering::SeqCst);
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.state.leases.lock().requests
    }
}

impl Drop for LeaseServer {
    fn drop(&mut self) {
        self.state.ends.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), state.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| answer(state.clone(), request));
            // The client may go away at any time.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    while state.away.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut store = state.leases.lock();
    store.requests += 1;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = head.uri.path().split("/leases/").nth(1).map(str::to_owned);
    let (status, answer) = match (head.method, name) {
        (Method::GET, None) => (StatusCode::OK, store.list(head.uri.query().unwrap_or_default())),
        (Method::GET, Some(name)) => store.leases.get(&name).cloned().map_or_else(missing, found),
        (Method::POST, _) => store.create(body),
        (Method::PATCH, Some(name)) => store.patch(&name, &body),
        _ => (StatusCode::METHOD_NOT_ALLOWED, Value::Null),
    };
    let answer = Response::builder().status(status).body(Full::new(Bytes::from(answer.to_string())));
    Ok(answer.unwrap_or_default())
}

fn found(lease: Value) -> (StatusCode, Value) {
    (StatusCode::OK, lease)
}

fn missing() -> (StatusCode, Value) {
    (StatusCode::NOT_FOUND, json!({"message": "not found"}))
}

fn conflict() -> (StatusCode, Value) {
    (StatusCode::CONFLICT, json!({"message": "the object has been modified"}))
}

impl Store {
    /// `labelSelector=<label>[%3D<value>]`.
    fn list(&self, query: &str) -> Value {
        let selector = query.split('&').find_map(|part| part.strip_prefix("labelSelector=")).unwrap_or_default();
        let label = selector.split("%3D").next().unwrap_or_default().replace("%2F", "/");
        let has = |lease: &&Value| label.is_empty() || !lease["metadata"]["labels"][&label].is_null();
        json!({"items": self.leases.values().filter(has).collect::<Vec<_>>()})
    }

    fn create(&mut self, mut lease: Value) -> (StatusCode, Value) {
        let Some(name) = lease["metadata"]["name"].as_str().map(str::to_owned) else {
            return (StatusCode::UNPROCESSABLE_ENTITY, json!({"message": "a Lease without a name"}));
        };
        if self.leases.contains_key(&name) {
            return conflict();
        }
        self.uids += 1;
        lease["metadata"]["uid"] = json!(format!("uid-{}", self.uids));
        lease["metadata"]["creationTimestamp"] = json!(self.now());
        if lease["spec"].is_null() {
            lease["spec"] = json!({});
        }
        self.store(name, lease)
    }

    fn patch(&mut self, name: &str, patch: &Value) -> (StatusCode, Value) {
        let Some(mut lease) = self.leases.get(name).cloned() else { return missing() };
        let named = &patch["metadata"]["resourceVersion"];
        if !named.is_null() && *named != lease["metadata"]["resourceVersion"] {
            return conflict();
        }
        merge(&mut lease, patch);
        self.store(name.to_owned(), lease)
    }

    fn store(&mut self, name: String, mut lease: Value) -> (StatusCode, Value) {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.leases.insert(name, lease.clone());
        found(lease)
    }

    fn now(&self) -> String {
        let time = std::time::SystemTime::now() + Duration::from_secs(self.clock);
        let text = caddy_lease::timestamp(time);
        format!("{}Z", text.split('.').next().unwrap_or_default())
    }
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            if let Some(object) = into.as_object_mut() {
                object.remove(name);
            }
        } else {
            merge(&mut into[name], value);
        }
    }
}
