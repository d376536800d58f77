//! A shop's story: Helm install, one apply of one file, two pods whose ordinary Redis client talks to the socket; then its
//! Redis goes, its operator goes, its CacheCluster goes, and each time the app's pods stay what they were.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use caddy_tests::e2e::{
    Cluster, Console, Namespace, Pod, SIDECAR, Stopwatch, container, eventually, holds, product, repository,
};
use serde_json::json;

use super::{MAX_STALENESS, PATIENCE, note, reads, step};

const SHOP: &str = "shop";
const LABEL: &str = "cache.caddy.dev/cluster";
const KEY: &str = "price:coffee";

/// Tells it.
pub(crate) fn tell(cluster: &Cluster) -> Result<()> {
    let story = Story(Namespace::new(cluster, SHOP));
    step("Helm installs the operator", || product::install(cluster))?;
    step("the operator has the chart's rights and no others", || the_operator_has_only_the_charts_rights(cluster))?;
    let pods = step("one apply of one file starts two pods with sidecars", || story.apply())?;
    step("the injected pods have the documented form", || story.pods_have_the_documented_form())?;
    let [mut a, mut b] = story.consoles(&pods)?;
    step("hits come from L1 and L2", || story.hits_come_from_the_tiers(&pods[0], &mut a))?;
    step("a write in pod A is seen in pod B", || a_write_is_seen_in_the_other_pod(&mut a, &mut b))?;
    step("a write straight to Redis is seen in both", || story.a_foreign_write_is_seen(&mut a, &mut b))?;
    step("with Redis stalled nothing is served beyond the bound", || story.redis_stalls(&mut a, &mut b))?;
    step("a pod without the label uses Redis directly", || story.a_pod_without_the_label_works())?;
    drop((a, b));
    let pods = step("without the operator pods start and use Redis directly", || story.without_the_operator())?;
    let [mut a, mut b] = story.consoles(&pods)?;
    step("with Redis gone the bound holds and the pods stay Ready", || story.redis_goes(&mut a, &mut b))?;
    step("with Redis back everything works", || story.redis_returns(&mut a, &mut b))?;
    step("deleting the CacheCluster cleans up", || story.delete_the_cluster(&mut a))?;
    drop((a, b));
    step("the way back is one label", || story.without_the_label())
}

struct Story<'a>(Namespace<'a>);

