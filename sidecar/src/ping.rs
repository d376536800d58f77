//! `caddy-sidecar ping`: a sign of life over the socket, independent of L3; what the probes in a pod run.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use caddy_engine::{BootClock, Clock};

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Asks until there is an answer or `wait` is over; at least once.
pub fn ping(socket: Option<PathBuf>, wait: Duration) -> anyhow::Result<()> {
    let socket = socket
        .or_else(|| std::env::var_os("CADDY_SOCKET").map(PathBuf::from))
        .unwrap_or_else(|| caddy_contract::SOCKET_PATH.into());
    let deadline = BootClock.now() + wait;
    loop {
        match attempt(&socket) {
            Ok(()) => return Ok(()),
            Err(error) if BootClock.now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn attempt(socket: &Path) -> anyhow::Result<()> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("no sidecar answers on {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(b"PING\r\n")?;
    let mut reply = [0; 7];
    stream.read_exact(&mut reply).context("the sidecar did not answer PING in time")?;
    // Where a login is needed its absence is told by a living sidecar.
    anyhow::ensure!(
        &reply == b"+PONG\r\n" || &reply == b"-NOAUTH",
        "the sidecar answered {:?}",
        String::from_utf8_lossy(&reply)
    );
    Ok(())
}
