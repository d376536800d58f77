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
        if name.is_empty() {
            return Lookup::Missing; // a label without a value asks for nothing that could exist
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        certs::{authority::Authority, resolver::Resolver},
        events::EventQueue,
        http::{bind, serve},
        testing::{FakeApi, cluster, context},
    };
    use http::Method;
    use kube::{
        Client,
        runtime::{reflector, watcher},
    };
    use rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    };
    use serde_json::{Value, json};
    use std::{net::SocketAddr, time::SystemTime};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        task::JoinSet,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};
    use tokio_util::sync::CancellationToken;

    const CLUSTER: &str = "/apis/cache.caddy.dev/v1alpha1/namespaces/shop/cacheclusters/web";

    /// A webhook that listens, with all that stands around it.
    struct Running {
        address: SocketAddr,
        api: FakeApi,
        resolver: Arc<Resolver>,
        authority: Authority,
        queue: EventQueue,
        _server: JoinSet<()>,
    }

    async fn running(cached: bool) -> Running {
        let (api, client) = FakeApi::new();
        running_with(api, client, cached).await
    }

    async fn running_with(api: FakeApi, client: Client, cached: bool) -> Running {
        let (context, queue) = context(client, &[]);
        let (clusters, mut writer) = reflector::store();
        if cached {
            writer.apply_watcher_event(&watcher::Event::Apply(cluster()));
        }
        let webhook = Webhook { context, clusters };
        let resolver = Arc::new(Resolver::default());
        let authority = Authority::create(SystemTime::now()).unwrap();
        resolver.swap(authority.issue(&["caddy.svc".into()], SystemTime::now()).unwrap()).unwrap();
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = resolver.clone().server_config().unwrap();
        let mut server = JoinSet::new();
        let handler = move |request| webhook.clone().answer(request);
        server.spawn(serve(listener, Some(tls), handler, CancellationToken::new()));
        Running { address, api, resolver, authority, queue, _server: server }
    }

    /// A TLS connection of somebody who trusts `bundle`.
    async fn connect(address: SocketAddr, bundle: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle.as_bytes()).map(Result::unwrap));
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config =
            builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("caddy.svc").unwrap(), stream).await
    }

    async fn send(stream: &mut TlsStream<TcpStream>, method: &str, path: &str, body: &str) -> (u16, String) {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: caddy.svc\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        // A server that refuses early may close before it has read all.
        let _ = stream.write_all(body.as_bytes()).await;
        let mut reply = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&reply).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
                if body.len() >= length.parse().unwrap() {
                    return (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned());
                }
            }
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "closed after {text:?}");
            reply.extend_from_slice(&chunk[..n]);
        }
    }

    async fn ask(running: &Running, dry_run: bool) -> Value {
        let owner =
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "r", "controller": true});
        let pod = json!({
            "metadata": {"labels": {"cache.caddy.dev/cluster": "web"}, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "app"}]},
        });
        let review = json!({"request": {"uid": "u", "namespace": "shop", "dryRun": dry_run, "object": pod}});
        let bundle = running.authority.bundle(SystemTime::now());
        let mut stream = connect(running.address, &bundle).await.unwrap();
        let (status, body) = send(&mut stream, "POST", "/mutate?timeout=3s", &review.to_string()).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["response"].clone()
    }

    #[tokio::test]
    async fn a_cluster_in_the_cache_needs_no_question() {
        let mut running = running(true).await;
        running.api.refuse(Some((Method::GET, CLUSTER)));
        let response = ask(&running, false).await;
        assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
        assert!(running.queue.try_recv().is_err(), "nothing to tell");
    }

    #[tokio::test]
    async fn a_cluster_that_the_cache_has_not_seen_yet_is_found_by_a_live_get() {
        let running = running(false).await;
        running.api.put(CLUSTER, serde_json::to_value(cluster()).unwrap());
        assert_eq!(ask(&running, false).await["patchType"], "JSONPatch");
    }

    #[tokio::test]
    async fn a_missing_cluster_is_denied_and_told_but_not_on_a_dry_run() {
        let mut running = running(false).await;
        assert_eq!(ask(&running, true).await["allowed"], false);
        assert!(running.queue.try_recv().is_err(), "a dry run has no side effects");
        assert_eq!(ask(&running, false).await["allowed"], false);
        let (note, owner) = running.queue.try_recv().unwrap();
        assert_eq!((note.reason, owner.name.as_deref()), ("CacheClusterMissing", Some("rs")));
    }

    #[tokio::test]
    async fn an_api_server_that_refuses_the_question_admits_the_pod_with_a_warning() {
        let running = running(false).await;
        running.api.refuse(Some((Method::GET, CLUSTER)));
        let response = ask(&running, false).await;
        assert_eq!(response["allowed"], true);
        assert!(response["warnings"][0].as_str().unwrap().contains("could not find out"), "{response}");
    }

    #[tokio::test]
    async fn what_is_no_admission_review_gets_a_clear_refusal() {
        let running = running(true).await;
        let bundle = running.authority.bundle(SystemTime::now());
        for (method, path, body, status) in [
            ("POST", "/mutate", "garbage".to_owned(), 400),
            ("GET", "/mutate", String::new(), 405),
            ("POST", "/other", String::new(), 404),
            ("POST", "/mutate", "x".repeat(BODY + 1), 413),
        ] {
            let mut stream = connect(running.address, &bundle).await.unwrap();
            assert_eq!(send(&mut stream, method, path, &body).await.0, status, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn a_new_certificate_is_swapped_in_under_open_connections() {
        let running = running(true).await;
        let old = running.authority.bundle(SystemTime::now());
        let mut open = connect(running.address, &old).await.unwrap();
        let next = Authority::create(SystemTime::now()).unwrap();
        running.resolver.swap(next.issue(&["caddy.svc".into()], SystemTime::now()).unwrap()).unwrap();
        assert_eq!(send(&mut open, "GET", "/mutate", "").await.0, 405, "the open connection goes on");
        assert!(connect(running.address, &old).await.is_err(), "a new one gets the new certificate");
        assert!(connect(running.address, &next.bundle(SystemTime::now())).await.is_ok());
    }
}
