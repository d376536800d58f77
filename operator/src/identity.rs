//! Keeps what `plan::identity` wants: the sidecars' ServiceAccount, its RoleBinding, and a token in a Secret, per namespace.
//!
//! The token is asked for with a TokenRequest, bound to the Secret, and replaced at half its life. What was found in order
//! is not looked at again for a while. It fails by telling why, and is tried again; sidecars serve without it.

use crate::plan::identity::{
    owners, renew_after, renewal, role_binding, service_account, token_data, token_request, token_secret,
};
use caddy_crds::{CacheCluster, names};
use k8s_openapi::{
    api::core::v1::{Secret, ServiceAccount},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Deadline of one write.
const WRITE: Duration = Duration::from_secs(10);
/// Longest time that nothing is looked at: what somebody changed by hand is put back then.
const LOOK: Duration = Duration::from_mins(10);

/// Why a namespace's sidecars have no identity, or will not have it much longer.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// An object cannot be written.
    #[error("failed to apply {kind} {name}: {reason}")]
    Apply {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What the server said.
        reason: String,
    },
    /// The server gave no token.
    #[error("failed to get a token for ServiceAccount {}: {reason}", names::SIDECAR_ACCOUNT)]
    Token {
        /// What the server said.
        reason: String,
    },
    /// Nobody knows by which authority sidecars should trust the API server.
    #[error("failed to find the API server's certificate authority: {reason}")]
    Authority {
        /// Why.
        reason: String,
    },
}

/// See the module. Clones are the same one.
#[derive(Clone)]
pub struct Identities {
    client: Client,
    /// The chart's ClusterRole for sidecars; without it nobody gets an identity.
    role: Option<String>,
    known: Arc<Mutex<HashMap<String, Known>>>,
    /// One namespace at a time: its CacheClusters would each ask for a token.
    turn: Arc<tokio::sync::Mutex<()>>,
    ca: fn() -> Result<String, IdentityError>,
}

struct Known {
    owners: Vec<String>,
    until: Timestamp,
}

impl Identities {
    /// Identities with the rights of that ClusterRole.
    pub fn new(client: Client, role: Option<String>) -> Self {
        Self { client, role, known: Arc::default(), turn: Arc::default(), ca: authority }
    }

    /// Makes and renews what is missing in a namespace with these CacheClusters.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn ensure(
        &self,
        namespace: &str,
        clusters: &[Arc<CacheCluster>],
        now: Timestamp,
    ) -> Result<(), IdentityError> {
        let Some(role) = &self.role else { return Ok(()) };
        let owners = owners(clusters.iter().map(AsRef::as_ref));
        let uids: Vec<_> = owners.iter().map(|owner| owner.uid.clone()).collect();
        if owners.is_empty() || self.is_fresh(namespace, &uids, now) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.is_fresh(namespace, &uids, now) {
            return Ok(());
        }
        self.apply(namespace, &service_account(namespace, &owners), names::FIELD_MANAGER).await?;
        self.apply(namespace, &role_binding(namespace, &owners, role), names::FIELD_MANAGER).await?;
        let secret = self.apply(namespace, &token_secret(namespace, &owners), names::FIELD_MANAGER).await?;
        let ca = (self.ca)()?;
        let renew = match renew_after(&secret, &ca).filter(|renew| *renew > now) {
            Some(renew) => renew,
            None => self.mint(namespace, &secret, &ca, now).await?,
        };
        let look = Timestamp::from_second(now.as_second().saturating_add(LOOK.as_secs().cast_signed())).unwrap_or(now);
        self.known.lock().insert(namespace.to_owned(), Known { owners: uids, until: renew.min(look) });
        Ok(())
    }

    /// The next [`ensure`](Self::ensure) looks, whatever was found before.
    pub fn forget(&self, namespace: &str) {
        self.known.lock().remove(namespace);
    }

    fn is_fresh(&self, namespace: &str, owners: &[String], now: Timestamp) -> bool {
        self.known.lock().get(namespace).is_some_and(|known| known.owners == owners && now < known.until)
    }

    async fn mint(
        &self,
        namespace: &str,
        secret: &Secret,
        ca: &str,
        now: Timestamp,
    ) -> Result<Timestamp, IdentityError> {
        let refused = |reason: String| IdentityError::Token { reason };
        let uid = secret.metadata.uid.clone().unwrap_or_default();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = token_request(&uid);
        let params = PostParams::default();
        let asked = accounts.create_token_request(names::SIDECAR_ACCOUNT, &params, &request);
        let answer = timeout(WRITE, asked).await.map_err(|_| refused(format!("no answer within {WRITE:?}")))?;
        let answer = answer.map_err(|error| refused(super::reconcile::words(&error)))?;
        let status = answer.status.ok_or_else(|| refused("the answer holds none".to_owned()))?;
        let renew = renewal(now, status.expiration_timestamp.0);
        let data = token_data(namespace, &uid, &status.token, ca, renew);
        self.apply(namespace, &data, names::TOKEN_MANAGER).await?;
        tracing::info!(namespace, renewal = %renew, "the namespace's sidecars have a new token");
        Ok(renew)
    }

    async fn apply<K>(&self, namespace: &str, object: &K, manager: &str) -> Result<K, IdentityError>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        let name = object.meta().name.clone().unwrap_or_default();
        let failed = |reason| IdentityError::Apply { kind: K::kind(&()).into_owned(), name: name.clone(), reason };
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let (params, patch) = (PatchParams::apply(manager).force(), Patch::Apply(object));
        match timeout(WRITE, api.patch(&name, &params, &patch)).await {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(error)) => Err(failed(super::reconcile::words(&error))),
            Err(_) => Err(failed(format!("no answer within {WRITE:?}"))),
        }
    }
}

