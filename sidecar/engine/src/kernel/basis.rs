//! What copies and requests carry of the kernel's state: the counters they were made under, in few bytes.
//!
//! Owns the layout of a [`Basis`] and how far its counters may run ahead. Decides nothing, and never fails.

use crate::clock::Moment;

/// Names one L3 node and database in the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(pub(super) u16);

/// What a request on a tracked connection was sent under; the basis of a currency proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub(super) source: SourceId,
    pub(super) incarnation: u64,
    pub(super) at: Moment,
}

impl Sent {
    /// When it was sent (or shortly before).
    pub const fn at(&self) -> Moment {
        self.at
    }

    /// The source it was sent to.
    pub const fn source(&self) -> SourceId {
        self.source
    }
}

/// The state of the world that a copy belongs to: valid while nothing of it has moved.
///
/// Every entry has one, so it is short: the low bits of both counters. They cannot come round to a living copy, since
/// each counter makes the other move long before ([`Kernel::bump`](super::Kernel::bump), [`Kernel::flush`](super::Kernel::flush)): a copy whose counter has gone once
/// around is dead by the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis {
    pub(super) stamp: u32,
    /// The source in the upper bits, the stripe in the lower [`STRIPE_BITS`].
    place: u32,
    pub(super) flushes: u16,
}

/// Stripes are at most 2^22, sources at most 2^10.
pub(super) const STRIPE_BITS: u32 = 22;
pub(super) const MAX_STRIPES: u32 = 1 << STRIPE_BITS;
pub(super) const MAX_SOURCES: u16 = 1 << (u32::BITS - STRIPE_BITS);
/// After so many bumps of one stripe every source is flushed: a quarter of what a stamp in a basis can tell apart.
pub(super) const STAMP_LAP: u64 = 1 << 30;
/// Each of the last so many bumps of a lap does it, since bumps of all stripes are not looked at.
pub(super) const LAP_END: u64 = 16;
/// After so many flushes of one source every stamp is bumped: likewise.
pub(super) const FLUSH_LAP: u64 = 1 << 14;

impl Basis {
    pub(super) const fn new(source: SourceId, stripe: u32, stamp: u64, flushes: u64) -> Self {
        Self { stamp: stamp as u32, place: (source.0 as u32) << STRIPE_BITS | stripe, flushes: flushes as u16 }
    }

    pub(crate) const fn from_parts(stamp: u32, place: u32, flushes: u16) -> Self {
        Self { stamp, place, flushes }
    }

    pub(crate) const fn into_parts(self) -> (u32, u32, u16) {
        (self.stamp, self.place, self.flushes)
    }

    pub(super) const fn source(&self) -> SourceId {
        SourceId((self.place >> STRIPE_BITS) as u16)
    }

    pub(super) const fn stripe(&self) -> u32 {
        self.place & (MAX_STRIPES - 1)
    }

    /// Whether this is of the same source and stripe as `other`, and from before it.
    pub(crate) const fn is_older_than(&self, other: &Self) -> bool {
        let stamps = self.stamp.wrapping_sub(other.stamp).cast_signed();
        let flushes = self.flushes.wrapping_sub(other.flushes).cast_signed();
        self.place == other.place && (stamps < 0 || stamps == 0 && flushes < 0)
    }

    /// Whether the copy is from before the source's flush number `count`.
    pub(super) const fn is_before_flush(&self, count: u64) -> bool {
        self.flushes.wrapping_sub(count as u16).cast_signed() < 0
    }
}

/// Permission to fill, taken before the read is sent. A fill whose token is no longer current is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fill without its token cannot be installed"]
pub struct FillToken {
    pub(crate) basis: Basis,
    pub(crate) sent: Sent,
}

impl FillToken {
    /// What the read was sent under, for [`Kernel::proved`](super::Kernel::proved) when its reply is in.
    pub const fn sent(&self) -> Sent {
        self.sent
    }
}
