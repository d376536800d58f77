//! Bytes on their way: read below the tiers and not an entry yet, or answers that nobody has taken yet.
//!
//! Owns their sum. L2 has so much less room for entries, so that these and what is on its way stay within one budget; see
//! [`Cache::hold`](crate::Cache::hold). Never refuses: what has been read is there already, and when it is more than the
//! whole budget, L2 is empty. Bytes are given back when whoever holds them lets go, on any thread.

use std::sync::Arc;

use bytes::Bytes;

use crate::sync::{AtomicU64, Ordering};

/// No machine has more, whatever a value says of its weight; the sum of some such does not overflow.
const ADDRESSABLE: usize = 1 << 48;

/// The sum of what is held.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Arc<AtomicU64>);

impl InFlight {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed) as usize
    }

    /// Counts so many bytes more; tells how many there were before.
    pub(crate) fn add(&self, bytes: usize) -> (Held, usize) {
        let bytes = bytes.min(ADDRESSABLE);
        let before = self.0.fetch_add(bytes as u64, Ordering::Relaxed);
        (Held { sum: self.0.clone(), bytes: bytes as u64 }, before as usize)
    }
}

/// Bytes that count against the budget of L2 until this is dropped.
#[derive(Debug)]
pub struct Held {
    sum: Arc<AtomicU64>,
    bytes: u64,
}

impl Held {
    /// How many.
    pub const fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// The same bytes, counted until the last of these is dropped.
    pub fn with(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Lent { bytes, _held: self })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Lent {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_until_the_last_of_them_is_gone() {
        let all = InFlight::default();
        let (held, before) = all.add(100);
        assert_eq!((before, held.bytes(), all.bytes()), (0, 100, 100));
        let bytes = held.with(Bytes::from(vec![7; 90]));
        let (part, clone) = (bytes.slice(3..5), bytes.clone());
        assert_eq!((&part[..], clone.len()), (&[7, 7][..], 90));
        drop((bytes, clone));
        assert_eq!(all.bytes(), 100, "a part keeps the whole alive");
        std::thread::spawn(move || drop(part)).join().expect("no panic");
        assert_eq!(all.bytes(), 0);
    }
}
