//! Taking part in the cluster's duties: a candidate for one Lease per CacheCluster.
//!
//! The Lease is made by whoever misses it, owned by the CacheCluster: when that is deleted, there are no duties.

use std::{future::Future, sync::Arc, time::Duration};

use caddy_contract::coordination::{duties_lease, question};
use caddy_lease::{LeaseApi, Machine, Record, Reply, Tenure, Terms, drive, patch, unique};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Member, Place, client::ApiClient, random_part};

/// How long others wait after the holder's last sign of life.
const DURATION: Duration = Duration::from_secs(30);
/// Pause between two looks for a token.
const LOOK: Duration = Duration::from_secs(5);

/// Takes part until `leaving`, then releases.
pub(super) async fn take_part(
    member: impl Member + Send + Sync,
    client: Arc<ApiClient>,
    place: Place,
    pod: String,
    tenure: Tenure,
    leaving: CancellationToken,
) {
    while !client.has_identity() {
        tokio::select! {
            () = leaving.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    let lease = DutiesLease::new(member, client, &place);
    let identity = unique(&pod);
    let seed = u64::from_str_radix(identity.rsplit('_').next().unwrap_or_default(), 16).unwrap_or(1);
    // Many pods may start in one moment.
    let pace = lease.question();
    tokio::select! {
        () = leaving.cancelled() => return,
        () = tokio::time::sleep(random_part(pace)) => {}
    }
    let machine = Machine::new(Terms::new(identity, DURATION, pace), seed);
    let told = tell(&tenure);
    let taking_part = drive(&lease.name, machine, &lease, tenure.clone(), leaving.cancelled());
    tokio::select! {
        () = taking_part => {}
        () = told => {}
    }
}

/// Logs what becomes of it; does not end by itself.
async fn tell(tenure: &Tenure) {
    let mut standing = tenure.standing();
    let mut held = false;
    while standing.changed().await.is_ok() {
        let now = standing.borrow_and_update().clone();
        if now.held != held {
            held = now.held;
            tracing::info!(held, holder = now.holder, "the cluster's duties");
        }
    }
}

struct DutiesLease<M> {
    member: M,
    client: Arc<ApiClient>,
    name: String,
    all: String,
    path: String,
    declaration: Value,
}

impl<M: Member> DutiesLease<M> {
    fn new(member: M, client: Arc<ApiClient>, place: &Place) -> Self {
        let name = duties_lease(&place.cluster);
        let all = place.leases();
        let declaration = place.declaration(&name, &json!({"app.kubernetes.io/name": "caddy-cache"}), &json!({}));
        let path = format!("{all}/{name}");
        Self { member, client, name, all, path, declaration }
    }

    /// The pause of this candidate: a little above its share, so that rounds may overlap.
    fn question(&self) -> Duration {
        question(self.member.members()) * 11 / 10
    }
}

impl<M: Member + Send + Sync> LeaseApi for &DutiesLease<M> {
    async fn get(&self) -> Reply {
        match self.client.get(&self.path).await {
            Reply::Missing => self.client.create(&self.all, &self.declaration).await,
            reply => reply,
        }
    }

    fn swap(&self, version: &str, record: &Record) -> impl Future<Output = Reply> + Send {
        let body = patch(version, record);
        async move { self.client.patch(&self.path, &body).await }
    }

    fn pace(&self) -> Option<Duration> {
        Some(self.question())
    }
}
