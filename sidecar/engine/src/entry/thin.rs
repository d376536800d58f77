//! The one allocation of an entry: reference count, header, fields of key and value, packed bytes.
//!
//! The only `unsafe` of this crate but for a [hint](crate::prefetch). An `Arc` would cost 16 bytes of counts instead of 4,
//! a pointer of 16 bytes instead of 8 to a value of unknown length, and could not put bytes of unknown length behind a
//! header at all.
//!
//! What holds, and why it is sound:
//! * a [`Thin`] always points to an allocation made by `Thin::allocate`, initialised as a [`Body`] with its packed bytes
//!   behind it, and counted in `refs`; it is freed by whoever takes the count from one to zero, and by nobody else;
//! * after `allocate` nothing is written but through atomics, so `&` to any of it may be shared between threads;
//! * packed bytes begin at `offset_of!(Body, tail)`, which may lie in the padding at the end of `Body`; they are only
//!   read, through the pointer of the allocation and not through a reference to `Body`;
//! * lengths are written once, by `allocate`, from slices that existed: sums of them cannot overflow an allocation's limit
//!   without `Layout` refusing, which aborts before anything is written.
//!
//! `cargo +nightly miri test -p caddy-engine entry::` runs this module's tests under Miri.

#![expect(unsafe_code, reason = "an allocation of several parts with one thin pointer; see the module")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::Header;
use crate::hold::Hold;
use crate::prefetch::prefetch;

/// A key or a value on its way into an entry: what becomes a field, and what is copied behind all fields.
pub(crate) struct Parts<'a, T: Hold> {
    pub(crate) field: T::Field,
    pub(crate) tail: &'a [u8],
}

#[repr(C)]
struct Body<K: Hold, V: Hold> {
    refs: AtomicU32,
    header: Header,
    key: K::Field,
    value: V::Field,
    tail: [u8; 0],
}

pub(super) struct Thin<K: Hold, V: Hold> {
    body: NonNull<Body<K, V>>,
    owns: PhantomData<Body<K, V>>,
}

// SAFETY: a `Thin` is a counted, shared reference to a `Body`, as `Arc` is. Both fields are `Send + Sync`, the header is
// atomics and plain numbers, so the body may be shared with and dropped on any thread.
unsafe impl<K: Hold, V: Hold> Send for Thin<K, V>
where
    K::Field: Send + Sync,
    V::Field: Send + Sync,
{
}
// SAFETY: as above.
unsafe impl<K: Hold, V: Hold> Sync for Thin<K, V>
where
    K::Field: Send + Sync,
    V::Field: Send + Sync,
{
}

impl<K: Hold, V: Hold> Thin<K, V> {
    const TAIL: usize = offset_of!(Body<K, V>, tail);

    /// Bytes of an entry whose packed bytes, if any, are none.
    pub(super) const FIXED_BYTES: usize = Self::TAIL + K::PACKED as usize + V::PACKED as usize;

    pub(super) fn new(header: Header, key: Parts<'_, K>, value: Parts<'_, V>) -> Self {
        Self { body: Self::allocate(1, header, key, value), owns: PhantomData }
    }

    /// Two references to one, without the atomic addition of a clone.
    pub(super) fn pair(header: Header, key: Parts<'_, K>, value: Parts<'_, V>) -> (Self, Self) {
        let body = Self::allocate(2, header, key, value);
        (Self { body, owns: PhantomData }, Self { body, owns: PhantomData })
    }

    /// A body for so many references, which the caller makes.
    #[inline]
    fn allocate(refs: u32, header: Header, key: Parts<'_, K>, value: Parts<'_, V>) -> NonNull<Body<K, V>> {
        let tail = packed_len::<K>(key.tail) + packed_len::<V>(value.tail);
        let layout = Self::layout(tail);
        // SAFETY: the layout is never of size zero: it has at least the count and the header.
        let memory = unsafe { alloc(layout) };
        let Some(body) = NonNull::new(memory.cast::<Body<K, V>>()) else { handle_alloc_error(layout) };
        // SAFETY: `memory` is valid for writes of `layout`, which is aligned for, and no smaller than, a `Body`.
        unsafe {
            body.write(Body { refs: AtomicU32::new(refs), header, key: key.field, value: value.field, tail: [] });
        };
        // SAFETY: the allocation has `tail` bytes from `TAIL` on, and nothing else refers to it yet.
        let mut rest = unsafe { std::slice::from_raw_parts_mut(memory.add(Self::TAIL), tail) };
        for (packed, bytes) in [(K::PACKED, key.tail), (V::PACKED, value.tail)] {
            if packed {
                rest = write_packed(rest, bytes);
            }
        }
        body
    }

