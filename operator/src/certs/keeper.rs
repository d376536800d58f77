//! Keeps Secret, caBundle and serving certificate in step, in this order: a certificate is served only after the API
//! server was told to trust its authority.
//!
//! Two operators at once (a rolling update) agree through the Secret's resourceVersion: whoever loses reads again. What
//! fails is tried again with a pause; the certificate in use stays in use.

use super::{
    authority::{Authority, AuthorityError, SERVING_RENEWAL},
    resolver::Resolver,
};
use crate::{admin::Readiness, metrics::Metrics};
use caddy_crds::names;
use futures::StreamExt as _;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio_util::sync::CancellationToken;

/// Pause between two looks when nothing happened.
const INTERVAL: Duration = Duration::from_mins(10);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(3);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The Secret cannot be read.
    #[error("failed to read Secret {name}")]
    GetSecret {
        /// Its name.
        name: String,
        /// What the server said.
        #[source]
        source: kube::Error,
    },
    /// The Secret cannot be written; a conflict means that another operator was faster.
    #[error("failed to write Secret {name}; if it was deleted, helm upgrade makes it again")]
    PutSecret {
        /// Its name.
        name: String,
        /// What the server said.
        #[source]
        source: kube::Error,
    },
    /// The webhook configuration cannot be read.
    #[error("failed to read MutatingWebhookConfiguration {name}; is the chart installed whole?")]
    GetConfiguration {
        /// Its name.
        name: String,
        /// What the server said.
        #[source]
        source: kube::Error,
    },
    /// The caBundle cannot be written.
    #[error("failed to patch the caBundle of MutatingWebhookConfiguration {name}")]
    PatchConfiguration {
        /// Its name.
        name: String,
        /// What the server said.
        #[source]
        source: kube::Error,
    },
    /// Certificates cannot be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A certificate cannot be used.
    #[error("failed to serve a certificate")]
    Serve(#[from] rustls::Error),
}

/// What keeping needs.
pub struct Keeper {
    /// For Secret and webhook configuration.
    pub client: Client,
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Name of the webhook configuration.
    pub configuration: String,
    /// Names in the certificate.
    pub hosts: Vec<String>,
    /// Where certificates are served.
    pub resolver: Arc<Resolver>,
    /// Told when the API server trusts us.
    pub readiness: Arc<Readiness>,
    /// The certificate's expiry.
    pub metrics: Arc<Metrics>,
}

/// The authority and the expiry of what is served.
type Served = (Authority, SystemTime);

