//! The guards of the kernel by name, so that a test can show what each one is for.
//!
//! An exhaustive model of the design found each of these necessary. In a normal build [`Guards`] is empty and every
//! guard holds, as a constant. With the `mutations` feature a test drops one and expects a promise to break.

/// One check that coherence rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// A bump kills every copy of the key and every fill in flight.
    Bump,
    /// A fill is installed only under the stamp and flush count that were seen before its read was sent.
    FillToken,
    /// A reader joins a flight only while the flight's token is current.
    JoinOnlyLiveFlights,
    /// A reader joins a flight only if its read was sent less than `max_staleness` ago.
    JoinerAgeLimit,
    /// A lost connection kills every copy of its source.
    FlushOnLoss,
    /// Copies are served only while their source is proven current.
    CurrencyCheck,
    /// A proof counts from the moment its request was sent, not from the arrival of the reply.
    ProofFromSending,
    /// A proof from an older incarnation of the connection is ignored.
    IncarnationCheck,
    /// The currency is read before the stamp: a proof seen implies every bump before it seen.
    CurrencyBeforeStamp,
    /// A copy is never served at or past its deadline.
    Expiry,
    /// Where writes are not announced, the reply to a read kills the copies that other reads of the key left.
    ReadsOvertake,
    /// A copy is served only while the generations that it depends on are in force.
    GenerationCheck,
    /// A lock counts as held from before the request was sent that got it.
    LockFromSending,
    /// A lock that was handed over counts as held from before its owner queued.
    LockFromQueueing,
    /// An acquisition that is given up is taken back.
    LockTakenBack,
    /// Evicting, replacing or removing an L2 entry kills the workers' L1 slots that point to it.
    DeadFlag,
}

/// Which guards hold. All of them, except in a mutation test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guards {
    #[cfg(feature = "mutations")]
    dropped: Option<Guard>,
}

impl Guards {
    /// All guards but one; only for mutation tests.
    #[cfg(feature = "mutations")]
    pub const fn without(guard: Guard) -> Self {
        Self { dropped: Some(guard) }
    }

    /// Whether `guard` is in force.
    #[cfg(feature = "mutations")]
    pub(crate) fn hold(self, guard: Guard) -> bool {
        self.dropped != Some(guard)
    }

    /// Whether all guards are in force.
    #[cfg(feature = "mutations")]
    pub(crate) const fn intact(self) -> bool {
        self.dropped.is_none()
    }

    /// Whether all guards are in force: always.
    #[cfg(not(feature = "mutations"))]
    #[expect(clippy::unused_self, reason = "same signature as in a mutation build")]
    #[inline]
    pub(crate) const fn intact(self) -> bool {
        true
    }

    /// Whether `guard` is in force: always.
    #[cfg(not(feature = "mutations"))]
    #[expect(clippy::unused_self, reason = "same signature as in a mutation build")]
    #[inline]
    pub(crate) const fn hold(self, _guard: Guard) -> bool {
        true
    }
}
