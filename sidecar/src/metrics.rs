//! What Prometheus sees. Engine counters are read when asked for; only what the engine cannot know is counted here.
//! Never a key in a label.

use caddy_engine::Counter as EngineCounter;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::{shared::Shared, supervisor::Supervisor};

/// Counters of the sidecar itself.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Keys named by invalidation pushes.
    pub(crate) pushed_keys: Counter,
    /// Reads answered from a copy that could not be proved current, as `onUncertain` says.
    pub(crate) served_unproven: Counter,
    /// Sessions closed because the app did not read.
    pub(crate) slow_readers: Counter,
    /// Connections refused at the limit.
    pub(crate) refused_connections: Counter,
    /// New configurations that were not valid.
    pub(crate) config_errors: Counter,
    /// Connections accepted.
    pub(crate) connections: Counter,
}

/// The OpenMetrics text of this moment.
pub(crate) fn render(shared: &Shared, supervisor: &Supervisor) -> String {
    let mut registry = Registry::with_prefix("caddy");
    let stats = shared.cache.stats();
    for (counter, counted) in stats.iter() {
        let metric: Counter = Counter::default();
        metric.inc_by(counted);
        registry.register(counter.name(), help(counter), metric);
    }
    let own = &shared.metrics;
    let counters = [
        ("pushed_keys", "Keys named by invalidation pushes", &own.pushed_keys),
        ("served_unproven", "Reads answered from a copy that could not be proved current", &own.served_unproven),
        ("slow_readers", "Sessions closed because the app did not read its replies", &own.slow_readers),
        ("refused_connections", "Connections refused at limits.maxConnections", &own.refused_connections),
        ("config_errors", "New configurations that were not valid", &own.config_errors),
        ("connections", "Connections accepted", &own.connections),
        ("task_panics", "Tasks that panicked", supervisor.panics()),
    ];
    for (name, help, counter) in counters {
        registry.register(name, help, counter.clone());
    }
    let status = shared.status.get();
    let config = shared.config();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let gauges = [
        ("sessions", "Connected apps", count(shared.session_count())),
        ("l2_entries", "Entries in L2", count(stats.l2_entries)),
        ("l2_bytes", "Bytes in L2: keys, values and metadata", count(stats.l2_bytes)),
        ("l2_max_bytes", "Budget of L2", count(config.l2.max_bytes.as_usize())),
        ("flights", "Reads of L3 under way", count(shared.flights.len())),
        ("l3_reachable", "1 if the last connect to L3 succeeded", i64::from(status.reachable)),
        ("coherent", "1 if copies are tracked, so that reads may be cached", i64::from(status.coherent)),
        ("config_generation", "The CacheCluster's generation in force", config.config_generation.cast_signed()),
        ("uptime_seconds", "Time since start", shared.now().since(shared.started).as_secs().cast_signed()),
    ];
    for (name, help, value) in gauges {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
    let mut text = String::new();
    // Writing into a String does not fail.
    let _ = encode(&mut text, &registry);
    text
}

fn help(counter: EngineCounter) -> String {
    format!("Engine counter: {}", counter.name().replace('_', " "))
}