impl Story<'_> {
    // === pods ===

    fn apply(&self) -> Result<[Pod; 2]> {
        let file = repository().join("tests/manifests/shop.yaml");
        let text = std::fs::read_to_string(&file)?;
        let (deployment, cache) = (text.find("kind: Deployment"), text.find("kind: CacheCluster"));
        ensure!(deployment.is_some() && deployment < cache, "in {} the Deployment comes first", file.display());
        self.0.cluster.apply(&file)?;
        let (pods, taken) = eventually("two pods with sidecars are Ready", PATIENCE, || self.injected())?;
        note(format!("both Ready after {taken:.1?}"));
        eventually("the CacheCluster is Ready", PATIENCE, || {
            let ready = self.0.condition(SHOP, "Ready")?;
            ensure!(ready["status"] == "True", "{ready}");
            Ok(())
        })?;
        Ok(pods)
    }

    fn pods_have_the_documented_form(&self) -> Result<()> {
        let native = self.0.cluster.has_native_sidecars();
        let list = if native { "initContainers" } else { "containers" };
        for (pod, object) in self.0.pods("shop")? {
            let (pod, spec) = (pod.name, &object["spec"]);
            let sidecar = &spec[list][0];
            ensure!(sidecar["name"] == SIDECAR, "{pod}: the first of its {list} is {}", sidecar["name"]);
            let policy = &sidecar["restartPolicy"];
            ensure!(!native || policy == "Always", "{pod}: the native sidecar's restartPolicy is {policy}");
            ensure!(sidecar["readinessProbe"].is_null(), "{pod}: the sidecar has a readiness probe");
            let context = &sidecar["securityContext"];
            ensure!(context["runAsNonRoot"] == true && context["readOnlyRootFilesystem"] == true, "{pod}: {context}");
            let environment = container(spec, "app")?["env"].as_array().cloned().unwrap_or_default();
            for (name, wanted) in
                [("CADDY_SOCKET", "/run/caddy/cache.sock"), ("REDIS_URL", "unix:///run/caddy/cache.sock")]
            {
                let found = environment.iter().find(|variable| variable["name"] == name);
                ensure!(found.is_some_and(|found| found["value"] == wanted), "{pod}: {name} is {found:?}");
            }
            let marker = &object["metadata"]["annotations"]["cache.caddy.dev/injected"];
            ensure!(marker.is_string(), "{pod}: no marker annotation");
        }
        Ok(())
    }

    fn injected(&self) -> Result<[Pod; 2]> {
        self.0.exactly_ready("shop", true)
    }

    fn consoles(&self, pods: &[Pod; 2]) -> Result<[Console; 2]> {
        Ok([self.0.console(&pods[0])?, self.0.console(&pods[1])?])
    }

    // === coherence ===

    fn hits_come_from_the_tiers(&self, pod: &Pod, a: &mut Console) -> Result<()> {
        a.reply(&["SET", KEY, "3.20"])?;
        // the first reads fill the tiers
        for _ in 0..3 {
            reads(a, KEY, &json!("3.20"))?;
        }
        let (before, asked) = (self.0.tier_hits(pod)?, self.redis_gets()?);
        let mut fastest = Duration::MAX;
        for _ in 0..200 {
            let answer = a.run(&["GET", KEY])?;
            ensure!(answer.outcome == Ok(json!("3.20")), "{answer:?}");
            fastest = fastest.min(answer.taken);
        }
        let after = self.0.tier_hits(pod)?;
        let [l1, l2] = [0, 1].map(|tier| after[tier] - before[tier]);
        ensure!(l1 + l2 >= 200, "of 200 reads {l1} were answered by L1 and {l2} by L2");
        ensure!(l1 > 0, "no read of 200 was answered by L1");
        let reached = self.redis_gets()? - asked;
        ensure!(reached < 20, "of 200 reads {reached} reached Redis");
        note(format!(
            "200 reads: {l1} from L1, {l2} from L2; Redis saw {reached} GETs; fastest {fastest:.0?} in Python"
        ));
        Ok(())
    }

    fn a_foreign_write_is_seen(&self, a: &mut Console, b: &mut Console) -> Result<()> {
        for round in 0..3 {
            let value = format!("foreign {round}");
            self.0.redis(&["SET", KEY, &value])?;
            let watch = Stopwatch::start();
            for (name, console) in [("A", &mut *a), ("B", &mut *b)] {
                while console.reply(&["GET", KEY])? != value.as_str() {
                    let late = watch.elapsed();
                    ensure!(late < MAX_STALENESS, "{name} still reads the old value {late:?} after the write");
                }
            }
        }
        Ok(())
    }

    /// Redis answers nobody for a while, but its connections stay open: only the missing proof tells the sidecars.
    fn redis_stalls(&self, a: &mut Console, b: &mut Console) -> Result<()> {
        const STALL: Duration = Duration::from_secs(8);
        a.reply(&["SET", KEY, "before the stall"])?;
        for console in [&mut *a, &mut *b] {
            eventually("both hold a copy", MAX_STALENESS, || reads(console, KEY, &json!("before the stall")))?;
            reads(console, KEY, &json!("before the stall"))?;
        }
        let before = self.0.restarts("shop")?;
        let millis = STALL.as_millis().to_string();
        // the stall begins between these two moments
        let earliest = Stopwatch::start();
        self.0.redis(&["CLIENT", "PAUSE", &millis, "ALL"])?;
        let latest = Stopwatch::start();
        let (mut served, mut refused) = (0, 0);
        // the last second is left out: a read that began in it may end after the stall
        while earliest.elapsed() < STALL.saturating_sub(Duration::from_secs(1)) {
            for console in [&mut *a, &mut *b] {
                let began = latest.elapsed();
                let answer = console.run(&["GET", KEY])?;
                if earliest.elapsed() >= STALL {
                    break;
                }
                match answer.outcome {
                    Ok(reply) => {
                        ensure!(began <= MAX_STALENESS, "{reply} was served {began:?} after Redis stalled");
                        served += 1;
                    }
                    Err(error) => {
                        ensure!(error.contains("NOTREADY"), "the error does not say what is wrong: {error}");
                        refused += 1;
                    }
                }
            }
        }
        ensure!(refused > 0, "no read was refused in {STALL:?}");
        self.injected().context("both pods are Ready")?;
        ensure!(self.0.restarts("shop")? == before, "containers were restarted");
        let (_, taken) = eventually("A writes again", PATIENCE, || a.reply(&["SET", KEY, "after the stall"]))?;
        eventually("B reads it", MAX_STALENESS * 5, || reads(b, KEY, &json!("after the stall")))?;
        note(format!("{served} reads served within the bound, then {refused} refused; usable {taken:.1?} later"));
        Ok(())
    }

    // === without a sidecar ===

    fn a_pod_without_the_label_works(&self) -> Result<()> {
        let (_, shop) = self.0.pods("shop")?.into_iter().next().context("a shop pod")?;
        let app = container(&shop["spec"], "app")?;
        self.0.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "plain", "namespace": SHOP, "labels": {"app": "plain"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "volumes": [{"name": "app", "configMap": {"name": "app"}}],
                "containers": [{
                    "name": "app", "image": app["image"], "imagePullPolicy": "IfNotPresent", "args": app["args"],
                    "env": [{"name": "REDIS_URL", "value": "redis://redis.shop:6379"}],
                    "volumeMounts": [{"name": "app", "mountPath": "/app"}],
                }],
            },
        }))?;
        let ([pod], _) =
            eventually("it is Ready without a sidecar", PATIENCE, || self.0.exactly_ready("plain", false))?;
        self.0.console(&pod)?.reply(&["SET", "from:plain", "yes"])?;
        ensure!(self.0.redis(&["GET", "from:plain"])? == "yes", "its write did not reach Redis");
        self.0.delete("pod", "plain")
    }

    fn without_the_operator(&self) -> Result<[Pod; 2]> {
        let (shop, cluster) = (&self.0, self.0.cluster);
        let operator = product::operator(cluster)?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        cluster.scale(product::SYSTEM, &operator, 0)?;
        eventually("the operator is gone", PATIENCE, || {
            ensure!(cluster.json(["get", "pods", "-n", product::SYSTEM])?["items"] == json!([]), "it still has pods");
            Ok(())
        })?;
        let (victim, _) = shop.pods("shop")?.into_iter().next().context("a shop pod")?;
        shop.delete("pod", &victim.name)?;
        let ([missed], _) =
            eventually("a pod without a sidecar is Ready", PATIENCE, || shop.exactly_ready("shop", false))?;
        shop.console(&missed)?.reply(&["SET", "from:uninjected", "yes"])?;
        ensure!(shop.redis(&["GET", "from:uninjected"])? == "yes", "its write did not reach Redis");

        cluster.scale(product::SYSTEM, &operator, 2)?;
        eventually("the operator is back and counts the pod it missed", PATIENCE, || {
            let pods = shop.status(SHOP)?["pods"].clone();
            ensure!(pods["selected"] == 2 && pods["injected"] == 1, "status.pods is {pods}");
            Ok(())
        })?;
        let deployment = format!("deployment/{operator}");
        cluster.kubectl(["rollout", "status", &deployment, "-n", product::SYSTEM, "--timeout=120s"])?;
        let (pods, _) = eventually("a pod that replaces it has a sidecar", PATIENCE, || {
            // the Service's rules follow the operator's readiness after a moment, so one replacement may come too early
            for missed in shop.ready("shop", false)? {
                shop.delete("pod", &missed.name)?;
            }
            self.injected()
        })?;
        Ok(pods)
    }

    // === Redis goes and returns ===

    fn redis_goes(&self, a: &mut Console, b: &mut Console) -> Result<()> {
        a.reply(&["SET", KEY, "before"])?;
        for console in [&mut *a, &mut *b] {
            eventually("both hold a copy", MAX_STALENESS, || reads(console, KEY, &json!("before")))?;
            reads(console, KEY, &json!("before"))?;
        }
        let before = self.0.restarts("shop")?;
        self.0.cluster.scale(SHOP, "redis", 0)?;
        eventually("Redis is gone", PATIENCE, || {
            let list = self.0.get(["pods", "-l", "app=redis"])?;
            ensure!(list["items"] == json!([]), "its pod is still there");
            Ok(())
        })?;
        std::thread::sleep(MAX_STALENESS);
        let mut refusals = 0;
        let asked = holds("nothing unproven is served, both pods are Ready", Duration::from_secs(10), || {
            for console in [&mut *a, &mut *b] {
                match console.run(&["GET", KEY])?.outcome {
                    Ok(reply) => bail!("a read was answered with {reply}, which nobody can vouch for"),
                    Err(error) => ensure!(error.contains("NOTREADY"), "the error does not say what is wrong: {error}"),
                }
                ensure!(console.reply(&["PING"])? == json!(true), "PING is not answered");
                refusals += 1;
            }
            self.injected().map(drop)
        })?;
        let after = self.0.restarts("shop")?;
        ensure!(after == before, "containers were restarted: {after:?}, before {before:?}");
        note(format!("{refusals} reads refused in 10 s, pods Ready all {asked} times, no restart"));
        Ok(())
    }

    fn redis_returns(&self, a: &mut Console, b: &mut Console) -> Result<()> {
        self.0.cluster.scale(SHOP, "redis", 1)?;
        let (_, taken) = eventually("A writes again", PATIENCE, || a.reply(&["SET", KEY, "after"]))?;
        for console in [&mut *a, &mut *b] {
            eventually("both read it", Duration::from_secs(10), || reads(console, KEY, &json!("after")))?;
        }
        self.0.redis(&["SET", KEY, "after, foreign"])?;
        for console in [&mut *a, &mut *b] {
            eventually("and learn of foreign writes", MAX_STALENESS, || reads(console, KEY, &json!("after, foreign")))?;
        }
        note(format!("usable {taken:.1?} after Redis was asked to start"));
        Ok(())
    }

    // === the way back ===

    fn delete_the_cluster(&self, a: &mut Console) -> Result<()> {
        let shop = &self.0;
        let config_map = || shop.cluster.exists(SHOP, "configmap", "caddy-shop");
        ensure!(config_map()?, "there is no ConfigMap caddy-shop to clean up");
        shop.kubectl(["delete", "cachecluster", "shop"])?;
        eventually("what the operator made is gone", PATIENCE, || {
            ensure!(!config_map()?, "ConfigMap caddy-shop is still there");
            Ok(())
        })?;
        reads(a, KEY, &json!("after, foreign")).context("a running sidecar serves on")?;
        let [_, victim] = self.injected()?;
        shop.delete("pod", &victim.name)?;
        eventually("a new pod is refused with a message that names the CacheCluster", PATIENCE, || {
            let sets = shop.get(["replicasets", "-l", "app=shop"])?;
            let sets = sets["items"].as_array().into_iter().flatten();
            let conditions = sets.filter_map(|set| set["status"]["conditions"].as_array()).flatten();
            let messages: Vec<_> = conditions.filter_map(|condition| condition["message"].as_str()).collect();
            let named = |message: &&str| message.contains("CacheCluster") && message.contains("shop");
            ensure!(messages.iter().any(named), "{messages:?}");
            Ok(())
        })?;
        Ok(())
    }

    fn without_the_label(&self) -> Result<()> {
        let patch = json!({"spec": {"template": {"metadata": {"labels": {LABEL: null}}}}}).to_string();
        self.0.kubectl(["patch", "deployment", "shop", "-p", &patch])?;
        self.0.kubectl(["rollout", "status", "deployment/shop", "--timeout=120s"])?;
        let ([pod, _], _) =
            eventually("two pods without sidecars are Ready", PATIENCE, || self.0.exactly_ready::<2>("shop", false))?;
        reads(&mut self.0.console(&pod)?, KEY, &json!("after, foreign")).context("the app reads from Redis")
    }

    /// How many GETs Redis has executed.
    fn redis_gets(&self) -> Result<u64> {
        let stats = self.0.redis(&["INFO", "commandstats"])?;
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls="));
        Ok(line.and_then(|line| line.split(',').next()).and_then(|calls| calls.parse().ok()).unwrap_or_default())
    }
}

