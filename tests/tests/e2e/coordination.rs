//! What replicas and sidecars agree on: the operator's leader goes and another goes on; pods start before their namespace has a
//! token; each token can do what is documented and no more; sidecars report, and hand their cluster's duties over.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddy_tests::e2e::{Cluster, Console, Namespace, Pod, eventually, product};
use serde_json::{Value, json};

use super::{PATIENCE, note, reads, step};

const NAMESPACE: &str = "agreed";
const CLUSTER: &str = "team";
/// How long a kubelet may take to bring a new Secret into a pod, and the sidecar to report.
const KUBELETS_PACE: Duration = Duration::from_mins(4);

/// Tells it.
pub(crate) fn tell(cluster: &Cluster) -> Result<()> {
    let story = Story(Namespace::new(cluster, NAMESPACE));
    step("a namespace with a Redis and an operator", || product::install_beside_redis(cluster, NAMESPACE))?;
    step("of two operators one leads, and when it goes the other goes on", || story.leaders())?;
    let role =
        step("without a right the missing identity is told, and pods start all the same", || story.no_identity())?;
    step("with it sidecars report and the conditions say so", || story.identity(&role))?;
    step("the sidecars' token can do what is documented and nothing else", || story.the_sidecars_rights())?;
    step("the app's container can do nothing new", || story.the_apps_rights())?;
    step("the operator can give no other token and no other role", || story.the_operators_rights())?;
    step("one sidecar does the duties, and another takes over", || story.duties())?;
    step("a member's Lease goes with its pod", || story.members_go())?;
    step("locks are agreed on between pods, in Redis and in Leases", || story.locks())?;
    step("an invalidation is an object: executed once, told, deleted", || story.invalidations())?;
    step("deleting the CacheCluster takes the identity away", || story.deleted())?;
    step("the namespace goes also when no operator is there", || story.namespace_goes())
}

struct Story<'a>(Namespace<'a>);

