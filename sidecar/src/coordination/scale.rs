//! A thousand members against a real API server: what they ask of it together. Run by hand, as
//! `docs/contributing.md` says; it prints figures and checks them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use caddy_contract::coordination::{MemberReport, REQUESTS_PER_SECOND};
use caddy_lease::{Tenure, boottime};
use tokio_util::sync::CancellationToken;

use super::{Member, Place, Pod, Traffic, client::ApiClient, duties, member};

/// Length of a window, and how many are looked at.
const WINDOW: Duration = Duration::from_secs(30);
const WINDOWS: u32 = 8;

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
        let (start, mut sums) = (boottime(), (0.0, 0.0));
        for _ in 0..WINDOWS {
            let (before, began) = ((traffic.reads.get(), traffic.writes.get()), boottime());
            let mut most = 0;
            while boottime().since(began) < WINDOW {
                tokio::time::sleep(Duration::from_millis(500)).await;
                most = most.max(tenures.iter().filter(|tenure| tenure.is_held()).count());
            }
            let (reads, writes) = (traffic.reads.get() - before.0, traffic.writes.get() - before.1);
            let elapsed = boottime().since(began).as_secs_f64();
            let (reads, writes) = (reads as f64 / elapsed, writes as f64 / elapsed);
            println!(
                "{:.0} to {:.0} s: {reads:.1} reads/s, {writes:.1} writes/s, {} failures in all, at most {most} held the duties",
                began.since(start).as_secs_f64(),
                boottime().since(start).as_secs_f64(),
                traffic.failures.get(),
            );
            assert!(most <= 1, "{most} held the duties at one time");
            sums = (sums.0 + reads, sums.1 + writes);
        }
        (sums.0 / f64::from(WINDOWS), sums.1 / f64::from(WINDOWS))
    };
    let (reads, writes) = local.run_until(watched).await;
    let bound = f64::from(REQUESTS_PER_SECOND);
    println!("on average {reads:.1} reads/s and {writes:.1} writes/s");
    assert!(reads <= bound && writes <= bound, "more than {bound} a second");
    assert_eq!(tenures.iter().filter(|tenure| tenure.is_held()).count(), 1, "somebody does the duties");
}
