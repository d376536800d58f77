//! What this sidecar agrees on with the others of its cluster, through the API server: that it is there, who does the
//! cluster's duties, what CacheInvalidations ask for, the epoch of the locks, and locks that are Leases.
//!
//! Nothing here is on the way of a request: without an API server, or without an identity, apps are served as ever, and
//! only reports and new duties wait. Requests are paced by the number of members that the configuration tells.

mod client;
mod duties;
mod epoch;
mod invalidations;
mod lease_locks;
mod member;
#[cfg(test)]
mod scale;

use std::{sync::Arc, time::Duration};

use caddy_contract::coordination::{MemberReport, POD_NAME_ENV, POD_UID_ENV};
use caddy_engine::Counter;
use caddy_lease::{Standing, Tenure, boottime};
use caddy_remote::locks::EpochAuthority;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    guards::{Guard, hold},
    shared::Shared,
    supervisor::Supervisor,
};
use client::ApiClient;
pub(crate) use client::Traffic;
use epoch::EpochLease;
pub(crate) use lease_locks::LeaseLocks;

/// How long a sidecar that ends waits for its release to be written.
const HAND_OVER: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Coordination {
    /// None where there is no Kubernetes.
    tenure: Option<Tenure>,
    /// None where the environment does not say where the API server is.
    client: Option<Arc<ApiClient>>,
    /// What was asked of the API server.
    pub(crate) traffic: Traffic,
}

impl Coordination {
    /// Of a sidecar that is configured with, or without, Kubernetes.
    pub(crate) fn new(config: &caddy_contract::Config) -> Self {
        let Some(kubernetes) = &config.kubernetes else { return Self::default() };
        let traffic = Traffic::default();
        let client = ApiClient::from_environment(&kubernetes.identity_dir, traffic.clone()).map(Arc::new);
        Self { tenure: Some(Tenure::new(boottime)), client, traffic }
    }

    /// The cluster's duties.
    pub(crate) fn duties(&self) -> Duties<'_> {
        Duties(self.tenure.as_ref())
    }

    /// Where the epochs of locks are agreed on; None without an API server.
    pub(crate) fn epoch_authority(&self, config: &caddy_contract::Config) -> Option<Arc<dyn EpochAuthority>> {
        let members = config.kubernetes.as_ref().filter(|_| hold(Guard::EpochAgreed))?.members;
        Some(Arc::new(EpochLease::new(self.client.clone()?, &Place::of(config), members)))
    }

    /// Locks in Leases; None without an API server.
    pub(crate) fn lease_locks(&self, config: &caddy_contract::Config) -> Option<Arc<LeaseLocks>> {
        Some(LeaseLocks::new(self.client.clone()?, Place::of(config)))
    }
}

/// The jobs that exactly one sidecar of a cluster does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Duties<'a>(Option<&'a Tenure>);

impl Duties<'_> {
    /// Whether this sidecar does them at this moment; to be asked before each step of one. A sidecar without Kubernetes
    /// has nobody to agree with, and does its own.
    pub(crate) fn is_holder(self) -> bool {
        self.0.is_none_or(Tenure::is_held)
    }

    /// Who does them, as far as is known: a pod's name with a random part.
    pub(crate) fn holder(self) -> Option<String> {
        self.0.and_then(|tenure| tenure.standing().borrow().holder.clone())
    }

    /// Why that is not known, or not anew.
    pub(crate) fn trouble(self) -> Option<String> {
        self.0.and_then(|tenure| Standing::clone(&tenure.standing().borrow()).trouble)
    }
}

/// The tasks; to be ended with [`end`](Self::end).
pub(crate) struct Running {
    leaving: CancellationToken,
    left: CancellationToken,
}

