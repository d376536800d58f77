//! What users are promised, in virtual time: reads and writes, loads, and bad input.

mod hostile;
mod inputs;
mod loads;
mod reads_and_writes;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::clock::Clock;
use crate::kernel::SourceKind;
use crate::remote::{Claim, Fetched, Lifetime, LoadLease, RemoteFuture};
use crate::timer::ManualTimer;

type Cached = MultiTierCache<String, String>;

/// [`InProcess`], with faults on demand.
struct Faulty {
    inner: InProcess<String, String>,
    /// Every request fails.
    down: AtomicBool,
    /// Reads and writes are executed and never answered.
    silent: AtomicBool,
    reads: AtomicUsize,
    /// It tells nobody of writes, as an L3 without invalidations.
    mute: bool,
}

impl Faulty {
    fn answer<'a, T: Send + 'a>(&'a self, answer: RemoteFuture<'a, T>) -> RemoteFuture<'a, T> {
        Box::pin(async move {
            if self.down.load(Ordering::SeqCst) {
                return Err(RemoteError::Unreachable { reason: "it is down".into() });
            }
            let answer = answer.await;
            if self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            answer
        })
    }
}

impl Remote<String, String> for Faulty {
    fn kind(&self) -> SourceKind {
        if self.mute { SourceKind::Timed } else { self.inner.kind() }
    }

    fn attach(&self, coherence: Coherence) {
        if !self.mute {
            self.inner.attach(coherence);
        }
    }

    fn read<'a>(&'a self, key: &'a String) -> RemoteFuture<'a, Option<Fetched<String>>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.answer(self.inner.read(key))
    }

    fn write<'a>(&'a self, key: &'a String, value: &'a String, lifetime: Lifetime) -> RemoteFuture<'a, ()> {
        self.answer(self.inner.write(key, value, lifetime))
    }

    fn remove<'a>(&'a self, key: &'a String) -> RemoteFuture<'a, bool> {
        self.answer(self.inner.remove(key))
    }

    fn expire<'a>(&'a self, key: &'a String) -> RemoteFuture<'a, bool> {
        self.answer(self.inner.expire(key))
    }

    fn clear(&self) -> RemoteFuture<'_, ()> {
        self.answer(self.inner.clear())
    }

    fn claim<'a>(&'a self, key: &'a String, span: Duration) -> RemoteFuture<'a, Claim> {
        self.answer(self.inner.claim(key, span))
    }

    fn store<'a>(
        &'a self,
        key: &'a String,
        value: &'a String,
        lifetime: Lifetime,
        lease: &'a LoadLease,
    ) -> RemoteFuture<'a, bool> {
        self.answer(self.inner.store(key, value, lifetime, lease))
    }

    fn release(&self, key: &String, lease: &LoadLease) {
        self.inner.release(key, lease);
    }

    fn sizes(&self) -> Option<(usize, usize)> {
        self.inner.sizes()
    }
}

struct Fixture {
    cache: Cached,
    remote: Arc<Faulty>,
    timer: Arc<ManualTimer>,
    config: TierConfig,
}

impl Fixture {
    fn new(config: TierConfig) -> Self {
        Self::over(config, false)
    }

    /// Over an L3 that tells nobody of writes.
    fn mute(config: TierConfig) -> Self {
        Self::over(config, true)
    }

    fn over(config: TierConfig, mute: bool) -> Self {
        let timer = Arc::new(ManualTimer::default());
        let inner = InProcess::new(config.l3, Arc::new(timer.clone()));
        let remote = Arc::new(Faulty {
            inner,
            down: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            reads: AtomicUsize::new(0),
            mute,
        });
        let cache = MultiTierCache::with_timer(config.clone(), remote.clone(), Arc::new(timer.clone()));
        Self { cache, remote, timer, config }
    }

    /// Another process's cache over the same L3.
    fn neighbour(&self) -> Cached {
        MultiTierCache::with_timer(self.config.clone(), self.remote.clone(), Arc::new(self.timer.clone()))
    }

    fn reads_of_l3(&self) -> usize {
        self.remote.reads.load(Ordering::SeqCst)
    }
}

fn fixture() -> Fixture {
    Fixture::new(TierConfig::default())
}

const SECOND: Duration = Duration::from_secs(1);