fn the_operator_has_only_the_charts_rights(cluster: &Cluster) -> Result<()> {
    let operator = product::operator(cluster)?;
    let account = operator["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    ensure!(!account.is_empty() && account != "default", "the operator runs as \"{account}\"");
    let user = format!("--as=system:serviceaccount:{}:{account}", product::SYSTEM);
    let can = |verb: &str, what: &str| {
        // its exit code for a no is 1
        let output = cluster.command().args(["auth", "can-i", verb, what, "-n", "default", &user]).output()?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).trim() == "yes")
    };
    ensure!(can("list", "cacheclusters.cache.caddy.dev")?, "{account} may not list CacheClusters");
    for (verb, what) in
        [("*", "*"), ("get", "secrets"), ("create", "pods"), ("delete", "pods"), ("create", "clusterrolebindings")]
    {
        ensure!(!can(verb, what)?, "{account} may {verb} {what} in other namespaces");
    }
    Ok(())
}

fn a_write_is_seen_in_the_other_pod(a: &mut Console, b: &mut Console) -> Result<()> {
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let (old, new) = (format!("old {round}"), format!("new {round}"));
        a.reply(&["SET", KEY, &old])?;
        // B holds a copy before A writes
        eventually("B reads what A wrote", MAX_STALENESS, || reads(b, KEY, &json!(old)))?;
        a.reply(&["SET", KEY, &new])?;
        let watch = Stopwatch::start();
        ensure!(a.reply(&["GET", KEY])? == new.as_str(), "A does not read its own write");
        while b.reply(&["GET", KEY])? != new.as_str() {
            ensure!(
                watch.elapsed() < MAX_STALENESS,
                "B still reads the old value {:?} after A's write",
                watch.elapsed()
            );
        }
        slowest = slowest.max(watch.elapsed());
    }
    note(format!("20 writes: B had the new value at the latest after {slowest:.0?}"));
    Ok(())
}
