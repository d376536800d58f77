//! The epoch of a CacheCluster's locks, in a Lease: a number that only grows, changed by compare-and-swap.
//!
//! The number is an annotation, and never less than the second in which the Lease was made: who deletes the Lease moves the
//! epoch forward. Made by whoever misses it, owned by the CacheCluster. Asked only when a connection for locks is made.

use std::{sync::Arc, time::Duration};

use caddy_contract::coordination::{EPOCH_ANNOTATION, EPOCH_BEGUN_ANNOTATION, epoch_lease};
use caddy_lease::{Reply, Snapshot};
use caddy_remote::locks::{Agreed, Agreement, EpochAuthority};
use serde_json::{Value, json};

use super::{Place, client::ApiClient};

/// Deadline of one request.
const DEADLINE: Duration = Duration::from_secs(2);
/// Per member: so long all together may take to ask.
const SPREAD: Duration = Duration::from_millis(10);
/// What a script of Redis can count with; a greater one was written by somebody else.
const GREATEST: u64 = (1 << 53) - 1;

/// See the module.
pub(super) struct EpochLease {
    client: Arc<ApiClient>,
    name: String,
    all: String,
    path: String,
    declaration: Value,
    members: u32,
}

impl EpochLease {
    pub(super) fn new(client: Arc<ApiClient>, place: &Place, members: u32) -> Self {
        let name = epoch_lease(&place.cluster);
        let all = place.leases();
        let declaration = place.declaration(&name, &json!({"app.kubernetes.io/name": "caddy-cache"}), &json!({}));
        let path = format!("{all}/{name}");
        Self { client, name, all, path, declaration, members }
    }

    async fn read(&self) -> Result<Agreed, String> {
        match self.client.get(&self.path).await {
            Reply::Missing => match self.client.create(&self.all, &self.declaration).await {
                // Another one made it.
                Reply::Conflict => agreed(self.client.get(&self.path).await),
                reply => agreed(reply),
            },
            reply => agreed(reply),
        }
    }

    async fn swap(&self, seen: &Agreed, annotation: &str, epoch: u64) -> Result<bool, String> {
        let patch = json!({
            "metadata": {"resourceVersion": seen.version, "annotations": {annotation: epoch.to_string()}},
        });
        match self.client.patch(&self.path, &patch).await {
            Reply::Lease(snapshot) if number(&snapshot) == epoch => Ok(true),
            Reply::Lease(_) | Reply::Conflict | Reply::Missing => Ok(false),
            reply => agreed(reply).map(|_| false),
        }
    }
}

impl EpochAuthority for EpochLease {
    fn greatest(&self) -> Agreement<'_, Agreed> {
        Box::pin(within_deadline(self.read()))
    }

    fn raise<'a>(&'a self, seen: &'a Agreed, epoch: u64) -> Agreement<'a, bool> {
        Box::pin(within_deadline(self.swap(seen, EPOCH_ANNOTATION, epoch)))
    }

    fn begin<'a>(&'a self, seen: &'a Agreed) -> Agreement<'a, bool> {
        Box::pin(within_deadline(self.swap(seen, EPOCH_BEGUN_ANNOTATION, seen.epoch)))
    }

    fn spread(&self) -> Duration {
        SPREAD * self.members
    }

    fn name(&self) -> &str {
        &self.name
    }
}

async fn within_deadline<T>(asking: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let answer = tokio::time::timeout(DEADLINE, asking).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))
}

fn agreed(reply: Reply) -> Result<Agreed, String> {
    match reply {
        Reply::Lease(snapshot) => Ok(Agreed { epoch: number(&snapshot), version: snapshot.version }),
        Reply::Missing | Reply::Conflict => Err("its Lease comes and goes".to_owned()),
        Reply::Busy(_) => Err("the API server is busy".to_owned()),
        Reply::Denied(reason) | Reply::Unknown(reason) => Err(reason),
    }
}

fn number(lease: &Snapshot) -> u64 {
    let annotation = lease.annotations.iter().find(|(name, _)| name == EPOCH_ANNOTATION);
    let written = annotation.and_then(|(_, value)| value.parse().ok()).filter(|epoch| *epoch <= GREATEST);
    lease.created.max(written.unwrap_or(0))
}
