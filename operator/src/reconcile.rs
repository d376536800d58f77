//! The loop around the plan: watch CacheClusters and their pods, apply, report, and come back.
//!
//! Only the leader writes; the other replicas watch, so that their caches are full when they lead.
//! Owns the two caches. Writes one ConfigMap per CacheCluster by server-side apply, and statuses. A failure is told in
//! the status and tried again with growing pauses; a deletion is told by an Event and cleaned up by Kubernetes itself.

use crate::{
    admin::Readiness,
    context::Context,
    identity::{Identities, IdentityError},
    inject::{Shape, template_hash},
    leader::Leadership,
    members::{MemberTally, Members},
    metrics,
    plan::{self, Note, NoteKind, Outcome, PodTally, World},
};
use caddy_contract::coordination::MEMBER_LABEL;
use caddy_crds::{CacheCluster, CacheClusterStatus, names};
use caddy_lease::boottime;
use futures::{Stream, StreamExt as _, future, stream};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        Controller, WatchStreamExt as _,
        controller::{self, Action, Error as ControllerError},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use parking_lot::Mutex;
use serde_json::json;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Deadline of one write.
const WRITE: Duration = Duration::from_secs(15);
/// Time that a reconciliation waits for the first list of pods.
const LISTED: Duration = Duration::from_secs(10);
/// Quiet time that a CacheCluster's pods get before they are counted: a rollout is one reconciliation, not hundreds.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Pause between two looks at what members reported.
const REPORTS: Duration = Duration::from_secs(2);
/// CacheClusters at work at one time.
const CONCURRENCY: u16 = 16;
/// First and longest pause after failures.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(2));

/// Why a reconciliation is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The ConfigMap cannot be written.
    #[error("failed to apply ConfigMap {name}: {reason}")]
    ApplyConfigMap {
        /// Its name.
        name: String,
        /// What the server said.
        reason: String,
    },
    /// Nothing can be said of the pods yet; a status that counts none would be wrong.
    #[error("pods are not listed yet; may the operator list and watch them?")]
    PodsNotListed,
    /// The sidecars' identity is not what it should be; their data plane does not need it.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// The status cannot be written.
    #[error("failed to write the status: {reason}")]
    PatchStatus {
        /// What the server said.
        reason: String,
    },
}

/// Everything that reconciling needs.
struct Reconciler {
    context: Context,
    clusters: Store<CacheCluster>,
    pods: Store<Pod>,
    members: Arc<Mutex<Members>>,
    identities: Identities,
    /// Failures in a row.
    failures: Mutex<HashMap<ObjectRef<CacheCluster>, u32>>,
}

/// The caches and the streams that fill them.
pub struct Caches {
    /// CacheClusters as last seen.
    pub clusters: Store<CacheCluster>,
    /// Pods that ask for a sidecar, stripped to what is counted.
    pub pods: Store<Pod>,
    clusters_writer: reflector::store::Writer<CacheCluster>,
    pods_writer: reflector::store::Writer<Pod>,
}

impl Caches {
    /// Empty caches.
    pub fn new() -> Self {
        let (clusters, clusters_writer) = reflector::store();
        let (pods, pods_writer) = reflector::store();
        Self { clusters, pods, clusters_writer, pods_writer }
    }
}

