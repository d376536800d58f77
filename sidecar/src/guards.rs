//! The guards of the session and of the connections by name, so that a test can show what each one is for.
//!
//! In a normal build every guard holds, as a constant. A build with the feature `mutations`, which only tests make,
//! drops those that the environment variable `CADDY_DROP_GUARD` names, with commas between them (engine guards likewise), and
//! some promise breaks.

/// One rule that coherence rests on, beyond the engine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The keys that a relayed command wrote are bumped before the app is answered.
    BumpBeforeAnswer,
    /// The keys that a relayed read named are bumped before the app is answered.
    BumpRelayedReads,
    /// The keys that a pinned session read or wrote are bumped before the app is answered.
    BumpPinned,
    /// A reply to a command whose keys nobody can name is handed on behind a barrier.
    Barrier,
    /// A command that empties a database kills every copy before it is answered.
    FlushOnFlush,
    /// Reads behind an unanswered relayed command follow it on its relay.
    ReadsFollowRelay,
    /// Behind an unanswered read of a key the session is not served an older copy of it.
    ReadsFollowOwnReads,
    /// A relayed command waits for the session's own fills.
    WritesWaitForFills,
    /// Pushes are applied where they stand in the stream.
    PushInline,
    /// Only a primary proves its copies current.
    ProbeRole,
    /// In a cluster only a node that answers for its own slots does.
    ProbeOwnKey,
    /// In a cluster only a node that has had the same slots all along does.
    ProbeSlots,
    /// In a cluster copies of absent keys live no longer than the bound on staleness.
    AbsentKeysExpire,
    /// A session with something under way keeps to the slot map that it was sent by.
    OneMapAtATime,
    /// Before a new slot map is used, the copies of nodes whose slots differ die.
    SlotsMoveAway,
    /// What the tiers keep is read on the tracked connection.
    TrackedFill,
    /// Under Sentinel only what a majority of the Sentinels confirms is proved.
    SentinelOpinion,
    /// What a server announces to all is proved by the probe after the one that asked.
    BroadcastLag,
    /// A read joins a load only while nothing invalidated its key since.
    JoinOnlyLiveLoads,
    /// A write through the sidecar removes the fill leases of its keys in the same step.
    WritesEndLeases,
    /// The first fill token of a keyspace is given out when every sidecar knows that there may be some.
    TokensAnnounced,
    /// What is stored under a fill token is so only while its lease is there.
    LeaseEqual,
    /// What is stored under a fill token is so only over what was there when it was given.
    KeyAsItWas,
    /// What is stored under a fill token is so only while the groups are what they were.
    GroupsAsTheyWere,
    /// A key takes no fencing token that is older than the greatest it has seen.
    FenceGreatest,
    /// A fencing token is taken only in the epoch that it is of.
    FenceEpoch,
    /// Where it is not known what a key has seen, only who holds the lock is let in.
    FenceProved,
    /// What is loaded is stored only while the groups are what they were before.
    LoadsInGroups,
    /// A write that is on its way to the store is the answer, whatever L3 and the store have.
    PendingIsAnswered,
    /// A write through waits for what its keyspace has written behind before.
    OlderWritesComeFirst,
    /// What a command that looks back does not find in L3 is loaded first.
    OldValuesAreLoaded,
    /// Who deletes what the store still has keeps others from loading it.
    DeletionsHoldLeases,
    /// A write of a key that others depend on renews its generation in the same step.
    WritesRenewParents,
    /// A value whose keyspace has tags is written as an envelope that carries them.
    WritesAreSealed,
    /// A command about a string's bytes sees those of its value, or is refused.
    EnvelopesStayWhole,
    /// What this sidecar has invalidated lately is invalidated again behind a lost connection.
    GroupsRepeated,
    /// Where no pushes come, what touched unknown keys kills every copy.
    FlushUntracked,
    /// A key that a pattern in force has is cleared in L3 before a request about it is taken.
    RangesClear,
    /// A request is taken only while it is known well enough which patterns are in force.
    RangesKnown,
    /// A push of their index ends what was known of them.
    RangesFollow,
    /// A negative filter takes in what is announced.
    FilterLearns,
    /// It does not answer about a key that an app was shown, or wrote, since the moment that is proved.
    FilterTouches,
    /// Nor while a slot of its node is on its way to another one.
    FilterKeepsToSlots,
    /// What an index that was lost, or a failover, has lost of them is entered again.
    RangesRepeated,
    /// A new epoch of the locks is agreed on in the Lease before it is in Redis.
    EpochAgreed,
    /// A lock in a Lease is taken from its holder only when the Lease was seen unchanged for its duration.
    LeaseUnchanged,
}

#[cfg(not(feature = "mutations"))]
mod build {
    use super::Guard;

    #[inline]
    pub(crate) const fn hold(_: Guard) -> bool {
        true
    }

    pub(crate) fn engine() -> caddy_engine::Guards {
        caddy_engine::Guards::default()
    }
}

#[cfg(feature = "mutations")]
mod build {
    use std::sync::LazyLock;

    use super::Guard;

    static DROPPED: LazyLock<String> = LazyLock::new(|| std::env::var("CADDY_DROP_GUARD").unwrap_or_default());

    fn is_dropped(guard: impl std::fmt::Debug) -> bool {
        let name = format!("{guard:?}");
        DROPPED.split(',').any(|dropped| dropped == name)
    }

    pub(crate) fn hold(guard: Guard) -> bool {
        !is_dropped(guard)
    }

    /// A compressed copy with a bit of it flipped, if the environment variable `CADDY_DAMAGE_COPIES` is set.
    pub(crate) fn damaged(mut copy: caddy_engine::codec::Compressed) -> caddy_engine::codec::Compressed {
        static DAMAGE: LazyLock<bool> = LazyLock::new(|| std::env::var_os("CADDY_DAMAGE_COPIES").is_some());
        if *DAMAGE {
            // In LZ4 that is a byte of the value, and would go unseen.
            copy.damage(copy.payload_bytes() / 4 * 8);
        }
        copy
    }

    pub(crate) fn engine() -> caddy_engine::Guards {
        use caddy_engine::Guard::{
            Bump, CurrencyCheck, Expiry, FillToken, FlushOnLoss, GenerationCheck, JoinOnlyLiveFlights, JoinerAgeLimit,
            LockFromQueueing, LockFromSending, LockTakenBack, ProofFromSending, ReadsOvertake,
        };
        let guards = [
            Bump,
            CurrencyCheck,
            Expiry,
            FillToken,
            FlushOnLoss,
            GenerationCheck,
            JoinOnlyLiveFlights,
            JoinerAgeLimit,
            LockFromQueueing,
            LockFromSending,
            LockTakenBack,
            ProofFromSending,
            ReadsOvertake,
        ];
        let dropped = guards.into_iter().find(|guard| is_dropped(guard));
        dropped.map_or_else(caddy_engine::Guards::default, caddy_engine::Guards::without)
    }
}

#[cfg(feature = "mutations")]
pub(crate) use build::damaged;
pub(crate) use build::{engine, hold};
