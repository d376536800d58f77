//! The coherence kernel: which local copies may be served, decided by a few loads.
//!
//! Owns the stamps (one bump kills every copy of a key and every fill in flight) and the sources (one per L3 node and
//! database: flush count, currency proof, incarnation of its tracked connection). Own writes and invalidation pushes
//! are the same function, [`Kernel::bump`]; there is no second path. It never stores values, never waits and never
//! reads a clock: `now` is passed in. It fails only when the table of sources is full.
//!
//! What the caller owes it, since no data structure can see these:
//! * a write's keys are bumped when its answer is in and *before* the app gets it;
//! * pushes are applied inline, in the order of the stream, before any later reply of it is handed on;
//! * the flush of a lost connection ([`Kernel::lost`]) runs before any of its waiters is failed;
//! * a fill token is taken before the read is sent, and the read travels on the tracked connection of its source.

mod basis;
mod source;
mod stamps;

pub use basis::{Basis, FillToken, Sent, SourceId};
pub use source::{Incarnation, SourceKind};

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use thiserror::Error;

use crate::clock::{Moment, span_nanos};
use crate::guards::{Guard, Guards};
use crate::hash::KeyHash;
use crate::sync::{AtomicU64, Ordering};
use basis::{FLUSH_LAP, LAP_END, MAX_SOURCES, STAMP_LAP, STRIPE_BITS};
use source::Source;
use stamps::Stamps;

/// Sizes and bounds of a [`Kernel`].
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Number of stamps, rounded up to a power of two (8 bytes each); at most 2^22.
    pub stripes: u32,
    /// How many sources (L3 node and database) can be registered at a time; 1 to 1,024.
    pub max_sources: u16,
    /// Copies are served only while their source was proven current within this time.
    pub max_staleness: Duration,
    /// All of them, except in mutation tests.
    pub guards: Guards,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self { stripes: 1 << 16, max_sources: 64, max_staleness: Duration::from_secs(1), guards: Guards::default() }
    }
}

/// Why the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KernelError {
    /// Every row of the table of sources is taken.
    #[error("failed to register a source: all {max} are in use; raise `max_sources` or release unused sources")]
    RegisterSource {
        /// The table's size.
        max: u16,
    },
}

/// Whether a source's copies may be served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Currency {
    /// Proven current within the bound.
    Proven,
    /// Within the bound, but nothing was proved for a quarter of it: serve, and send a probe.
    DueForProbe,
    /// Nothing proves that copies are current: probe, wait for it with a deadline, then follow `onUncertain`.
    Lapsed,
}

/// The kernel's answer about one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it.
    Valid(Currency),
    /// Its stamp is current but its source is [`Currency::Lapsed`]; valid again as soon as that is proven.
    Lapsed,
    /// Killed by a flush alone: what it was is unproven, not known to be wrong. Only for stale serving.
    Flushed,
    /// Its key, or its whole database, was overwritten: never to be served again.
    Invalidated,
    /// At or past its deadline.
    Expired,
}

/// What a flush says about the copies it kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushCause {
    /// Invalidations may have been missed (loss, role change): copies are unproven, stale serving may use them.
    Uncertain,
    /// The data was replaced (FLUSHALL, FLUSHDB, SWAPDB): copies are wrong.
    Overwritten,
}

/// Numbers behind a [`Verdict`], for `CACHE.WHY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The stamp at fill and the stamp now.
    pub stamp: (u64, u64),
    /// The source's flush count at fill and now.
    pub flushes: (u64, u64),
    /// How long ago the source was proven current; `None`: nothing is proven.
    pub proven_ago: Option<Duration>,
    /// The bound on it.
    pub max_staleness: Duration,
}

/// Stamps and sources; shared by all workers and connections of a process.
#[derive(Debug)]
pub struct Kernel {
    stamps: Stamps,
    sources: Box<[Source]>,
    max_staleness: AtomicU64,
    guards: Guards,
    witness: OnceLock<Witness>,
}

