//! A Redis Cluster behind the sidecar: three primaries of the test's own, seen by an app as one Redis.

mod commands;
mod conditional;
mod conditional_runs;
mod differential;
mod groups;
mod locks;
mod outages;
mod warm;

use std::time::Duration;

use anyhow::{Result, ensure};
use caddy_tests::{
    cluster_scenarios,
    e2e::eventually,
    redis_cluster::RedisCluster,
    sidecar::Sidecar,
    world::{Client, SOON, Subject},
};

/// A cluster with a sidecar in front of it.
struct Shop {
    cluster: RedisCluster,
    sidecar: Sidecar,
}

impl Shop {
    fn open() -> Result<Self> {
        Self::with(RedisCluster::start(3)?, Duration::from_secs(1))
    }

    fn with(cluster: RedisCluster, max_staleness: Duration) -> Result<Self> {
        let sidecar = Subject::good().cluster_options(&cluster).max_staleness(max_staleness).workers(2).start()?;
        Ok(Self { cluster, sidecar })
    }

    fn connect(&self) -> Result<Client> {
        Ok(Client(self.sidecar.connect()?))
    }
}

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            cluster_scenarios::$name(&Subject::good())
        }
    )*};
}

scenarios! {
    an_absent_key_is_found_where_its_slot_goes
    a_dropped_slot_is_read_at_its_new_owner
    a_node_without_its_cluster_proves_nothing
    a_filter_knows_that_a_slot_leaves
    no_step_back_behind_a_new_slot_map
}

#[test]
fn keys_of_all_nodes_are_read_written_and_cached() -> Result<()> {
    let shop = Shop::open()?;
    let mut client = shop.connect()?;
    for node in 0..3 {
        let key = shop.cluster.key_of(node, 0);
        ensure!(client.ask(&format!("GET {key}"))? == "(nil)", "{key} is absent");
        ensure!(client.ask(&format!("SET {key} v0"))? == "OK", "SET {key}");
        client.hold(&key, "v0")?;
        ensure!(shop.cluster.ask(&format!("SET {key} v1"))? == "OK", "a foreign SET {key}");
        eventually("a foreign write is seen", SOON, || {
            let read = client.ask(&format!("GET {key}"))?;
            ensure!(read == "v1", "GET {key} answers {read}");
            Ok(())
        })?;
        client.hold(&key, "v1")?;
    }
    ensure!(shop.sidecar.metric("caddy_l3_nodes")? == 3, "all primaries are known");
    ensure!(shop.sidecar.metric("caddy_coherent")? == 1, "copies of all of them are tracked");
    Ok(())
}

#[test]
fn a_pipeline_over_all_nodes_is_answered_in_order() -> Result<()> {
    let shop = Shop::open()?;
    let mut client = shop.connect()?;
    let keys: Vec<String> = (0..60).map(|n| shop.cluster.key_of(n % 3, n)).collect();
    let mut commands = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        commands.extend([format!("SET {key} {n}"), format!("GET {key}"), format!("INCR {key}"), format!("GET {key}")]);
    }
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let replies = client.pipeline(&commands)?;
    for (n, replies) in replies.chunks(4).enumerate() {
        let [one, two] = [n, n + 1].map(|n| n.to_string());
        ensure!(replies == ["OK", &one, &two, &two], "{n}: {replies:?}");
    }
    Ok(())
}