impl Story<'_> {
    fn leaders(&self) -> Result<()> {
        let cluster = self.0.cluster;
        let leader = || {
            let pods = cluster.pods(product::SYSTEM, "app.kubernetes.io/name=caddy-operator")?;
            let name = product::operator(cluster)?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let holder = holder(&cluster.json(["get", "lease", &name, "-n", product::SYSTEM])?);
            let leads = pods.iter().find(|(pod, _)| holder.starts_with(&format!("{}_", pod.name)));
            ensure!(pods.len() == 2, "there are {} operators", pods.len());
            Ok(leads.with_context(|| format!("the holder is \"{holder}\", no operator that lives"))?.0.name.clone())
        };
        let (first, _) = eventually("one leads", PATIENCE, leader)?;
        cluster.kubectl(["delete", "pod", &first, "-n", product::SYSTEM, "--grace-period=0", "--force"])?;
        let (second, taken) = eventually("another one leads", PATIENCE, || {
            let now = leader()?;
            ensure!(now != first, "{now} still leads");
            Ok(now)
        })?;
        note(format!("{second} after {taken:.1?}"));
        Ok(())
    }

    // === identity ===

    /// The operator's ClusterRole as it was, before the right to give tokens was taken from it.
    fn no_identity(&self) -> Result<Value> {
        let cluster = self.0.cluster;
        let name = product::operator(cluster)?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut role = cluster.json(["get", "clusterrole", &name])?;
        role["metadata"]["resourceVersion"] = Value::Null;
        let mut less = role.clone();
        let rules = less["rules"].as_array_mut().context("its rules")?;
        rules.retain(|rule| rule["resources"] != json!(["serviceaccounts/token"]));
        self.0.apply(&less)?;
        self.cluster_and_pods()?;
        eventually("both are Ready with a sidecar", PATIENCE, || self.0.exactly_ready::<2>("team", true))?;
        eventually("the fault is told", PATIENCE, || {
            let degraded = self.0.condition(CLUSTER, "Degraded")?;
            ensure!(degraded["reason"] == "IdentityMissing", "{degraded}");
            let message = degraded["message"].as_str().unwrap_or_default();
            ensure!(message.contains("serviceaccounts/token"), "{message}");
            Ok(())
        })?;
        let coherent = self.0.condition(CLUSTER, "Coherent")?;
        ensure!(coherent["status"] == "Unknown", "{coherent}");
        let [pod, _] = self.0.exactly_ready("team", true)?;
        self.0.console(&pod)?.reply(&["SET", "without:identity", "works"])?;
        Ok(role)
    }

    fn cluster_and_pods(&self) -> Result<()> {
        let metadata = json!({"name": CLUSTER, "namespace": NAMESPACE});
        self.0.apply(&json!({
            "apiVersion": "cache.caddy.dev/v1alpha1", "kind": "CacheCluster", "metadata": metadata,
            "spec": {"l3": {"redis": {"endpoints": [format!("redis.{NAMESPACE}:6379")]}}},
        }))?;
        let labels = json!({"app": "team", "cache.caddy.dev/cluster": CLUSTER});
        let pod = json!({
            "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "app", "configMap": {"name": "app"}}],
            "containers": [{
                "name": "app", "image": "local/client:test", "imagePullPolicy": "IfNotPresent", "args": ["/app/app.py", "serve"],
                "env": [{"name": "REDIS_URL", "value": format!("redis://redis.{NAMESPACE}:6379")}],
                "volumeMounts": [{"name": "app", "mountPath": "/app"}],
            }],
        });
        let annotations = json!({"cache.caddy.dev/redis-url-env": "REDIS_URL"});
        self.0.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "team", "namespace": NAMESPACE},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "team"}},
                "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
            },
        }))?;
        Ok(())
    }

    fn identity(&self, role: &Value) -> Result<()> {
        self.0.apply(role)?;
        let ((), taken) = eventually("both report", KUBELETS_PACE, || {
            let status = self.0.status(CLUSTER)?;
            ensure!(status["members"] == json!({"ready": 2, "coherent": 2}), "status.members is {}", status["members"]);
            for (condition, reason) in
                [("Coherent", "AllCoherent"), ("L3Reachable", "AllReachIt"), ("Degraded", "AsExpected")]
            {
                let found = self.0.condition(CLUSTER, condition)?;
                ensure!(found["reason"] == reason, "{found}");
            }
            ensure!(status["pods"]["stale"] == 0, "status.pods is {}", status["pods"]);
            Ok(())
        })?;
        note(format!("after {taken:.1?}"));
        Ok(())
    }

    /// The token itself is tried, not what the server thinks of the account.
    fn the_sidecars_rights(&self) -> Result<()> {
        let sidecar = Bearer::sidecar(&self.0)?;
        let leases =
            sidecar.run(&["get", "lease", &format!("caddy-duties-{CLUSTER}"), "-n", NAMESPACE, "-o", "name"])?;
        ensure!(leases.contains("caddy-duties"), "{leases}");
        for verb in ["get", "list", "create", "patch"] {
            ensure!(sidecar.can(verb, "leases.coordination.k8s.io", NAMESPACE)?, "it may not {verb} leases");
        }
        let invalidations = "cacheinvalidations.cache.caddy.dev";
        for (verb, what) in [("list", invalidations), ("delete", invalidations), ("create", "events.events.k8s.io")] {
            ensure!(sidecar.can(verb, what, NAMESPACE)?, "it may not {verb} {what}");
        }
        for (verb, what, namespace) in [
            ("watch", "leases.coordination.k8s.io", NAMESPACE),
            ("delete", "leases.coordination.k8s.io", NAMESPACE),
            ("get", "leases.coordination.k8s.io", product::SYSTEM),
            ("patch", "leases.coordination.k8s.io", "default"),
            ("get", "secrets", NAMESPACE),
            ("get", "pods", NAMESPACE),
            ("get", "configmaps", NAMESPACE),
            ("create", "serviceaccounts/token", NAMESPACE),
            ("get", "cacheclusters.cache.caddy.dev", NAMESPACE),
            ("create", invalidations, NAMESPACE),
            ("patch", invalidations, NAMESPACE),
            ("list", invalidations, "default"),
            ("*", "*", NAMESPACE),
        ] {
            ensure!(!sidecar.can(verb, what, namespace)?, "it may {verb} {what} in {namespace}");
        }
        let refused = sidecar.run(&["get", "secrets", "-n", NAMESPACE]);
        ensure!(refused.is_err_and(|error| error.to_string().contains("forbidden")), "it lists Secrets");
        Ok(())
    }

    fn the_apps_rights(&self) -> Result<()> {
        let [pod, _] = self.0.exactly_ready("team", true)?;
        let seen = pod.exec(self.0.cluster, "app", &["ls", "/etc/caddy"]);
        ensure!(seen.is_err(), "the app sees {seen:?}");
        let account = format!("--as=system:serviceaccount:{NAMESPACE}:default");
        for (verb, what) in [("get", "leases"), ("create", "leases"), ("patch", "leases"), ("get", "secrets")] {
            ensure!(!can(self.0.cluster, &account, verb, what, NAMESPACE)?, "the app's account may {verb} {what}");
        }
        Ok(())
    }

    fn the_operators_rights(&self) -> Result<()> {
        let cluster = self.0.cluster;
        let operator = product::operator(cluster)?;
        let account = operator["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        let user = format!("--as=system:serviceaccount:{}:{account}", product::SYSTEM);
        let request =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        std::fs::write(file.path(), request.to_string())?;
        let token = |name: &str| {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}/token");
            cluster.kubectl([&user, "create", "--raw", &path, "-f", &file.path().display().to_string()])
        };
        ensure!(token("caddy-sidecar")?.contains("expirationTimestamp"), "it gets no token for sidecars");
        ensure!(token("default").is_err_and(|error| error.to_string().contains("orbidden")), "it gets the app's token");
        let binding = |name: &str, role: &str| {
            let metadata = json!({"name": name, "namespace": "default"});
            let text = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": "caddy-sidecar", "namespace": "default"}],
            });
            std::fs::write(file.path(), text.to_string())?;
            let path = file.path().display().to_string();
            cluster.kubectl([&user, "apply", "--server-side", "--validate=false", "--dry-run=server", "-f", &path])
        };
        let own = format!("{account}-sidecar");
        binding("caddy-sidecar", &own).context("its own binding")?;
        for (name, role) in [("another", own.as_str()), ("caddy-sidecar", "cluster-admin"), ("caddy-sidecar", "view")] {
            let refused = binding(name, role).is_err_and(|error| error.to_string().contains("orbidden"));
            ensure!(refused, "it may bind {role} under the name {name}");
        }
        for (verb, what) in [("get", "secrets"), ("create", "secrets"), ("create", "leases"), ("patch", "leases")] {
            ensure!(!can(cluster, &user, verb, what, NAMESPACE)?, "it may {verb} {what}");
        }
        Ok(())
    }

    // === members and duties ===

    fn duties(&self) -> Result<()> {
        let duties = format!("caddy-duties-{CLUSTER}");
        let held_by = |pods: &[Pod]| {
            let holder = holder(&self.0.get(["lease", &duties])?);
            let found = pods.iter().find(|pod| holder.starts_with(&format!("{}_", pod.name)));
            found.cloned().with_context(|| format!("the holder is \"{holder}\""))
        };
        let one_says_so = || {
            let pods: [Pod; 2] = self.0.exactly_ready("team", true)?;
            let holder = held_by(&pods)?;
            for pod in &pods {
                let told = duties_of(&mut self.0.console(pod)?)?;
                let held = pod.name == holder.name;
                ensure!(told.0 == held && told.1.starts_with(&holder.name), "{} says {told:?}", pod.name);
            }
            Ok(holder)
        };
        let (first, _) = eventually("one does them, and both know", PATIENCE, one_says_so)?;
        self.0.delete("pod", &first.name)?;
        let ((), taken) = eventually("they were handed over", PATIENCE, || {
            let holder = holder(&self.0.get(["lease", &duties])?);
            ensure!(!holder.is_empty() && !holder.starts_with(&first.name), "the holder is \"{holder}\"");
            Ok(())
        })?;
        note(format!("handed over after {taken:.1?}"));
        let (second, _) = eventually("both know of the second", PATIENCE, one_says_so)?;
        self.0.kubectl(["delete", "pod", &second.name, "--grace-period=0", "--force"])?;
        let ((), taken) = eventually("they were taken over", PATIENCE, || {
            let holder = holder(&self.0.get(["lease", &duties])?);
            ensure!(!holder.is_empty() && !holder.starts_with(&second.name), "the holder is \"{holder}\"");
            Ok(())
        })?;
        note(format!("taken over after {taken:.1?}"));
        Ok(())
    }

    fn members_go(&self) -> Result<()> {
        eventually("there are as many members' Leases as pods, and each has its report", KUBELETS_PACE, || {
            self.0.exactly_ready::<2>("team", true)?;
            let leases = self.0.get(["leases", "-l", &format!("cache.caddy.dev/member={CLUSTER}")])?;
            let leases = leases["items"].as_array().cloned().unwrap_or_default();
            let reports = leases.iter().filter(|lease| {
                let report = lease["metadata"]["annotations"]["cache.caddy.dev/report"].as_str().unwrap_or_default();
                report.contains("\"coherent\":true")
            });
            ensure!(leases.len() == 2 && reports.count() == 2, "{} Leases: {leases:?}", leases.len());
            Ok(())
        })?;
        Ok(())
    }

    fn locks(&self) -> Result<()> {
        let [a, b] = self.0.exactly_ready("team", true)?;
        let (mut here, mut there) = (self.0.console(&a)?, self.0.console(&b)?);
        let token = |reply: Value| Ok::<_, anyhow::Error>(reply[0].as_str().context("no token")?.to_owned());
        let in_redis = token(here.reply(&["LOCK.ACQUIRE", "orders"])?)?;
        ensure!(there.run(&["LOCK.ACQUIRE", "orders", "WAIT", "0"])?.outcome.is_err(), "two holders");
        let epoch = self.0.get(["lease", &format!("caddy-epoch-{CLUSTER}")])?;
        let epoch = epoch["metadata"]["annotations"]["cache.caddy.dev/epoch"].as_str().unwrap_or_default().to_owned();
        ensure!(in_redis.trim_start_matches('0').starts_with(&format!("{epoch}-")), "{in_redis}, agreed on {epoch}");
        eventually("status.epoch is the one that was agreed on", KUBELETS_PACE, || {
            let told = self.0.status(CLUSTER)?["epoch"].as_u64().map(|told| told.to_string());
            ensure!(told.as_ref() == Some(&epoch), "status.epoch is {told:?}");
            Ok(())
        })?;
        let first = token(here.reply(&["LOCK.ACQUIRE", "migrate", "BACKEND", "lease"])?)?;
        ensure!(
            there.run(&["LOCK.ACQUIRE", "migrate", "BACKEND", "lease", "WAIT", "0"])?.outcome.is_err(),
            "two holders"
        );
        let leases = self.0.get(["leases", "-l", "cache.caddy.dev/lock"])?;
        ensure!(leases["items"].as_array().is_some_and(|leases| leases.len() == 1), "{leases}");
        let lease = leases["items"][0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        ensure!(holder(&leases["items"][0]).contains(&a.name), "{leases}");
        here.reply(&["LOCK.RELEASE", "migrate", &first])?;
        let second = token(there.reply(&["LOCK.ACQUIRE", "migrate", "BACKEND", "lease"])?)?;
        self.0.delete("lease", &lease)?;
        let third = token(here.reply(&["LOCK.ACQUIRE", "migrate", "BACKEND", "lease"])?)?;
        ensure!(first < second && second < third, "{first}, {second}, {third}");
        Ok(())
    }

    fn invalidations(&self) -> Result<()> {
        let [a, b] = self.0.exactly_ready("team", true)?;
        let (mut here, mut there) = (self.0.console(&a)?, self.0.console(&b)?);
        for n in 0..200 {
            here.reply(&["SET", &format!("price:{n}"), "old"])?;
        }
        here.reply(&["SET", "list", "old"])?;
        reads(&mut there, "price:7", &json!("old"))?;
        let metadata = json!({"name": "prices", "namespace": NAMESPACE});
        let spec = json!({"cluster": CLUSTER, "keys": ["list"], "patterns": ["price:*"], "reason": "new prices"});
        let object = json!({
            "apiVersion": "cache.caddy.dev/v1alpha1", "kind": "CacheInvalidation", "metadata": metadata, "spec": spec,
        });
        self.0.apply(&object)?;
        let (status, taken) = eventually("it has succeeded", PATIENCE, || {
            let status = self.0.get(["cacheinvalidation", "prices"])?["status"].clone();
            ensure!(status["phase"] == "Succeeded", "its status is {status}");
            Ok(status)
        })?;
        note(format!("after {taken:.1?}: {status}"));
        ensure!(status["acknowledged"] == 2 && status["members"] == 2 && status["removed"] == 201, "{status}");
        for console in [&mut here, &mut there] {
            for key in ["price:7", "list"] {
                reads(console, key, &Value::Null)?;
            }
        }
        let table = self.0.kubectl(["get", "cacheinvalidations"])?;
        ensure!(table.contains("PHASE") && table.contains("Succeeded"), "{table}");
        let events = self.0.kubectl(["get", "events", "--field-selector", "involvedObject.name=prices"])?;
        ensure!(events.contains("Invalidated"), "{events}");
        // The same again is nothing new.
        here.reply(&["SET", "price:7", "new"])?;
        self.0.apply(&object)?;
        let mut changed = object.clone();
        changed["spec"]["patterns"] = json!(["*"]);
        if self.0.cluster.minor() >= 25 {
            let refused = self.0.apply(&changed);
            ensure!(refused.is_err_and(|error| format!("{error:#}").contains("create another one")), "it was changed");
        }
        let mut short = object.clone();
        short["metadata"]["name"] = json!("short");
        short["spec"] = json!({"cluster": CLUSTER, "keys": ["list"], "ttlSecondsAfterFinished": 0});
        self.0.apply(&short)?;
        eventually("it is deleted when its time is over", PATIENCE, || {
            ensure!(!self.0.cluster.exists(NAMESPACE, "cacheinvalidation", "short")?, "it is still there");
            Ok(())
        })?;
        reads(&mut there, "price:7", &json!("new"))
    }

    fn deleted(&self) -> Result<()> {
        let [pod, _] = self.0.exactly_ready("team", true)?;
        let mut console = self.0.console(&pod)?;
        self.0.kubectl(["delete", "cachecluster", CLUSTER])?;
        let gone =
            [("serviceaccount", "caddy-sidecar"), ("secret", "caddy-sidecar-token"), ("rolebinding", "caddy-sidecar")];
        eventually("its objects are gone", PATIENCE, || {
            for (kind, name) in gone {
                ensure!(!self.0.cluster.exists(NAMESPACE, kind, name)?, "{kind} {name} is still there");
            }
            ensure!(
                !self.0.cluster.exists(NAMESPACE, "lease", &format!("caddy-duties-{CLUSTER}"))?,
                "the duties' Lease is still there"
            );
            Ok(())
        })?;
        ensure!(console.reply(&["SET", "after:all", "works"])? == json!(true), "a running sidecar does not serve on");
        Ok(())
    }

    fn namespace_goes(&self) -> Result<()> {
        let cluster = self.0.cluster;
        self.cluster_and_pods()?;
        eventually("a cluster and its objects are there again", PATIENCE, || {
            ensure!(cluster.exists(NAMESPACE, "serviceaccount", "caddy-sidecar")?, "there is no identity yet");
            Ok(())
        })?;
        let operator = product::operator(cluster)?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        cluster.scale(product::SYSTEM, &operator, 0)?;
        cluster.kubectl(["delete", "namespace", NAMESPACE, "--wait=false"])?;
        eventually("the namespace is gone", PATIENCE, || {
            ensure!(!cluster.exists(NAMESPACE, "namespace", NAMESPACE)?, "something holds it");
            Ok(())
        })?;
        Ok(())
    }
}