/// Who is told of every bump.
struct Witness(Box<dyn Fn(KeyHash) + Send + Sync>);

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}

// === setting up ===

impl Kernel {
    /// A kernel in which nothing is registered.
    pub fn new(config: &KernelConfig) -> Self {
        Self {
            stamps: Stamps::new(config.stripes),
            sources: (0..config.max_sources.clamp(1, MAX_SOURCES)).map(|_| Source::vacant()).collect(),
            max_staleness: AtomicU64::new(span_nanos(config.max_staleness)),
            guards: config.guards,
            witness: OnceLock::new(),
        }
    }

    /// Has every bump told to `witness`, which returns at once, before [`bump`](Self::bump) returns: so whatever else has to
    /// know what apps were shown, or wrote, cannot be forgotten where copies are killed. For one such, once.
    pub fn tell_of_bumps(&self, witness: impl Fn(KeyHash) + Send + Sync + 'static) {
        let first = self.witness.set(Witness(Box::new(witness)));
        debug_assert!(first.is_ok(), "somebody else is told already");
    }

    pub(crate) fn guards(&self) -> Guards {
        self.guards
    }

    /// The bound on staleness.
    pub fn max_staleness(&self) -> Duration {
        Duration::from_nanos(self.max_staleness.load(Ordering::Relaxed))
    }

    /// Changes the bound for every read from now on.
    pub fn set_max_staleness(&self, bound: Duration) {
        self.max_staleness.store(span_nanos(bound), Ordering::Relaxed);
        for source in &self.sources {
            let _owner = source.owner.lock();
            self.set_proven_at(source, source.proven_at().as_nanos());
        }
    }

    /// Only under the source's lock.
    fn set_proven_at(&self, source: &Source, at: u64) {
        source.set_proven_at(at, self.max_staleness.load(Ordering::Relaxed));
    }

    /// Takes a row for one L3 node and database. A tracked source serves nothing until something is proved.
    pub fn register(&self, kind: SourceKind) -> Result<SourceId, KernelError> {
        for (index, source) in self.sources.iter().enumerate() {
            let mut owner = source.owner.lock();
            if owner.is_none() {
                *owner = Some(kind);
                source.set_kind(kind);
                self.count_flush(source);
                self.set_proven_at(source, Source::unproven(kind));
                source.probed_at.store(0, Ordering::Relaxed);
                return Ok(SourceId(index as u16));
            }
        }
        Err(KernelError::RegisterSource { max: self.sources.len() as u16 })
    }

    /// As [`register`](Self::register) in a kernel that nobody else registers in: it always has a row for the first.
    pub(crate) fn register_first(&self, kind: SourceKind) -> SourceId {
        self.register(kind).unwrap_or(SourceId(0))
    }

    /// Gives a row back. Its copies die; whoever registers it next starts from nothing.
    pub fn release(&self, id: SourceId) {
        let source = self.source(id);
        let mut owner = source.owner.lock();
        let count = self.count_flush(source);
        source.wiped.store(count, Ordering::Release);
        self.set_proven_at(source, 0);
        source.incarnation.fetch_add(1, Ordering::Release);
        *owner = None;
    }

    #[inline]
    fn source(&self, id: SourceId) -> &Source {
        &self.sources[id.0 as usize]
    }

    /// A new incarnation of which nothing is known: copies die, older proofs count no more.
    fn restart(&self, source: &Source, kind: SourceKind) {
        if self.guards.hold(Guard::FlushOnLoss) {
            self.count_flush(source);
            self.set_proven_at(source, Source::unproven(kind));
        }
        source.probed_at.store(0, Ordering::Relaxed);
        source.incarnation.fetch_add(1, Ordering::Release);
    }
}

// === what invalidates ===