impl Running {
    /// Starts what the configuration asks for and the environment allows.
    pub(crate) fn start(shared: &Arc<Shared>, supervisor: &Supervisor) -> Option<Self> {
        let config = shared.config();
        let tenure = shared.coordination.tenure.clone()?;
        let pod = std::env::var(POD_NAME_ENV).ok().zip(std::env::var(POD_UID_ENV).ok());
        let Some(((pod, uid), client)) = pod.zip(shared.coordination.client.clone()) else {
            tracing::warn!(
                "the configuration names Kubernetes, but {POD_NAME_ENV}, {POD_UID_ENV} and KUBERNETES_SERVICE_HOST are not \
                 all set; this sidecar reports to nobody and takes no part in the cluster's duties"
            );
            return None;
        };
        let place = Place::of(&config);
        let (leaving, left) = (CancellationToken::new(), CancellationToken::new());
        supervisor.spawn_local(
            "member",
            member::keep(Sidecar(shared.clone()), client.clone(), place.clone(), Pod { name: pod.clone(), uid }),
        );
        supervisor.spawn_local(
            "invalidations",
            invalidations::execute(shared.clone(), client.clone(), place.clone(), pod.clone(), leaving.clone()),
        );
        let taking_part = duties::take_part(Sidecar(shared.clone()), client, place, pod, tenure, leaving.clone());
        let done = left.clone();
        supervisor.spawn_local("duties", async move {
            taking_part.await;
            done.cancel();
        });
        Some(Self { leaving, left })
    }

    /// Hands the duties over; does not wait for it.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
    }

    /// Hands them over and waits until that is written, a little.
    pub(crate) async fn end(&self) {
        self.leaving.cancel();
        if tokio::time::timeout(HAND_OVER, self.left.cancelled()).await.is_err() {
            tracing::info!(
                "the cluster's duties could not be handed over; another sidecar takes them when their time is over"
            );
        }
    }
}

/// The CacheCluster that a sidecar belongs to.
#[derive(Debug, Clone)]
struct Place {
    namespace: String,
    cluster: String,
    cluster_uid: Option<String>,
}

impl Place {
    fn of(config: &caddy_contract::Config) -> Self {
        let cluster = config.cluster.clone();
        Self { namespace: cluster.namespace, cluster: cluster.name, cluster_uid: cluster.uid }
    }

    fn leases(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    /// A Lease of the CacheCluster, which goes with it.
    fn declaration(&self, name: &str, labels: &Value, annotations: &Value) -> Value {
        let owner = self.cluster_uid.as_ref().map(|uid| {
            json!([{"apiVersion": "cache.caddy.dev/v1alpha1", "kind": "CacheCluster", "name": self.cluster, "uid": uid}])
        });
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations, "ownerReferences": owner});
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata})
    }
}

/// The pod that a sidecar is part of.
#[derive(Debug, Clone)]
struct Pod {
    name: String,
    uid: String,
}

/// What the others are told of a sidecar, and what it knows of them.
trait Member {
    /// What there is to report now.
    fn report(&self, pod: &Pod) -> MemberReport;

    /// How many members there are.
    fn members(&self) -> u32;
}

/// This process.
struct Sidecar(Arc<Shared>);

impl Member for Sidecar {
    fn report(&self, pod: &Pod) -> MemberReport {
        let Self(shared) = self;
        let (status, stats) = (shared.status.get(), shared.cache.stats());
        let epoch = shared.locks.shared_epoch().unwrap_or_default();
        let sum = |wanted: &[Counter]| {
            stats.iter().filter(|(counter, _)| wanted.contains(counter)).map(|(_, count)| count).sum()
        };
        MemberReport {
            pod: pod.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_generation: shared.config().config_generation,
            coherent: status.coherent,
            l3_reachable: status.reachable,
            reason: status.reason.clone(),
            sessions: shared.session_count() as u64,
            hits: sum(&[Counter::HitL1, Counter::HitL2]),
            misses: sum(&[Counter::MissAbsent, Counter::MissInvalidated, Counter::MissExpired]),
            l2_bytes: stats.l2_bytes as u64,
            lock_epoch: epoch.epoch,
            epoch_by_mirror: epoch.epoch > 0 && !epoch.has_server_ids,
            unreplicated: shared.behinds.unreplicated(),
        }
    }

    fn members(&self) -> u32 {
        self.0.config().kubernetes.as_ref().map_or(1, |kubernetes| kubernetes.members)
    }
}

/// Between nothing and all of it: members that started together, or saw the same change, spread.
fn random_part(time: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    time.mul_f64((RandomState::new().hash_one(0) % 1000) as f64 / 1000.0)
}
