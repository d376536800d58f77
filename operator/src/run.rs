//! Wires everything together and runs it until SIGTERM.

use crate::{
    admin::{Readiness, answer},
    capabilities::Capabilities,
    certs::{keeper::Keeper, resolver::Resolver},
    context::Context,
    events::{self, EventSink},
    http::{bind, serve},
    leader::{Leadership, Place},
    metrics::Metrics,
    reconcile::{self, Caches},
    settings::Settings,
    supervisor::Supervisor,
    webhook::Webhook,
};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use http::Request;
use hyper::body::Incoming;
use kube::Client;
use std::{sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Pause between two questions for the server's version: it may be upgraded meanwhile.
const VERSION_INTERVAL: Duration = Duration::from_mins(10);
/// Time that the webhook goes on answering after SIGTERM, while the Service still sends requests here.
const LINGER: Duration = Duration::from_secs(3);

/// Runs the operator.
///
/// # Errors
/// When it cannot start, or a task ended that should not.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let client =
        Client::try_default().await.context("no API server: neither a kubeconfig nor a pod's service account")?;
    let capabilities = Capabilities::ask(&client).await.context("the API server did not tell its version")?;
    tracing::info!("{capabilities}");
    let capabilities = Arc::new(ArcSwap::from_pointee(capabilities));
    let settings = Arc::new(settings);
    let (metrics, readiness, resolver) =
        (Arc::new(Metrics::new()), Arc::new(Readiness::default()), Arc::new(Resolver::default()));
    let (events, event_queue) = EventSink::new(metrics.clone());
    let caches = Caches::new();
    let mut supervisor = Supervisor::new();
    let shutdown = supervisor.shutdown();

    let admin = bind(settings.admin_address).await?;
    let webhook_listener = bind(settings.webhook_address).await?;
    tracing::info!(webhook = %settings.webhook_address, admin = %settings.admin_address, "listening");

    let (ready, counters) = (readiness.clone(), metrics.clone());
    let admin_handler = move |request: Request<Incoming>| {
        let reply = answer(request.uri().path(), &ready, &counters);
        async move { reply }
    };
    let stop = shutdown.clone();
    supervisor.spawn("admin", async move {
        serve(admin, None, admin_handler, stop).await;
        Ok(())
    });

    let context = Context {
        client: client.clone(),
        settings: settings.clone(),
        capabilities: capabilities.clone(),
        events,
        leadership: if settings.lease.is_some() { Leadership::elected() } else { Leadership::alone() },
        metrics: metrics.clone(),
    };
    let webhook = Webhook { context: context.clone(), clusters: caches.clusters.clone() };
    let tls = resolver.clone().server_config()?;
    let webhook_handler = move |request| webhook.clone().answer(request);
    let stop = shutdown.clone();
    supervisor.spawn("webhook", async move {
        serve(webhook_listener, Some(tls), webhook_handler, stop).await;
        Ok(())
    });

    let keeper = Keeper {
        client: client.clone(),
        namespace: settings.namespace.clone(),
        secret: settings.ca_secret.clone(),
        configuration: settings.webhook_configuration.clone(),
        hosts: settings.webhook_hosts.clone(),
        resolver,
        readiness: readiness.clone(),
        metrics: metrics.clone(),
    };
    let stop = shutdown.clone();
    supervisor.spawn("certificates", async move {
        keeper.run(stop).await;
        Ok(())
    });

    // Cancelled with SIGTERM: another replica goes on while this one still answers the webhook.
    let leaving = shutdown.child_token();
    let place = Place {
        namespace: settings.namespace.clone(),
        name: settings.lease.clone().unwrap_or_default(),
        identity: settings.identity.clone().unwrap_or_default(),
    };
    let leading = context.leadership.clone().run(client.clone(), place, metrics.clone(), leaving.clone());
    let stop = shutdown.clone();
    supervisor.spawn("leadership", async move {
        leading.await;
        stop.cancelled().await;
        Ok(())
    });

    let sending = events::send(client.clone(), event_queue, metrics, shutdown.clone());
    supervisor.spawn("events", async move {
        sending.await;
        Ok(())
    });
    supervisor.spawn("version", follow_version(client, capabilities, shutdown.clone()));
    supervisor.spawn("signals", terminate(readiness.clone(), leaving, shutdown.clone()));

    let reconciling = reconcile::run(context, caches, readiness, shutdown);
    supervisor.spawn("reconciler", async move {
        reconciling.await;
        Ok(())
    });
    supervisor.run().await?;
    tracing::info!("ended");
    Ok(())
}

/// Follows upgrades of the server.
async fn follow_version(
    client: Client,
    capabilities: Arc<ArcSwap<Capabilities>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(VERSION_INTERVAL) => {}
        }
        match Capabilities::ask(&client).await {
            Ok(now) if now != **capabilities.load() => {
                tracing::info!("the server changed: {now}");
                capabilities.store(Arc::new(now));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the API server did not tell its version"),
        }
    }
}

/// Waits for SIGTERM or SIGINT, turns unready, answers a little longer, then begins the shutdown. Leads no longer from the
/// signal on.
async fn terminate(
    readiness: Arc<Readiness>,
    leaving: CancellationToken,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    tracing::info!("ending: unready now, answering for {LINGER:?} more");
    readiness.drain();
    leaving.cancel();
    tokio::time::sleep(LINGER).await;
    shutdown.cancel();
    Ok(())
}