impl Kernel {
    /// Kills every copy of the key, on every worker and in every database, and every fill of it in flight. O(1).
    ///
    /// The single invalidation path: invalidation pushes and own writes both end here.
    pub fn bump(&self, key: KeyHash) {
        if self.guards.hold(Guard::Bump) {
            self.bump_stripe(self.stamps.stripe(key));
        }
        if let Some(Witness(tell)) = self.witness.get() {
            tell(key);
        }
    }

    /// The new stamp.
    fn bump_stripe(&self, stripe: u32) -> u64 {
        let stamp = self.stamps.bump(stripe);
        if stamp % STAMP_LAP >= STAMP_LAP - LAP_END {
            self.flush_all(FlushCause::Overwritten);
        }
        stamp
    }

    /// Only under the source's lock. The number of the flush, which every copy from before it is dead by.
    fn count_flush(&self, source: &Source) -> u64 {
        let count = source.flushes.fetch_add(1, Ordering::Release) + 1;
        if count.is_multiple_of(FLUSH_LAP) {
            self.stamps.bump_all();
            // What was filled before is dead by its stamp, so nobody asks whether this flush or an older one killed it.
            source.wiped.fetch_max(count - FLUSH_LAP, Ordering::Release);
        }
        count
    }

    /// Kills every copy that came from `id`, and every fill of it in flight. O(1); currency is left as it is.
    pub fn flush(&self, id: SourceId, cause: FlushCause) {
        let source = self.source(id);
        let _owner = source.owner.lock();
        let count = self.count_flush(source);
        if cause == FlushCause::Overwritten {
            source.wiped.store(count, Ordering::Release);
        }
    }

    /// [`flush`](Self::flush) for every registered source.
    pub fn flush_all(&self, cause: FlushCause) {
        for index in 0..self.sources.len() {
            self.flush(SourceId(index as u16), cause);
        }
    }

    /// The tracked connection of `id` is up (handshake and TRACKING done). Proofs of earlier ones count no more.
    pub fn connected(&self, id: SourceId) -> Incarnation {
        self.end_incarnation(id);
        Incarnation(self.source(id).incarnation.load(Ordering::Acquire))
    }

    /// The tracked connection of `id` ended: copies die and nothing is proven. Call before failing its waiters.
    /// Loss of an older incarnation than the present one changes nothing.
    pub fn lost(&self, id: SourceId, incarnation: Incarnation) {
        if self.source(id).incarnation.load(Ordering::Acquire) == incarnation.0 {
            self.end_incarnation(id);
        }
    }

    fn end_incarnation(&self, id: SourceId) {
        let source = self.source(id);
        let owner = source.owner.lock();
        if let Some(kind) = *owner {
            self.restart(source, kind);
        }
    }

    /// The node lost its right to answer (other role, other slots, an error to the probe): its copies die and nothing
    /// is proven until a later probe on the same connection succeeds.
    pub fn lapse(&self, id: SourceId) {
        let source = self.source(id);
        let owner = source.owner.lock();
        self.count_flush(source);
        if let Some(kind) = *owner {
            self.set_proven_at(source, Source::unproven(kind));
        }
    }
}

// === currency ===

impl Kernel {
    /// What a request about to be sent on the tracked connection is sent under. Take it *before* sending.
    pub fn sending(&self, id: SourceId, now: Moment) -> Sent {
        Sent { source: id, incarnation: self.source(id).incarnation.load(Ordering::Acquire), at: now }
    }

