//! Act two of `cargo xtask demo`: the whole product in pods of the cluster that `CADDY_E2E_KUBECONFIG` names. It prints each
//! thing it does and what it measured inside the pods, and ends with an error when something does not hold. It owns the
//! namespaces `shop` and `caddy-system` and removes both.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddy_tests::e2e::{Cluster, Console, Namespace, Pod, Stopwatch, eventually, holds, product, repository};
use serde_json::json;

const SHOP: &str = "shop";
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
    product::remove(&cluster, &[SHOP])?;
    let result = acts(Namespace::new(&cluster, SHOP));
    if result.is_err() {
        eprintln!("{}", cluster.diagnosis(&[SHOP, product::SYSTEM]));
    }
    let removed = product::remove(&cluster, &[SHOP]);
    result.and(removed)
}

fn acts(shop: Namespace<'_>) -> Result<()> {
    chapter("Install: once per cluster");
    install(shop.cluster)?;
    chapter("One apply of one file: a shop, its Redis, and the CacheCluster");
    let pods = apply(shop)?;
    let mut a = shop.console(&pods[0])?;
    let mut b = shop.console(&pods[1])?;
    chapter("Reads get fast");
    reads_get_fast(shop, &pods[0], &mut a)?;
    chapter("Every pod's copy dies when somebody writes");
    writes_are_seen(shop, &mut a, &mut b)?;
    chapter("Redis goes away: the bound holds, the pods stay Ready");
    redis_goes_and_returns(shop, &mut a, &mut b)?;
    drop((a, b));
    chapter("The way back is one label");
    way_back(shop)
}

fn install(cluster: &Cluster) -> Result<()> {
    does(format_args!(
        "helm upgrade --install caddy-cache charts/caddy-cache -n {} --set {}",
        product::SYSTEM,
        product::values()?.join(" --set ")
    ));
    let watch = Stopwatch::start();
    product::install(cluster)?;
    sees(format_args!("the operator is Ready after {:.1?}", watch.elapsed()));
    Ok(())
}

fn apply(shop: Namespace<'_>) -> Result<[Pod; 2]> {
    does("kubectl apply -f tests/manifests/shop.yaml");
    shop.cluster.apply(&repository().join("tests/manifests/shop.yaml"))?;
    let (pods, took) = eventually("two pods with sidecars are Ready", PATIENCE, || shop.exactly_ready(SHOP, true))?;
    sees(format_args!("two app pods, each with a sidecar, Ready after {took:.1?}"));
    eventually("the CacheCluster is Ready", PATIENCE, || {
        let ready = shop.condition(SHOP, "Ready")?;
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })?;
    does("kubectl get pods,cachecluster -n shop");
    sees(shop.kubectl(["get", "pods,cachecluster"])?);
    Ok(pods)
}

fn reads_get_fast(shop: Namespace<'_>, pod: &Pod, a: &mut Console) -> Result<()> {
    a.reply(&["SET", KEY, "3.20"])?;
    does(format_args!("redis-py in pod A: SET {KEY} 3.20, then GET it"));
    let first = a.run(&["GET", KEY])?;
    ensure!(first.outcome == Ok(json!("3.20")), "GET {KEY} answers {:?}", first.outcome);
    sees(format_args!("first read, from Redis in another pod: {} µs", first.taken.as_micros()));
    let before = shop.tier_hits(pod)?.iter().sum::<u64>();
    let mut times = Vec::with_capacity(READS);
    for _ in 0..READS {
        let answer = a.run(&["GET", KEY])?;
        ensure!(answer.outcome == Ok(json!("3.20")), "GET {KEY} answers {:?}", answer.outcome);
        times.push(answer.taken);
    }
    times.sort_unstable();
    let hits = shop.tier_hits(pod)?.iter().sum::<u64>() - before;
    sees(format_args!(
        "then, median of {READS}: {} µs as Python sees it, no packet leaves the pod",
        times[READS / 2].as_micros()
    ));
    sees(format_args!("the sidecar's metrics say {hits} hits in L1 and L2 meanwhile (the app reads the key, too)"));
    ensure!(hits >= READS as u64 * 9 / 10, "at least nine of ten reads are hits, not {hits} of {READS}");
    Ok(())
}

fn writes_are_seen(shop: Namespace<'_>, a: &mut Console, b: &mut Console) -> Result<()> {
    reads(b, "3.20")?;
    does(format_args!("B holds its own copy. SET {KEY} 3.50 in pod A, then GET in A and in B"));
    a.reply(&["SET", KEY, "3.50"])?;
    reads(a, "3.50")?;
    let ((), took) = eventually("B reads it", MAX_STALENESS, || reads(b, "3.50"))?;
    sees(format_args!("A reads 3.50 at once, B within {took:.0?} (a round trip through kubectl exec included)"));
    does(format_args!("redis-cli SET {KEY} 3.80 in Redis' own pod, past every sidecar"));
    shop.redis(&["SET", KEY, "3.80"])?;
    for (name, console) in [("A", &mut *a), ("B", &mut *b)] {
        let ((), took) = eventually("the foreign write is seen", MAX_STALENESS, || reads(console, "3.80"))?;
        sees(format_args!("{name} reads 3.80 within {took:.0?}"));
    }
    Ok(())
}

fn redis_goes_and_returns(shop: Namespace<'_>, a: &mut Console, b: &mut Console) -> Result<()> {
    does("kubectl scale deployment redis --replicas=0 -n shop");
    shop.cluster.scale(SHOP, "redis", 0)?;
    eventually("Redis is gone", PATIENCE, || {
        let pods = shop.pods("redis")?;
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
    let asked =
        holds("both app pods stay Ready", Duration::from_secs(5), || shop.exactly_ready::<2>(SHOP, true).map(drop))?;
    sees(format_args!("both app pods Ready, asked {asked} times in 5 s"));
    does("kubectl scale deployment redis --replicas=1 -n shop");
    let watch = Stopwatch::start();
    shop.cluster.scale(SHOP, "redis", 1)?;
    eventually("A writes again", PATIENCE, || a.reply(&["SET", KEY, "4.00"]))?;
    eventually("B reads it", MAX_STALENESS, || reads(b, "4.00"))?;
    sees(format_args!("A writes and B reads again {:.1?} later; nobody restarted anything", watch.elapsed()));
    Ok(())
}

fn way_back(shop: Namespace<'_>) -> Result<()> {
    let patch = json!({"spec": {"template": {"metadata": {"labels": {"cache.caddy.dev/cluster": null}}}}}).to_string();
    does("the label cache.caddy.dev/cluster is taken off the Deployment's pod template");
    shop.kubectl(["patch", "deployment", "shop", "-p", &patch])?;
    let (pods, took) =
        eventually("two pods without sidecars are Ready", PATIENCE, || shop.exactly_ready::<2>(SHOP, false))?;
    let mut console = shop.console(&pods[0])?;
    reads(&mut console, "4.00")?;
    sees(format_args!("two plain pods Ready after {took:.1?}; the app reads 4.00 from Redis directly"));
    Ok(())
}

// === helpers ===

fn reads(console: &mut Console, value: &str) -> Result<()> {
    let found = console.reply(&["GET", KEY])?;
    ensure!(found == value, "{KEY} is {found}, expected {value}");
    Ok(())
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
