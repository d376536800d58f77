//! Which replica reconciles: the one that holds the operator's Lease.
//!
//! All replicas watch and answer the webhook; only the holder writes. It releases the Lease on SIGTERM, so that another
//! one goes on at once; when it dies, after at most the Lease's duration and a moment. It never makes the Lease: the chart
//! does, so no right to create Leases is needed.

use crate::metrics::Metrics;
use caddy_crds::names;
use caddy_lease::{LeaseApi, Machine, Record, Reply, Tenure, Terms, boottime, drive, patch, snapshot, unique};
use futures::{Stream, stream};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How long others wait after the leader's last sign of life.
const DURATION: Duration = Duration::from_secs(15);
/// How often others ask.
const PACE: Duration = Duration::from_secs(2);

/// Whether this replica may write. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Leadership(Option<Tenure>);

impl Leadership {
    /// Of a replica that takes part in an election.
    pub fn elected() -> Self {
        Self(Some(Tenure::new(boottime)))
    }

    /// Of the only one.
    pub fn alone() -> Self {
        Self(None)
    }

    /// To be asked before each write.
    pub fn is_held(&self) -> bool {
        self.0.as_ref().is_none_or(Tenure::is_held)
    }

    /// One item whenever this replica begins to lead.
    pub fn begins(&self) -> impl Stream<Item = ()> + Send + Sync + 'static {
        let standing = self.0.as_ref().map(Tenure::standing);
        stream::unfold((standing, 0), |(standing, seen)| async move {
            let Some(mut standing) = standing else {
                // Alone, it leads from the start on.
                return if seen == 0 { Some(((), (None, 1))) } else { std::future::pending().await };
            };
            loop {
                if standing.changed().await.is_err() {
                    return None;
                }
                let terms = standing.borrow_and_update().terms;
                if terms != seen {
                    return Some(((), (Some(standing), terms)));
                }
            }
        })
    }

    /// Takes part until `leaving`, then releases.
    pub async fn run(self, client: Client, place: Place, metrics: Arc<Metrics>, leaving: CancellationToken) {
        let Some(tenure) = self.0 else {
            metrics.leader.set(1);
            return leaving.cancelled().await;
        };
        let identity = unique(&place.identity);
        tracing::info!(lease = place.name, identity, "taking part in the election of the replica that reconciles");
        let seed = u64::from_str_radix(identity.rsplit('_').next().unwrap_or_default(), 16).unwrap_or(1);
        let machine = Machine::new(Terms::new(identity, DURATION, PACE), seed);
        let api = KubeLease { api: Api::namespaced(client, &place.namespace), name: place.name.clone() };
        let watching = tell(&tenure, &metrics);
        let taking_part = drive(&place.name, machine, api, tenure.clone(), leaving.cancelled());
        tokio::select! {
            () = taking_part => {}
            () = watching => {}
        }
        metrics.leader.set(0);
    }
}

/// Where the election takes place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of this replica; a random part is added.
    pub identity: String,
}

/// Logs and counts what becomes of the election; does not end by itself.
async fn tell(tenure: &Tenure, metrics: &Metrics) {
    let mut standing = tenure.standing();
    let mut led = false;
    while standing.changed().await.is_ok() {
        let now = standing.borrow_and_update().clone();
        if now.held != led {
            led = now.held;
            metrics.leader.set(i64::from(led));
            if led {
                metrics.leaderships.inc();
                tracing::info!("this replica reconciles");
            } else {
                tracing::info!(holder = now.holder, "this replica reconciles no longer");
            }
        }
    }
}

/// A Lease behind kube's client.
#[derive(Clone)]
struct KubeLease {
    api: Api<Lease>,
    name: String,
}

impl LeaseApi for KubeLease {
    async fn get(&self) -> Reply {
        reply(self.api.get(&self.name).await)
    }

    fn swap(&self, version: &str, record: &Record) -> impl Future<Output = Reply> + Send {
        let body = Patch::Merge(patch(version, record));
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        async move { reply(self.api.patch(&self.name, &params, &body).await) }
    }
}

fn reply(result: Result<Lease, kube::Error>) -> Reply {
    match result {
        Ok(lease) => match serde_json::to_value(lease).map(|lease| snapshot(&lease)) {
            Ok(Ok(snapshot)) => Reply::Lease(snapshot),
            Ok(Err(error)) => Reply::Unknown(error.to_owned()),
            Err(error) => Reply::Unknown(error.to_string()),
        },
        Err(kube::Error::Api(status)) => {
            let after = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|after| *after > 0);
            match status.code {
                404 => Reply::Missing,
                409 => Reply::Conflict,
                429 => Reply::Busy(after.map(|seconds| Duration::from_secs(seconds.into()))),
                400..=499 => Reply::Denied(format!("{} ({})", status.message, status.code)),
                _ => Reply::Unknown(format!("{} ({})", status.message, status.code)),
            }
        }
        Err(error) => Reply::Unknown(crate::certs::keeper::chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeApi;
    use futures::StreamExt as _;
    use serde_json::json;

    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/caddy/leases/caddy-operator";

    fn place(identity: &str) -> Place {
        Place { namespace: "caddy".into(), name: "caddy-operator".into(), identity: identity.into() }
    }

    #[tokio::test]
    async fn the_first_replica_leads_and_the_second_goes_on_when_it_leaves() {
        let (api, client) = FakeApi::new();
        api.put(LEASE, json!({"metadata": {"name": "caddy-operator", "uid": "u", "resourceVersion": "1"}}));
        let (first, second) = (Leadership::elected(), Leadership::elected());
        let metrics = [Arc::new(Metrics::new()), Arc::new(Metrics::new())];
        let leaving = [CancellationToken::new(), CancellationToken::new()];
        let mut began = Box::pin(first.begins());
        let mut running = tokio::task::JoinSet::new();
        running.spawn(first.clone().run(client.clone(), place("a"), metrics[0].clone(), leaving[0].clone()));
        began.next().await.unwrap();
        assert!(first.is_held() && !second.is_held());
        let holder = api.object(LEASE).unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned();
        assert!(holder.starts_with("a_"), "{holder}");
        let mut began = Box::pin(second.begins());
        running.spawn(second.clone().run(client, place("b"), metrics[1].clone(), leaving[1].clone()));
        leaving[0].cancel();
        began.next().await.unwrap();
        assert!(second.is_held() && !first.is_held());
        assert_eq!((metrics[0].leader.get(), metrics[1].leaderships.get()), (0, 1));
        leaving[1].cancel();
        running.join_all().await;
        assert_eq!(api.object(LEASE).unwrap()["spec"]["holderIdentity"], "", "released");
        assert!(!second.is_held());
    }

    #[tokio::test]
    async fn a_replica_that_is_alone_leads() {
        assert!(Leadership::alone().is_held());
    }
}
