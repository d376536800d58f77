//! How keys and values lie in an entry: as they are, or packed into the entry's own allocation.
//!
//! Any type that implements [`Weigh`] is held as it is; what it owns on the heap stays where it is. [`Packed`] bytes are
//! copied behind the entry's header instead: one allocation for header, key and value, no pointer, no capacity.

use std::borrow::Borrow;

use bytes::Bytes;
use hashbrown::Equivalent;

use crate::generations::Dependency;
use crate::weigh::Weigh;

/// A type that the tiers can hold; not for implementing. Implement [`Weigh`], or use [`Packed`].
pub trait Hold: Layout {}

impl<T: Layout> Hold for T {}

/// The two ways to lie in an entry.
pub trait Layout: 'static {
    /// What an entry shows of it.
    type Held: ?Sized;
    /// What of it is a field of the entry.
    type Field;
    /// The bytes that follow behind the fields.
    type Tail: AsRef<[u8]>;
    /// Whether there are any.
    const PACKED: bool;

    /// The field, and the bytes that follow behind all fields.
    fn split(self) -> (Self::Field, Self::Tail);

    /// What an entry shows, from its field and its bytes.
    fn show<'a>(field: &'a Self::Field, tail: &'a [u8]) -> &'a Self::Held;

    /// Heap bytes that the field owns.
    fn heap_bytes(field: &Self::Field) -> usize;

    /// See [`Weigh::group`].
    fn group(held: &Self::Held) -> usize;

    /// See [`Weigh::dependencies`].
    fn dependencies(held: &Self::Held) -> &[Dependency];
}

impl<T: Weigh + 'static> Layout for T {
    type Held = T;
    type Field = T;
    type Tail = [u8; 0];
    const PACKED: bool = false;

    fn split(self) -> (T, [u8; 0]) {
        (self, [])
    }

    #[inline]
    fn show<'a>(field: &'a T, _tail: &'a [u8]) -> &'a T {
        field
    }

    fn heap_bytes(field: &T) -> usize {
        field.heap_bytes()
    }

    fn group(held: &T) -> usize {
        held.group()
    }

    #[inline]
    fn dependencies(held: &T) -> &[Dependency] {
        held.dependencies()
    }
}

/// Bytes that an entry keeps in its own allocation, shown as `[u8]`.
///
/// The form with the least memory: a copy of the bytes and one to five bytes for their length.
///
/// ```
/// use caddy_engine::{Cache, CacheConfig, KeyHash, Lookup, Moment, Packed, SourceKind};
///
/// let cache = Cache::<Packed, Packed>::new(CacheConfig::default());
/// let source = cache.kernel().register(SourceKind::Local)?;
/// let key_hash = KeyHash::of(b"user:1");
/// let token = cache.kernel().begin_fill(source, key_hash, Moment::ZERO);
/// let key = Packed::from(b"user:1".as_slice());
/// cache.fill(&token, key_hash.tier(0), key, Packed::from(b"Ada".as_slice()), Moment::NEVER, Moment::ZERO)?;
///
/// let mut worker = cache.worker();
/// let Lookup::Hit(hit) = worker.lookup(key_hash.tier(0), b"user:1".as_slice(), Moment::ZERO) else { unreachable!() };
/// assert_eq!(hit.entry.value(), b"Ada");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packed(Bytes);

impl Packed {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Packed {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl From<Vec<u8>> for Packed {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Bytes> for Packed {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Packed {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Packed {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes by which a [`Packed`] key is looked up: as by the slice itself, but [quicker](same_bytes) where keys are short.
#[derive(Clone, Copy, Debug)]
pub struct PackedRef<'a>(pub &'a [u8]);

impl Equivalent<[u8]> for PackedRef<'_> {
    #[inline]
    fn equivalent(&self, key: &[u8]) -> bool {
        same_bytes(self.0, key)
    }
}

/// Whether both are the same bytes: as `==`, without the call that it makes for slices of up to 32 bytes, which most keys are.
///
/// ```
/// assert!(caddy_engine::same_bytes(b"user:1", b"user:1"));
/// assert!(!caddy_engine::same_bytes(b"user:1", b"user:2"));
/// ```
#[inline]
pub fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    let length = a.len();
    length == b.len()
        && match length {
            // The first and the last so many, which may be the same ones in part.
            8..=16 => a[..8] == b[..8] && a[length - 8..] == b[length - 8..],
            17..=32 => a[..16] == b[..16] && a[length - 16..] == b[length - 16..],
            _ => same_others(a, b),
        }
}

#[inline(never)]
fn same_others(a: &[u8], b: &[u8]) -> bool {
    a == b
}

impl Layout for Packed {
    type Held = [u8];
    type Field = ();
    type Tail = Bytes;
    const PACKED: bool = true;

    fn split(self) -> ((), Bytes) {
        ((), self.0)
    }

    #[inline]
    fn show<'a>(_field: &'a (), tail: &'a [u8]) -> &'a [u8] {
        tail
    }

    fn heap_bytes(_field: &()) -> usize {
        0
    }

    fn group(_held: &[u8]) -> usize {
        0
    }

    #[inline]
    fn dependencies(_held: &[u8]) -> &[Dependency] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_bytes_tells_every_difference_at_every_length() {
        for length in 0..70 {
            let bytes: Vec<u8> = (0..length).collect();
            assert!(same_bytes(&bytes, &bytes.clone()));
            for at in 0..bytes.len() {
                let mut other = bytes.clone();
                other[at] ^= 0x80;
                assert!(!same_bytes(&bytes, &other), "{length} {at}");
                assert!(!same_bytes(&bytes, &bytes[..at]) && !same_bytes(&bytes[at + 1..], &bytes), "{length} {at}");
            }
        }
    }
}
