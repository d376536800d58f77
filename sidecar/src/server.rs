//! The sidecar as a whole: a control thread that accepts, reports and watches, and worker threads that serve.
//!
//! SIGTERM: goes on serving until the last app has been gone for a second or the grace is over, so that in a pod
//! without native sidecars the app can finish first. SIGINT ends at once.

use std::{net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};

use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
};

use crate::{
    absence, admin,
    behind::{self, BehindSetupError, Behinds},
    cli::Start,
    cluster::Cluster,
    coordination::Running,
    events,
    hub::{Addition, Hub},
    listener::{Accepted, ListenError, Listeners},
    loading::{self, Loading, StoreConfigError, Stores},
    memory,
    packer::{self, Packer},
    probe, ranges, reload, server_commands,
    session::Session,
    shared::{L3, Shared},
    supervisor::Supervisor,
    warm,
    worker::Worker,
};

/// How long the last app has to be gone before a terminating sidecar ends.
const QUIET: Duration = Duration::from_secs(1);
/// What stores get at least to take what waits for them, before a sidecar ends.
const DRAIN_LEAST: Duration = Duration::from_secs(2);
/// What one slice of maintenance looks at; some tens of microseconds.
const MAINTENANCE_STEPS: u32 = 64;

/// Why the sidecar cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A thread's runtime could not be made.
    #[error("cannot start a runtime")]
    Runtime(#[source] std::io::Error),
    /// A worker's thread could not be started.
    #[error("cannot start a worker thread")]
    Thread(#[source] std::io::Error),
    /// The socket could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin port could not be opened.
    #[error("cannot listen on the admin address {address} (choose another with admin.port or --admin-port)")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Signals could not be watched.
    #[error("cannot watch signals")]
    Signals(#[source] std::io::Error),
    /// The kernel's table of sources is too small for its configuration.
    #[error(transparent)]
    Kernel(#[from] caddy_engine::KernelError),
    /// A store of the configuration cannot be had.
    #[error(transparent)]
    Store(#[from] StoreConfigError),
    /// A log of writes that wait for a store cannot be had.
    #[error(transparent)]
    Behind(#[from] BehindSetupError),
    /// A part the sidecar cannot do without ended.
    #[error("{0}")]
    Failed(String),
}

/// Serves until told to stop.
pub fn serve(start: Start) -> Result<(), ServeError> {
    let runtime = local_runtime()?;
    let supervisor = Supervisor::default();
    let outcome = runtime.block_on(control(start, supervisor.clone()));
    supervisor.shutdown().cancel();
    outcome?;
    supervisor.failure().map_or(Ok(()), |reason| Err(ServeError::Failed(reason)))
}

fn local_runtime() -> Result<LocalRuntime, ServeError> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).map_err(ServeError::Runtime)
}

async fn control(start: Start, supervisor: Supervisor) -> Result<(), ServeError> {
    let config = start.config.clone();
    let (hub, additions) = mpsc::unbounded_channel();
    let (packer, jobs) = Packer::new();
    let (loading, loads) = Loading::new(Stores::new(&config, &Stores::default())?);
    let (behinds, begun) = Behinds::new(&config, &loading.stores())?;
    let shared = Shared::new(config.clone(), start.password.as_ref(), hub.clone(), packer, loading, behinds)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let listeners = Listeners::open(&config.listen.socket, config.listen.tcp_port).await?;
    let address = SocketAddr::new(config.admin.address, config.admin.port);
    let admin =
        admin::bind(address, start.any_admin_port).await.map_err(|source| ServeError::Admin { address, source })?;
    let admin_address = admin.local_addr().unwrap_or(address);

    let mut workers = vec![start_worker(0, &shared, hub, additions, &supervisor)?];
    for index in 1..config.workers {
        let (hub, additions) = mpsc::unbounded_channel();
        workers.push(start_worker(index, &shared, hub, additions, &supervisor)?);
    }
    let (own, watch) = (shared.clone(), supervisor.clone());
    let packing = start_thread("packer", &supervisor, move || packer::run(own, jobs, watch))?;
    let (own, watch) = (shared.clone(), supervisor.clone());
    let loader = start_thread("loader", &supervisor, move || loading::run(own, loads, watch))?;
    behind::end_leases(&shared);
    supervisor.spawn_vital("write-behind", behind::run(shared.clone(), begun, supervisor.clone()));
    supervisor.spawn_vital("write-behind members", behind::watch(shared.clone()));
    supervisor.spawn_vital("memory", memory::watch(shared.clone()));
    supervisor.spawn_vital("probes", probe::look_again(shared.clone()));
    supervisor.spawn_vital("admin", admin::serve(admin, shared.clone(), supervisor.clone()));
    if matches!(&shared.l3, L3::Redis(redis) if redis.cluster().is_some()) {
        supervisor.spawn_vital("slot map", Cluster::keep(shared.clone()));
    }
    if let Some(path) = start.config_path.clone() {
        supervisor.spawn_vital("configuration watch", reload::watch(path, shared.clone()));
    }
    supervisor.spawn_vital("command table", server_commands::refresh(shared.clone()));
    supervisor.spawn_vital("sweep", ranges::sweep(shared.clone()));
    supervisor.spawn_vital("negative filters", absence::run(shared.clone()));
    supervisor.spawn_vital("warming", warm::run(shared.clone()));
    supervisor.spawn_vital("events", events::run(shared.clone()));
    shared.locks.keep(&supervisor);
    let coordination = Running::start(&shared, &supervisor);
    announce(&start, &shared, admin_address);

    supervisor.spawn_vital("maintenance", {
        let (shared, due) = (shared.clone(), workers.iter().map(|worker| worker.maintenance.clone()).collect());
        async move { keep_maintained(&shared, due).await }
    });
    let mut patience = DRAIN_LEAST;
    let accepting = accept(&listeners, &shared, &workers);
    tokio::select! {
        () = accepting => {}
        () = supervisor.shutdown().cancelled() => {}
        _ = interrupt.recv() => tracing::info!("interrupted; ending"),
        () = async {
            terminate.recv().await;
            // Another sidecar goes on with the duties while this one still serves its app.
            coordination.iter().for_each(Running::leave);
            patience = drain(&shared, start.grace).await.max(DRAIN_LEAST);
        } => {}
    }
    shared.behinds.drain(&shared, patience).await;
    warm::farewell(&shared).await;
    if let Some(coordination) = coordination {
        coordination.end().await;
    }
    shared.locks.drain().await;
    supervisor.shutdown().cancel();
    drop(listeners);
    for worker in workers {
        drop(worker.accepted);
        if worker.thread.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
    for (name, thread) in [("packer", packing), ("loader", loader)] {
        if thread.join().is_err() {
            tracing::error!("the {name}'s thread panicked");
        }
    }
    Ok(())
}

/// Says how to talk to the sidecar, once.
fn announce(start: &Start, shared: &Shared, admin: SocketAddr) {
    let config = shared.config();
    let socket = config.listen.socket.display();
    let l3 = match &shared.l3 {
        L3::Embedded(_) => "embedded: this process has its own data".to_owned(),
        L3::Redis(redis) => redis.address(),
    };
    tracing::info!(%socket, tcp_port = config.listen.tcp_port, %admin, l3, workers = config.workers, "serving");
    if start.by_hand {
        println!("CADDY cache {} serves {socket}   (L3: {l3})", env!("CARGO_PKG_VERSION"));
        println!(
            "  talk to it:   redis-cli -s {socket}        then: SET greeting hello, GET greeting, CACHE.WHY greeting"
        );
        println!("  from an app:  unix://{}", std::path::absolute(&config.listen.socket).unwrap_or_default().display());
        println!("  metrics:      curl http://{admin}/metrics");
        if matches!(shared.l3, L3::Embedded(_)) {
            println!("  a Redis behind it:   caddy-sidecar --redis redis://127.0.0.1:6379");
        }
    }
}

async fn accept(listeners: &Listeners, shared: &Shared, workers: &[WorkerThread]) {
    let mut next = 0;
    loop {
        let accepted = match listeners.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: existing sessions go on, and closing ones make room.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(shown) = shared.enter(accepted.peer()) else {
            shared.metrics.refused_connections.inc();
            if let Some(before) = shared.refused_connections.due(shared.now()) {
                let (peer, limit) = (accepted.peer(), shared.config().limits.max_connections);
                tracing::warn!(
                    %peer,
                    limit,
                    before,
                    "refused a connection (limits.maxConnections); more are counted only"
                );
            }
            accepted
                .refuse(b"-ERR max number of clients reached; raise limits.maxConnections or close connections\r\n");
            continue;
        };
        shared.metrics.connections.inc();
        let id = shown.id;
        if workers[next % workers.len()].accepted.send((accepted, shown)).is_err() {
            shared.leave(id);
        }
        next += 1;
    }
}

/// Serves until the last app is gone; what is left of the grace.
async fn drain(shared: &Shared, grace: Duration) -> Duration {
    tracing::info!(sessions = shared.session_count(), ?grace, "terminating: serving until the last app is gone");
    let started = tokio::time::Instant::now();
    let mut quiet_since = started;
    while started.elapsed() < grace && quiet_since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if shared.session_count() > 0 {
            quiet_since = tokio::time::Instant::now();
        }
    }
    grace.saturating_sub(started.elapsed())
}

/// Runs what `make` gives on a thread of its own.
fn start_thread<F: Future<Output = ()>>(
    name: &str,
    supervisor: &Supervisor,
    make: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<()>, ServeError> {
    let supervisor = supervisor.clone();
    let work = move || match local_runtime() {
        Ok(runtime) => runtime.block_on(make()),
        Err(error) => supervisor.fail(error.to_string()),
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(ServeError::Thread)
}

// === workers ===

struct WorkerThread {
    accepted: mpsc::UnboundedSender<(Accepted, Arc<crate::session::client::Shown>)>,
    /// Maintenance is due.
    maintenance: Arc<Notify>,
    thread: JoinHandle<()>,
}

fn start_worker(
    index: usize,
    shared: &Arc<Shared>,
    hub: mpsc::UnboundedSender<Addition>,
    additions: mpsc::UnboundedReceiver<Addition>,
    supervisor: &Supervisor,
) -> Result<WorkerThread, ServeError> {
    let (accepted, arrivals) = mpsc::unbounded_channel();
    let (shared, supervisor) = (shared.clone(), supervisor.clone());
    let maintenance = Arc::<Notify>::default();
    let due = maintenance.clone();
    let thread = std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            // A runtime of this kind belongs to the thread that makes it.
            let runtime = match local_runtime() {
                Ok(runtime) => runtime,
                Err(error) => return supervisor.fail(error.to_string()),
            };
            runtime.block_on(work(shared, hub, additions, arrivals, due, supervisor));
        })
        .map_err(ServeError::Thread)?;
    Ok(WorkerThread { accepted, maintenance, thread })
}

async fn work(
    shared: Arc<Shared>,
    hub: mpsc::UnboundedSender<Addition>,
    additions: mpsc::UnboundedReceiver<Addition>,
    mut arrivals: mpsc::UnboundedReceiver<(Accepted, Arc<crate::session::client::Shown>)>,
    maintenance: Arc<Notify>,
    supervisor: Supervisor,
) {
    let worker = Worker::new(shared.clone(), hub, supervisor.clone());
    let mut lanes = Hub::new(additions);
    supervisor.spawn_vital("upstream connections", async move { std::future::poll_fn(|cx| lanes.poll(cx)).await });
    // One worker has their connection; the first to come takes it.
    shared.locks.connect(&shared, &supervisor);
    let maintained = worker.clone();
    supervisor.spawn_vital("maintenance", async move { maintain(&maintained, &maintenance).await });
    loop {
        let arrival = tokio::select! {
            () = supervisor.shutdown().cancelled() => return,
            arrival = arrivals.recv() => arrival,
        };
        let Some((accepted, shown)) = arrival else { return };
        let id = shown.id;
        tracing::debug!(id, peer = %shown.peer, "a session begins");
        match accepted.register() {
            Ok(stream) => supervisor.spawn_local("session", Session::new(worker.clone(), stream, shown)),
            Err(error) => {
                tracing::warn!(%error, "cannot serve a connection");
                shared.leave(id);
            }
        }
    }
}

/// Says when it is time for maintenance. Not the workers themselves: a thread on which no timer runs goes to sleep, and
/// wakes up for a request, without asking for the time and without a timer of the kernel's.
async fn keep_maintained(shared: &Shared, workers: Vec<Arc<Notify>>) {
    loop {
        let interval = shared.config().tiering.maintenance_interval;
        tokio::time::sleep(interval).await;
        for worker in &workers {
            worker.notify_one();
        }
    }
}

/// Frees what has expired and what is idle, in slices between which requests are served.
async fn maintain(worker: &Worker, due: &Notify) {
    loop {
        due.notified().await;
        worker.tiers.borrow_mut().maintain(worker.shared.now(), MAINTENANCE_STEPS);
        while worker.shared.cache.maintain(worker.shared.now(), MAINTENANCE_STEPS as usize) {
            tokio::task::yield_now().await;
        }
    }
}