fn holder(lease: &Value) -> String {
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

/// Whether a sidecar says that it does the duties, and who it says does.
fn duties_of(console: &mut Console) -> Result<(bool, String)> {
    let stats = console.reply(&["CACHE.STATS"])?;
    let fields: Vec<&Value> = stats.as_array().into_iter().flatten().collect();
    let field = |name: &str| {
        let at = fields.iter().position(|field| **field == name);
        at.and_then(|at| fields.get(at + 1)).copied().with_context(|| format!("no {name} in {stats}"))
    };
    Ok((*field("duties_held")? == 1, field("duties_holder")?.as_str().unwrap_or_default().to_owned()))
}

fn can(cluster: &Cluster, user: &str, verb: &str, what: &str, namespace: &str) -> Result<bool> {
    // its exit code for a no is 1
    let output = cluster.command().args(["auth", "can-i", verb, what, "-n", namespace, user]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim() == "yes")
}

/// kubectl with nothing but a token.
struct Bearer<'a> {
    cluster: &'a Cluster,
    server: String,
    authority: tempfile::NamedTempFile,
    token: String,
}

impl<'a> Bearer<'a> {
    /// With the token and the authority that sidecars get.
    fn sidecar(namespace: &Namespace<'a>) -> Result<Self> {
        let secret = |key: &str| {
            let path = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
            namespace.kubectl(["get", "secret", "caddy-sidecar-token", "-o", &path])
        };
        let config = namespace.cluster.json(["config", "view", "--raw", "--minify"])?;
        let server = config["clusters"][0]["cluster"]["server"].as_str().context("the server's address")?.to_owned();
        let authority = tempfile::NamedTempFile::new()?;
        std::fs::write(authority.path(), secret("ca.crt")?)?;
        Ok(Self { cluster: namespace.cluster, server, authority, token: secret("token")? })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.cluster.command().get_program());
        command.env_remove("KUBECONFIG").args([
            "--kubeconfig=/dev/null",
            "--server",
            &self.server,
            "--token",
            &self.token,
        ]);
        command.arg("--certificate-authority").arg(self.authority.path()).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output()?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{error}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn can(&self, verb: &str, what: &str, namespace: &str) -> Result<bool> {
        let output = self.command(&["auth", "can-i", verb, what, "-n", namespace]).output()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(said == "yes" || said == "no", "{}", String::from_utf8_lossy(&output.stderr));
        Ok(said == "yes")
    }
}