    fn layout(tail: usize) -> Layout {
        let size = (Self::TAIL + tail).max(size_of::<Body<K, V>>());
        Layout::from_size_align(size, align_of::<Body<K, V>>())
            .expect("key and value existed, so their sum is no longer than memory")
    }

    #[inline]
    fn body(&self) -> &Body<K, V> {
        // SAFETY: initialised by `allocate`, alive while `self` is counted, and never borrowed mutably.
        unsafe { self.body.as_ref() }
    }

    #[inline]
    pub(super) fn header(&self) -> &Header {
        &self.body().header
    }

    #[inline]
    pub(super) fn key(&self) -> &K::Held {
        let tail = if K::PACKED { self.packed(Self::TAIL).0 } else { &[] };
        K::show(&self.body().key, tail)
    }

    #[inline]
    pub(super) fn value(&self) -> &V::Held {
        let tail = if V::PACKED { self.packed(self.value_at()).0 } else { &[] };
        V::show(&self.body().value, tail)
    }

    #[inline]
    fn value_at(&self) -> usize {
        if K::PACKED { self.packed(Self::TAIL).1 } else { Self::TAIL }
    }

    fn tail_len(&self) -> usize {
        let end = if V::PACKED { self.packed(self.value_at()).1 } else { self.value_at() };
        end - Self::TAIL
    }

    /// The packed bytes whose length stands at offset `at`, and the offset behind them.
    #[inline]
    fn packed(&self, at: usize) -> (&[u8], usize) {
        let memory = self.body.as_ptr().cast::<u8>();
        // SAFETY: `at` is where `allocate` wrote a length.
        let first = unsafe { memory.add(at).read() };
        // Most keys are as short as one byte of length can tell.
        let (length, start) = if first < CONTINUES { (usize::from(first), at + 1) } else { self.long_length(at) };
        // SAFETY: `allocate` wrote so many bytes there; they live as long as `self` is counted and are never written again.
        (unsafe { std::slice::from_raw_parts(memory.add(start), length) }, start + length)
    }

    /// A length of several bytes that stands at offset `at`, and the offset behind it.
    #[inline]
    fn long_length(&self, at: usize) -> (usize, usize) {
        let memory = self.body.as_ptr().cast::<u8>();
        let (mut length, mut start, mut shift) = (0_usize, at, 0_u32);
        loop {
            // SAFETY: `at` is where `allocate` wrote a length, whose last byte has no continuation bit; all of it is initialised.
            let byte = unsafe { memory.add(start).read() };
            length |= usize::from(byte & !CONTINUES) << shift;
            start += 1;
            if byte < CONTINUES {
                return (length, start);
            }
            shift += 7;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let body = self.body();
        let heap = K::heap_bytes(&body.key).saturating_add(V::heap_bytes(&body.value));
        heap.saturating_add(Self::layout(self.tail_len()).size())
    }

    /// Whether this is not the only reference.
    pub(super) fn is_shared(&self) -> bool {
        self.body().refs.load(Ordering::Relaxed) > 1
    }

    /// Asks for the memory of count, header and what follows: most entries are no longer than three lines.
    #[inline]
    pub(super) fn prefetch(&self) {
        let memory = self.body.as_ptr().cast_const().cast::<[u8; 64]>();
        prefetch(memory);
        prefetch(memory.wrapping_add(1));
        prefetch(memory.wrapping_add(2));
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.body == other.body
    }
}

impl<K: Hold, V: Hold> Clone for Thin<K, V> {
    #[inline]
    fn clone(&self) -> Self {
        // As in `Arc`: a new reference is made from an existing one, which keeps the count above zero.
        if self.body().refs.fetch_add(1, Ordering::Relaxed) > u32::MAX / 2 {
            // Two thousand million references can only be forgotten ones; going on would free what is in use.
            std::process::abort();
        }
        Self { body: self.body, owns: PhantomData }
    }
}

impl<K: Hold, V: Hold> Drop for Thin<K, V> {
    #[inline]
    fn drop(&mut self) {
        // Of the only reference nobody can make another, so that one needs no atomic subtraction. As in `Arc`: whatever
        // other threads did with the body happens before it is freed.
        let refs = &self.body().refs;
        if refs.load(Ordering::Relaxed) == 1 || refs.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            self.free();
        }
    }
}

