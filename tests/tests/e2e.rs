//! The whole product on a real Kubernetes: Helm install, one `kubectl apply`, two pods with an ordinary Redis client.
//!
//! Runs where `CADDY_E2E_KUBECONFIG` names a kubeconfig, else says that it was skipped: `cargo xtask test` names one. On a
//! Kubernetes of 1.29 or newer the sidecars are native, on an older one plain containers; the story is the same. It owns the
//! namespaces `shop` and `caddy-system` and leaves neither behind.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use caddy_tests::e2e::{Cluster, Console, Metrics, Pod, Stopwatch, eventually, holds, repository};
use serde_json::{Value, json};

const SHOP: &str = "shop";
const SYSTEM: &str = "caddy-system";
const RELEASE: &str = "caddy-cache";
const LABEL: &str = "cache.caddy.dev/cluster";
const SIDECAR: &str = "caddy-sidecar";
/// The CacheCluster's `maxStaleness`.
const MAX_STALENESS: Duration = Duration::from_secs(1);
/// For what a kubelet does: starting pods on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

#[test]
fn an_app_pod_reads_through_its_sidecar_and_the_way_back_is_one_label() {
    let Some(cluster) = Cluster::from_env().unwrap() else {
        println!("SKIPPED: CADDY_E2E_KUBECONFIG names no cluster; `cargo xtask test` starts one");
        return;
    };
    let story = Story { cluster: &cluster };
    let result = story.tell();
    if let Err(error) = &result {
        println!("{}\nFAILED: {error:#}", cluster.diagnosis(&[SHOP, SYSTEM]));
    }
    let cleaned = story.clean_up();
    if let Err(error) = result.and(cleaned) {
        panic!("{error:#}");
    }
}

struct Story<'a> {
    cluster: &'a Cluster,
}