/// The authority by which the operator's own pod trusts the API server, read anew: it may be rotated.
fn authority() -> Result<String, IdentityError> {
    const PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
    std::fs::read_to_string(PATH).map_err(|error| IdentityError::Authority { reason: format!("{PATH}: {error}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeApi, cluster};
    use http::Method;
    use serde_json::json;

    const ACCOUNT: &str = "/api/v1/namespaces/shop/serviceaccounts/caddy-sidecar";
    const BINDING: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings/caddy-sidecar";
    const SECRET: &str = "/api/v1/namespaces/shop/secrets/caddy-sidecar-token";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn identities() -> (FakeApi, Identities) {
        let (api, client) = FakeApi::new();
        (api, Identities { ca: || Ok("the authority".into()), ..Identities::new(client, Some("sidecars".into())) })
    }

    fn paths(api: &FakeApi) -> Vec<String> {
        api.writes().into_iter().map(|(_, path, _)| path).collect()
    }

    #[tokio::test]
    async fn a_namespace_gets_account_binding_and_a_bound_token_and_then_peace() {
        let (api, identities) = identities();
        let clusters = [Arc::new(cluster())];
        api.put(SECRET, json!({"metadata": {"name": "caddy-sidecar-token", "uid": "secret-uid"}}));
        identities.ensure("shop", &clusters, at(1000)).await.unwrap();
        let writes = api.writes();
        let all: Vec<_> = writes.iter().map(|(_, path, _)| path.as_str()).collect();
        let token = format!("{ACCOUNT}/token");
        assert_eq!(all, [ACCOUNT, BINDING, SECRET, &token, SECRET]);
        assert_eq!(writes[1].2["roleRef"]["name"], "sidecars");
        assert_eq!(writes[3].2["spec"]["boundObjectRef"]["uid"], "secret-uid");
        assert_eq!(writes[4].2["metadata"]["uid"], "secret-uid", "for this Secret and no later one");
        identities.ensure("shop", &clusters, at(1300)).await.unwrap();
        assert_eq!(paths(&api), Vec::<String>::new(), "found in order a moment ago");
        identities.ensure("shop", &clusters, at(2000)).await.unwrap();
        assert_eq!(paths(&api), [ACCOUNT, BINDING, SECRET], "looked at again, the token is good");
        identities.ensure("shop", &clusters, at(1000 + 43_200)).await.unwrap();
        assert_eq!(paths(&api), [ACCOUNT, BINDING, SECRET, &token, SECRET], "replaced at half its life");
    }

    #[tokio::test]
    async fn another_cluster_of_the_namespace_becomes_an_owner_at_once() {
        let (api, identities) = identities();
        let (first, mut second) = (cluster(), cluster());
        identities.ensure("shop", &[Arc::new(first.clone())], at(1000)).await.unwrap();
        api.writes();
        second.metadata.name = Some("another".into());
        second.metadata.uid = Some("uid-2".into());
        identities.ensure("shop", &[Arc::new(first), Arc::new(second)], at(1001)).await.unwrap();
        let owners = api.object(SECRET).unwrap()["metadata"]["ownerReferences"].clone();
        assert_eq!(owners.as_array().unwrap().len(), 2);
        assert_eq!(paths(&api), [ACCOUNT, BINDING, SECRET]);
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_object_and_tried_again() {
        let (api, identities) = identities();
        let clusters = [Arc::new(cluster())];
        api.refuse(Some((Method::PATCH, BINDING)));
        let error = identities.ensure("shop", &clusters, at(1000)).await.unwrap_err().to_string();
        assert_eq!(error, "failed to apply RoleBinding caddy-sidecar: Forbidden (403)");
        api.refuse(None);
        identities.ensure("shop", &clusters, at(1001)).await.unwrap();
        assert!(api.object(SECRET).unwrap()["data"]["token"].is_string());
    }
}
