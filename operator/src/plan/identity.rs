//! What gives a namespace's sidecars an identity of their own. Pure.
//!
//! One ServiceAccount, one RoleBinding and one Secret per namespace, under fixed names, owned by all CacheClusters there:
//! the last one that goes takes them along. The app's own ServiceAccount is never touched.

use caddy_contract::coordination;
use caddy_crds::{CacheCluster, names};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Secret, ServiceAccount},
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::{SignedDuration, Timestamp},
};
use kube::{Resource as _, ResourceExt as _};
use std::{collections::BTreeMap, time::Duration};

/// How long a token is asked for; the server may say otherwise.
pub const TOKEN_LIFETIME: Duration = Duration::from_hours(24);

/// All CacheClusters of a namespace as owners, in a fixed order. None controls: there may be several.
pub fn owners<'a>(clusters: impl Iterator<Item = &'a CacheCluster>) -> Vec<OwnerReference> {
    let alive = clusters.filter(|cluster| cluster.metadata.deletion_timestamp.is_none());
    let mut owners: Vec<_> = alive.filter_map(|cluster| cluster.owner_ref(&())).collect();
    owners.sort_by(|a, b| a.name.cmp(&b.name));
    owners
}

/// The ServiceAccount of the namespace's sidecars; pods that use it by mistake get no token mounted.
pub fn service_account(namespace: &str, owners: &[OwnerReference]) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(namespace, names::SIDECAR_ACCOUNT, owners),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// What binds it to the chart's ClusterRole, in this namespace only.
pub fn role_binding(namespace: &str, owners: &[OwnerReference], role: &str) -> RoleBinding {
    RoleBinding {
        metadata: metadata(namespace, names::SIDECAR_ACCOUNT, owners),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: role.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: names::SIDECAR_ACCOUNT.to_owned(),
            namespace: Some(namespace.to_owned()),
            ..Subject::default()
        }]),
    }
}

/// The Secret without its token: the token is bound to the Secret, so the Secret comes first.
pub fn token_secret(namespace: &str, owners: &[OwnerReference]) -> Secret {
    Secret { metadata: metadata(namespace, names::TOKEN_SECRET, owners), ..Secret::default() }
}

/// The request for a token that dies with the Secret of that uid.
pub fn token_request(secret_uid: &str) -> TokenRequest {
    TokenRequest {
        spec: TokenRequestSpec {
            audiences: Vec::new(),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Secret".to_owned()),
                name: Some(names::TOKEN_SECRET.to_owned()),
                uid: Some(secret_uid.to_owned()),
            }),
            expiration_seconds: Some(TOKEN_LIFETIME.as_secs().cast_signed()),
        },
        ..TokenRequest::default()
    }
}

/// The token's part of the Secret, for the Secret of that uid and no later one.
pub fn token_data(namespace: &str, secret_uid: &str, token: &str, ca: &str, renew_after: Timestamp) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(names::TOKEN_SECRET.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: Some(secret_uid.to_owned()),
            annotations: Some(BTreeMap::from([(names::RENEW_AFTER_ANNOTATION.to_owned(), renew_after.to_string())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([
            (coordination::TOKEN.to_owned(), ByteString(token.as_bytes().to_vec())),
            (coordination::CA.to_owned(), ByteString(ca.as_bytes().to_vec())),
        ])),
        ..Secret::default()
    }
}

/// Half of a token's life.
pub fn renewal(now: Timestamp, expires: Timestamp) -> Timestamp {
    let left = expires.duration_since(now).max(SignedDuration::ZERO);
    let half = now.checked_add(left / 2).unwrap_or(now);
    // Kubernetes and people read whole seconds.
    Timestamp::from_second(half.as_second()).unwrap_or(half)
}

/// When the Secret's token must be replaced; at once if it has none, or another authority's certificate.
pub fn renew_after(secret: &Secret, ca: &str) -> Option<Timestamp> {
    let data = secret.data.as_ref()?;
    let ByteString(token) = data.get(coordination::TOKEN)?;
    let ByteString(known) = data.get(coordination::CA)?;
    if token.is_empty() || known != ca.as_bytes() {
        return None;
    }
    secret.annotations().get(names::RENEW_AFTER_ANNOTATION)?.parse().ok()
}

fn metadata(namespace: &str, name: &str, owners: &[OwnerReference]) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([
            ("app.kubernetes.io/name".to_owned(), "caddy-cache".to_owned()),
            (names::MANAGED_BY_LABEL.to_owned(), names::FIELD_MANAGER.to_owned()),
        ])),
        owner_references: Some(owners.to_vec()),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cluster;
    use serde_json::json;

    #[test]
    fn all_living_clusters_own_what_they_share_and_none_controls() {
        let named = |name: &str, deleted: bool| {
            let mut cluster = cluster();
            cluster.metadata.name = Some(name.into());
            cluster.metadata.deletion_timestamp =
                deleted.then(|| serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
            cluster
        };
        let clusters = [named("b", false), named("a", false), named("gone", true)];
        let owners = owners(clusters.iter());
        assert_eq!(owners.iter().map(|owner| owner.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(owners.iter().all(|owner| owner.controller.is_none() && owner.block_owner_deletion.is_none()));
    }

    #[test]
    fn a_token_is_replaced_at_half_its_life_or_when_it_is_of_no_use() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(renewal(at(1000), at(1000 + 86_400)), at(1000 + 43_200));
        assert_eq!(renewal(at(1000), at(500)), at(1000));
        let mut secret = token_data("shop", "u", "token", "ca", at(7));
        assert_eq!(renew_after(&secret, "ca"), Some(at(7)));
        assert_eq!(renew_after(&secret, "another"), None);
        secret.metadata.annotations = None;
        assert_eq!(renew_after(&secret, "ca"), None);
        assert_eq!(renew_after(&token_secret("shop", &[]), "ca"), None);
    }

    #[test]
    fn nothing_is_sent_that_would_take_the_token_away() {
        let secret = serde_json::to_value(token_secret("shop", &[])).unwrap();
        assert!(secret.get("data").is_none());
    }
}
