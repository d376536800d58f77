//! Sidecars that talk to the app's database: it is asked with a Secret that the app does not see; what was acknowledged
//! survives the sidecar's process in a log, and the pod in Redis; a pod that starts is warm before it is Ready.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddy_tests::e2e::{Cluster, Namespace, Pod, container, eventually, product};
use serde_json::{Value, json};

use super::{PATIENCE, app_pod, note, reads, start, step};

const NAMESPACE: &str = "stores";
const CLUSTER: &str = "stocked";
/// How long a kubelet may take to bring a new Secret into a pod, and the sidecar to report.
const KUBELETS_PACE: Duration = Duration::from_mins(4);
/// How many reads a pod that starts has to make before it counts as started, and of how many.
const WARM: usize = 100;

/// Values in memory behind HTTP, for whoever knows the password; `/-/down` and `/-/up` make it fail and work.
const DATABASE: &str = r#"
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
values = {"item%3A1": "tea"}
up = True
class Database(BaseHTTPRequestHandler):
    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def handle_one(self):
        global up
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        key = self.path[1:]
        if key.startswith("-/"):
            up = {"-/up": True, "-/down": False}.get(key, up)
            return self.answer(200, json.dumps(values).encode())
        if not up: return self.answer(503)
        if self.headers.get("authorization") != "Bearer sesame": return self.answer(401)
        if self.command == "PUT": values[key] = body
        if self.command == "DELETE": values.pop(key, None)
        if self.command == "GET" and key not in values: return self.answer(404)
        self.answer(200, values[key].encode() if self.command == "GET" else b"")
    do_GET = do_PUT = do_DELETE = handle_one
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
ThreadingHTTPServer(("", 8080), Database).serve_forever()
"#;

/// Tells it.
pub(crate) fn tell(cluster: &Cluster) -> Result<()> {
    let story = Story(Namespace::new(cluster, NAMESPACE));
    step("a namespace with a Redis and an operator", || product::install_beside_redis(cluster, NAMESPACE))?;
    step("a database behind HTTP that wants a password", || story.database())?;
    step("a sidecar loads from it, with a Secret that the app does not see", || story.loads())?;
    step("what was acknowledged survives the end of the sidecar's process", || story.process_ends())?;
    step("and with durability Replicated the end of the pod", || story.pod_ends())?;
    step("a pod that starts has read what others are asked for", || story.warm_start())
}

struct Story<'a>(Namespace<'a>);