impl Default for Caches {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs until the shutdown.
pub async fn run(context: Context, caches: Caches, readiness: Arc<Readiness>, shutdown: CancellationToken) {
    let Caches { clusters, pods, clusters_writer, pods_writer } = caches;
    let client = context.client.clone();
    let members = Arc::new(Mutex::new(Members::default()));
    let reconciler = Arc::new(Reconciler {
        identities: Identities::new(client.clone(), context.settings.sidecar_role.clone()),
        context,
        clusters: clusters.clone(),
        pods: pods.clone(),
        members: members.clone(),
        failures: Mutex::default(),
    });
    let told = reconciler.clone();
    let deleted = move |event: &Result<watcher::Event<CacheCluster>, watcher::Error>| {
        if let Ok(watcher::Event::Delete(cluster)) = event {
            told.deleted(cluster);
        }
    };
    let cluster_stream = watcher(Api::<CacheCluster>::all(client.clone()), watcher::Config::default().any_semantic())
        .default_backoff()
        .modify(|cluster| cluster.managed_fields_mut().clear())
        .inspect(deleted)
        .inspect(log_watch_error)
        .reflect(clusters_writer)
        .applied_objects();
    let pod_stream = triggers(client.clone(), pods_writer);
    let member_stream = reports(client, members, &reconciler.context.leadership);
    let synced = async {
        let both = future::join(clusters.wait_until_ready(), pods.wait_until_ready());
        if matches!(both.await, (Ok(()), Ok(()))) {
            readiness.cache_is_synced();
            tracing::info!("CacheClusters and pods are listed");
        }
    };
    let (stop, begins) = (shutdown.clone(), reconciler.context.leadership.begins());
    let controller = Controller::for_stream(cluster_stream, clusters.clone())
        .with_config(controller::Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY))
        .reconcile_on(pod_stream)
        .reconcile_on(member_stream)
        .reconcile_all_on(begins)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(Reconciler::reconcile, Reconciler::error_policy, reconciler)
        .for_each(|result| {
            log(result);
            future::ready(())
        });
    future::join(synced, controller).await;
}

/// CacheClusters whose pods came, changed or went.
fn triggers(
    client: Client,
    writer: reflector::store::Writer<Pod>,
) -> impl Stream<Item = ObjectRef<CacheCluster>> + Send + 'static {
    watcher(Api::<Pod>::all(client), watcher::Config::default().any_semantic().labels(names::CLUSTER_LABEL))
        .default_backoff()
        .modify(strip)
        .inspect(log_watch_error)
        .reflect(writer)
        .touched_objects()
        .filter_map(|pod| future::ready(pod.ok().as_ref().and_then(cluster_of)))
}

/// CacheClusters whose members' reports changed what their status tells, a few times a minute at most. Only the leader
/// watches them.
fn reports(
    client: Client,
    members: Arc<Mutex<Members>>,
    leadership: &Leadership,
) -> impl Stream<Item = ObjectRef<CacheCluster>> + Send + 'static {
    let (index, only) = (members.clone(), watcher::Config::default().any_semantic().labels(MEMBER_LABEL));
    let seen = move |event: Result<watcher::Event<Lease>, watcher::Error>| {
        if let Ok(event) = event {
            index.lock().apply(&event, boottime());
        }
        future::ready(None)
    };
    let watch = leadership.begins().take(1).flat_map(move |()| {
        watcher(Api::<Lease>::all(client.clone()), only.clone()).default_backoff().inspect(log_watch_error).boxed()
    });
    let looks = stream::unfold((), |()| async {
        tokio::time::sleep(REPORTS).await;
        Some(((), ()))
    });
    let changes = looks.flat_map(move |()| stream::iter(members.lock().changes(boottime())));
    stream::select(watch.filter_map(seen), changes)
}

