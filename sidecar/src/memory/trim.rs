//! Lets the allocator give back to the kernel what it keeps of freed memory.
//!
//! glibc keeps a freed chunk for whoever allocates next, unless it is the last of its heap: values of many sizes that come
//! and go leave a process as large as it ever was, however little of it is in use. Owns the one call that ends this; other
//! allocators give pages back by themselves, and there it does nothing. It holds up whoever allocates meanwhile, for about
//! a microsecond per gap. Cannot fail.

#![expect(unsafe_code, reason = "the allocator is asked by a C function without arguments that could be wrong")]

/// Returns the whole pages within all gaps.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the argument is a number of bytes to keep at the end of the heap; any is valid, on any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Bytes of its own that the process has in memory.
    fn anonymous() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    #[test]
    fn what_was_freed_between_what_is_used_goes_back() {
        const SIZE: usize = 16 << 10;
        const COUNT: usize = 8192;
        let mut all: Vec<Option<Vec<u8>>> = (0..COUNT).map(|_| Some(vec![1; SIZE])).collect();
        all.iter_mut().enumerate().filter(|(at, _)| at % 8 > 0).for_each(|(_, bytes)| *bytes = None);
        let before = anonymous();
        give_back();
        let gone = before.saturating_sub(anonymous());
        // Seven eighths were freed; other tests of this process may need some meanwhile.
        assert!(gone > SIZE * COUNT / 2, "{gone} bytes went back");
        assert!(all.iter().flatten().all(|bytes| bytes.iter().all(|byte| *byte == 1)));
    }
}
