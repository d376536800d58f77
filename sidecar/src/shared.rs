//! What all threads of a sidecar share: configuration, tiers, flights, connections to L3, sessions, counters.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use caddy_contract::{Config, RedisMode};
use caddy_engine::{
    BootClock, Cache, CacheConfig, Clock, Flights, FlightsConfig, GroupSize, Kernel, KernelConfig, KernelError,
    L1Config, L2Config, Moment, PolicyKind, SourceId, SourceKind, TieringConfig,
    reuse::{Estimate, Reads, ReuseSample},
};
use caddy_remote::{embedded::Embedded, leases};
use caddy_resp::{Protocol, encode};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    absence::Absences,
    auth::Auth,
    behind::Behinds,
    cache::{TierKey, Waiter},
    coordination::Coordination,
    envelope::Envelopes,
    events::Events,
    files,
    generations::Domain,
    guards,
    heat::Heat,
    hub::Addition,
    keyspaces::{self, Keyspaces, Names},
    listener::Peer,
    loading::{Loading, Stores},
    locks::Locks,
    memory::{self, Memory},
    metrics::Metrics,
    nodes::RedisL3,
    oversize::Oversize,
    packer::Packer,
    ranges::Ranges,
    seldom::Seldom,
    server_commands::ServerCommands,
    session::client::Shown,
    status::Status,
    stored::Stored,
    tally::{Count, Counts, Tally},
    warm,
};

/// See the module.
pub(crate) struct Shared {
    clock: BootClock,
    config: ArcSwap<Config>,
    keyspaces: ArcSwap<Keyspaces>,
    pub(crate) names: Names,
    pub(crate) tally: Tally,
    pub(crate) packer: Packer,
    pub(crate) memory: Memory,
    /// What other amounts of memory would do.
    pub(crate) reuse: ReuseSample,
    /// Which keys L3 does not have.
    pub(crate) absences: Absences,
    /// Whose values were too large to be kept.
    pub(crate) oversize: Oversize,
    /// What is read most.
    pub(crate) heat: Heat,
    pub(crate) warming: warm::Progress,
    pub(crate) cache: Arc<Cache<TierKey, Stored>>,
    pub(crate) flights: Flights<TierKey, Waiter>,
    pub(crate) l3: L3,
    pub(crate) status: Status,
    pub(crate) locks: Locks,
    pub(crate) loading: Loading,
    pub(crate) behinds: Behinds,
    pub(crate) envelopes: Envelopes,
    /// Which invalidations by pattern are in force.
    pub(crate) ranges: Ranges,
    pub(crate) events: Events,
    /// What groups of entries depend on.
    pub(crate) domain: Domain,
    pub(crate) metrics: Metrics,
    /// What is agreed on with the other sidecars of the cluster.
    pub(crate) coordination: Coordination,
    /// What the server has beyond the built-in command table.
    pub(crate) commands: ServerCommands,
    /// The source of copies from the embedded L3.
    pub(crate) embedded_source: SourceId,
    pub(crate) started: Moment,
    sessions: Mutex<BTreeMap<u64, Arc<Shown>>>,
    next_session: AtomicU64,
    pub(crate) auth: Auth,
    refused_logins: Seldom,
    pub(crate) slow_readers: Seldom,
    pub(crate) damaged_copies: Seldom,
    pub(crate) refused_connections: Seldom,
    auth_noted: AtomicBool,
    /// How many apps there are files for.
    room: usize,
}

/// What is known of a keyspace.
pub(crate) struct KeyspaceStats {
    pub(crate) name: String,
    /// What became of its reads.
    pub(crate) counts: Counts,
    /// What its copies take in L2.
    pub(crate) size: GroupSize,
    /// What share of its reads L2 would answer with so much memory, by [`MEMORIES`].
    pub(crate) with_memory: [Option<Estimate>; MEMORIES.len()],
}

/// For which amounts of memory, as multiples of what L2 has, hit ratios are estimated.
pub(crate) const MEMORIES: [(&str, f64); 4] =
    [("hit_ratio_0.5x", 0.5), ("hit_ratio_1x", 1.0), ("hit_ratio_2x", 2.0), ("hit_ratio_4x", 4.0)];

