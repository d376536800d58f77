//! What Prometheus sees. Engine counters are read when asked for; only what the engine cannot know is counted here.
//! Never a key in a label.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use caddy_engine::{Counter as EngineCounter, locks::LockStats};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    facts::Standing,
    shared::{L3, MEMORIES, Shared},
    supervisor::Supervisor,
    tally::Count,
};

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
    /// Redirections to a slot's new owner.
    pub(crate) moved: Counter,
    /// Redirections of single requests, while a slot moves.
    pub(crate) asked: Counter,
    /// Slot maps read.
    pub(crate) slot_map_reads: Counter,
    /// Logins with a wrong name or password.
    pub(crate) refused_logins: Counter,
    /// Commands that `auth` does not allow, also those before a login.
    pub(crate) denied_commands: Counter,
    /// Sessions closed because the app sent nothing.
    pub(crate) idle_closed: Counter,
    /// Patterns whose sweep this sidecar ended.
    pub(crate) swept_patterns: Counter,
    /// Keys cleared for requests.
    pub(crate) cleared_keys: Counter,
    /// Events that could not be told.
    pub(crate) lost_events: Counter,
    /// Values that were made to depend on one another in a circle.
    pub(crate) cycles: Counter,
    /// Fill tokens that apps were given.
    pub(crate) fill_tokens: Counter,
    /// `CACHE.SET`s that came too late.
    pub(crate) stale_writes: Counter,
    /// `CACHE.SET`s of those who hold a lock no more.
    pub(crate) fenced_writes: Counter,
    /// Connections to Redis that were there and broke.
    pub(crate) lost_connections: Counter,
}

