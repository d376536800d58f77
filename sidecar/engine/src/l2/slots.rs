//! The places of a shard: for each entry its hash, its deadline, and the links of the eviction queue and of the index.
//!
//! 32 bytes a place, so that two share a cache line and looking through a group of places for what has expired does not
//! touch the entries themselves.

use super::index::Way;
use crate::clock::Moment;
use crate::entry::Shared;
use crate::hold::Hold;
use crate::slab::Slab;

/// All places of one shard.
pub(crate) type Slots<K, V> = Slab<Placed<K, V>, 1>;

/// An entry in its place.
pub(crate) struct Placed<K: Hold, V: Hold> {
    pub(crate) entry: Shared<K, V>,
    /// The lower half of its tier hash: buckets of the index and of the ghost are chosen by it.
    pub(crate) hash: u32,
    /// To the next place in the same bucket of the index.
    pub(crate) next: Way,
    times: Times,
}

impl<K: Hold, V: Hold> Placed<K, V> {
    pub(crate) fn new(entry: Shared<K, V>, hash: u32, times: Times) -> Self {
        Self { entry, hash, next: Way::NONE, times }
    }

    #[inline]
    pub(crate) fn times(&self) -> Times {
        self.times
    }
}

/// When an entry expires and when it was read, in one word: 40 bits of milliseconds, 24 bits of 64 milliseconds.
///
/// A deadline is rounded down and at most 34 years after boot; an age is right up to twelve days, and shown modulo them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times(u64);

const AGE_BITS: u32 = 24;
const AGE_UNIT: u64 = 64;
const NEVER: u64 = u64::MAX >> AGE_BITS;
const NANOS_PER_MILLI: u64 = 1_000_000;

impl Times {
    pub(crate) fn new(deadline: Moment, read_at: Moment) -> Self {
        let millis = deadline.as_nanos() / NANOS_PER_MILLI;
        let deadline = if deadline == Moment::NEVER { NEVER } else { millis.min(NEVER - 1) };
        let read_at = read_at.as_nanos() / NANOS_PER_MILLI / AGE_UNIT;
        Self(deadline << AGE_BITS | read_at & ((1 << AGE_BITS) - 1))
    }

    #[inline]
    pub(crate) const fn deadline(self) -> Moment {
        let millis = self.0 >> AGE_BITS;
        if millis == NEVER { Moment::NEVER } else { Moment::from_nanos(millis * NANOS_PER_MILLI) }
    }

    /// When it was read, given that this was before `now`.
    pub(crate) const fn read_at(self, now: Moment) -> Moment {
        let unit = NANOS_PER_MILLI * AGE_UNIT;
        let age = (now.as_nanos() / unit).wrapping_sub(self.0) & ((1 << AGE_BITS) - 1);
        Moment::from_nanos((now.as_nanos() / unit).saturating_sub(age) * unit)
    }

    /// The first tick of 2^30 ns at which it has expired for certain; `None`: it never does.
    #[inline]
    pub(crate) const fn due(self) -> Option<u32> {
        if self.0 >> AGE_BITS == NEVER { None } else { Some((self.deadline().as_nanos() >> 30) as u32 + 1) }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;
    use crate::hold::Packed;

    #[test]
    fn a_place_takes_32_bytes() {
        assert_eq!(Slots::<Packed, Packed>::SLOT_BYTES, 32);
    }

    #[test]
    fn times_are_rounded_down() {
        let now = Moment::from_millis(5_000_000);
        let times = Times::new(Moment::from_nanos(7_000_999_999), Moment::from_millis(4_999_900));
        assert_eq!(times.deadline(), Moment::from_millis(7_000));
        let age = now.since(times.read_at(now)).as_millis();
        assert!((100 - 64..100 + 64).contains(&age), "{age}");
        assert_eq!(times.due(), Some(7));
        let never = Times::new(Moment::NEVER, now);
        assert_eq!((never.deadline(), never.due()), (Moment::NEVER, None));
        let far = Times::new(Moment::from_nanos(u64::MAX - 1), Moment::ZERO);
        assert!(far.deadline() < Moment::NEVER && far.deadline() > Moment::from_millis(1 << 39));
    }
}
