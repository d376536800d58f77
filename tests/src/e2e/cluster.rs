//! One cluster behind a kubeconfig, driven with `kubectl` and `helm`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The first Kubernetes whose kubelet knows native sidecars (`initContainers[].restartPolicy`) by default.
const NATIVE_SIDECARS: u32 = 29;
/// The first Kubernetes that knows CEL rules in a CRD; before it, clients that validate refuse such a CRD.
const CEL: u32 = 25;

/// A cluster named on purpose.
#[derive(Clone, Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
    minor: u32,
}

/// A pod, and the namespace it lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Cluster {
    /// The cluster whose kubeconfig `CADDY_E2E_KUBECONFIG` names; none when it names none.
    pub fn from_env() -> Result<Option<Self>> {
        let Some(kubeconfig) = env::var_os("CADDY_E2E_KUBECONFIG").filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let kubeconfig = PathBuf::from(kubeconfig);
        ensure!(kubeconfig.is_file(), "CADDY_E2E_KUBECONFIG={} is not a file", kubeconfig.display());
        let mut cluster = Self { kubeconfig, kubectl: tool("kubectl")?, helm: tool("helm")?, minor: 0 };
        let version = cluster.kubectl(["get", "--raw", "/version"])?;
        let version: Value = serde_json::from_str(&version).context("read the server's version")?;
        let minor = version["minor"].as_str().unwrap_or_default();
        let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
        cluster.minor = digits.parse().with_context(|| format!("the server's version has the minor \"{minor}\""))?;
        Ok(Some(cluster))
    }

    /// The server's minor version.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// Whether its kubelets run native sidecars.
    pub fn has_native_sidecars(&self) -> bool {
        self.minor >= NATIVE_SIDECARS
    }

    /// Runs kubectl and returns what it printed.
    pub fn kubectl<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut command = self.command();
        command.args(arguments);
        output(&mut command)
    }

    /// As [`Self::kubectl`], with its output read as JSON.
    pub fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<Value> {
        let mut command = self.command();
        command.args(arguments).args(["-o", "json"]);
        serde_json::from_str(&output(&mut command)?).context("read kubectl's JSON")
    }

    /// `kubectl apply` of one file.
    pub fn apply(&self, file: &Path) -> Result<String> {
        let mut command = self.command();
        command.arg("apply").arg("-f").arg(file);
        if self.minor < CEL {
            command.arg("--validate=false");
        }
        output(&mut command)
    }

    /// `helm` with this cluster's kubeconfig.
    pub fn helm<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut command = Command::new(&self.helm);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        output(&mut command)
    }

    /// Installs or upgrades a release and waits for it.
    pub fn install(&self, release: &str, namespace: &str, chart: &Path, values: &[String]) -> Result<String> {
        let chart = chart.display().to_string();
        let mut arguments =
            vec!["upgrade", "--install", release, &chart, "--namespace", namespace, "--create-namespace"];
        arguments.extend(["--wait", "--timeout", "180s"]);
        if self.minor < CEL {
            arguments.push("--disable-openapi-validation");
        }
        for value in values {
            arguments.extend(["--set", value]);
        }
        self.helm(arguments)
    }

    /// Makes the images in an archive known to the cluster's nodes, by the script that started them.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let mut command = Command::new(repository().join("tests/kube/cluster"));
        command.env("CADDY_TEST_KUBECONFIG", &self.kubeconfig).arg("load-image").arg(archive);
        output(&mut command).map(drop)
    }

    /// Pods by label that are not being deleted, by name.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<(Pod, Value)>> {
        let list = self.json(["get", "pods", "-n", namespace, "-l", selector])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .into_iter()
            .filter(|item| item["metadata"]["deletionTimestamp"].is_null())
            .map(|item| {
                let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                (Pod { namespace: namespace.to_owned(), name }, item)
            })
            .collect())
    }

    /// Whether such an object exists.
    pub fn exists(&self, namespace: &str, kind: &str, name: &str) -> Result<bool> {
        Ok(!self.kubectl(["get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "name"])?.trim().is_empty())
    }

    /// Sets the replicas of a Deployment.
    pub fn scale(&self, namespace: &str, deployment: &str, replicas: u32) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        self.kubectl(["scale", "-n", namespace, "deployment", deployment, &replicas]).map(drop)
    }

    /// What a person would look at after a failure.
    pub fn diagnosis(&self, namespaces: &[&str]) -> String {
        let mut said = Vec::new();
        let mut ask = |arguments: &[&str]| {
            said.push(format!("$ kubectl {}", arguments.join(" ")));
            said.push(self.kubectl(arguments.iter().copied()).unwrap_or_else(|error| format!("{error:#}")));
        };
        for namespace in namespaces {
            ask(&["get", "all,cm,cc", "-n", namespace, "-o", "wide"]);
            ask(&["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"]);
            ask(&["describe", "cc,pods", "-n", namespace]);
            for (pod, _) in self.pods(namespace, "").unwrap_or_default() {
                ask(&["logs", "-n", namespace, &pod.name, "--all-containers", "--prefix", "--tail=40"]);
            }
        }
        said.join("\n")
    }

    /// A kubectl command that is not started yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).stdin(Stdio::null());
        command
    }
}

impl Pod {
    /// Runs a command in one of its containers and returns what it printed.
    pub fn exec(&self, cluster: &Cluster, container: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", "-n", &self.namespace, &self.name, "-c", container, "--"];
        arguments.extend(command);
        cluster.kubectl(arguments)
    }
}

/// The checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("/")).to_path_buf()
}

/// A client program: by its variable (`CADDY_HELM`, …), else where the local cluster's scripts put it.
fn tool(name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(format!("CADDY_{}", name.to_uppercase())) {
        return Ok(path.into());
    }
    let folder = output(Command::new(repository().join("tests/kube/cluster")).arg("tools"))?;
    Ok(Path::new(folder.trim()).join(name))
}

fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown} printed no text"))
}
