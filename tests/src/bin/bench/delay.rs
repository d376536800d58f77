//! A network between a sidecar and its Redis: bytes pass after a fixed delay each way, or, when it is cut, not at all
//! while both ends still think that they are connected.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Its threads end with the connections that they carry.
pub(crate) struct Network {
    socket: PathBuf,
    cut: Arc<AtomicBool>,
}

impl Network {
    /// Listens on `socket` for what is meant for `target`.
    pub(crate) fn start(socket: PathBuf, target: PathBuf, each_way: Duration) -> Result<Self> {
        let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
        let cut = Arc::new(AtomicBool::new(false));
        let flag = cut.clone();
        thread::spawn(move || {
            for near in listener.incoming().map_while(std::result::Result::ok) {
                // A refused connection shows as the end of the near one.
                let Ok(far) = UnixStream::connect(&target) else { continue };
                let both = near.try_clone().and_then(|near| Ok((near, far.try_clone()?)));
                let Ok((near_too, far_too)) = both else { continue };
                carry(near, far, each_way, flag.clone());
                carry(far_too, near_too, each_way, flag.clone());
            }
        });
        Ok(Self { socket, cut })
    }

    /// Its near end.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// From now on nothing arrives; what was swallowed is lost.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    /// New bytes arrive again.
    pub(crate) fn heal(&self) {
        self.cut.store(false, Ordering::Release);
    }
}

/// Two threads for one direction: reading must not wait for what is on its way.
fn carry(mut from: UnixStream, mut to: UnixStream, delay: Duration, cut: Arc<AtomicBool>) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if !cut.load(Ordering::Acquire) && sender.send((Instant::now() + delay, buffer[..read].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}