    /// The right to send the one probe that is due; `None` while another was claimed within a quarter of the bound.
    pub fn claim_probe(&self, id: SourceId, now: Moment) -> Option<Sent> {
        let source = self.source(id);
        let last = source.probed_at.load(Ordering::Relaxed);
        let quarter = self.max_staleness.load(Ordering::Relaxed) / 4;
        if last != 0 && now.as_nanos().saturating_sub(last) < quarter {
            return None;
        }
        let claimed =
            source.probed_at.compare_exchange(last, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        claimed.then(|| self.sending(id, now))
    }

    /// The reply to a request on the tracked connection is in, and every push before it has been applied: what was
    /// overwritten before the request was *sent* is dead here. Monotone; of an older incarnation: ignored.
    pub fn proved(&self, sent: &Sent, arrived: Moment) {
        let source = self.source(sent.source);
        let _owner = source.owner.lock();
        let same = source.incarnation.load(Ordering::Relaxed) == sent.incarnation;
        if !same && self.guards.hold(Guard::IncarnationCheck) {
            return;
        }
        let at = if self.guards.hold(Guard::ProofFromSending) { sent.at } else { arrived };
        if source.proven_at() < at {
            self.set_proven_at(source, at.as_nanos());
        }
    }

    /// Whether copies of `id` may be served at `now`.
    #[inline]
    pub fn currency(&self, id: SourceId, now: Moment) -> Currency {
        self.currency_of(self.source(id), now)
    }

    /// How often the copies of `id` have been flushed: for what depends on a source as a copy does, and is none.
    pub fn flushes(&self, id: SourceId) -> u64 {
        self.source(id).flushes.load(Ordering::Acquire)
    }

    /// Up to when everything that was overwritten at `id` is known here, if that may be relied on at `now` by what was
    /// begun when there had been so many flushes. In the order of [`verdict`](Self::verdict), for the same reason.
    pub fn known_until(&self, id: SourceId, flushes: u64, now: Moment) -> Option<Moment> {
        let source = self.source(id);
        let proven_at = source.proven_at();
        let is_current = self.currency_of(source, now) != Currency::Lapsed;
        (is_current && source.flushes.load(Ordering::Acquire) == flushes).then_some(proven_at)
    }

    #[inline]
    fn currency_of(&self, source: &Source, now: Moment) -> Currency {
        if now.as_nanos() > source.served_until.load(Ordering::Acquire) && self.guards.hold(Guard::CurrencyCheck) {
            Currency::Lapsed
        } else if now.as_nanos() > source.fresh_until.load(Ordering::Acquire) {
            Currency::DueForProbe
        } else {
            Currency::Proven
        }
    }
}

// === copies and fills ===

impl Kernel {
    /// Permission to fill what is about to be read from `id`. Take it *before* sending the read.
    pub fn begin_fill(&self, id: SourceId, key: KeyHash, now: Moment) -> FillToken {
        let sent = self.sending(id, now);
        FillToken { basis: self.basis(id, self.stamps.stripe(key)), sent }
    }

    /// Source and stripe of a key's copies, as a [`Basis`] has them.
    pub(crate) fn place_of(&self, id: SourceId, key: KeyHash) -> u32 {
        u32::from(id.0) << STRIPE_BITS | self.stamps.stripe(key)
    }

    fn basis(&self, id: SourceId, stripe: u32) -> Basis {
        let flushes = self.source(id).flushes.load(Ordering::Acquire);
        Basis::new(id, stripe, self.stamps.read(stripe), flushes)
    }

    /// The reply to the read that `token` was taken for is in, and about to be shown.
    ///
    /// Where nobody announces writes, it may be newer than copies of the key that other reads left, which nothing else
    /// would kill: they die here, and the key's other fills in flight with them. The token stays current if it was. Where
    /// writes are announced that has happened by the time the reply is here, and this does nothing.
    pub fn landed(&self, token: &mut FillToken) {
        if self.source(token.basis.source()).is_timed() && self.guards.hold(Guard::ReadsOvertake) {
            let stamp = self.bump_stripe(token.basis.stripe()) as u32;
            if stamp == token.basis.stamp.wrapping_add(1) {
                token.basis.stamp = stamp;
            }
        }
    }

    /// Whether nothing has moved since the token was taken.
    pub fn is_current(&self, token: &FillToken) -> bool {
        self.basis(token.basis.source(), token.basis.stripe()) == token.basis
    }

