//! The admission webhook: one POST, `/mutate`, answered within the API server's patience.
//!
//! [`review`] is the pure part. This part reads the request, finds the CacheCluster (in the cache, else by one live
//! GET, since a pod may be created right after it) and hands Events to their queue, never on a dry run.

pub mod review;

use crate::{
    context::Context,
    http::{Reply, reply, text},
    metrics::Outcome,
};
use caddy_crds::CacheCluster;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use kube::{
    Api,
    runtime::reflector::{ObjectRef, Store},
};
use review::{Answer, Lookup, Policy, Review};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Most bytes of a request; the API server's own limit for objects is 3 MiB.
const BODY: usize = 4 << 20;
/// Time for the live GET; the API server waits 3 s for the whole answer.
const LOOKUP: Duration = Duration::from_secs(2);
/// Time to read a request's body.
const READ: Duration = Duration::from_secs(2);

/// Everything that answering needs.
#[derive(Clone)]
pub struct Webhook {
    /// Shared with the other tasks.
    pub context: Context,
    /// CacheClusters as last seen.
    pub clusters: Store<CacheCluster>,
}

impl Webhook {
    /// Answers one HTTP request.
    pub async fn answer(self, request: Request<Incoming>) -> Reply {
        if request.uri().path() != "/mutate" {
            return text(StatusCode::NOT_FOUND, "admission reviews are posted to /mutate\n");
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "admission reviews are posted\n");
        }
        let started = tokio::time::Instant::now();
        let body = match timeout(READ, Limited::new(request.into_body(), BODY).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => return text(StatusCode::PAYLOAD_TOO_LARGE, "the request is broken or larger than 4 MiB\n"),
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the request came too slowly\n"),
        };
        let review = match Review::read(&body) {
            Ok(review) => review,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        let answer = self.decide(&review).await;
        self.context.metrics.admissions.get_or_create(&Outcome { outcome: answer.outcome }).inc();
        self.context.metrics.admission_seconds.observe(started.elapsed().as_secs_f64());
        self.tell(&review, &answer);
        reply(StatusCode::OK, "application/json", answer.body(&review.uid))
    }

    async fn decide(&self, review: &Review) -> Answer {
        let policy = Policy {
            form: self.context.form(),
            defaults: self.context.settings.defaults(),
            on_missing: self.context.settings.on_missing_cluster,
            failure: self.context.settings.failure_policy,
        };
        match review.cluster() {
            Some(name) => review::decide(review, self.find(&review.namespace, name).await, &policy),
            None => review::unchanged(),
        }
    }

    async fn find(&self, namespace: &str, name: &str) -> Lookup {
        if let Some(cluster) = self.clusters.get(&ObjectRef::new(name).within(namespace)) {
            return Lookup::Found(cluster);
        }
        let api: Api<CacheCluster> = Api::namespaced(self.context.client.clone(), namespace);
        match timeout(LOOKUP, api.get_opt(name)).await {
            Ok(Ok(Some(cluster))) => Lookup::Found(Arc::new(cluster)),
            Ok(Ok(None)) => Lookup::Missing,
            Ok(Err(error)) => Lookup::Failed(error.to_string()),
            Err(_) => Lookup::Failed(format!("the API server did not answer within {LOOKUP:?}")),
        }
    }

    /// Log and Event; the Event goes to the pod's owner, since the pod itself has no name yet.
    fn tell(&self, review: &Review, answer: &Answer) {
        let Some(note) = &answer.note else { return };
        tracing::info!(namespace = review.namespace, reason = note.reason, dry_run = review.dry_run, "{}", note.text);
        if let (false, Some(owner)) = (review.dry_run, review.owner()) {
            self.context.events.publish(note.clone(), owner);
        }
    }
}
