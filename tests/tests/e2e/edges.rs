//! What goes wrong, and what is unusual: each time one clear message says what to do, and the app's pod lives on. Invalid
//! CacheClusters, a missing one, TCP instead of the socket, a wrong password, a new configuration for a running sidecar, a
//! killed sidecar, a Job, a pod that is deleted while its app still reads.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use caddy_tests::e2e::{Cluster, Console, Namespace, Pod, SIDECAR, container, eventually, holds, product};
use serde_json::{Value, json};

use super::{PATIENCE, app_pod, note, reads, start, step};

const EDGES: &str = "edges";
const REDIS: &str = "redis.edges:6379";
/// How long a kubelet may take to bring a changed ConfigMap into a pod, and the sidecar to read it.
const KUBELETS_PACE: Duration = Duration::from_mins(3);

/// Tells them one after another.
pub(crate) fn tell(cluster: &Cluster) -> Result<()> {
    let edges = Edges(Namespace::new(cluster, EDGES));
    step("a namespace with a Redis and an operator", || product::install_beside_redis(cluster, EDGES))?;
    step("an invalid CacheCluster is refused with all its faults", || edges.invalid_specs())?;
    step("a pod whose CacheCluster does not exist is refused by name", || edges.missing_cluster())?;
    step("over TCP inside the pod", || edges.over_tcp())?;
    step("a wrong password is told, and the right one recovers by itself", || edges.wrong_password())?;
    step("a new configuration reaches a running sidecar", || edges.new_configuration())?;
    step("a killed sidecar comes back, the app is not restarted", || edges.killed_sidecar())?;
    step("a Job ends", || edges.job())?;
    step("a pod that is deleted answers its app to the end", || edges.deleted_pod())
}

struct Edges<'a>(Namespace<'a>);

