//! As much of a Kubernetes API server as sidecars need, over TLS on a loopback port: Leases and CacheInvalidations with
//! versions, merge patches, conflicts, creation times; Events are taken and forgotten. It can be away, and its objects can
//! be looked at, made and deleted behind everybody's back.

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

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::{
    certificates::Authority,
    e2e::eventually,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

/// Of one kind, by name.
type Objects = BTreeMap<String, Value>;

/// The kinds of objects that it keeps.
#[derive(Clone, Copy)]
enum Kind {
    Lease,
    Invalidation,
}

#[derive(Default)]
struct State {
    store: Mutex<Store>,
    away: AtomicBool,
    ends: Notify,
}

#[derive(Default)]
struct Store {
    leases: Objects,
    invalidations: Objects,
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
        let tls = files.server()?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("listen on a loopback port")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let state = Arc::new(State::default());
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, TlsAcceptor::from(tls), shared.clone()) => {}
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
        self.state.store.lock().leases.get(name).cloned()
    }

    /// Names of all Leases.
    pub fn names(&self) -> Vec<String> {
        self.state.store.lock().leases.keys().cloned().collect()
    }

    /// Deletes one; whether it was there.
    pub fn delete(&self, name: &str) -> bool {
        let mut store = self.state.store.lock();
        store.version += 1;
        store.leases.remove(name).is_some()
    }

    /// Changes one by a merge patch; whether it was there.
    pub fn change(&self, name: &str, patch: &Value) -> bool {
        self.state.store.lock().patch(Kind::Lease, name, patch).0 == StatusCode::OK
    }

    /// Makes a CacheInvalidation of the cluster that sidecars belong to unless they are told another one.
    pub fn invalidate(&self, name: &str, mut spec: Value) -> Result<()> {
        spec["cluster"] = json!("local");
        let object = json!({"metadata": {"name": name, "generation": 1}, "spec": spec});
        let (status, answer) = self.state.store.lock().create(Kind::Invalidation, object);
        ensure!(status == StatusCode::OK, "{name}: {answer}");
        Ok(())
    }

    /// A CacheInvalidation as it is now.
    pub fn invalidation(&self, name: &str) -> Option<Value> {
        self.state.store.lock().invalidations.get(name).cloned()
    }

    /// Leases that are made from now on say that they were made so many seconds later.
    pub fn advance_clock(&self, seconds: u64) {
        self.state.store.lock().clock += seconds;
    }

    /// Whether it takes requests and never answers them.
    pub fn set_away(&self, away: bool) {
        self.state.away.store(away, Ordering::SeqCst);
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.state.store.lock().requests
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
    let mut store = state.store.lock();
    store.requests += 1;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = head.uri.path();
    let part = |kind: &str| path.split_once(kind).map(|(_, rest)| rest.trim_start_matches('/'));
    let (kind, rest) = match (part("/leases"), part("/cacheinvalidations")) {
        (Some(rest), _) => (Some(Kind::Lease), rest),
        (_, Some(rest)) => (Some(Kind::Invalidation), rest),
        _ => (None, ""),
    };
    let name = rest.split('/').next().filter(|name| !name.is_empty());
    let (status, answer) = match (head.method, kind, name) {
        (Method::GET, Some(kind), None) => (StatusCode::OK, store.list(kind, head.uri.query().unwrap_or_default())),
        (Method::GET, Some(kind), Some(name)) => store.of(kind).get(name).cloned().map_or_else(missing, found),
        (Method::POST, Some(kind), _) => store.create(kind, body),
        (Method::PATCH, Some(kind), Some(name)) => store.patch(kind, name, &body),
        (Method::DELETE, Some(kind), Some(name)) => store.of(kind).remove(name).map_or_else(missing, found),
        (Method::POST, None, _) if path.ends_with("/events") => found(body),
        _ => (StatusCode::METHOD_NOT_ALLOWED, Value::Null),
    };
    let answer = Response::builder().status(status).body(Full::new(Bytes::from(answer.to_string())));
    Ok(answer.unwrap_or_default())
}

fn found(object: Value) -> (StatusCode, Value) {
    (StatusCode::OK, object)
}

fn missing() -> (StatusCode, Value) {
    (StatusCode::NOT_FOUND, json!({"message": "not found"}))
}

fn conflict() -> (StatusCode, Value) {
    (StatusCode::CONFLICT, json!({"message": "the object has been modified"}))
}

impl Store {
    fn of(&mut self, kind: Kind) -> &mut Objects {
        match kind {
            Kind::Lease => &mut self.leases,
            Kind::Invalidation => &mut self.invalidations,
        }
    }

    /// `labelSelector=<label>[%3D<value>]`.
    fn list(&mut self, kind: Kind, query: &str) -> Value {
        let selector = query.split('&').find_map(|part| part.strip_prefix("labelSelector=")).unwrap_or_default();
        let label = selector.split("%3D").next().unwrap_or_default().replace("%2F", "/");
        let has = |object: &&Value| label.is_empty() || !object["metadata"]["labels"][&label].is_null();
        json!({"items": self.of(kind).values().filter(has).collect::<Vec<_>>()})
    }

    fn create(&mut self, kind: Kind, mut object: Value) -> (StatusCode, Value) {
        let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
            return (StatusCode::UNPROCESSABLE_ENTITY, json!({"message": "an object without a name"}));
        };
        if self.of(kind).contains_key(&name) {
            return conflict();
        }
        self.uids += 1;
        object["metadata"]["uid"] = json!(format!("uid-{}", self.uids));
        object["metadata"]["creationTimestamp"] = json!(self.now());
        if object["spec"].is_null() {
            object["spec"] = json!({});
        }
        self.store(kind, name, object)
    }

    fn patch(&mut self, kind: Kind, name: &str, patch: &Value) -> (StatusCode, Value) {
        let Some(mut object) = self.of(kind).get(name).cloned() else { return missing() };
        let named = &patch["metadata"]["resourceVersion"];
        if !named.is_null() && *named != object["metadata"]["resourceVersion"] {
            return conflict();
        }
        merge(&mut object, patch);
        self.store(kind, name.to_owned(), object)
    }

    fn store(&mut self, kind: Kind, name: String, mut object: Value) -> (StatusCode, Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.of(kind).insert(name, object.clone());
        found(object)
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