    /// The basis to install a fill under, and its deadline; `Err` tells what moved since the token was taken.
    #[inline]
    pub(crate) fn settle(&self, token: &FillToken, deadline: Moment) -> Result<(Basis, Moment), Verdict> {
        let now = self.basis(token.basis.source(), token.basis.stripe());
        let is_timed = self.source(token.basis.source()).is_timed();
        let deadline = if is_timed { deadline.min(token.sent.at + self.max_staleness()) } else { deadline };
        if !self.guards.hold(Guard::FillToken) {
            return Ok((now, deadline));
        }
        if now.stamp != token.basis.stamp {
            return Err(Verdict::Invalidated);
        }
        if now.flushes != token.basis.flushes {
            return Err(Verdict::Flushed);
        }
        // The copy carries what the *token* saw: a bump between this line and the insertion kills it all the same.
        Ok((token.basis, deadline))
    }

    /// Whether [`verdict`](Self::verdict) is [`Currency::Proven`], in four loads and comparisons; the way of most hits.
    /// In the same order, for the same reason.
    #[expect(clippy::needless_bitwise_bool, reason = "one branch instead of four: all but always all of them hold")]
    #[inline]
    pub(crate) fn is_fresh(&self, copy: &Basis, deadline: Moment, now: Moment) -> bool {
        let source = self.source(copy.source());
        let proven = now.as_nanos() <= source.fresh_until.load(Ordering::Acquire);
        let unwritten = self.stamps.read(copy.stripe()) as u32 == copy.stamp;
        let unflushed = source.flushes.load(Ordering::Acquire) as u16 == copy.flushes;
        proven & unwritten & unflushed & (now < deadline) && self.guards.intact()
    }

    /// Whether a copy may be served at `now`: currency first, then stamp, deadline and flush count.
    ///
    /// The order carries a promise. Pushes are applied before the proof behind them is stored (release) and the proof
    /// is loaded (acquire) before the stamp; so whoever sees a proof sees every bump that it stands for.
    #[inline]
    pub fn verdict(&self, copy: &Basis, deadline: Moment, now: Moment) -> Verdict {
        let source = self.source(copy.source());
        let early = self.guards.hold(Guard::CurrencyBeforeStamp).then(|| self.currency_of(source, now));
        if self.stamps.read(copy.stripe()) as u32 != copy.stamp {
            return Verdict::Invalidated;
        }
        if deadline <= now && self.guards.hold(Guard::Expiry) {
            return Verdict::Expired;
        }
        if source.flushes.load(Ordering::Acquire) as u16 != copy.flushes {
            let overwritten = copy.is_before_flush(source.wiped.load(Ordering::Acquire));
            return if overwritten { Verdict::Invalidated } else { Verdict::Flushed };
        }
        match early.unwrap_or_else(|| self.currency_of(source, now)) {
            Currency::Lapsed => Verdict::Lapsed,
            current => Verdict::Valid(current),
        }
    }

    /// Whether the copy can never be valid again (for eviction: such copies go first). Two loads.
    pub(crate) fn is_void(&self, copy: &Basis) -> bool {
        self.stamps.read(copy.stripe()) as u32 != copy.stamp
            || copy.is_before_flush(self.source(copy.source()).wiped.load(Ordering::Acquire))
    }

    /// The numbers behind [`verdict`](Self::verdict).
    pub fn evidence(&self, copy: &Basis, now: Moment) -> Evidence {
        let source = self.source(copy.source());
        let proven = source.proven_at();
        let (stamp, flushes) = (self.stamps.read(copy.stripe()), source.flushes.load(Ordering::Acquire));
        Evidence {
            stamp: (stamp - u64::from((stamp as u32).wrapping_sub(copy.stamp)), stamp),
            flushes: (flushes - u64::from((flushes as u16).wrapping_sub(copy.flushes)), flushes),
            proven_ago: (proven != Moment::ZERO).then(|| now.since(proven)),
            max_staleness: self.max_staleness(),
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
