//! How many bytes keys and values own beyond their own size, so that budgets count memory and not entries.

use std::sync::Arc;

use bytes::Bytes;

use crate::generations::Dependency;

/// Heap bytes owned by a value, beyond `size_of` of its type.
pub trait Weigh {
    /// Heap bytes, as requested from the allocator.
    fn heap_bytes(&self) -> usize;

    /// For keys: which group it is counted in, see [`Cache::groups`](crate::Cache::groups). Small numbers; it must not
    /// change while the key is in a cache.
    fn group(&self) -> usize {
        0
    }

    /// For values: the generations that have to be in force for it to be served. They must not change while it is in a
    /// cache, and count in [`heap_bytes`](Self::heap_bytes).
    #[inline]
    fn dependencies(&self) -> &[Dependency] {
        &[]
    }
}

/// Two reference counts in front of what an `Arc` points to.
const ARC_COUNTS: usize = 2 * size_of::<usize>();

impl Weigh for Bytes {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl Weigh for Vec<u8> {
    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
}

impl Weigh for Box<[u8]> {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl Weigh for Arc<[u8]> {
    fn heap_bytes(&self) -> usize {
        self.len() + ARC_COUNTS
    }
}

impl<T: Weigh> Weigh for Arc<T> {
    fn heap_bytes(&self) -> usize {
        size_of::<T>() + T::heap_bytes(self) + ARC_COUNTS
    }
}

impl Weigh for Arc<str> {
    fn heap_bytes(&self) -> usize {
        self.len() + ARC_COUNTS
    }
}

impl Weigh for String {
    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
}

impl Weigh for Box<str> {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

macro_rules! weigh_nothing {
    ($($type:ty),*) => {$(
        impl Weigh for $type {
            fn heap_bytes(&self) -> usize {
                0
            }
        }
    )*};
}

weigh_nothing!((), bool, char, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

impl<T: Weigh> Weigh for Option<T> {
    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, Weigh::heap_bytes)
    }
}

impl<A: Weigh, B: Weigh> Weigh for (A, B) {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes() + self.1.heap_bytes()
    }
}
