//! Act two of `cargo xtask demo`: the whole product in pods of the cluster that `CADDY_E2E_KUBECONFIG` names. It prints each
//! thing it does and what it measured inside the pods, and ends with an error when something does not hold. It owns the
//! namespaces `shop` and `caddy-system` and removes both.

use std::env;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddy_tests::e2e::{Cluster, Console, Metrics, Pod, Stopwatch, eventually, holds, repository};
use serde_json::{Value, json};

const SHOP: &str = "shop";
const SYSTEM: &str = "caddy-system";
const RELEASE: &str = "caddy-cache";
const KEY: &str = "price:tea";
/// The CacheCluster's `maxStaleness`.
const MAX_STALENESS: Duration = Duration::from_secs(1);
/// What a kubelet may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// Reads per measurement.
const READS: usize = 500;

fn main() -> ExitCode {
    match play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play() -> Result<()> {
    let cluster =
        Cluster::from_env()?.context("CADDY_E2E_KUBECONFIG names no cluster; `cargo xtask demo` starts one")?;
    clean_up(&cluster)?;
    let result = acts(&cluster);
    if result.is_err() {
        eprintln!("{}", cluster.diagnosis(&[SHOP, SYSTEM]));
    }
    let cleaned = clean_up(&cluster);
    result.and(cleaned)
}

fn acts(cluster: &Cluster) -> Result<()> {
    chapter("Install: once per cluster");
    install(cluster)?;
    chapter("One apply of one file: a shop, its Redis, and the CacheCluster");
    let pods = apply(cluster)?;
    let mut a = Console::open(cluster, &pods[0], "app")?;
    let mut b = Console::open(cluster, &pods[1], "app")?;
    chapter("Reads get fast");
    reads_get_fast(cluster, &pods[0], &mut a)?;
    chapter("Every pod's copy dies when somebody writes");
    writes_are_seen(cluster, &mut a, &mut b)?;
    chapter("Redis goes away: the bound holds, the pods stay Ready");
    redis_goes_and_returns(cluster, &mut a, &mut b)?;
    drop((a, b));
    chapter("The way back is one label");
    way_back(cluster)
}

fn install(cluster: &Cluster) -> Result<()> {
    for archive in [image("--redis")?, image("--client")?, product()?] {
        cluster.load_image(&archive)?;
    }
    let name = env::var("CADDY_IMAGE").unwrap_or_else(|_| "localhost/caddy-cache:dev".into());
    let (repository_of_image, tag) = name.rsplit_once(':').with_context(|| format!("CADDY_IMAGE={name} has no tag"))?;
    let values = [
        format!("image.repository={repository_of_image}"),
        format!("image.tag={tag}"),
        "image.pullPolicy=IfNotPresent".into(),
    ];
    does(format_args!(
        "helm upgrade --install {RELEASE} charts/caddy-cache -n {SYSTEM} --set {}",
        values.join(" --set ")
    ));
    let watch = Stopwatch::start();
    cluster.install(RELEASE, SYSTEM, &repository().join("charts/caddy-cache"), &values)?;
    sees(format_args!("the operator is Ready after {:.1?}", watch.elapsed()));
    Ok(())
}

fn apply(cluster: &Cluster) -> Result<[Pod; 2]> {
    does("kubectl apply -f tests/manifests/shop.yaml");
    cluster.apply(&repository().join("tests/manifests/shop.yaml"))?;
    let (pods, took) = eventually("two pods with sidecars are Ready", PATIENCE, || two_ready(cluster, true))?;
    sees(format_args!("two app pods, each with a sidecar, Ready after {took:.1?}"));
    eventually("the CacheCluster is Ready", PATIENCE, || {
        let status = cluster.json(["get", "cachecluster", SHOP, "-n", SHOP])?["status"].clone();
        let ready = status["conditions"].as_array().into_iter().flatten();
        let ready = ready.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
        ensure!(ready, "its status is {status}");
        Ok(())
    })?;
    does("kubectl get pods,cachecluster -n shop");
    sees(cluster.kubectl(["get", "pods,cachecluster", "-n", SHOP])?);
    Ok(pods)
}

fn reads_get_fast(cluster: &Cluster, pod: &Pod, a: &mut Console) -> Result<()> {
    a.reply(&["SET", KEY, "3.20"])?;
    does(format_args!("redis-py in pod A: SET {KEY} 3.20, then GET it"));
    let first = a.run(&["GET", KEY])?;
    ensure!(first.outcome == Ok(json!("3.20")), "GET {KEY} answers {:?}", first.outcome);
    sees(format_args!("first read, from Redis in another pod: {} µs", first.taken.as_micros()));
    let before = tier_hits(cluster, pod)?;
    let mut times = Vec::with_capacity(READS);
    for _ in 0..READS {
        let answer = a.run(&["GET", KEY])?;
        ensure!(answer.outcome == Ok(json!("3.20")), "GET {KEY} answers {:?}", answer.outcome);
        times.push(answer.taken);
    }
    times.sort_unstable();
    let hits = tier_hits(cluster, pod)? - before;
    sees(format_args!(
        "then, median of {READS}: {} µs as Python sees it, no packet leaves the pod",
        times[READS / 2].as_micros()
    ));
    sees(format_args!("the sidecar's metrics say {hits} hits in L1 and L2 meanwhile (the app reads the key, too)"));
    ensure!(hits >= READS as u64 * 9 / 10, "at least nine of ten reads are hits, not {hits} of {READS}");
    Ok(())
}

fn writes_are_seen(cluster: &Cluster, a: &mut Console, b: &mut Console) -> Result<()> {
    reads(b, "3.20")?;
    does(format_args!("B holds its own copy. SET {KEY} 3.50 in pod A, then GET in A and in B"));
    a.reply(&["SET", KEY, "3.50"])?;
    reads(a, "3.50")?;
    let ((), took) = eventually("B reads it", MAX_STALENESS, || reads(b, "3.50"))?;
    sees(format_args!("A reads 3.50 at once, B within {took:.0?} (a round trip through kubectl exec included)"));
    does(format_args!("redis-cli SET {KEY} 3.80 in Redis' own pod, past every sidecar"));
    redis(cluster, &["SET", KEY, "3.80"])?;
    for (name, console) in [("A", &mut *a), ("B", &mut *b)] {
        let ((), took) = eventually("the foreign write is seen", MAX_STALENESS, || reads(console, "3.80"))?;
        sees(format_args!("{name} reads 3.80 within {took:.0?}"));
    }
    Ok(())
}

fn redis_goes_and_returns(cluster: &Cluster, a: &mut Console, b: &mut Console) -> Result<()> {
    does("kubectl scale deployment redis --replicas=0 -n shop");
    cluster.scale(SHOP, "redis", 0)?;
    eventually("Redis is gone", PATIENCE, || {
        let pods = cluster.pods(SHOP, "app=redis")?;
        ensure!(pods.is_empty(), "its pod is still there");
        Ok(())
    })?;
    let mut refusal = String::new();
    eventually("no copy outlives the bound", MAX_STALENESS + Duration::from_secs(2), || {
        for console in [&mut *a, &mut *b] {
            let answer = console.run(&["GET", KEY])?;
            refusal = answer.outcome.err().context("a copy is still served")?;
        }
        Ok(())
    })?;
    sees(format_args!("GET {KEY} in both pods -> {refusal}"));
    let asked = holds("both app pods stay Ready", Duration::from_secs(5), || two_ready(cluster, true).map(drop))?;
    sees(format_args!("both app pods Ready, asked {asked} times in 5 s"));
    does("kubectl scale deployment redis --replicas=1 -n shop");
    let watch = Stopwatch::start();
    cluster.scale(SHOP, "redis", 1)?;
    eventually("A writes again", PATIENCE, || a.reply(&["SET", KEY, "4.00"]))?;
    eventually("B reads it", MAX_STALENESS, || reads(b, "4.00"))?;
    sees(format_args!("A writes and B reads again {:.1?} later; nobody restarted anything", watch.elapsed()));
    Ok(())
}

fn way_back(cluster: &Cluster) -> Result<()> {
    let patch = json!({"spec": {"template": {"metadata": {"labels": {"cache.caddy.dev/cluster": null}}}}}).to_string();
    does("the label cache.caddy.dev/cluster is taken off the Deployment's pod template");
    cluster.kubectl(["patch", "deployment", "shop", "-n", SHOP, "-p", &patch])?;
    let (pods, took) = eventually("two pods without sidecars are Ready", PATIENCE, || two_ready(cluster, false))?;
    let mut console = Console::open(cluster, &pods[0], "app")?;
    reads(&mut console, "4.00")?;
    sees(format_args!("two plain pods Ready after {took:.1?}; the app reads 4.00 from Redis directly"));
    Ok(())
}

fn clean_up(cluster: &Cluster) -> Result<()> {
    if cluster.helm(["status", RELEASE, "-n", SYSTEM]).is_ok() {
        cluster.helm(["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "60s"])?;
    }
    cluster.kubectl(["delete", "namespace", SHOP, SYSTEM, "--ignore-not-found", "--timeout=120s"]).map(drop)
}

// === helpers ===

fn two_ready(cluster: &Cluster, injected: bool) -> Result<[Pod; 2]> {
    let pods = cluster.pods(SHOP, "app=shop")?;
    let fit = pods.iter().filter(|(_, object)| has_sidecar(object) == injected && is_ready(object));
    let fit: Vec<Pod> = fit.map(|(pod, _)| pod.clone()).collect();
    <[Pod; 2]>::try_from(fit).map_err(|fit| anyhow::anyhow!("{} of {} pods fit", fit.len(), pods.len()))
}

fn has_sidecar(pod: &Value) -> bool {
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    lists.flatten().any(|container| container["name"] == "caddy-sidecar")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn reads(console: &mut Console, value: &str) -> Result<()> {
    let found = console.reply(&["GET", KEY])?;
    ensure!(found == value, "{KEY} is {found}, expected {value}");
    Ok(())
}

fn redis(cluster: &Cluster, command: &[&str]) -> Result<String> {
    let (pod, _) = cluster.pods(SHOP, "app=redis")?.into_iter().next().context("Redis has no pod")?;
    pod.exec(cluster, "redis", &[&["redis-cli"], command].concat())
}

fn tier_hits(cluster: &Cluster, pod: &Pod) -> Result<u64> {
    let metrics = Metrics::of(cluster, pod)?;
    Ok(["l1", "l2"].iter().map(|tier| metrics.sum("caddy_hits_total", &[&format!("tier=\"{tier}\"")])).sum())
}

fn image(which: &str) -> Result<PathBuf> {
    let output = Command::new(repository().join("tests/kube/image")).arg(which).output()?;
    ensure!(output.status.success(), "tests/kube/image {which}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().last().context("tests/kube/image prints a path")?.into())
}

fn product() -> Result<PathBuf> {
    let path =
        env::var_os("CADDY_IMAGE_ARCHIVE").context("CADDY_IMAGE_ARCHIVE names the image; `cargo xtask demo` does")?;
    Ok(path.into())
}

fn chapter(title: &str) {
    println!("\n  == {title}");
}

fn does(what: impl Display) {
    println!("     {what}");
}

fn sees(what: impl Display) {
    for line in what.to_string().lines() {
        println!("       {line}");
    }
}