impl<K: Hold, V: Hold> Thin<K, V> {
    #[inline(never)]
    fn free(&mut self) {
        let layout = Self::layout(self.tail_len());
        // SAFETY: the count is zero, so this is the only pointer left; the body is initialised and dropped only here.
        unsafe { self.body.drop_in_place() };
        // SAFETY: allocated by `allocate` with the same layout: it depends on the lengths alone, which have not changed.
        unsafe { dealloc(self.body.as_ptr().cast(), layout) };
    }
}

/// Marks all bytes of a length but the last.
const CONTINUES: u8 = 0x80;

/// Bytes that `write_packed` needs: seven bits of length in each byte, then the bytes.
fn packed_len<T: Hold>(bytes: &[u8]) -> usize {
    let digits = (usize::BITS - bytes.len().leading_zeros()).div_ceil(7).max(1);
    if T::PACKED { digits as usize + bytes.len() } else { 0 }
}

/// Writes length and bytes to the front of `into`; returns what is left of it.
fn write_packed<'a>(mut into: &'a mut [u8], bytes: &[u8]) -> &'a mut [u8] {
    let mut length = bytes.len();
    while length >= usize::from(CONTINUES) {
        into[0] = length as u8 | CONTINUES;
        into = &mut into[1..];
        length >>= 7;
    }
    into[0] = length as u8;
    let (own, rest) = into[1..].split_at_mut(bytes.len());
    own.copy_from_slice(bytes);
    rest
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::sync::Arc;

    use super::super::Entry;
    use super::*;
    use crate::hold::{Layout as _, Packed};
    use crate::kernel::Basis;
    use crate::weigh::Weigh;

    fn packed(bytes: &[u8]) -> Parts<'_, Packed> {
        Parts { field: (), tail: bytes }
    }

    fn basis() -> Basis {
        Basis::from_parts(1, 2, 3)
    }

    #[test]
    fn packed_bytes_of_every_length_are_shown_as_they_were() {
        for (key, value) in [(0, 0), (1, 127), (16, 100), (127, 128), (128, 16_383), (16_384, 5), (3, 2_097_152)] {
            let (key, value) = (vec![1; key], vec![2; value]);
            let entry = Entry::<Packed, Packed>::new(basis(), packed(&key), packed(&value));
            assert_eq!((entry.key(), entry.value()), (&key[..], &value[..]));
            assert_eq!(entry.basis(), basis());
        }
        let bytes = Entry::<Packed, Packed>::new(basis(), packed(&[0; 16]), packed(&[0; 100])).bytes();
        assert_eq!(bytes, 16 + 100 + Entry::<Packed, Packed>::FIXED_BYTES);
        assert_eq!(Entry::<Packed, Packed>::FIXED_BYTES, 20);
    }

    #[test]
    fn a_mixed_entry_shows_both() {
        let entry = Entry::<u64, Packed>::new(basis(), Parts { field: 7, tail: &[] }, packed(b"value"));
        assert_eq!((*entry.key(), entry.value()), (7, b"value".as_slice()));
        let entry = Entry::<Packed, u64>::new(basis(), packed(b"key"), Parts { field: 7, tail: &[] });
        assert_eq!((entry.key(), *entry.value()), (b"key".as_slice(), 7));
    }

    struct Counted(#[expect(dead_code, reason = "counts")] Arc<()>);

    impl Weigh for Counted {
        fn heap_bytes(&self) -> usize {
            0
        }
    }

    #[test]
    fn fields_are_dropped_once_with_the_last_reference() {
        let counter = Arc::new(());
        let (field, _) = Counted(counter.clone()).split();
        let entry = Entry::<Counted, Packed>::new(basis(), Parts { field, tail: &[] }, packed(b"v"));
        let others: Vec<_> = (0..4).map(|_| entry.clone()).collect();
        drop(entry);
        let threads: Vec<_> = others.into_iter().map(|entry| std::thread::spawn(move || entry.value().len())).collect();
        assert_eq!(Arc::strong_count(&counter), 2);
        assert!(threads.into_iter().all(|thread| thread.join().is_ok_and(|length| length == 1)));
        assert_eq!(Arc::strong_count(&counter), 1);
        let (field, _) = Counted(counter.clone()).split();
        let (one, other) = Entry::<Counted, Packed>::pair(basis(), Parts { field, tail: &[] }, packed(b"v"));
        assert!(one.is_same(&other) && one.is_shared());
        drop(one);
        assert!(!other.is_shared() && Arc::strong_count(&counter) == 2);
        drop(other);
        assert_eq!(Arc::strong_count(&counter), 1);
    }
}