impl Story<'_> {
    fn tell(&self) -> Result<()> {
        let form = if self.cluster.has_native_sidecars() { "native" } else { "plain" };
        println!("Kubernetes 1.{}: sidecars in their {form} form", self.cluster.minor());
        self.clean_up()?;
        step("Helm installs the operator", || self.install())?;
        step("the operator has the chart's rights and no others", || self.the_operator_has_only_the_charts_rights())?;
        let pods = step("one apply of one file starts two pods with sidecars", || self.apply())?;
        step("the injected pods have the documented form", || self.pods_have_the_documented_form())?;
        let [mut a, mut b] = self.consoles(&pods)?;
        step("hits come from L1 and L2", || self.hits_come_from_the_tiers(&pods[0], &mut a))?;
        step("a write in pod A is seen in pod B", || a_write_is_seen_in_the_other_pod(&mut a, &mut b))?;
        step("a write straight to Redis is seen in both", || self.a_foreign_write_is_seen(&mut a, &mut b))?;
        step("a pod without the label uses Redis directly", || self.a_pod_without_the_label_works())?;
        drop((a, b));
        let pods = step("without the operator pods start and use Redis directly", || self.without_the_operator())?;
        let [mut a, mut b] = self.consoles(&pods)?;
        step("with Redis gone the bound holds and the pods stay Ready", || self.redis_goes(&mut a, &mut b))?;
        step("with Redis back everything works", || self.redis_returns(&mut a, &mut b))?;
        step("deleting the CacheCluster cleans up", || self.delete_the_cluster(&mut a))?;
        step("the way back is one label", || self.without_the_label())
    }

    // === install ===

    fn install(&self) -> Result<()> {
        for archive in [archive("--redis")?, archive("--client")?, product()?] {
            self.cluster.load_image(&archive)?;
        }
        let image = env::var("CADDY_IMAGE").unwrap_or_else(|_| "localhost/caddy-cache:dev".into());
        let (name, tag) = image.rsplit_once(':').with_context(|| format!("CADDY_IMAGE={image} has no tag"))?;
        let values =
            [format!("image.repository={name}"), format!("image.tag={tag}"), "image.pullPolicy=IfNotPresent".into()];
        self.cluster.install(RELEASE, SYSTEM, &repository().join("charts/caddy-cache"), &values)?;
        let ((), taken) = eventually("the webhook has a certificate", PATIENCE, || {
            let list = self.cluster.json(["get", "mutatingwebhookconfigurations"])?;
            let hooks = list["items"].as_array().into_iter().flatten().filter_map(|item| item["webhooks"].as_array());
            let bundle =
                hooks.flatten().filter(|hook| hook["name"].as_str().is_some_and(|name| name.contains("caddy")));
            let bundles: Vec<_> =
                bundle.map(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default()).collect();
            ensure!(!bundles.is_empty(), "no webhook of ours");
            ensure!(bundles.iter().all(|bundle| !bundle.is_empty()), "a webhook of ours has no caBundle");
            Ok(())
        })?;
        note(format!("webhook ready {taken:.1?} after the install"));
        Ok(())
    }

    fn the_operator_has_only_the_charts_rights(&self) -> Result<()> {
        let list = self.cluster.json(["get", "deployments", "-n", SYSTEM])?;
        let account = list["items"][0]["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        ensure!(!account.is_empty() && account != "default", "the operator runs as \"{account}\"");
        let user = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
        let can = |verb: &str, what: &str, namespace: &str| {
            // exit code 1 means no
            let mut command = self.cluster.command();
            let output = command.args(["auth", "can-i", verb, what, "-n", namespace, &user]).output()?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).trim() == "yes")
        };
        ensure!(can("list", "cacheclusters.cache.caddy.dev", SHOP)?, "{account} may not list CacheClusters");
        for (verb, what) in
            [("*", "*"), ("get", "secrets"), ("create", "pods"), ("delete", "pods"), ("create", "clusterrolebindings")]
        {
            ensure!(!can(verb, what, SHOP)?, "{account} may {verb} {what} in other namespaces");
        }
        Ok(())
    }

    // === pods ===

    fn apply(&self) -> Result<[Pod; 2]> {
        let file = repository().join("tests/manifests/shop.yaml");
        let text = std::fs::read_to_string(&file)?;
        let (deployment, cache) = (text.find("kind: Deployment"), text.find("kind: CacheCluster"));
        ensure!(deployment < cache && deployment.is_some(), "in {} the Deployment comes first", file.display());
        self.cluster.apply(&file)?;
        let (pods, taken) = eventually("two pods with sidecars are Ready", PATIENCE, || self.ready_pods(2, true))?;
        note(format!("both Ready after {taken:.1?}"));
        eventually("the CacheCluster is Ready", PATIENCE, || {
            ensure!(self.condition("Ready")? == "True", "its status is {}", self.status()?);
            Ok(())
        })?;
        let [a, b] = <[Pod; 2]>::try_from(pods).map_err(|pods| anyhow::anyhow!("not two pods: {pods:?}"))?;
        Ok([a, b])
    }

    fn pods_have_the_documented_form(&self) -> Result<()> {
        for (pod, object) in self.cluster.pods(SHOP, "app=shop")? {
            let spec = &object["spec"];
            let list = if self.cluster.has_native_sidecars() { "initContainers" } else { "containers" };
            let sidecar = &spec[list][0];
            ensure!(sidecar["name"] == SIDECAR, "{}: the first of its {list} is {}", pod.name, sidecar["name"]);
            let policy = &sidecar["restartPolicy"];
            if self.cluster.has_native_sidecars() {
                ensure!(policy == "Always", "{}: the native sidecar's restartPolicy is {policy}", pod.name);
            }
            ensure!(sidecar["readinessProbe"].is_null(), "{}: the sidecar has a readiness probe", pod.name);
            let context = &sidecar["securityContext"];
            ensure!(
                context["runAsNonRoot"] == true && context["readOnlyRootFilesystem"] == true,
                "{}: {context}",
                pod.name
            );
            let app = container(spec, "app")?;
            let environment = app["env"].as_array().cloned().unwrap_or_default();
            let value = |name: &str| {
                environment.iter().find(|var| var["name"] == name).map_or(Value::Null, |var| var["value"].clone())
            };
            ensure!(
                value("CADDY_SOCKET") == "/run/caddy/cache.sock",
                "{}: CADDY_SOCKET is {}",
                pod.name,
                value("CADDY_SOCKET")
            );
            let url = value("REDIS_URL");
            ensure!(url == "unix:///run/caddy/cache.sock", "{}: REDIS_URL is {url}", pod.name);
            let marker = &object["metadata"]["annotations"]["cache.caddy.dev/injected"];
            ensure!(marker.is_string(), "{}: no marker annotation", pod.name);
        }
        Ok(())
    }

    fn consoles(&self, pods: &[Pod; 2]) -> Result<[Console; 2]> {
        Ok([Console::open(self.cluster, &pods[0], "app")?, Console::open(self.cluster, &pods[1], "app")?])
    }

    // === coherence ===

    fn hits_come_from_the_tiers(&self, pod: &Pod, a: &mut Console) -> Result<()> {
        a.reply(&["SET", "price:coffee", "3.20"])?;
        // the first reads fill the tiers
        for _ in 0..3 {
            ensure!(a.reply(&["GET", "price:coffee"])? == "3.20");
        }
        let (hits, asked) = (self.tier_hits(pod)?, self.redis_gets()?);
        let mut best = Duration::MAX;
        for _ in 0..200 {
            let answer = a.run(&["GET", "price:coffee"])?;
            ensure!(answer.outcome == Ok(json!("3.20")), "{answer:?}");
            best = best.min(answer.taken);
        }
        let (l1, l2) = self.tier_hits(pod)?;
        let (l1, l2) = (l1 - hits.0, l2 - hits.1);
        ensure!(l1 + l2 >= 200, "of 200 reads {l1} were answered by L1 and {l2} by L2");
        ensure!(l1 > 0, "no read of 200 was answered by L1");
        let reached = self.redis_gets()? - asked;
        ensure!(reached < 20, "of 200 reads {reached} reached Redis");
        note(format!(
            "200 reads: {l1} from L1, {l2} from L2; Redis saw {reached} GETs from both pods; fastest {best:.0?} in Python"
        ));
        Ok(())
    }

    fn a_foreign_write_is_seen(&self, a: &mut Console, b: &mut Console) -> Result<()> {
        for round in 0..3 {
            let value = format!("foreign {round}");
            self.redis(&["SET", "price:coffee", &value])?;
            let watch = Stopwatch::start();
            for (name, console) in [("A", &mut *a), ("B", &mut *b)] {
                while console.reply(&["GET", "price:coffee"])? != value.as_str() {
                    ensure!(
                        watch.elapsed() < MAX_STALENESS,
                        "{name} still reads the old value {:?} after the write",
                        watch.elapsed()
                    );
                }
            }
        }
        Ok(())
    }

    // === without a sidecar ===

    fn a_pod_without_the_label_works(&self) -> Result<()> {
        let (_, shop) = self.cluster.pods(SHOP, "app=shop")?.into_iter().next().context("a shop pod")?;
        let app = container(&shop["spec"], "app")?;
        let plain = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "plain", "namespace": SHOP, "labels": {"app": "plain"}},
            "spec": {"terminationGracePeriodSeconds": 1, "volumes": [{"name": "app", "configMap": {"name": "app"}}], "containers": [{
                "name": "app", "image": app["image"], "imagePullPolicy": "IfNotPresent", "args": app["args"],
                "env": [{"name": "REDIS_URL", "value": "redis://redis.shop:6379"}],
                "volumeMounts": [{"name": "app", "mountPath": "/app"}]}]},
        });
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        std::fs::write(file.path(), plain.to_string())?;
        self.cluster.apply(file.path())?;
        self.cluster.kubectl(["wait", "-n", SHOP, "pod/plain", "--for=condition=Ready", "--timeout=60s"])?;
        let object = self.cluster.json(["get", "pod", "plain", "-n", SHOP])?;
        ensure!(!has_sidecar(&object), "a pod without the label got a sidecar");
        let pod = Pod { namespace: SHOP.into(), name: "plain".into() };
        let mut console = Console::open(self.cluster, &pod, "app")?;
        console.reply(&["SET", "from:plain", "yes"])?;
        ensure!(self.redis(&["GET", "from:plain"])?.trim() == "yes", "its write did not reach Redis");
        drop(console);
        self.cluster.kubectl(["delete", "pod", "plain", "-n", SHOP, "--wait=false"])?;
        Ok(())
    }

    fn without_the_operator(&self) -> Result<[Pod; 2]> {
        let operator = self.operator()?;
        self.cluster.scale(SYSTEM, &operator, 0)?;
        eventually("the operator is gone", PATIENCE, || {
            ensure!(self.cluster.json(["get", "pods", "-n", SYSTEM])?["items"] == json!([]), "it still has pods");
            Ok(())
        })?;
        let (victim, _) = self.cluster.pods(SHOP, "app=shop")?.into_iter().next().context("a shop pod")?;
        self.cluster.kubectl(["delete", "pod", &victim.name, "-n", SHOP, "--wait=false"])?;
        let (pods, _) = eventually("a pod without a sidecar is Ready", PATIENCE, || self.ready_pods(1, false))?;
        let mut console = Console::open(self.cluster, &pods[0], "app")?;
        console.reply(&["SET", "from:uninjected", "yes"])?;
        ensure!(self.redis(&["GET", "from:uninjected"])?.trim() == "yes", "its write did not reach Redis");
        drop(console);

        self.cluster.scale(SYSTEM, &operator, 1)?;
        eventually("the operator is back and counts the pod it missed", PATIENCE, || {
            let pods = self.status()?["pods"].clone();
            ensure!(pods["selected"] == 2 && pods["injected"] == 1, "status.pods is {pods}");
            Ok(())
        })?;
        let deployment = format!("deployment/{operator}");
        self.cluster.kubectl(["rollout", "status", &deployment, "-n", SYSTEM, "--timeout=120s"])?;
        let (pods, _) = eventually("a pod that replaces it has a sidecar", PATIENCE, || {
            // the Service's rules follow the operator's readiness after a moment, so one replacement may come too early
            for missed in self.ready_pods_of(false)? {
                self.cluster.kubectl(["delete", "pod", &missed.name, "-n", SHOP, "--wait=false"])?;
            }
            self.ready_pods(2, true)
        })?;
        let [a, b] = <[Pod; 2]>::try_from(pods).map_err(|pods| anyhow::anyhow!("not two pods: {pods:?}"))?;
        Ok([a, b])
    }

    // === Redis goes and returns ===

    fn redis_goes(&self, a: &mut Console, b: &mut Console) -> Result<()> {
        a.reply(&["SET", "price:coffee", "before"])?;
        for console in [&mut *a, &mut *b] {
            eventually("both hold a copy", MAX_STALENESS, || reads(console, "price:coffee", &json!("before")))?;
            console.reply(&["GET", "price:coffee"])?;
        }
        let before = self.restarts()?;
        self.cluster.scale(SHOP, "redis", 0)?;
        eventually("Redis is gone", PATIENCE, || {
            ensure!(
                self.cluster.json(["get", "pods", "-n", SHOP, "-l", "app=redis"])?["items"] == json!([]),
                "its pod is still there"
            );
            Ok(())
        })?;
        std::thread::sleep(MAX_STALENESS);
        let mut refusals = 0;
        let asked =
            holds("no copy is served beyond maxStaleness, both pods are Ready", Duration::from_secs(10), || {
                for console in [&mut *a, &mut *b] {
                    match console.run(&["GET", "price:coffee"])?.outcome {
                        Ok(reply) => bail!("a read was answered with {reply}, which nobody can vouch for"),
                        Err(error) => {
                            ensure!(error.contains("NOTREADY"), "the error does not say what is wrong: {error}");
                        }
                    }
                    ensure!(console.reply(&["PING"])? == json!(true), "PING is not answered");
                    refusals += 1;
                }
                self.ready_pods(2, true).map(drop)
            })?;
        ensure!(self.restarts()? == before, "containers were restarted: {:?}, before {before:?}", self.restarts()?);
        note(format!("{refusals} reads refused in 10 s, pods Ready all {asked} times, no restart"));
        Ok(())
    }

    fn redis_returns(&self, a: &mut Console, b: &mut Console) -> Result<()> {
        self.cluster.scale(SHOP, "redis", 1)?;
        let (_, taken) = eventually("A writes again", PATIENCE, || a.reply(&["SET", "price:coffee", "after"]))?;
        for console in [&mut *a, &mut *b] {
            eventually("both read it", Duration::from_secs(10), || reads(console, "price:coffee", &json!("after")))?;
        }
        self.redis(&["SET", "price:coffee", "after, foreign"])?;
        for console in [&mut *a, &mut *b] {
            eventually("and learn of foreign writes", MAX_STALENESS, || {
                reads(console, "price:coffee", &json!("after, foreign"))
            })?;
        }
        note(format!("usable {taken:.1?} after Redis was asked to start"));
        Ok(())
    }

    // === the way back ===

    fn delete_the_cluster(&self, a: &mut Console) -> Result<()> {
        ensure!(self.cluster.exists(SHOP, "configmap", "caddy-shop")?, "there is no ConfigMap caddy-shop to clean up");
        self.cluster.kubectl(["delete", "cachecluster", "shop", "-n", SHOP])?;
        eventually("what the operator made is gone", PATIENCE, || {
            ensure!(!self.cluster.exists(SHOP, "configmap", "caddy-shop")?, "ConfigMap caddy-shop is still there");
            Ok(())
        })?;
        ensure!(a.reply(&["GET", "price:coffee"])? == "after, foreign", "a running sidecar stopped serving");
        self.ready_pods(2, true)?;
        let (victim, _) = self.cluster.pods(SHOP, "app=shop")?.into_iter().nth(1).context("a second shop pod")?;
        self.cluster.kubectl(["delete", "pod", &victim.name, "-n", SHOP, "--wait=false"])?;
        eventually("a new pod is refused with a message that names the CacheCluster", PATIENCE, || {
            let sets = self.cluster.json(["get", "replicasets", "-n", SHOP, "-l", "app=shop"])?;
            let conditions =
                sets["items"].as_array().into_iter().flatten().filter_map(|set| set["status"]["conditions"].as_array());
            let messages: Vec<_> = conditions.flatten().filter_map(|condition| condition["message"].as_str()).collect();
            ensure!(
                messages.iter().any(|message| message.contains("CacheCluster") && message.contains("shop")),
                "{messages:?}"
            );
            Ok(())
        })?;
        Ok(())
    }

    fn without_the_label(&self) -> Result<()> {
        let patch = json!({"spec": {"template": {"metadata": {"labels": {LABEL: null}}}}}).to_string();
        self.cluster.kubectl(["patch", "deployment", "shop", "-n", SHOP, "-p", &patch])?;
        self.cluster.kubectl(["rollout", "status", "deployment/shop", "-n", SHOP, "--timeout=120s"])?;
        let (pods, _) = eventually("two pods without sidecars are Ready", PATIENCE, || self.ready_pods(2, false))?;
        let mut console = Console::open(self.cluster, &pods[0], "app")?;
        ensure!(console.reply(&["GET", "price:coffee"])? == "after, foreign", "the app does not read from Redis");
        Ok(())
    }

    fn clean_up(&self) -> Result<()> {
        if self.cluster.helm(["status", RELEASE, "-n", SYSTEM]).is_ok() {
            self.cluster.helm(["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "60s"])?;
        }
        self.cluster.kubectl(["delete", "namespace", SHOP, SYSTEM, "--ignore-not-found", "--timeout=120s"])?;
        Ok(())
    }

    // === what the cluster says ===

    /// The pods that are Ready and have a sidecar, or have none.
    fn ready_pods_of(&self, injected: bool) -> Result<Vec<Pod>> {
        let pods = self.cluster.pods(SHOP, "app=shop")?.into_iter();
        let fit = pods.filter(|(_, object)| has_sidecar(object) == injected && is_ready(object));
        Ok(fit.map(|(pod, _)| pod).collect())
    }

    /// The same, when they are exactly `count`.
    fn ready_pods(&self, count: usize, injected: bool) -> Result<Vec<Pod>> {
        let fit = self.ready_pods_of(injected)?;
        if fit.len() != count {
            let pods = self.cluster.pods(SHOP, "app=shop")?;
            let shown: Vec<_> =
                pods.iter().map(|(pod, object)| (&pod.name, has_sidecar(object), is_ready(object))).collect();
            bail!("pods (name, sidecar, Ready): {shown:?}");
        }
        Ok(fit)
    }

    fn restarts(&self) -> Result<Vec<u64>> {
        let pods = self.cluster.pods(SHOP, "app=shop")?;
        let statuses = pods.iter().flat_map(|(_, object)| {
            ["initContainerStatuses", "containerStatuses"]
                .into_iter()
                .filter_map(|list| object["status"][list].as_array())
        });
        Ok(statuses.flatten().map(|status| status["restartCount"].as_u64().unwrap_or_default()).collect())
    }

    fn operator(&self) -> Result<String> {
        let list = self.cluster.json(["get", "deployments", "-n", SYSTEM])?;
        Ok(list["items"][0]["metadata"]["name"].as_str().context("the operator's Deployment")?.to_owned())
    }

    fn status(&self) -> Result<Value> {
        Ok(self.cluster.json(["get", "cachecluster", SHOP, "-n", SHOP])?["status"].clone())
    }

    fn condition(&self, kind: &str) -> Result<String> {
        let status = self.status()?;
        let condition =
            status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == kind);
        Ok(condition.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned())
    }

    fn redis(&self, command: &[&str]) -> Result<String> {
        let (pod, _) = self.cluster.pods(SHOP, "app=redis")?.into_iter().next().context("Redis has no pod")?;
        pod.exec(self.cluster, "redis", &[&["redis-cli"], command].concat())
    }

    /// How many GETs Redis has executed.
    fn redis_gets(&self) -> Result<u64> {
        let stats = self.redis(&["INFO", "commandstats"])?;
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls="));
        Ok(line.and_then(|line| line.split(',').next()).and_then(|calls| calls.parse().ok()).unwrap_or_default())
    }

    /// Reads answered by L1 and by L2 of a pod's sidecar.
    fn tier_hits(&self, pod: &Pod) -> Result<(u64, u64)> {
        let metrics = Metrics::of(self.cluster, pod)?;
        ensure!(metrics.text().contains("caddy_hits_total"), "no caddy_hits_total in:\n{}", metrics.text());
        Ok((metrics.sum("caddy_hits_total", &["tier=\"l1\""]), metrics.sum("caddy_hits_total", &["tier=\"l2\""])))
    }
}