impl Story<'_> {
    fn database(&self) -> Result<()> {
        let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE});
        self.0.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("database"), "data": {"database.py": DATABASE},
        }))?;
        self.0.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata("database"),
            "stringData": {"authorization": "Bearer sesame"},
        }))?;
        self.0.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata("database"),
            "spec": {"selector": {"app": "database"}, "ports": [{"port": 8080}]},
        }))?;
        self.0.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "database", "namespace": NAMESPACE, "labels": {"app": "database"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "volumes": [{"name": "database", "configMap": {"name": "database"}}],
                "containers": [{
                    "name": "app", "image": "local/client:test", "imagePullPolicy": "IfNotPresent", "args": ["/database/database.py"],
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "database", "mountPath": "/database"}],
                }],
            },
        }))?;
        let behind = |durability: &str| json!({"durability": durability, "replicas": 0, "adoptAfter": "5s"});
        self.0.apply(&json!({
            "apiVersion": "cache.caddy.dev/v1alpha1", "kind": "CacheCluster", "metadata": metadata(CLUSTER),
            "spec": {
                "l3": {"redis": {"endpoints": [format!("redis.{NAMESPACE}:6379")]}},
                "stores": [{
                    "name": "goods",
                    "http": {
                        "url": format!("http://database.{NAMESPACE}:8080/{{key}}"), "retries": 0,
                        "headers": [{"name": "authorization", "secretRef": {"name": "database", "key": "authorization"}}],
                    },
                }],
                "keyspaces": [
                    {"name": "items", "match": "item:*", "strategy": "ReadThrough", "store": "goods", "ttl": "5m"},
                    {"name": "counts", "match": "count:*", "strategy": "WriteBehind", "store": "goods", "writeBehind": behind("Pod")},
                    {"name": "orders", "match": "order:*", "strategy": "WriteBehind", "store": "goods", "writeBehind": behind("Replicated")},
                ],
                "warming": {"enabled": true, "startupShare": 100, "startupDeadline": "60s"},
            },
        }))?;
        let ready = || self.0.exactly_ready::<1>("database", false);
        eventually("it is Ready", PATIENCE, ready).map(drop)
    }

    fn loads(&self) -> Result<()> {
        let shared = json!({"spec": {"shareProcessNamespace": true}});
        let pod = start(&self.0, &app_pod(NAMESPACE, "first", CLUSTER, &shared))?;
        reads(&mut self.0.console(&pod)?, "item:1", &json!("tea"))?;
        let (_, object) = self.0.pods("first")?.into_iter().next().context("its pod")?;
        let app = container(&object["spec"], "app")?.to_string();
        ensure!(!app.contains("store"), "the app's container has something of the store: {app}");
        Ok(())
    }

    fn process_ends(&self) -> Result<()> {
        let [pod] = self.0.exactly_ready("first", true)?;
        let mut console = self.0.console(&pod)?;
        self.ask_database("-/down")?;
        console.reply(&["SET", "count:1", "one"])?;
        console.reply(&["SET", "count:1", "two"])?;
        let kill = "import os, glob, signal\n\
                    for path in glob.glob('/proc/[0-9]*/cmdline'):\n\
                    \x20   if open(path).read().startswith('caddy-sidecar'): os.kill(int(path.split('/')[2]), signal.SIGKILL)";
        pod.exec(self.0.cluster, "app", &["python3", "-c", kill])?;
        // The write is gone from Redis too: only the log in the pod has it.
        self.0.redis(&["DEL", "count:1"])?;
        self.ask_database("-/up")?;
        self.has_stored("count%3A1", "two")
    }

    fn pod_ends(&self) -> Result<()> {
        let pod = start(&self.0, &app_pod(NAMESPACE, "second", CLUSTER, &json!({})))?;
        // Who adopts is agreed on through a Lease, for which sidecars need their token.
        eventually("both report", KUBELETS_PACE, || {
            let members = self.0.status(CLUSTER)?["members"].clone();
            ensure!(members["ready"] == 2, "status.members is {members}");
            Ok(())
        })?;
        self.ask_database("-/down")?;
        self.0.console(&pod)?.reply(&["SET", "order:1", "a pound of tea"])?;
        self.0.kubectl(["delete", "pod", &pod.name, "--grace-period=0", "--force"])?;
        eventually("it is gone", PATIENCE, || {
            ensure!(self.0.pods("second")?.is_empty());
            Ok(())
        })?;
        self.ask_database("-/up")?;
        self.has_stored("order%3A1", "a pound of tea")
    }

    fn warm_start(&self) -> Result<()> {
        // Its sidecar was killed a while ago.
        let ([first], _) = eventually("the first is Ready", PATIENCE, || self.0.exactly_ready("first", true))?;
        let mut console = self.0.console(&first)?;
        let keys: Vec<String> = (0..WARM).map(|n| format!("warm:{n}")).collect();
        for key in &keys {
            console.reply(&["SET", key, "value"])?;
        }
        eventually("the first has written down what it is asked for", PATIENCE, || {
            keys.iter().try_for_each(|key| reads(&mut console, key, &json!("value")))?;
            let boards = self.0.redis(&["--scan", "--pattern", "caddy:*:hot:*"])?;
            let names: Vec<&str> = boards.lines().collect();
            let texts: Vec<String> =
                names.iter().map(|name| self.0.redis(&["--raw", "GET", name])).collect::<Result<_>>()?;
            ensure!(
                keys.iter().all(|key| texts.iter().any(|text| text.contains(key.as_str()))),
                "{names:?}: {texts:?}"
            );
            Ok(())
        })?;
        let pod = start(&self.0, &app_pod(NAMESPACE, "third", CLUSTER, &json!({})))?;
        let copies = self.0.metrics(&pod)?.sum("caddy_l2_entries", &[]);
        ensure!(copies >= WARM as u64, "the pod is Ready with {copies} copies");
        let before: u64 = self.0.tier_hits(&pod)?.iter().sum();
        let mut console = self.0.console(&pod)?;
        keys.iter().try_for_each(|key| reads(&mut console, key, &json!("value")))?;
        let hits = self.0.tier_hits(&pod)?.iter().sum::<u64>() - before;
        ensure!(hits >= WARM as u64, "{hits} of {WARM} first reads were hits");
        note(format!("Ready with {copies} copies; {hits} of {WARM} first reads were hits"));
        Ok(())
    }

    // === helpers ===

    /// What the database has, after it was told this.
    fn ask_database(&self, path: &str) -> Result<Value> {
        let database = Pod { namespace: NAMESPACE.to_owned(), name: "database".to_owned() };
        let ask =
            format!("import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/{path}').read().decode())");
        let said = database.exec(self.0.cluster, "app", &["python3", "-c", &ask])?;
        serde_json::from_str(&said).with_context(|| format!("the database said {said}"))
    }

    fn has_stored(&self, key: &str, value: &str) -> Result<()> {
        let ((), taken) = eventually("the database has it", PATIENCE, || {
            let values = self.ask_database("-/values")?;
            ensure!(values[key] == value, "it has {values}");
            Ok(())
        })?;
        note(format!("stored {taken:.1?} after the database was back"));
        Ok(())
    }
}
