//! Asking the processor for memory that will be looked at soon, so that it need not be waited for then.
//!
//! A hint: it changes nothing but time, and does nothing where the standard library has no such instruction. It is worth
//! while where an address is known long before it is used, as that of the entry that will be evicted next.

#![cfg_attr(
    all(target_arch = "x86_64", not(miri)),
    expect(unsafe_code, reason = "the instruction takes a pointer, and does not mind an invalid one")
)]

/// Asks for the first line of memory at `soon`, which need not be valid.
#[inline]
pub(crate) fn prefetch<T>(soon: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint to the processor, which reads and writes nothing and does not fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(soon.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = soon;
}
