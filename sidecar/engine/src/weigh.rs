//! How many bytes keys and values own beyond their own size, so that budgets count memory and not entries.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::generations::Dependency;

/// Heap bytes owned by a key or a value, beyond `size_of` of its type.
///
/// Sizes of what is shared (`Arc`, [`Bytes`]) count in full for each owner. A type of one's own adds up its fields; what is
/// not counted is memory that no budget knows of:
///
/// ```
/// use caddy_engine::Weigh;
///
/// struct User { id: u64, name: String, roles: Vec<String> }
///
/// impl Weigh for User {
///     fn heap_bytes(&self) -> usize {
///         self.name.heap_bytes().saturating_add(self.roles.heap_bytes())
///     }
/// }
///
/// let user = User { id: 1, name: "Ada".into(), roles: Vec::new() };
/// assert_eq!(user.heap_bytes(), 3);
/// ```
#[diagnostic::on_unimplemented(
    message = "the memory of `{Self}` cannot be counted: `Weigh` is not implemented for it",
    label = "how many heap bytes does it own?",
    note = "implement `caddy_engine::Weigh`: a method that adds up what the fields own on the heap"
)]
pub trait Weigh {
    /// Heap bytes, as requested from the allocator. Cheap: it is asked for at every fill, and must not change while the key or
    /// value is in a cache.
    fn heap_bytes(&self) -> usize;

    /// For keys: which group it is counted in, see [`Cache::groups`](crate::Cache::groups). Small numbers: from 4,095 on all
    /// are one group. It must not change while the key is in a cache.
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

/// What the elements own; those that need no drop own nothing.
#[inline]
fn owned_by<'a, T: Weigh + 'a>(elements: impl IntoIterator<Item = &'a T>) -> usize {
    if !std::mem::needs_drop::<T>() {
        return 0;
    }
    elements.into_iter().fold(0, |sum: usize, element| sum.saturating_add(element.heap_bytes()))
}

/// `count` places of `T`, whether used or not.
#[inline]
fn places<T>(count: usize) -> usize {
    count.saturating_mul(size_of::<T>())
}

impl Weigh for Bytes {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl<T: Weigh> Weigh for Vec<T> {
    fn heap_bytes(&self) -> usize {
        places::<T>(self.capacity()).saturating_add(owned_by(self))
    }
}

impl<T: Weigh> Weigh for VecDeque<T> {
    fn heap_bytes(&self) -> usize {
        places::<T>(self.capacity()).saturating_add(owned_by(self))
    }
}

impl<T: Weigh> Weigh for Box<[T]> {
    fn heap_bytes(&self) -> usize {
        places::<T>(self.len()).saturating_add(owned_by(self))
    }
}

impl<T: Weigh> Weigh for Arc<[T]> {
    fn heap_bytes(&self) -> usize {
        places::<T>(self.len()).saturating_add(owned_by(&**self)).saturating_add(ARC_COUNTS)
    }
}

impl<T: Weigh, const N: usize> Weigh for [T; N] {
    fn heap_bytes(&self) -> usize {
        owned_by(self)
    }
}

impl<T: Weigh> Weigh for Box<T> {
    fn heap_bytes(&self) -> usize {
        size_of::<T>().saturating_add(T::heap_bytes(self))
    }
}

impl<T: Weigh> Weigh for Arc<T> {
    fn heap_bytes(&self) -> usize {
        size_of::<T>().saturating_add(T::heap_bytes(self)).saturating_add(ARC_COUNTS)
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

/// Hash tables have an eighth of their places free, and a byte of their own for each; a tree's nodes are half empty at worst.
/// Counted is the usual case, as closely as can be known from outside.
impl<K: Weigh, V: Weigh, S> Weigh for HashMap<K, V, S> {
    fn heap_bytes(&self) -> usize {
        table::<(K, V)>(self.capacity()).saturating_add(owned_by(self.keys())).saturating_add(owned_by(self.values()))
    }
}

impl<T: Weigh, S> Weigh for HashSet<T, S> {
    fn heap_bytes(&self) -> usize {
        table::<T>(self.capacity()).saturating_add(owned_by(self))
    }
}

impl<K: Weigh, V: Weigh> Weigh for BTreeMap<K, V> {
    fn heap_bytes(&self) -> usize {
        let nodes = self.len().saturating_mul(size_of::<(K, V)>() + size_of::<usize>());
        nodes.saturating_add(owned_by(self.keys())).saturating_add(owned_by(self.values()))
    }
}

/// A hash table with room for `capacity` elements.
fn table<T>(capacity: usize) -> usize {
    capacity.saturating_add(capacity / 7).saturating_mul(size_of::<T>() + 1)
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

weigh_nothing!((), bool, char, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64);
weigh_nothing!(&'static str, Duration, SystemTime, IpAddr);

impl<T: Weigh> Weigh for Option<T> {
    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, Weigh::heap_bytes)
    }
}

impl<A: Weigh, B: Weigh> Weigh for (A, B) {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes().saturating_add(self.1.heap_bytes())
    }
}

impl<A: Weigh, B: Weigh, C: Weigh> Weigh for (A, B, C) {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes().saturating_add(self.1.heap_bytes()).saturating_add(self.2.heap_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_elements_own_is_counted_with_the_places_they_are_in() {
        let names = vec!["Ada".to_owned(), "Grace".to_owned()];
        assert_eq!(names.heap_bytes(), 2 * size_of::<String>() + 8);
        assert_eq!(Arc::<[String]>::from(names.clone()).heap_bytes(), names.heap_bytes() + ARC_COUNTS);
        assert_eq!(vec![0.5_f32; 768].into_boxed_slice().heap_bytes(), 768 * 4);
        assert_eq!(Some(Box::new((7_u64, "Ada".to_owned()))).heap_bytes(), size_of::<(u64, String)>() + 3);
        let mut by_name = HashMap::with_capacity(100);
        by_name.insert("Ada".to_owned(), vec![1_u8; 50]);
        assert!(by_name.heap_bytes() >= 100 * size_of::<(String, Vec<u8>)>() + 53);
    }

    #[test]
    fn no_weight_overflows() {
        struct Monster(#[expect(dead_code, reason = "it needs a drop, as what owns something does")] String);
        impl Weigh for Monster {
            fn heap_bytes(&self) -> usize {
                usize::MAX
            }
        }
        let monster = || Monster(String::new());
        assert_eq!((monster(), monster()).heap_bytes(), usize::MAX);
        assert_eq!([monster(), monster()].heap_bytes(), usize::MAX);
        assert_eq!(Arc::new(vec![monster(), monster()]).heap_bytes(), usize::MAX);
        assert_eq!(Box::new(Some(monster())).heap_bytes(), usize::MAX);
    }
}