impl Edges<'_> {
    // === what is refused ===

    fn invalid_specs(&self) -> Result<()> {
        let message = refusal(
            self.cache("bad", &json!({"l2": {"maxBytes": "lots"}, "l3": {"redis": {"endpoints": ["redis"]}}})),
        )?;
        ensure!(message.contains("maxBytes") && message.contains("endpoints"), "not both faults are named: {message}");
        let both = self.cache("both", &json!({"l3": {"embedded": {}, "redis": {"endpoints": [REDIS]}}}));
        if self.0.cluster.minor() >= 25 {
            let message = refusal(both)?;
            ensure!(message.contains("exactly one"), "{message}");
        } else {
            // such a server evaluates no rules: the operator does
            both?;
            eventually("its status says what is wrong", PATIENCE, || {
                let ready = self.0.condition("both", "Ready")?;
                ensure!(ready["status"] == "False" && ready["reason"] == "InvalidSpec", "{ready}");
                ensure!(ready["message"].as_str().is_some_and(|message| message.contains("exactly one")), "{ready}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn missing_cluster(&self) -> Result<()> {
        let message = refusal(self.0.apply(&app("orphan", "nosuch", &json!({}))))?;
        ensure!(message.contains("nosuch") && message.contains("CacheCluster"), "{message}");
        note(message.lines().last().unwrap_or_default());
        Ok(())
    }

    // === what is unusual ===

    fn over_tcp(&self) -> Result<()> {
        self.cache("tcp", &json!({"listen": {"tcpPort": 6380}, "l3": {"redis": {"endpoints": [REDIS]}}}))?;
        let pod =
            self.start(&app("tcp", "tcp", &json!({"metadata": {"annotations": {"cache.caddy.dev/via": "tcp"}}})))?;
        let (_, object) = self.0.pods("tcp")?.into_iter().next().context("its pod")?;
        let url = container(&object["spec"], "app")?["env"][0]["value"].clone();
        ensure!(url == "redis://127.0.0.1:6380", "REDIS_URL is {url}");
        let mut console = self.0.console(&pod)?;
        console.reply(&["SET", "over:tcp", "yes"])?;
        reads(&mut console, "over:tcp", &json!("yes"))?;
        ensure!(self.0.redis(&["GET", "over:tcp"])? == "yes", "its write did not reach Redis");
        self.0.delete("pod", "tcp")
    }

    fn wrong_password(&self) -> Result<()> {
        self.0.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis", "namespace": EDGES},
            "stringData": {"password": "sesame"},
        }))?;
        self.0.redis(&["CONFIG", "SET", "requirepass", "another"])?;
        self.cache("locked", &json!({"l3": {"redis": {"endpoints": [REDIS], "authSecretRef": {"name": "redis"}}}}))?;
        let pod = self.start(&app("locked", "locked", &json!({})))?;
        let mut console = self.0.console(&pod)?;
        holds("the app is told and its pod is Ready", Duration::from_secs(5), || {
            let message = refused_command(&mut console, &["GET", "price:tea"])?;
            ensure!(message.contains("NOTREADY") && message.contains("password"), "{message}");
            self.0.exactly_ready::<1>("locked", true).map(drop)
        })?;
        note(refused_command(&mut console, &["GET", "price:tea"])?);
        self.0.redis(&["-a", "another", "--no-auth-warning", "CONFIG", "SET", "requirepass", "sesame"])?;
        let recovered =
            eventually("with the right password it works", PATIENCE, || console.reply(&["SET", "let:in", "yes"]));
        self.0.redis(&["-a", "sesame", "--no-auth-warning", "CONFIG", "SET", "requirepass", ""])?;
        let (_, taken) = recovered?;
        note(format!("usable {taken:.1?} after Redis knew the password"));
        self.no_restarts("locked")?;
        self.0.delete("pod", "locked")
    }

    fn new_configuration(&self) -> Result<()> {
        self.cache("live", &json!({"l3": {"redis": {"endpoints": [REDIS]}}}))?;
        let pod = self.start(&app("live", "live", &json!({})))?;
        let mut console = self.0.console(&pod)?;
        console.reply(&["SET", "queue:1", "job"])?;
        ensure!(self.hits(&pod, &mut console)? > 90, "before, reads of queue:1 are hits");
        self.cache(
            "live",
            &json!({"l3": {"redis": {"endpoints": [REDIS]}}, "keyspaces": [{"name": "queues", "match": "queue:*", "cache": "Off"}]}),
        )?;
        let (hits, taken) = eventually("reads of queue:1 are hits no longer", KUBELETS_PACE, || {
            let hits = self.hits(&pod, &mut console)?;
            ensure!(hits < 10, "{hits} of 100 reads were hits");
            Ok(hits)
        })?;
        note(format!("in force after {taken:.1?}: {hits} of 100 reads were hits"));
        self.no_restarts("live")
    }

    fn killed_sidecar(&self) -> Result<()> {
        let pod = self.start(&app("killed", "live", &json!({"spec": {"shareProcessNamespace": true}})))?;
        let mut console = self.0.console(&pod)?;
        console.reply(&["SET", "price:milk", "1.10"])?;
        let kill = "import os, glob, signal\n\
                    for path in glob.glob('/proc/[0-9]*/cmdline'):\n\
                    \x20   if open(path).read().startswith('caddy-sidecar'): os.kill(int(path.split('/')[2]), signal.SIGKILL)";
        pod.exec(self.0.cluster, "app", &["python3", "-c", kill])?;
        let ((), taken) = eventually("it serves again", PATIENCE, || {
            let restarts = self.0.restarts("killed")?;
            ensure!(restarts.iter().any(|(name, count)| name == SIDECAR && *count == 1), "{restarts:?}");
            reads(&mut console, "price:milk", &json!("1.10"))
        })?;
        let restarts = self.0.restarts("killed")?;
        ensure!(restarts.iter().all(|(name, count)| name == SIDECAR || *count == 0), "{restarts:?}");
        note(format!("after {taken:.1?}; the dead one's socket file was in the way"));
        self.0.delete("pod", "killed")
    }

    fn job(&self) -> Result<()> {
        let work = "import os, redis\n\
                    client = redis.Redis.from_url(os.environ['REDIS_URL'])\n\
                    client.set('job:done', 'yes')\n\
                    assert client.get('job:done') == b'yes'";
        let pod = app("job", "live", &json!({"spec": {"restartPolicy": "Never"}}));
        let mut template = json!({"metadata": pod["metadata"], "spec": pod["spec"]});
        template["metadata"]["name"] = Value::Null;
        template["spec"]["containers"][0]["args"] = json!(["-c", work]);
        template["spec"]["containers"][0]["readinessProbe"] = Value::Null;
        self.0.apply(&json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "namespace": EDGES},
            "spec": {"backoffLimit": 2, "template": template},
        }))?;
        let ((), taken) = eventually("it succeeds", PATIENCE, || {
            let status = self.0.get(["job", "job"])?["status"].clone();
            ensure!(status["succeeded"] == 1, "its status is {status}");
            Ok(())
        })?;
        let (_, object) = self.0.pods("job")?.into_iter().next().context("its pod")?;
        let injected = caddy_tests::e2e::has_sidecar(&object);
        ensure!(injected == self.0.cluster.has_native_sidecars(), "with a sidecar: {injected}");
        if !injected {
            // beside a plain sidecar it would never end
            let events = self.0.kubectl(["get", "events", "-o", "jsonpath={.items[*].message}"])?;
            ensure!(events.contains("restartPolicy"), "no Event says why it has no sidecar: {events}");
        }
        note(format!("after {taken:.1?}, with a sidecar: {injected}"));
        Ok(())
    }

    fn deleted_pod(&self) -> Result<()> {
        let work = "import os, redis, signal, time\n\
                    client = redis.Redis.from_url(os.environ['REDIS_URL'])\n\
                    told = []\n\
                    signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))\n\
                    reads = errors = 0\n\
                    print('reading')\n\
                    while not told or time.monotonic() - told[0] < 3:\n\
                    \x20   try: client.set('last', 'word'); client.get('last')\n\
                    \x20   except redis.RedisError as error: print(error); errors += bool(told)\n\
                    \x20   reads += bool(told)\n\
                    \x20   time.sleep(0.005)\n\
                    print(f'{reads} reads and {errors} errors after SIGTERM')";
        let mut pod = app("deleted", "live", &json!({"spec": {"terminationGracePeriodSeconds": 20}}));
        pod["spec"]["containers"][0]["args"] = json!(["-c", work]);
        pod["spec"]["containers"][0]["readinessProbe"] = Value::Null;
        let pod = self.start(&pod)?;
        let mut command: Command = self.0.cluster.command();
        let logs = command.args(["logs", "-f", "-n", EDGES, &pod.name, "-c", "app"]).stdout(Stdio::piped()).spawn()?;
        // it must be following before the pod goes
        eventually("the app reads", PATIENCE, || {
            let said = self.0.kubectl(["logs", &pod.name, "-c", "app"])?;
            ensure!(said.contains("reading"), "{said}");
            Ok(())
        })?;
        self.0.delete("pod", &pod.name)?;
        let said = String::from_utf8(logs.wait_with_output()?.stdout)?;
        let last = said.lines().last().unwrap_or_default();
        ensure!(last.ends_with(" 0 errors after SIGTERM"), "the app said: {said}");
        let reads: u32 = last.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default();
        ensure!(reads > 50, "the app said: {said}");
        note(last);
        Ok(())
    }

    // === helpers ===

    fn cache(&self, name: &str, spec: &Value) -> Result<String> {
        let metadata = json!({"name": name, "namespace": EDGES});
        self.0.apply(&json!({"apiVersion": "cache.caddy.dev/v1alpha1", "kind": "CacheCluster", "metadata": metadata, "spec": spec}))
    }

    fn start(&self, pod: &Value) -> Result<Pod> {
        start(&self.0, pod)
    }

    /// Of 100 reads of `queue:1`, those that a tier answered; the app's own reads, one a second, count too.
    fn hits(&self, pod: &Pod, console: &mut Console) -> Result<u64> {
        let before: u64 = self.0.tier_hits(pod)?.iter().sum();
        for _ in 0..100 {
            reads(console, "queue:1", &json!("job"))?;
        }
        Ok(self.0.tier_hits(pod)?.iter().sum::<u64>() - before)
    }

    fn no_restarts(&self, app: &str) -> Result<()> {
        let restarts = self.0.restarts(app)?;
        ensure!(restarts.iter().all(|(_, count)| *count == 0), "containers were restarted: {restarts:?}");
        Ok(())
    }
}

fn app(name: &str, cache: &str, more: &Value) -> Value {
    app_pod(EDGES, name, cache, more)
}

/// The message of what must be refused.
fn refusal<T>(result: Result<T>) -> Result<String> {
    match result {
        Ok(_) => bail!("it was accepted"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn refused_command(console: &mut Console, words: &[&str]) -> Result<String> {
    match console.run(words)?.outcome {
        Ok(reply) => bail!("{words:?} was answered with {reply}"),
        Err(error) => Ok(error),
    }
}
