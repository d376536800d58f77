//! Fixtures of unit tests.

use crate::{
    capabilities::Capabilities, context::Context, events::EventQueue, events::EventSink, leader::Leadership,
    metrics::Metrics, settings::Settings,
};
use arc_swap::ArcSwap;
use caddy_crds::CacheCluster;
use clap::Parser;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tokio::task::JoinSet;

/// A valid CacheCluster `shop/web`, generation 3.
pub(crate) fn cluster() -> CacheCluster {
    cluster_with(&json!({"l3": {"redis": {"endpoints": ["redis.shop:6379"]}}}))
}

/// The same with another spec.
pub(crate) fn cluster_with(spec: &Value) -> CacheCluster {
    serde_json::from_value(json!({
        "apiVersion": "cache.caddy.dev/v1alpha1",
        "kind": "CacheCluster",
        "metadata": {"name": "web", "namespace": "shop", "uid": "uid-1", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

/// A typed pod from its JSON.
pub(crate) fn pod(object: &Value) -> Pod {
    serde_json::from_value(object.clone()).unwrap()
}

/// A context over `client`, with the end of the queue that Events go into.
pub(crate) fn context(client: Client, flags: &[&str]) -> (Context, EventQueue) {
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }
    let needed =
        ["run", "--namespace=caddy", "--sidecar-image=caddy:1", "--webhook-hosts=h", "--webhook-configuration=caddy"];
    let settings = Flags::try_parse_from(needed.iter().chain(flags)).unwrap().settings;
    let metrics = Arc::new(Metrics::new());
    let (events, queue) = EventSink::new(metrics.clone());
    let capabilities = Capabilities { minor: 20, native_sidecars: false, cel: false };
    let capabilities = Arc::new(ArcSwap::from_pointee(capabilities));
    let leadership = Leadership::alone();
    (Context { client, settings: Arc::new(settings), capabilities, events, leadership, metrics }, queue)
}

/// A write that an API server saw: method, path and body.
pub(crate) type Write = (Method, String, Value);

/// An API server in memory: objects by path, resourceVersions, and refusals on demand. No lists, no watches.
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    writes: Vec<Write>,
    refused: Option<(Method, String)>,
    version: u64,
}

impl FakeApi {
    /// An empty one, with a client.
    pub(crate) fn new() -> (Self, Client) {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Some((request, reply)) = handle.next_request().await {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or_default();
                let (code, answer) = shared.lock().answer(&method, &path, body);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                reply.send_response(Response::builder().status(code).body(answer).unwrap());
            }
        });
        (Self { state, _server: server }, Client::new(service, "default"))
    }

    /// Puts an object at a path.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state.lock().objects.insert(path.to_owned(), object);
    }

    /// The object at a path.
    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// Takes an object away.
    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().objects.remove(path);
    }

    /// Refuses a method on a path with 403, until told otherwise.
    pub(crate) fn refuse(&self, what: Option<(Method, &str)>) {
        self.state.lock().refused = what.map(|(method, path)| (method, path.to_owned()));
    }

    /// What was written since the last call.
    pub(crate) fn writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.state.lock().writes)
    }
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        if self.refused.as_ref().is_some_and(|(m, p)| m == method && p == path) {
            return failure(403, "Forbidden");
        }
        if method == Method::GET {
            return self.objects.get(path).map_or_else(|| failure(404, "NotFound"), |object| (200, object.clone()));
        }
        self.writes.push((method.clone(), path.to_owned(), body.clone()));
        self.version += 1;
        if path.ends_with("/token") {
            let until = "1970-01-02T00:16:40Z"; // 24 h after the tests' 1,000
            return (
                200,
                json!({"kind": "TokenRequest", "metadata": {}, "spec": body["spec"], "status": {"token": "t", "expirationTimestamp": until}}),
            );
        }
        let at = match *method {
            Method::POST => format!("{path}/{}", body["metadata"]["name"].as_str().unwrap()),
            _ => path.to_owned(),
        };
        let known = self.objects.get(&at).cloned();
        let mut object = match (method.as_str(), known) {
            ("POST", Some(_)) => return failure(409, "AlreadyExists"),
            // Server-side apply creates an object, but not the status of one that is gone.
            ("PATCH", None) if path.ends_with("/status") => return failure(404, "NotFound"),
            ("PATCH", Some(known)) if is_outdated(&body, &known) => return failure(409, "Conflict"),
            ("PATCH", Some(mut known)) => {
                merge(&mut known, &body);
                known
            }
            _ => body,
        };
        object["metadata"]["resourceVersion"] = json!((100 + self.version).to_string());
        self.objects.insert(at, object.clone());
        (200, object)
    }
}

/// Whether a write names another version than the object's.
fn is_outdated(body: &Value, known: &Value) -> bool {
    let version = &body["metadata"]["resourceVersion"];
    version.is_string() && *version != known["metadata"]["resourceVersion"]
}

/// A merge that finds the items of lists by their names, as strategic merges and server-side apply do.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) if from.iter().all(|item| item["name"].is_string()) => {
            for item in from {
                match into.iter_mut().find(|known| known["name"] == item["name"]) {
                    Some(known) => merge(known, item),
                    None => into.push(item.clone()),
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code});
    (code, status)
}
