//! Moments at which a test ends the process, as a crash does. A normal build contains none of this: calls are empty.
//!
//! `CADDY_CRASH_AT=name:n` ends a build with the feature `mutations` at the n-th time that it comes to the point of that name.

/// The process may die here.
#[inline]
#[cfg(not(feature = "mutations"))]
pub const fn point(_: &str) {}

#[cfg(feature = "mutations")]
pub use armed::point;

#[cfg(feature = "mutations")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static CHOSEN: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let text = std::env::var("CADDY_CRASH_AT").ok()?;
        let (name, times) = text.split_once(':')?;
        Some((name.to_owned(), times.parse().ok()?))
    });
    static SEEN: AtomicU64 = AtomicU64::new(0);

    /// The process may die here.
    pub fn point(name: &str) {
        let Some((chosen, times)) = &*CHOSEN else { return };
        if chosen == name && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *times {
            // As the kernel ends a process that is out of memory: nothing more is run, nothing flushed.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::process::abort();
        }
    }
}