impl Keeper {
    /// Keeps until the shutdown: at intervals, and at once when the webhook configuration changes (`helm upgrade` may
    /// take the caBundle away).
    pub async fn run(self, shutdown: CancellationToken) {
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.configuration));
        let mut changes = std::pin::pin!(watcher(configurations, only).default_backoff().touched_objects());
        let mut served = None;
        loop {
            let pause = match self.step(&mut served, SystemTime::now()).await {
                Ok(()) => INTERVAL,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "certificates are not in step; trying again");
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                Some(change) = changes.next() => if let Err(error) = change {
                    tracing::debug!(error = %chain(&error), "watching the webhook configuration failed");
                    // The watch has its own pauses, but a step after each of its errors would defeat ours.
                    tokio::time::sleep(RETRY).await;
                },
            }
        }
    }

    async fn step(&self, served: &mut Option<Served>, now: SystemTime) -> Result<(), KeeperError> {
        let authority = self.authority(now).await?;
        self.trust(&authority.bundle(now)).await?;
        let fresh = |(by, expires): &Served| *by == authority && now + SERVING_RENEWAL < *expires;
        if !served.as_ref().is_some_and(fresh) {
            let serving = authority.issue(&self.hosts, now)?;
            let expires = serving.expires;
            self.resolver.swap(serving)?;
            let seconds = expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            self.metrics.certificate_expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
            tracing::info!(hosts = ?self.hosts, "serving a new webhook certificate");
            *served = Some((authority, expires));
        }
        self.readiness.certificate_is_trusted();
        Ok(())
    }

    /// The authority in the Secret, made or rotated when needed.
    async fn authority(&self, now: SystemTime) -> Result<Authority, KeeperError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let name = || self.secret.clone();
        let found =
            secrets.get_opt(&self.secret).await.map_err(|source| KeeperError::GetSecret { name: name(), source })?;
        let put = |source| KeeperError::PutSecret { name: name(), source };
        let Some(secret) = found else {
            let authority = Authority::create(now)?;
            let labels = BTreeMap::from([(names::MANAGED_BY_LABEL.to_owned(), names::FIELD_MANAGER.to_owned())]);
            let mut secret = self.secret_of(&authority, None);
            secret.metadata.labels = Some(labels);
            secrets.create(&PostParams::default(), &secret).await.map_err(put)?;
            tracing::info!(secret = self.secret, "created the webhook's certificate authority");
            return Ok(authority);
        };
        let data: BTreeMap<_, _> =
            secret.data.into_iter().flatten().map(|(key, ByteString(value))| (key, value)).collect();
        let next = match Authority::from_secret(&data) {
            Ok(authority) if !authority.is_due(now) => return Ok(authority),
            Ok(authority) => authority.rotated(now)?,
            // As the chart makes it.
            Err(_) if data.is_empty() => Authority::create(now)?,
            Err(error) => {
                tracing::warn!(error = %chain(&error), secret = self.secret, "the authority cannot be used; making a new one");
                Authority::create(now)?
            }
        };
        // Applied, not replaced: Helm 4 applies too, and would find its own labels taken over. With the version that was
        // read: another operator's write in between makes this one fail and read again.
        let object = self.secret_of(&next, secret.metadata.resource_version);
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        secrets.patch(&self.secret, &params, &Patch::Apply(&object)).await.map_err(put)?;
        tracing::info!(secret = self.secret, "wrote a new certificate authority for the webhook");
        Ok(next)
    }

    fn secret_of(&self, authority: &Authority, resource_version: Option<String>) -> Secret {
        let data = authority.to_secret().into_iter().map(|(key, value)| (key, ByteString(value))).collect();
        Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.clone()),
                namespace: Some(self.namespace.clone()),
                resource_version,
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..Secret::default()
        }
    }

    /// Has the API server trust the bundle; writes nothing but caBundle, and only when it differs.
    async fn trust(&self, bundle: &str) -> Result<(), KeeperError> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let name = || self.configuration.clone();
        let found = api.get(&self.configuration).await;
        let found = found.map_err(|source| KeeperError::GetConfiguration { name: name(), source })?;
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let webhooks = found.webhooks.unwrap_or_default();
        if webhooks.iter().all(|webhook| webhook.client_config.ca_bundle.as_ref() == Some(&bundle)) {
            return Ok(());
        }
        // A strategic merge finds webhooks by their names and leaves everything else to the chart.
        let patched: Vec<_> = webhooks
            .iter()
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Strategic(json!({ "webhooks": patched }));
        api.patch(&self.configuration, &params, &patch)
            .await
            .map_err(|source| KeeperError::PatchConfiguration { name: name(), source })?;
        tracing::info!(configuration = self.configuration, "the API server is told to trust the webhook's authority");
        Ok(())
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeApi;
    use http::Method;

    const SECRETS: &str = "/api/v1/namespaces/caddy/secrets";
    const SECRET: &str = "/api/v1/namespaces/caddy/secrets/ca";
    const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/caddy";
    const DAY: Duration = Duration::from_hours(24);

    fn keeper(client: Client) -> Keeper {
        Keeper {
            client,
            namespace: "caddy".into(),
            secret: "ca".into(),
            configuration: "caddy".into(),
            hosts: vec!["caddy.caddy.svc".into()],
            resolver: Arc::default(),
            readiness: Arc::default(),
            metrics: Arc::default(),
        }
    }

    fn installed(api: &FakeApi) {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca", "resourceVersion": "1"}});
        api.put(SECRET, secret);
        let service = json!({"name": "caddy", "namespace": "caddy", "path": "/mutate"});
        let hook = json!({"name": "inject.cache.caddy.dev", "clientConfig": {"service": service}, "sideEffects": "None", "admissionReviewVersions": ["v1"]});
        api.put(HOOKS, json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "caddy"}, "webhooks": [hook]}));
    }

    fn bundle(api: &FakeApi) -> String {
        let ByteString(bytes) =
            serde_json::from_value(api.object(HOOKS).unwrap()["webhooks"][0]["clientConfig"]["caBundle"].clone())
                .unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn missing(keeper: &Keeper) -> bool {
        keeper.readiness.missing().iter().any(|text| text.starts_with("certificate"))
    }

    #[tokio::test]
    async fn a_first_start_fills_the_secret_tells_the_server_and_serves() {
        let (api, client) = FakeApi::new();
        installed(&api);
        let (keeper, mut served) = (keeper(client), None);
        keeper.step(&mut served, SystemTime::now()).await.unwrap();
        let order: Vec<_> = api.writes().into_iter().map(|(method, path, _)| (method, path)).collect();
        assert_eq!(order, [(Method::PATCH, SECRET.to_owned()), (Method::PATCH, HOOKS.to_owned())]);
        assert_eq!(bundle(&api).matches("BEGIN CERTIFICATE").count(), 1);
        assert_eq!(api.object(HOOKS).unwrap()["webhooks"][0]["clientConfig"]["service"]["path"], "/mutate");
        assert!(!missing(&keeper));
        keeper.step(&mut served, SystemTime::now()).await.unwrap();
        assert_eq!(api.writes(), [], "a second look changes nothing");
    }

    #[tokio::test]
    async fn only_the_data_of_the_charts_secret_is_written() {
        let (api, client) = FakeApi::new();
        installed(&api);
        keeper(client).step(&mut None, SystemTime::now()).await.unwrap();
        let (_, _, body) = api.writes().swap_remove(0);
        assert!(
            body["metadata"].get("labels").is_none() && body.get("type").is_none(),
            "Helm 4 would find a conflict: {body}"
        );
        assert_eq!(body["metadata"]["resourceVersion"], "1");
    }

    #[tokio::test]
    async fn of_two_operators_the_slower_one_reads_again() {
        let (api, client) = FakeApi::new();
        installed(&api);
        let (slow, fast) = (keeper(client.clone()), keeper(client));
        fast.step(&mut None, SystemTime::now()).await.unwrap();
        let agreed = bundle(&api);
        // What the slow one read before the fast one wrote.
        let late = slow.secret_of(&Authority::create(SystemTime::now()).unwrap(), Some("1".into()));
        let secrets: Api<Secret> = Api::namespaced(slow.client.clone(), "caddy");
        let refused = secrets.patch("ca", &PatchParams::apply("x").force(), &Patch::Apply(&late)).await;
        assert!(matches!(refused, Err(kube::Error::Api(status)) if status.is_conflict()));
        slow.step(&mut None, SystemTime::now()).await.unwrap();
        assert_eq!(bundle(&api), agreed);
    }

    #[tokio::test]
    async fn without_a_secret_one_is_made() {
        let (api, client) = FakeApi::new();
        installed(&api);
        api.remove(SECRET);
        keeper(client).step(&mut None, SystemTime::now()).await.unwrap();
        assert_eq!(api.writes()[0].1, SECRETS);
    }

    #[tokio::test]
    async fn nothing_is_served_that_the_server_was_not_told_to_trust() {
        let (api, client) = FakeApi::new();
        installed(&api);
        api.refuse(Some((Method::PATCH, HOOKS)));
        let (keeper, mut served) = (keeper(client), None);
        let error = keeper.step(&mut served, SystemTime::now()).await.unwrap_err();
        assert!(matches!(error, KeeperError::PatchConfiguration { .. }), "{error}");
        assert!(served.is_none() && missing(&keeper));
        api.refuse(None);
        keeper.step(&mut served, SystemTime::now()).await.unwrap();
        assert!(served.is_some() && !missing(&keeper));
    }

    #[tokio::test]
    async fn a_bundle_that_was_taken_away_is_put_back() {
        let (api, client) = FakeApi::new();
        installed(&api);
        let (keeper, mut served) = (keeper(client), None);
        keeper.step(&mut served, SystemTime::now()).await.unwrap();
        let before = bundle(&api);
        let mut hooks = api.object(HOOKS).unwrap();
        hooks["webhooks"][0]["clientConfig"].as_object_mut().unwrap().remove("caBundle");
        api.put(HOOKS, hooks);
        keeper.step(&mut served, SystemTime::now()).await.unwrap();
        assert_eq!(bundle(&api), before);
    }

    #[tokio::test]
    async fn a_rotation_is_announced_with_the_old_authority_beside_the_new() {
        let (api, client) = FakeApi::new();
        installed(&api);
        let (keeper, mut served) = (keeper(client), None);
        let start = SystemTime::now();
        keeper.step(&mut served, start).await.unwrap();
        let (old, first) = (bundle(&api), served.clone().unwrap());
        keeper.step(&mut served, start + 21 * DAY).await.unwrap();
        let renewed = served.clone().unwrap();
        assert!(
            renewed.0 == first.0 && renewed.1 > first.1,
            "the serving certificate is renewed by the same authority"
        );
        keeper.step(&mut served, start + 250 * DAY).await.unwrap();
        let both = bundle(&api);
        assert!(both.ends_with(&old) && both.matches("BEGIN CERTIFICATE").count() == 2, "{both}");
        assert!(served.unwrap().0 != first.0);
    }

    #[tokio::test]
    async fn a_damaged_authority_is_replaced() {
        let (api, client) = FakeApi::new();
        installed(&api);
        let mut secret = api.object(SECRET).unwrap();
        secret["data"] = json!({"ca.crt": ByteString(b"garbage".to_vec()), "ca.key": ByteString(vec![])});
        api.put(SECRET, secret);
        let (keeper, mut served) = (keeper(client), None);
        keeper.step(&mut served, SystemTime::now()).await.unwrap();
        assert!(bundle(&api).starts_with("-----BEGIN CERTIFICATE"));
    }

    #[tokio::test]
    async fn a_missing_configuration_is_told() {
        let (api, client) = FakeApi::new();
        installed(&api);
        api.remove(HOOKS);
        let error = keeper(client).step(&mut None, SystemTime::now()).await.unwrap_err();
        assert!(chain(&error).contains("is the chart installed whole"), "{}", chain(&error));
    }
}
