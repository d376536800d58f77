//! Files that others replace while we run: mounted Secrets. Tells that one was replaced, without reading it.

use std::{
    fs,
    future::Future as _,
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

/// How often files are looked at while a connection cannot be had because of what is in them.
const INTERVAL: Duration = Duration::from_millis(500);

/// Tells one content of a file from another, as Secrets are swapped: by a new file under the old name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Version {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// The versions of several files; an absent one has none.
pub(crate) fn versions<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<Option<Version>> {
    paths.map(|path| Version::of(path).ok()).collect()
}

/// Waits for a change.
pub(crate) struct Watch {
    seen: Vec<Option<Version>>,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    /// `seen`: the versions before the attempt that failed.
    pub(crate) fn new(seen: Vec<Option<Version>>) -> Self {
        Self { seen, timer: Box::pin(sleep(INTERVAL)) }
    }

    /// Ready when one of the files is another than it was.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: impl Fn() -> Vec<Option<Version>>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if now() != self.seen {
                return Poll::Ready(());
            }
            self.timer = Box::pin(sleep(INTERVAL));
        }
        Poll::Pending
    }
}