/// Keeps of a pod what is counted; a large cluster's pods must fit into memory.
fn strip(pod: &mut Pod) {
    pod.managed_fields_mut().clear();
    pod.annotations_mut().retain(|name, _| name == names::TEMPLATE_ANNOTATION);
    pod.labels_mut().retain(|name, _| name == names::CLUSTER_LABEL);
    if let Some(spec) = pod.spec.take() {
        let names = |containers: Vec<k8s_openapi::api::core::v1::Container>| {
            let bare = |name| k8s_openapi::api::core::v1::Container { name, ..Default::default() };
            containers.into_iter().map(|container| bare(container.name)).collect::<Vec<_>>()
        };
        pod.spec = Some(k8s_openapi::api::core::v1::PodSpec {
            containers: names(spec.containers),
            init_containers: spec.init_containers.map(names),
            restart_policy: spec.restart_policy,
            host_network: spec.host_network,
            os: spec.os,
            ..Default::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(k8s_openapi::api::core::v1::PodStatus { phase: status.phase, ..Default::default() });
    }
}

fn cluster_of(pod: &Pod) -> Option<ObjectRef<CacheCluster>> {
    let name = pod.labels().get(names::CLUSTER_LABEL)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

impl Reconciler {
    async fn reconcile(cluster: Arc<CacheCluster>, this: Arc<Self>) -> Result<Action, ReconcileError> {
        if !this.context.leadership.is_held() {
            // All are looked at when this replica begins to lead.
            return Ok(Action::await_change());
        }
        let listed = matches!(timeout(LISTED, this.pods.wait_until_ready()).await, Ok(Ok(())));
        let members =
            this.members.lock().tally(&ObjectRef::from_obj(&*cluster), cluster.metadata.generation.unwrap_or(0));
        let pods = listed.then(|| this.tally(&cluster, &members));
        let outcome = this.apply(&cluster, pods.as_ref()).await;
        let word = match &outcome {
            Outcome::Applied => "applied",
            Outcome::Invalid(_) => "invalid",
            Outcome::Failed(_) => "failed",
        };
        this.context.metrics.reconciliations.get_or_create(&metrics::Outcome { outcome: word }).inc();
        let identity = this.identify(&cluster).await;
        let Some(pods) = pods else { return Err(ReconcileError::PodsNotListed) };
        let identity_fault = identity.as_ref().err().map(ToString::to_string);
        let world = World { pods, members, identity_fault };
        let status = plan::status(&cluster, &outcome, &world, Timestamp::now());
        this.report(&cluster, status).await?;
        if let Outcome::Failed(reason) = outcome {
            return Err(ReconcileError::ApplyConfigMap { name: names::config_map(&cluster.name_any()), reason });
        }
        identity?;
        this.failures.lock().remove(&ObjectRef::from_obj(&*cluster));
        Ok(Action::requeue(this.context.settings.resync()))
    }

    /// Gives the sidecars of the CacheCluster's namespace their identity.
    async fn identify(&self, cluster: &CacheCluster) -> Result<(), IdentityError> {
        let namespace = cluster.namespace().unwrap_or_default();
        let clusters = self.clusters.state_filter(|other| other.metadata.namespace.as_ref() == Some(&namespace));
        self.identities.ensure(&namespace, &clusters, Timestamp::now()).await
    }

    async fn apply(&self, cluster: &CacheCluster, pods: Option<&PodTally>) -> Outcome {
        let members = plan::members_hint(pods.map(|pods| pods.counts.injected));
        let map = match plan::config_map(cluster, members) {
            Ok(map) => map,
            Err(invalid) => return Outcome::Invalid(invalid),
        };
        let api: Api<ConfigMap> =
            Api::namespaced(self.context.client.clone(), &cluster.namespace().unwrap_or_default());
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        match timeout(WRITE, api.patch(&map.name_any(), &params, &Patch::Apply(&map))).await {
            Ok(Ok(_)) => Outcome::Applied,
            Ok(Err(error)) => Outcome::Failed(words(&error)),
            Err(_) => Outcome::Failed(format!("the API server did not answer within {WRITE:?}")),
        }
    }

    fn tally(&self, cluster: &CacheCluster, members: &MemberTally) -> PodTally {
        let pods = self.pods_of(cluster);
        let defaults = self.context.settings.defaults();
        let template = template_hash(&Shape::of(cluster, &defaults));
        plan::tally(pods.iter().map(AsRef::as_ref), &template, self.context.form(), &members.behind)
    }

    fn pods_of(&self, cluster: &CacheCluster) -> Vec<Arc<Pod>> {
        let own = ObjectRef::from_obj(cluster);
        self.pods.state_filter(|pod| cluster_of(pod).is_some_and(|of| of == own))
    }

    /// Writes the status when it says something new, then tells what changed.
    async fn report(&self, cluster: &CacheCluster, status: CacheClusterStatus) -> Result<(), ReconcileError> {
        if cluster.status.as_ref() == Some(&status) || !self.context.leadership.is_held() {
            return Ok(());
        }
        let api: Api<CacheCluster> =
            Api::namespaced(self.context.client.clone(), &cluster.namespace().unwrap_or_default());
        let patch = json!({
            "apiVersion": CacheCluster::api_version(&()),
            "kind": CacheCluster::kind(&()),
            "metadata": {"name": cluster.name_any()},
            "status": status,
        });
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        match timeout(WRITE, api.patch_status(&cluster.name_any(), &params, &Patch::Apply(&patch))).await {
            Ok(Ok(_)) => {}
            // Deleted meanwhile: there is nothing left to report to.
            Ok(Err(kube::Error::Api(error))) if error.is_not_found() => return Ok(()),
            Ok(Err(error)) => return Err(ReconcileError::PatchStatus { reason: words(&error) }),
            Err(_) => return Err(ReconcileError::PatchStatus { reason: format!("no answer within {WRITE:?}") }),
        }
        for note in plan::notes(cluster.status.as_ref(), &status) {
            self.context.events.publish(note, cluster.object_ref(&()));
        }
        Ok(())
    }

    /// Tells how many sidecars go on serving without their CacheCluster.
    fn deleted(&self, cluster: &CacheCluster) {
        self.failures.lock().remove(&ObjectRef::from_obj(cluster));
        if !self.context.leadership.is_held() {
            return;
        }
        let serving = self.tally(cluster, &MemberTally::default()).counts.injected;
        let text = format!(
            "deleted; {serving} sidecars go on serving with their last configuration until their pods end. \
             New pods with its label are refused or, by choice, get no sidecar"
        );
        tracing::info!(cluster = cluster.name_any(), namespace = cluster.namespace(), serving, "CacheCluster deleted");
        let kind = if serving == 0 { NoteKind::Normal } else { NoteKind::Warning };
        self.context.events.publish(Note { kind, reason: "CacheClusterDeleted", text }, cluster.object_ref(&()));
    }

    #[expect(clippy::needless_pass_by_value, reason = "the controller hands these over")]
    fn error_policy(cluster: Arc<CacheCluster>, _: &ReconcileError, this: Arc<Self>) -> Action {
        let mut failures = this.failures.lock();
        let count = failures.entry(ObjectRef::from_obj(&*cluster)).or_insert(0);
        let (first, longest) = BACKOFF;
        let pause = first.saturating_mul(1 << (*count).min(10)).min(longest);
        *count = count.saturating_add(1);
        Action::requeue(pause)
    }
}

/// What the server said, without the debug form that kube adds.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

fn log_watch_error<K>(event: &Result<watcher::Event<K>, watcher::Error>) {
    if let Err(error) = event {
        tracing::warn!(error = %crate::certs::keeper::chain(error), "a watch failed; it is started again");
    }
}

type Reconciled = Result<(ObjectRef<CacheCluster>, Action), ControllerError<ReconcileError, watcher::Error>>;

fn log(result: Reconciled) {
    match result {
        Ok((cluster, _)) => tracing::debug!(%cluster, "reconciled"),
        // Deleted between the trigger and the reconciliation.
        Err(ControllerError::ObjectNotFound(_)) => {}
        Err(ControllerError::ReconcilerFailed(error, cluster)) => tracing::warn!(%cluster, %error, "trying again"),
        Err(error) => tracing::warn!(error = %crate::certs::keeper::chain(&error), "the controller's queue failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        events::EventQueue,
        testing::{FakeApi, cluster, cluster_with, context},
    };
    use http::Method;
    use serde_json::Value;

    const STATUS: &str = "/apis/cache.caddy.dev/v1alpha1/namespaces/shop/cacheclusters/web/status";
    const CONFIG: &str = "/api/v1/namespaces/shop/configmaps/caddy-web";

    fn reconciler(client: Client, pods: &[Value]) -> (Arc<Reconciler>, EventQueue) {
        let (context, queue) = context(client, &[]);
        let (store, mut writer) = reflector::store();
        writer.apply_watcher_event(&watcher::Event::Init);
        for pod in pods {
            let mut pod: Pod = crate::testing::pod(pod);
            strip(&mut pod);
            writer.apply_watcher_event(&watcher::Event::InitApply(pod));
        }
        writer.apply_watcher_event(&watcher::Event::InitDone);
        (Arc::new(with_pods(context, store)), queue)
    }

    fn with_pods(context: Context, pods: Store<Pod>) -> Reconciler {
        let (clusters, mut writer) = reflector::store();
        writer.apply_watcher_event(&watcher::Event::Apply(cluster()));
        let identities = Identities::new(context.client.clone(), context.settings.sidecar_role.clone());
        Reconciler { context, clusters, pods, members: Arc::default(), identities, failures: Mutex::default() }
    }

    /// An API server that has the CacheCluster.
    fn server() -> (FakeApi, Client) {
        let (api, client) = FakeApi::new();
        api.put(STATUS, serde_json::to_value(cluster()).unwrap());
        (api, client)
    }

    fn pod(name: &str, cluster: &str, containers: &[&str]) -> Value {
        let containers: Vec<_> = containers.iter().map(|name| json!({"name": name, "image": "i"})).collect();
        json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {"cache.caddy.dev/cluster": cluster}},
            "spec": {"containers": containers},
            "status": {"phase": "Running"},
        })
    }

    fn paths(api: &FakeApi) -> Vec<String> {
        api.writes().into_iter().map(|(_, path, _)| path).collect()
    }

    fn reasons(queue: &mut EventQueue) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.try_recv().ok()).map(|(note, _)| note.reason).collect()
    }

    /// The object as the server has it after a status was written.
    fn with_status(api: &FakeApi, mut cluster: CacheCluster) -> Arc<CacheCluster> {
        cluster.status = serde_json::from_value(api.object(STATUS).unwrap()["status"].clone()).unwrap();
        Arc::new(cluster)
    }

    #[tokio::test]
    async fn a_new_cluster_gets_its_config_map_and_a_status_and_then_peace() {
        let (api, client) = server();
        let pods = [pod("a", "web", &["caddy-sidecar", "app"]), pod("b", "web", &["app"]), pod("c", "other", &["app"])];
        let (reconciler, mut queue) = reconciler(client, &pods);
        Reconciler::reconcile(Arc::new(cluster()), reconciler.clone()).await.unwrap();
        assert_eq!(paths(&api), [CONFIG, STATUS]);
        assert_eq!(api.object(STATUS).unwrap()["status"]["pods"], json!({"selected": 2, "injected": 1, "stale": 1}));
        assert_eq!(reasons(&mut queue), ["ConfigurationWritten", "PodsNotInjected"]);
        Reconciler::reconcile(with_status(&api, cluster()), reconciler).await.unwrap();
        assert_eq!(paths(&api), [CONFIG], "a second look writes no status");
        assert_eq!(reasons(&mut queue), Vec::<&str>::new());
    }

    #[tokio::test]
    async fn a_replica_that_does_not_lead_writes_and_tells_nothing() {
        let (api, client) = server();
        let (mut reconciler, mut queue) = reconciler(client, &[pod("a", "web", &["caddy-sidecar", "app"])]);
        Arc::get_mut(&mut reconciler).unwrap().context.leadership = Leadership::elected();
        let action = Reconciler::reconcile(Arc::new(cluster()), reconciler.clone()).await.unwrap();
        reconciler.deleted(&cluster());
        assert_eq!((action, paths(&api)), (Action::await_change(), Vec::new()));
        assert_eq!(reasons(&mut queue), Vec::<&str>::new());
    }

    #[tokio::test]
    async fn a_missing_identity_is_told_and_tried_again_while_the_configuration_is_written() {
        let (api, client) = server();
        let (mut reconciler, _queue) = reconciler(client, &[]);
        let identities = Identities::new(reconciler.context.client.clone(), Some("sidecars".into()));
        Arc::get_mut(&mut reconciler).unwrap().identities = identities;
        let account = "/api/v1/namespaces/shop/serviceaccounts/caddy-sidecar";
        api.refuse(Some((Method::PATCH, account)));
        let error = Reconciler::reconcile(Arc::new(cluster()), reconciler.clone()).await.unwrap_err();
        assert!(matches!(error, ReconcileError::Identity(_)), "{error}");
        assert_eq!(paths(&api), [CONFIG, STATUS]);
        let conditions = api.object(STATUS).unwrap()["status"]["conditions"].clone();
        let told = |n: usize| (conditions[n]["type"].clone(), conditions[n]["reason"].clone());
        assert_eq!(told(0), (json!("Ready"), json!("ConfigurationWritten")));
        assert_eq!(told(2), (json!("Degraded"), json!("IdentityMissing")));
    }

    #[tokio::test]
    async fn an_invalid_spec_leaves_the_config_map_alone() {
        let (api, client) = server();
        api.put(CONFIG, json!({"metadata": {"name": "caddy-web"}, "data": {"config.yaml": "the last good one"}}));
        let (reconciler, mut queue) = reconciler(client, &[]);
        Reconciler::reconcile(Arc::new(cluster_with(&json!({"l3": {}}))), reconciler).await.unwrap();
        assert_eq!(paths(&api), [STATUS]);
        assert_eq!(reasons(&mut queue), ["InvalidSpec"]);
        assert_eq!(api.object(CONFIG).unwrap()["data"]["config.yaml"], "the last good one");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_status_and_tried_again_with_growing_pauses() {
        let (api, client) = server();
        api.refuse(Some((Method::PATCH, CONFIG)));
        let (reconciler, mut queue) = reconciler(client, &[]);
        let cluster = Arc::new(cluster());
        let error = Reconciler::reconcile(cluster.clone(), reconciler.clone()).await.unwrap_err();
        assert!(matches!(error, ReconcileError::ApplyConfigMap { .. }), "{error}");
        let ready = api.object(STATUS).unwrap()["status"]["conditions"][0].clone();
        assert_eq!(
            (ready["reason"].as_str(), ready["message"].as_str()),
            (Some("ApplyFailed"), Some("Forbidden (403)"))
        );
        assert_eq!(reasons(&mut queue), ["ApplyFailed"]);
        let pauses: Vec<_> =
            (0..9).map(|_| Reconciler::error_policy(cluster.clone(), &error, reconciler.clone())).collect();
        let seconds = [1, 2, 4, 8, 16, 32, 64, 120, 120];
        assert_eq!(pauses, seconds.map(|seconds| Action::requeue(Duration::from_secs(seconds))));
        api.refuse(None);
        Reconciler::reconcile(with_status(&api, (*cluster).clone()), reconciler.clone()).await.unwrap();
        assert_eq!(
            Reconciler::error_policy(cluster, &error, reconciler),
            Action::requeue(BACKOFF.0),
            "success forgets"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_are_not_listed_yet_are_not_counted_as_none() {
        let (api, client) = server();
        let (context, _queue) = context(client, &[]);
        let (pods, _writer) = reflector::store();
        let reconciler = Arc::new(with_pods(context, pods));
        let error = Reconciler::reconcile(Arc::new(cluster()), reconciler).await.unwrap_err();
        assert!(matches!(error, ReconcileError::PodsNotListed), "{error}");
        assert_eq!(paths(&api), [CONFIG], "the configuration is written, the status waits");
    }

    #[tokio::test]
    async fn a_cluster_deleted_meanwhile_is_no_failure() {
        let (api, client) = server();
        let (reconciler, mut queue) = reconciler(client, &[]);
        api.remove(STATUS);
        api.refuse(None);
        Reconciler::reconcile(Arc::new(cluster()), reconciler).await.unwrap();
        assert_eq!(reasons(&mut queue), Vec::<&str>::new(), "nobody is left to be told");
    }

    #[tokio::test]
    async fn a_deletion_counts_the_sidecars_that_go_on_serving() {
        let (_api, client) = FakeApi::new();
        let (reconciler, mut queue) = reconciler(client, &[pod("a", "web", &["caddy-sidecar", "app"])]);
        reconciler.deleted(&cluster());
        let (note, regarding) = queue.try_recv().unwrap();
        assert!(note.text.starts_with("deleted; 1 sidecars go on serving"), "{}", note.text);
        assert_eq!((note.kind, regarding.name.as_deref()), (NoteKind::Warning, Some("web")));
    }
}
