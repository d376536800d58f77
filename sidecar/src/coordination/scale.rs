//! A thousand members against a real API server: what they ask of it together. Run by hand, as
//! `docs/contributing.md` says; it prints figures and checks them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use caddy_contract::coordination::{MemberReport, REQUESTS_PER_SECOND};
use caddy_lease::{Tenure, boottime};
use tokio_util::sync::CancellationToken;

use super::{Member, Place, Pod, Traffic, client::ApiClient, duties, member};

struct Simulated(u32);

impl Member for Simulated {
    fn report(&self, pod: &Pod) -> MemberReport {
        MemberReport { pod: pod.name.clone(), coherent: true, l3_reachable: true, ..MemberReport::default() }
    }

    fn members(&self) -> u32 {
        self.0
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("set {name}; docs/contributing.md has the whole command"))
}

#[tokio::test]
#[ignore = "takes minutes and needs an API server with the pods that CADDY_SCALE_PODS names"]
async fn a_thousand_members_ask_ten_times_a_second() {
    let identity = PathBuf::from(variable("CADDY_SCALE_IDENTITY"));
    let pods = std::fs::read_to_string(variable("CADDY_SCALE_PODS")).unwrap();
    let pods: Vec<Pod> = pods
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, uid)| Pod { name: name.into(), uid: uid.into() })
        .collect();
    let count = u32::try_from(pods.len()).unwrap();
    let cluster = variable("CADDY_SCALE_CLUSTER");
    let (namespace, name) = cluster.split_once('/').unwrap();
    let place = Place { namespace: namespace.into(), cluster: name.into(), cluster_uid: None };
    let traffic = Traffic::default();
    let client = Arc::new(ApiClient::from_environment(&identity, traffic.clone()).unwrap());
    let leaving = CancellationToken::new();
    let (local, mut tenures) = (tokio::task::LocalSet::new(), Vec::new());
    for pod in pods {
        let tenure = Tenure::new(boottime);
        tenures.push(tenure.clone());
        let candidate = duties::take_part(
            Simulated(count),
            client.clone(),
            place.clone(),
            pod.name.clone(),
            tenure,
            leaving.clone(),
        );
        local.spawn_local(member::keep(Simulated(count), client.clone(), place.clone(), pod));
        local.spawn_local(candidate);
    }
    let watched = async {
        let mut worst = (0, 0);
        for window in 0..9_u32 {
            let before = (traffic.reads.get(), traffic.writes.get());
            let mut most = 0;
            for _ in 0..300 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                most = most.max(tenures.iter().filter(|tenure| tenure.is_held()).count());
            }
            let (reads, writes) = (traffic.reads.get() - before.0, traffic.writes.get() - before.1);
            let rate = |count: u64| count as f64 / 30.0;
            println!(
                "{} to {} s: {:.1} reads/s, {:.1} writes/s, {} failures in all, at most {most} held the duties",
                window * 30,
                window * 30 + 30,
                rate(reads),
                rate(writes),
                traffic.failures.get(),
            );
            assert!(most <= 1, "{most} held the duties at one time");
            // In the first minutes each Lease is looked for, found missing and made.
            if window >= 5 {
                worst = (worst.0.max(reads), worst.1.max(writes));
            }
        }
        worst
    };
    let (reads, writes) = local.run_until(watched).await;
    let bound = u64::from(REQUESTS_PER_SECOND) * 30;
    assert!(reads <= bound && writes <= bound, "in 30 s {reads} reads and {writes} writes, bound {bound}");
    assert_eq!(tenures.iter().filter(|tenure| tenure.is_held()).count(), 1, "somebody does the duties");
}