/// Why a new configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconfigureError {
    /// A store of it.
    #[error(transparent)]
    Store(#[from] crate::loading::StoreConfigError),
    /// A log of it.
    #[error(transparent)]
    Behind(#[from] crate::behind::BehindSetupError),
}

/// The tier behind the sidecar.
pub(crate) enum L3 {
    /// In this process.
    Embedded(Embedded),
    /// A Redis or Valkey.
    Redis(RedisL3),
}

impl Shared {
    /// Everything but the connections; `hub` is worker 0's.
    pub(crate) fn new(
        config: Config,
        password: Option<&String>,
        hub: mpsc::UnboundedSender<Addition>,
        packer: Packer,
        loading: Loading,
        behinds: Behinds,
    ) -> Result<Arc<Self>, KernelError> {
        let room = files::room_for_apps(config.limits.max_connections);
        let cache = Cache::new(cache_config(&config));
        let absences = Absences::default();
        cache.kernel().tell_of_bumps(absences.witness(BootClock));
        let embedded_source = cache.kernel().register(SourceKind::Local)?;
        let l3 = match &config.l3 {
            caddy_contract::L3::Embedded => L3::Embedded(Embedded::new(Arc::new(wall_clock_millis))),
            caddy_contract::L3::Redis(redis) => L3::Redis(RedisL3::new(redis, &config.consistency, password, hub)),
        };
        let coordination = Coordination::new(&config);
        let locks = Locks::new(
            &config,
            match &l3 {
                L3::Embedded(_) => None,
                L3::Redis(redis) => redis.only().map(|node| node.target.clone()),
            },
            &coordination,
        );
        let auth = Auth::new(&config.auth);
        let ranges = Ranges::new(&config);
        let is_embedded = matches!(l3, L3::Embedded(_));
        let names = Names::default();
        let in_cluster = matches!(&l3, L3::Redis(redis) if redis.cluster().is_some());
        let domain = Domain::new(&config.cluster.domain, in_cluster);
        let shared = Arc::new(Self {
            clock: BootClock,
            keyspaces: ArcSwap::from_pointee(Keyspaces::new(&config, &names, &loading.stores(), &behinds, None)),
            names,
            tally: Tally::default(),
            packer,
            memory: Memory::default(),
            reuse: ReuseSample::default(),
            absences,
            oversize: Oversize::default(),
            heat: Heat::default(),
            warming: warm::Progress::default(),
            config: ArcSwap::from_pointee(config),
            cache,
            flights: Flights::new(FlightsConfig::default()),
            l3,
            status: Status::new(is_embedded),
            locks,
            loading,
            behinds,
            envelopes: Envelopes::default(),
            ranges,
            events: Events::default(),
            domain,
            metrics: Metrics::default(),
            commands: ServerCommands::default(),
            coordination,
            embedded_source,
            started: BootClock.now(),
            sessions: Mutex::default(),
            next_session: AtomicU64::new(1),
            auth,
            refused_logins: Seldom::default(),
            slow_readers: Seldom::default(),
            damaged_copies: Seldom::default(),
            refused_connections: Seldom::default(),
            auth_noted: AtomicBool::new(false),
            room,
        });
        if shared.keyspaces().seals() {
            shared.envelopes.note();
        }
        if let L3::Redis(redis) = &shared.l3
            && let Some(node) = redis.only()
        {
            redis.tracked_or_open(&shared, node, 0);
        }
        Ok(shared)
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        self.cache.kernel()
    }

    /// The same bytes, which count against the budget of L2 until the last of them is gone.
    pub(crate) fn in_flight(&self, bytes: Bytes) -> Bytes {
        self.cache.hold(bytes.len()).with(bytes)
    }

    pub(crate) fn config(&self) -> Guard<Arc<Config>> {
        self.config.load()
    }

    pub(crate) fn keyspaces(&self) -> Guard<Arc<Keyspaces>> {
        self.keyspaces.load()
    }

    /// Takes over what of a new configuration can change while running.
    ///
    /// # Errors
    /// A store of it cannot be set up; all stays as it was.
    pub(crate) fn reconfigure(&self, config: Config) -> Result<(), ReconfigureError> {
        let stores = Stores::new(&config, &self.loading.stores())?;
        self.behinds.reconfigure(&config, &stores)?;
        self.kernel().set_max_staleness(config.consistency.max_staleness);
        let alike = keyspaces::keep_alike(&self.config(), &config);
        let keyspaces = Keyspaces::new(&config, &self.names, &stores, &self.behinds, Some(&self.keyspaces()));
        self.loading.set_stores(stores);
        if keyspaces.seals() {
            self.envelopes.note();
        }
        self.keyspaces.store(Arc::new(keyspaces));
        self.locks.reconfigure(&config);
        if self.config().auth != config.auth {
            self.auth.reconfigure(&config.auth);
        }
        self.config.store(Arc::new(config));
        self.absences.changed();
        if !alike {
            // Behind the new rules: a fill that looked at the old ones either is in and dies here, or has a token that does.
            self.kernel().flush_all(caddy_engine::FlushCause::Overwritten);
            self.cache.clear();
        }
        Ok(())
    }

    /// What is known of each keyspace that there ever was.
    pub(crate) fn keyspace_stats(&self) -> Vec<KeyspaceStats> {
        self.advance_reuse();
        let sizes = self.cache.groups();
        let capacity = self.capacity_of_entries(&sizes);
        let names = self.names.all().into_iter().enumerate();
        let stats = names.map(|(place, name)| KeyspaceStats {
            name,
            counts: self.tally.of(place),
            size: sizes.get(place).copied().unwrap_or_default(),
            with_memory: MEMORIES.map(|(_, times)| self.reuse.estimate(place, capacity * times)),
        });
        stats.collect()
    }

    /// Shows the sample of reads how many there were; now and then, so that what is old fades.
    pub(crate) fn advance_reuse(&self) {
        let reads = (0..self.names.count()).map(|place| {
            let counts = self.tally.of(place);
            let sum = |of: &[Count]| of.iter().map(|count| counts.get(*count)).sum::<u64>();
            let hits = sum(&[Count::HitL1, Count::HitL2, Count::WouldHit]);
            Reads { recorded: hits + counts.get(Count::Fill), all: hits + sum(&[Count::Miss, Count::WouldMiss]) }
        });
        self.reuse.advance(reads, self.now());
    }

    /// What of L2's budget is for entries: less than all of it, since tables are in there too. How much less is seen once
    /// it is filled to some part.
    fn capacity_of_entries(&self, sizes: &[GroupSize]) -> f64 {
        let budget = self.cache.l2_max_bytes() as f64;
        let entries = sizes.iter().map(|size| size.bytes).sum::<usize>() as f64;
        let all = self.cache.stats().l2_bytes as f64;
        if entries * 8.0 < budget { budget } else { budget * entries / all }
    }

    /// Whether L3 is a Redis Cluster.
    pub(crate) fn in_cluster(&self) -> bool {
        matches!(&self.l3, L3::Redis(redis) if redis.cluster().is_some())
    }

    /// The fill lease of a key.
    pub(crate) fn lease_of(&self, key: &[u8]) -> Vec<u8> {
        leases::name(&self.config().cluster.domain, key, self.in_cluster())
    }

    /// Something contradicts the slot map of a cluster, or may; without one, nothing.
    pub(crate) fn doubt_slots(&self) {
        if let L3::Redis(redis) = &self.l3
            && let Some(cluster) = redis.cluster()
        {
            cluster.refresh();
        }
    }

    // === sessions ===

    /// A place in the list of sessions; `None`: the limit is reached.
    pub(crate) fn enter(&self, peer: Peer) -> Option<Arc<Shown>> {
        let mut sessions = self.sessions.lock();
        if sessions.len() >= self.config().limits.max_connections.min(self.room) {
            return None;
        }
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let shown = Arc::new(Shown::new(id, peer, self.now()));
        sessions.insert(id, shown.clone());
        Some(shown)
    }

    pub(crate) fn leave(&self, id: u64) {
        self.sessions.lock().remove(&id);
    }

    pub(crate) fn sessions(&self) -> Vec<Arc<Shown>> {
        self.sessions.lock().values().cloned().collect()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.lock().len()
    }

    /// AUTH changes nothing here; said once, since an app's author may expect otherwise.
    pub(crate) fn note_ignored_auth(&self) {
        if !self.auth_noted.swap(true, Ordering::Relaxed) {
            tracing::info!(
                "an app sent AUTH; any login is accepted on the socket, and L3 is used with the sidecar's own user"
            );
        }
    }

    /// A login was refused. Said now and then, so that a client which tries for ever does not fill the log.
    pub(crate) fn note_refused_login(&self, peer: Peer, user: &str) {
        if let Some(before) = self.refused_logins.due(self.now()) {
            tracing::warn!(
                %peer,
                user,
                before,
                "refused a login: wrong name or password; more of them are counted only"
            );
        }
    }

    // === INFO ===

    /// Redis's reply to INFO as apps get it; `ours`: with our section behind it.
    pub(crate) fn info(&self, reply: &[u8], ours: bool) -> Bytes {
        let Ok((value, _)) = caddy_resp::Value::decode(reply) else { return Bytes::copy_from_slice(reply) };
        let Some(text) = value.as_bytes() else { return Bytes::copy_from_slice(reply) };
        let mut all = self.as_one_server(text);
        if ours {
            all.extend_from_slice(self.info_section().as_bytes());
        }
        let mut out = Vec::with_capacity(all.len() + 32);
        // RESP3's INFO is verbatim text, RESP2's a bulk.
        let protocol = if reply.starts_with(b"=") { Protocol::Resp3 } else { Protocol::Resp2 };
        encode::verbatim(&mut out, protocol, *b"txt", &all);
        out.into()
    }

    /// Apps see one server, also where there are many: a client that was not told of a cluster must not find one.
    fn as_one_server(&self, info: &[u8]) -> Vec<u8> {
        let is_cluster = matches!(&self.l3, L3::Redis(redis) if redis.cluster().is_some());
        if !is_cluster {
            return info.to_vec();
        }
        let text = String::from_utf8_lossy(info);
        let text = text.replace("\ncluster_enabled:1", "\ncluster_enabled:0");
        text.replace("\nredis_mode:cluster", "\nredis_mode:standalone").into_bytes()
    }

    /// As INFO gives it that names no other section.
    pub(crate) fn info_section(&self) -> String {
        let (status, duties) = (self.status.get(), self.coordination.duties());
        let stats = self.cache.stats();
        let config = self.config();
        let (l3, nodes) = match &self.l3 {
            L3::Embedded(_) => ("embedded", 0),
            L3::Redis(redis) if redis.cluster().is_some() => ("redis cluster", redis.nodes().len()),
            L3::Redis(_) => ("redis", 1),
        };
        let mut text = format!(
            "\r\n# Caddy\r\ncaddy_version:{}\r\ncaddy_l3:{l3}\r\ncaddy_l3_nodes:{nodes}\r\ncaddy_l3_reachable:{}\r\ncaddy_coherent:{}\r\n\
             caddy_reason:{}\r\ncaddy_l3_eviction:{}\r\ncaddy_l3_tracking_table:{}\r\ncaddy_l3_swapdb:{}\r\ncaddy_duties_held:{}\r\ncaddy_duties_holder:{}\r\ncaddy_config_generation:{}\r\ncaddy_sessions:{}\r\ncaddy_l2_entries:{}\r\ncaddy_l2_bytes:{}\r\n",
            env!("CARGO_PKG_VERSION"),
            u8::from(status.reachable),
            u8::from(status.coherent),
            status.reason,
            self.status.facts.eviction(),
            self.status.facts.tracking_table(),
            self.status.facts.swapdb(),
            u8::from(duties.is_holder()),
            duties.holder().unwrap_or_default(),
            config.config_generation,
            self.session_count(),
            stats.l2_entries,
            stats.l2_bytes,
        );
        text.push_str(&self.locks.info());
        for (counter, count) in stats.iter() {
            // Writing into a String does not fail.
            let _ = write!(text, "caddy_{}:{count}\r\n", counter.name());
        }
        text
    }
}

fn cache_config(config: &Config) -> CacheConfig {
    let workers = config.workers.max(1);
    let is_cluster = matches!(&config.l3, caddy_contract::L3::Redis(redis) if redis.mode == RedisMode::Cluster);
    CacheConfig {
        kernel: KernelConfig {
            // As many primaries as a cluster may have; standalone the databases of one.
            max_sources: if is_cluster { 1024 } else { KernelConfig::default().max_sources },
            max_staleness: config.consistency.max_staleness,
            guards: guards::engine(),
            ..KernelConfig::default()
        },
        l1: L1Config {
            max_entries: config.l1.max_entries.div_ceil(workers),
            max_bytes: config.l1.max_bytes.as_usize() / workers,
        },
        l2: L2Config {
            max_bytes: memory::first_budget(config.l2.max_bytes),
            policy: match config.l2.policy {
                caddy_contract::L2Policy::Adaptive => PolicyKind::Adaptive,
                caddy_contract::L2Policy::S3Fifo => PolicyKind::S3Fifo,
                caddy_contract::L2Policy::Lru => PolicyKind::Lru,
            },
            ..L2Config::default()
        },
        tiering: TieringConfig {
            promote_after_hits: u16::try_from(config.tiering.promote_after_hits).unwrap_or(u16::MAX),
            demote_after_idle: config.tiering.demote_after_idle,
        },
    }
}

/// The embedded L3 counts expiry on the wall clock, as Redis does: EXPIREAT takes such times.
fn wall_clock_millis() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