/// The OpenMetrics text of this moment.
pub(crate) fn render(shared: &Shared, supervisor: &Supervisor) -> String {
    let mut registry = Registry::with_prefix("caddy");
    let stats = shared.cache.stats();
    for (name, help) in FAMILIES {
        let family = Family::<Vec<(&str, &str)>, Counter>::default();
        for (counter, counted) in stats.iter() {
            match series(counter) {
                (of, Some(label)) if of == *name => {
                    family.get_or_create(&vec![label]).inc_by(counted);
                }
                (of, None) if of == *name => {
                    let alone: Counter = Counter::default();
                    alone.inc_by(counted);
                    registry.register(*name, *help, alone);
                }
                _ => {}
            }
        }
        // Without labels it has no members, and is not written.
        registry.register(*name, *help, family);
    }
    let (own, traffic) = (&shared.metrics, &shared.coordination.traffic);
    let counters = [
        ("pushed_keys", "Keys named by invalidation pushes", &own.pushed_keys),
        ("served_unproven", "Reads answered from a copy that could not be proved current", &own.served_unproven),
        ("slow_readers", "Sessions closed because the app did not read its replies", &own.slow_readers),
        ("refused_connections", "Connections refused at limits.maxConnections", &own.refused_connections),
        ("config_errors", "New configurations that were not valid", &own.config_errors),
        ("connections", "Connections accepted", &own.connections),
        ("slot_map_reads", "Slot maps of a Redis Cluster read", &own.slot_map_reads),
        ("kubernetes_reads", "Reads asked of the API server", &traffic.reads),
        ("kubernetes_writes", "Writes asked of the API server", &traffic.writes),
        ("kubernetes_failures", "Those of both that were refused or got no answer", &traffic.failures),
        ("refused_logins", "Logins with a wrong name or password", &own.refused_logins),
        ("denied_commands", "Commands that auth does not allow, also those before a login", &own.denied_commands),
        ("idle_closed", "Sessions closed because the app sent nothing for limits.idleTimeout", &own.idle_closed),
        ("swept_patterns", "Invalidations by pattern whose sweep this sidecar brought to its end", &own.swept_patterns),
        ("cleared_keys", "Keys cleared before a request, since a pattern in force has them", &own.cleared_keys),
        ("lost_events", "Events of invalidations that were not told: L3 did not take them", &own.lost_events),
        ("dependency_cycles", "Values that CACHE.SET made depend on one another in a circle", &own.cycles),
        ("fill_tokens", "Fill tokens given to apps", &own.fill_tokens),
        ("stale_writes", "CACHE.SETs refused as STALE, since something changed behind their token", &own.stale_writes),
        ("fenced_writes", "CACHE.SETs refused as FENCED, since their fencing token is an old one", &own.fenced_writes),
        ("lost_connections", "Connections to Redis that broke", &own.lost_connections),
        ("task_panics", "Tasks that panicked", supervisor.panics()),
    ];
    for (name, help, counter) in counters {
        registry.register(name, help, counter.clone());
    }
    let undecodable: Counter = Counter::default();
    undecodable.inc_by(shared.envelopes.failures());
    registry.register("l3_undecodable", "Values in L3 that could not be opened: misses", undecodable);
    let warming = &shared.warming;
    let warmed = Family::<Vec<(&str, &str)>, Counter>::default();
    for (outcome, counted) in [("pulled", &warming.pulled), ("skipped", &warming.skipped)] {
        warmed.get_or_create(&vec![("outcome", outcome)]).inc_by(counted.load(Ordering::Relaxed));
    }
    registry.register("warming_reads", "Reads of other sidecars that this one made ahead, by outcome", warmed);
    facts(shared, &mut registry);
    keyspaces(shared, &mut registry);
    stores(shared, &mut registry);
    behind(shared, &mut registry);
    let locks = shared.locks.stats();
    for (name, help, counted) in lock_counters(&locks) {
        let counter: Counter = Counter::default();
        counter.inc_by(counted);
        registry.register(name, help, counter);
    }
    let redirections = Family::<Vec<(&str, &str)>, Counter>::default();
    redirections.get_or_create(&vec![("kind", "moved")]).inc_by(own.moved.get());
    redirections.get_or_create(&vec![("kind", "ask")]).inc_by(own.asked.get());
    registry.register("redirections", "Requests that a cluster's node sent to another, by kind", redirections);
    let nodes = match &shared.l3 {
        L3::Embedded(_) => 0,
        L3::Redis(redis) => redis.nodes().len(),
    };
    let (status, duties) = (shared.status.get(), shared.coordination.duties());
    let config = shared.config();
    let memory = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed).cast_signed();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let switches = match &shared.l3 {
        L3::Redis(redis) => redis.switches().cast_signed(),
        L3::Embedded(_) => 0,
    };
    let gauges = [
        ("sessions", "Connected apps", count(shared.session_count())),
        ("generations", "Generations of tags, parents and keyspaces that are known here", count(shared.domain.count())),
        ("l2_entries", "Entries in L2", count(stats.l2_entries)),
        ("l2_bytes", "Bytes in L2: keys, values and metadata", count(stats.l2_bytes)),
        (
            "in_flight_bytes",
            "Bytes read from L3 until they are cached and whoever waits has them, and replies that apps do not read; part of L2's budget",
            count(stats.in_flight_bytes),
        ),
        (
            "l2_max_bytes",
            "Budget of L2 at the moment: less than configured while memory is short",
            count(shared.cache.l2_max_bytes()),
        ),
        ("memory_limit_bytes", "What the cgroup gives the process; 0 without a limit", memory(&shared.memory.limit)),
        ("memory_used_bytes", "What it uses of that", memory(&shared.memory.used)),
        ("flights", "Reads of L3 under way", count(shared.flights.len())),
        ("locks_held", "Locks held by apps of this sidecar", count(locks.held)),
        ("lock_waiters", "Acquisitions that wait for their turn", count(locks.waiting)),
        ("lock_epoch", "The epoch of the locks; 0 before the first one", shared.locks.epoch().epoch.cast_signed()),
        ("lock_epoch_changes", "New epochs since the start", shared.locks.epoch().changes.cast_signed()),
        ("l3_reachable", "1 if the last connect to L3 succeeded", i64::from(status.reachable)),
        ("l3_nodes", "Redis servers that keys are read from: 1, or a cluster's primaries", count(nodes)),
        ("coherent", "1 if copies are tracked, so that reads may be cached", i64::from(status.coherent)),
        ("duties_held", "1 while this sidecar does the cluster's duties", i64::from(duties.is_holder())),
        ("server_commands", "Commands of the server that the built-in table lacks", count(shared.commands.len())),
        ("sentinel_switches", "How often the Sentinels have named another primary", switches),
        ("config_generation", "The CacheCluster's generation in force", config.config_generation.cast_signed()),
        ("active_patterns", "Invalidations by pattern that are being swept", count(shared.ranges.active().len())),
        ("warming_percent", "How much of what is to be read ahead is done with", warming.percent().cast_signed()),
        ("warming_milliseconds", "How long reading ahead took, or has taken so far", warming.millis().cast_signed()),
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

/// What the server was asked at the start; of an embedded L3 there is nothing to ask.
fn facts(shared: &Shared, registry: &mut Registry) {
    let facts = Family::<[(&str, &str); 2], Gauge>::default();
    if matches!(shared.l3, L3::Redis(_)) {
        for (fact, standing) in shared.status.facts.standings() {
            for state in Standing::ALL {
                let series = facts.get_or_create(&[("fact", fact), ("state", state.name())]);
                series.set(i64::from(state == standing));
            }
        }
    }
    registry.register(
        "l3_facts",
        "What the promises want of the server, by how it answered: 1 for the one state",
        facts,
    );
}

/// What is known of each keyspace; its name is the label.
fn keyspaces(shared: &Shared, registry: &mut Registry) {
    let reads = Family::<[(&str, String); 2], Counter>::default();
    let [fills, compressed, undecodable] = [(); 3].map(|()| Family::<[(&str, String); 1], Counter>::default());
    let loads = Family::<[(&str, String); 2], Counter>::default();
    let ratios = Family::<[(&str, String); 2], Gauge<f64, AtomicU64>>::default();
    let compressed_bytes = Family::<[(&str, String); 2], Counter>::default();
    let compression_time = Family::<[(&str, String); 2], Counter<f64, AtomicU64>>::default();
    let [entries, bytes] = [(); 2].map(|()| Family::<[(&str, String); 1], Gauge>::default());
    filters(shared, registry);
    for stats in shared.keyspace_stats() {
        let label = [("keyspace", stats.name.clone())];
        for count in Count::READS {
            let [keyspace] = label.clone();
            let series = reads.get_or_create(&[keyspace, ("outcome", count.name().to_owned())]);
            series.inc_by(stats.counts.get(count));
        }
        for count in Count::LOADS {
            let [keyspace] = label.clone();
            let series = loads.get_or_create(&[keyspace, ("outcome", count.name().to_owned())]);
            series.inc_by(stats.counts.get(count));
        }
        fills.get_or_create(&label).inc_by(stats.counts.get(Count::Fill));
        compressed.get_or_create(&label).inc_by(stats.counts.get(Count::Packed));
        undecodable.get_or_create(&label).inc_by(stats.counts.get(Count::Damaged));
        for (of, name, count) in
            [(&compressed_bytes, "before", Count::PackedFrom), (&compressed_bytes, "after", Count::PackedTo)]
        {
            let [keyspace] = label.clone();
            of.get_or_create(&[keyspace, ("side", name.to_owned())]).inc_by(stats.counts.get(count));
        }
        for (name, count) in [("compress", Count::PackNanos), ("decompress", Count::UnpackNanos)] {
            let [keyspace] = label.clone();
            let seconds = Duration::from_nanos(stats.counts.get(count)).as_secs_f64();
            compression_time.get_or_create(&[keyspace, ("work", name.to_owned())]).inc_by(seconds);
        }
        for ((memory, _), estimate) in MEMORIES.iter().zip(stats.with_memory) {
            let [keyspace] = label.clone();
            let memory = memory.trim_start_matches("hit_ratio_").to_owned();
            ratios
                .get_or_create(&[keyspace, ("memory", memory)])
                .set(estimate.map_or(f64::NAN, |known| known.hit_ratio));
        }
        entries.get_or_create(&label).set(i64::try_from(stats.size.entries).unwrap_or(i64::MAX));
        bytes.get_or_create(&label).set(i64::try_from(stats.size.bytes).unwrap_or(i64::MAX));
    }
    registry.register("keyspace_reads", "Reads that looked for a copy, by keyspace and what became of them", reads);
    registry.register("keyspace_loads", "Values asked of stores, and reads that waited for them, by outcome", loads);
    registry.register("keyspace_fills", "Copies put into L2, by keyspace", fills);
    registry.register("compressed_values", "Copies that L2 holds, or held, compressed", compressed);
    registry.register("compressed_bytes", "Bytes of those copies, before and after", compressed_bytes);
    registry.register("compression_seconds", "Time spent on compression", compression_time);
    registry.register("undecodable", "Copies that could not be decompressed, each a miss", undecodable);
    registry.register("keyspace_hit_ratio", "Share of reads that L2 would answer with so much memory", ratios);
    registry.register("keyspace_entries", "Entries in L2, by keyspace", entries);
    registry.register("keyspace_bytes", "Bytes of the entries in L2, by keyspace", bytes);
}

/// The negative filters; the keyspace is the label.
fn filters(shared: &Shared, registry: &mut Registry) {
    let [active, keys] = [(); 2].map(|()| Family::<[(&str, String); 1], Gauge>::default());
    let builds = Family::<[(&str, String); 1], Counter>::default();
    let names = shared.names.all();
    for filter in shared.keyspaces().filters() {
        let label = [("keyspace", names.get(filter.keyspace.index()).cloned().unwrap_or_default())];
        let stats = filter.stats(shared);
        active.get_or_create(&label).set(i64::from(stats.is_active));
        keys.get_or_create(&label).set(i64::try_from(stats.keys).unwrap_or(i64::MAX));
        builds.get_or_create(&label).inc_by(stats.builds);
    }
    registry.register("negative_filter_active", "1 while the keyspace's negative filter answers", active);
    registry.register("negative_filter_keys", "Keys that it knows, those removed since its build included", keys);
    registry.register("negative_filter_builds", "How often it was built", builds);
}

/// What is known of each store; its name is the label.
fn stores(shared: &Shared, registry: &mut Registry) {
    let [calls, keys, failures, busy, left_alone, put_off, unchanged] =
        [(); 7].map(|()| Family::<[(&str, String); 1], Counter>::default());
    let [under_way, waiting, open] = [(); 3].map(|()| Family::<[(&str, String); 1], Gauge>::default());
    for store in shared.loading.stores().all() {
        let label = [("store", store.name.to_string())];
        let counts = &store.counts;
        for (family, counted) in [
            (&calls, &counts.calls),
            (&keys, &counts.keys),
            (&failures, &counts.failures),
            (&busy, &counts.busy),
            (&left_alone, &counts.left_alone),
            (&put_off, &counts.put_off),
            (&unchanged, &counts.unchanged),
        ] {
            family.get_or_create(&label).inc_by(counted.get());
        }
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let (calling, queued) = store.load_of();
        under_way.get_or_create(&label).set(count(calling));
        waiting.get_or_create(&label).set(count(queued));
        open.get_or_create(&label).set(i64::from(store.is_left_alone()));
    }
    registry.register("store_calls", "Loads asked of a store, each for one or more keys", calls);
    registry.register("store_keys", "Keys asked for in them", keys);
    registry.register("store_failures", "Those calls that failed", failures);
    registry.register("store_busy", "Loads refused because too many waited (stores[].maxQueued)", busy);
    registry.register(
        "store_left_alone",
        "Loads refused while the store was left alone (stores[].breaker)",
        left_alone,
    );
    registry.register(
        "store_put_off",
        "Loads put off behind an outage of the store, since an old value could be answered",
        put_off,
    );
    registry.register(
        "store_unchanged",
        "Loads to which the store said that the value is still what it was (304)",
        unchanged,
    );
    registry.register("store_calls_under_way", "Calls under way", under_way);
    registry.register("store_waiting", "Loads that wait for their turn", waiting);
    registry.register("store_breaker_open", "1 while the store is left alone", open);
}

/// What waits for stores; the keyspace is the label.
fn behind(shared: &Shared, registry: &mut Registry) {
    let writes = Family::<[(&str, String); 2], Counter>::default();
    let [flushes, failures, syncs] = [(); 3].map(|()| Family::<[(&str, String); 1], Counter>::default());
    let [records, bytes, age, at_risk, dead, log] = [(); 6].map(|()| Family::<[(&str, String); 1], Gauge>::default());
    for behind in shared.behinds.every() {
        let (stats, logged) = (behind.stats(), behind.log_stats());
        let keyspace = || ("keyspace", behind.name.clone());
        for (outcome, counted) in [
            ("taken", stats.taken),
            ("stored", stats.stored),
            ("coalesced", stats.coalesced),
            ("waited", stats.waited),
            ("refused", stats.refused),
            ("unlogged", stats.unkept),
            ("adopted", behind.streams.as_ref().map_or(0, |streams| streams.adopted())),
        ] {
            writes.get_or_create(&[keyspace(), ("outcome", outcome.to_owned())]).inc_by(counted);
        }
        let label = [keyspace()];
        flushes.get_or_create(&label).inc_by(stats.flushes);
        failures.get_or_create(&label).inc_by(stats.failures);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let backlog = stats.backlog;
        records.get_or_create(&label).set(count(backlog.records));
        bytes.get_or_create(&label).set(count(backlog.bytes));
        let oldest = backlog.oldest.map_or(Duration::ZERO, |oldest| shared.now().since(oldest));
        age.get_or_create(&label).set(i64::try_from(oldest.as_millis()).unwrap_or(i64::MAX));
        at_risk.get_or_create(&label).set(if behind.is_kept() { 0 } else { count(backlog.records) });
        dead.get_or_create(&label).set(count(backlog.dead_letters));
        syncs.get_or_create(&label).inc_by(logged.map_or(0, |log| log.syncs));
        log.get_or_create(&label).set(logged.map_or(0, |log| log.bytes.cast_signed()));
    }
    registry.register("behind_writes", "Writes of keyspaces that write behind, by what became of them", writes);
    registry.register("behind_flushes", "Batches that a store took", flushes);
    registry.register("behind_failures", "Batches that a store did not take", failures);
    registry.register("behind_records", "Writes that the store does not have yet, dead letters included", records);
    registry.register("behind_bytes", "Their bytes", bytes);
    registry.register("behind_age_milliseconds", "Age of the oldest that is no dead letter", age);
    registry.register("behind_at_risk", "Writes that would be lost with the process: durability Memory", at_risk);
    registry.register("behind_dead_letters", "Writes that the store refuses", dead);
    registry.register("behind_log_syncs", "Calls of fsync for logs: each for all writes that came together", syncs);
    registry.register("behind_log_bytes", "Bytes of the logs", log);
}

/// What is counted about locks.
fn lock_counters(locks: &LockStats) -> [(&'static str, &'static str, u64); 11] {
    [
        ("lock_acquired", "Locks that were had", locks.acquired),
        ("lock_contended", "Acquisitions that had to wait", locks.contended),
        ("lock_waited_milliseconds", "Time that they waited, together", locks.waited_millis),
        ("lock_timed_out", "Acquisitions whose turn did not come in time", locks.timed_out),
        ("lock_deadlocks", "Acquisitions failed to break a deadlock", locks.deadlocks),
        ("lock_deadlocks_broken", "Deadlocks that this sidecar found and broke", locks.deadlocks_broken),
        ("lock_deadlock_checks", "Looks for deadlocks that this sidecar has finished", locks.deadlock_checks),
        ("lock_refused", "Acquisitions refused: a limit, an upgrade, no Redis", locks.refused),
        ("lock_renewed", "Leases renewed", locks.renewed),
        ("lock_released", "Locks let go", locks.released),
        ("lock_lost", "Locks lost while they were held", locks.lost),
    ]
}

/// The families that the engine's counters are shown in.
const FAMILIES: &[(&str, &str)] = &[
    ("hits", "Reads answered from a tier"),
    ("misses", "Reads that found nothing to serve, by reason"),
    ("filtered", "Reads of keys that Redis is known not to have, answered without asking it"),
    ("observed", "Reads that were only counted, because their keyspace's rule says mode: Observe"),
    ("uncertain", "Reads that found a copy which could not be vouched for, by what was missing"),
    ("fills", "Copies put into L2"),
    ("fills_refused", "Replies not kept, by cause"),
    ("promotions", "Entries put into L1"),
    ("demotions", "Entries that left L1, by cause"),
    ("evictions", "Entries that left L2 for room: valid ones, and void ones that nobody could have read"),
    ("replacements", "Entries replaced by a newer copy"),
    ("removals", "Entries removed on request"),
    ("expirations", "Entries freed after their deadline"),
    ("reads_below", "Reads of L3 that others can join, by what became of them"),
];

/// Where an engine counter is shown.
fn series(counter: EngineCounter) -> (&'static str, Option<(&'static str, &'static str)>) {
    match counter {
        EngineCounter::HitL1 => ("hits", Some(("tier", "l1"))),
        EngineCounter::HitL2 => ("hits", Some(("tier", "l2"))),
        EngineCounter::MissAbsent => ("misses", Some(("reason", "absent"))),
        EngineCounter::MissInvalidated => ("misses", Some(("reason", "invalidated"))),
        EngineCounter::MissExpired => ("misses", Some(("reason", "expired"))),
        EngineCounter::MissUnusable => ("misses", Some(("reason", "unusable"))),
        EngineCounter::Filtered => ("filtered", None),
        EngineCounter::Observed => ("observed", None),
        EngineCounter::UncertainFlushed => ("uncertain", Some(("doubt", "flushed"))),
        EngineCounter::UncertainLapsed => ("uncertain", Some(("doubt", "lapsed"))),
        EngineCounter::Promoted => ("promotions", None),
        EngineCounter::DemotedForRoom => ("demotions", Some(("cause", "room"))),
        EngineCounter::DemotedIdle => ("demotions", Some(("cause", "idle"))),
        EngineCounter::Filled => ("fills", None),
        EngineCounter::RefusedInvalidated => ("fills_refused", Some(("cause", "invalidated"))),
        EngineCounter::RefusedFlushed => ("fills_refused", Some(("cause", "flushed"))),
        EngineCounter::RefusedExpired => ("fills_refused", Some(("cause", "expired"))),
        EngineCounter::RefusedTooLarge => ("fills_refused", Some(("cause", "too_large"))),
        EngineCounter::EvictedForRoom => ("evictions", Some(("cause", "room"))),
        EngineCounter::EvictedVoid => ("evictions", Some(("cause", "void"))),
        EngineCounter::Replaced => ("replacements", None),
        EngineCounter::Removed => ("removals", None),
        EngineCounter::Expired => ("expirations", None),
        EngineCounter::FlightLed => ("reads_below", Some(("outcome", "led"))),
        EngineCounter::FlightJoined => ("reads_below", Some(("outcome", "joined"))),
        EngineCounter::FlightRefused => ("reads_below", Some(("outcome", "refused"))),
        EngineCounter::FlightFailed => ("reads_below", Some(("outcome", "failed"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_counter_is_shown_in_a_family() {
        for counter in EngineCounter::ALL {
            let (family, _) = series(*counter);
            assert!(FAMILIES.iter().any(|(name, _)| *name == family), "{family} of {counter:?}");
        }
    }
}