// === helpers ===

fn a_write_is_seen_in_the_other_pod(a: &mut Console, b: &mut Console) -> Result<()> {
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let (old, new) = (format!("old {round}"), format!("new {round}"));
        a.reply(&["SET", "price:coffee", &old])?;
        // B holds a copy before A writes
        eventually("B reads what A wrote", MAX_STALENESS, || reads(b, "price:coffee", &json!(old)))?;
        a.reply(&["SET", "price:coffee", &new])?;
        let watch = Stopwatch::start();
        ensure!(a.reply(&["GET", "price:coffee"])? == new.as_str(), "A does not read its own write");
        while b.reply(&["GET", "price:coffee"])? != new.as_str() {
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

fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("- {name}");
    let watch = Stopwatch::start();
    let result = work().with_context(|| name.to_owned())?;
    println!("  ok, {:.1?}", watch.elapsed());
    Ok(result)
}

fn note(text: impl AsRef<str>) {
    println!("  {}", text.as_ref());
}

fn reads(console: &mut Console, key: &str, value: &Value) -> Result<()> {
    let found = console.reply(&["GET", key])?;
    ensure!(found == *value, "{key} is {found}, expected {value}");
    Ok(())
}

fn container(spec: &Value, name: &str) -> Result<Value> {
    let found = spec["containers"].as_array().into_iter().flatten().find(|container| container["name"] == name);
    found.cloned().with_context(|| format!("no container {name}"))
}

fn has_sidecar(pod: &Value) -> bool {
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    lists.flatten().any(|container| container["name"] == SIDECAR)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A test image of `tests/kube/image`, built when it is not there.
fn archive(which: &str) -> Result<PathBuf> {
    let output = Command::new(repository().join("tests/kube/image")).arg(which).output()?;
    ensure!(output.status.success(), "tests/kube/image {which}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().last().context("tests/kube/image prints a path")?.into())
}

/// The product's image: `CADDY_IMAGE_ARCHIVE`, built by `cargo xtask test` or `tests/kube/image`.
fn product() -> Result<PathBuf> {
    let path = env::var_os("CADDY_IMAGE_ARCHIVE").map(PathBuf::from);
    let path = path.unwrap_or_else(|| repository().join("target/image/caddy-cache.tar"));
    ensure!(
        Path::new(&path).is_file(),
        "no image archive {}; `cargo xtask image` or tests/kube/image makes it",
        path.display()
    );
    Ok(path)
}
