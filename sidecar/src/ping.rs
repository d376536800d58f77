//! `caddy-sidecar ping`: a sign of life over the socket, independent of L3; what the probes in a pod run.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use caddy_engine::{BootClock, Clock};

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Asks until there is an answer or `wait` is over; at least once. With `startup`, of the sidecar whose health is told on
/// that port, also whether it has read ahead as far as its configuration says.
pub fn ping(socket: Option<PathBuf>, wait: Duration, startup: Option<u16>) -> anyhow::Result<()> {
    let socket = socket
        .or_else(|| std::env::var_os("CADDY_SOCKET").map(PathBuf::from))
        .unwrap_or_else(|| caddy_contract::SOCKET_PATH.into());
    let deadline = BootClock.now() + wait;
    loop {
        match attempt(&socket).and_then(|()| startup.map_or(Ok(()), has_started)) {
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

fn has_started(port: u16) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), TIMEOUT)
        .with_context(|| format!("no sidecar answers on its admin port {port}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /startupz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.take(4096).read_to_string(&mut reply).context("the sidecar did not answer on its admin port in time")?;
    let said = reply.rsplit("\r\n").next().unwrap_or_default().trim();
    anyhow::ensure!(reply.starts_with("HTTP/1.1 200 "), "not started yet: {said}");
    Ok(())
}
