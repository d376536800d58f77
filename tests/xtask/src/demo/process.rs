//! Processes that the demo and the benchmark start and always end: dropped means killed, by its own process id.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::client::{Client, Reply};
use crate::clock::wait_until;
use crate::failed::{Failed, Result, Step};
use crate::log::{self, Log};

/// How long a server may take to answer its first PING.
const START: Duration = Duration::from_secs(20);

/// A server that we started.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    child: Child,
}

impl Server {
    /// Starts it with its output in `log`, and waits until `ready` says so.
    pub(crate) fn start(name: &str, command: &mut Command, log: &mut Log, ready: impl FnMut() -> bool) -> Result<Self> {
        let child = log.spawn(command)?;
        let server = Self { name: name.to_owned(), child };
        if wait_until(START, ready) {
            return Ok(server);
        }
        let last = log::tail(log.path(), 20).join("\n");
        Err(Failed::new(format!("{name} did not answer within {} s; its log ends with\n{last}", START.as_secs())))
    }

    /// Sends a signal by name, for example `STOP`.
    pub(crate) fn signal(&self, signal: &str) -> Result {
        let command = format!("kill -{signal} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).status().step(&command)?;
        if status.success() { Ok(()) } else { Err(Failed::new(format!("`{command}` for {} failed", self.name))) }
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(&mut self) -> Result {
        self.child.kill().step(format!("kill {}", self.name))?;
        self.child.wait().step(format!("wait for {}", self.name)).map(|_| ())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for sockets that goes away with its owner. Short, because a socket's path may have 107 bytes.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes a new one.
    pub(crate) fn make(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("caddy-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).step(format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port of this machine that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).step("find a free port")?;
    Ok(listener.local_addr().step("find a free port")?.port())
}

/// Whether what listens there answers a PING.
pub(crate) fn answers_on(port: u16) -> bool {
    Client::tcp(port)
        .and_then(|mut client| client.call(&["PING"]))
        .is_ok_and(|reply| reply == Reply::Text("PONG".into()))
}

/// Whether what listens on that socket answers a PING.
pub(crate) fn answers_at(socket: &Path) -> bool {
    Client::unix(socket)
        .and_then(|mut client| client.call(&["PING"]))
        .is_ok_and(|reply| reply == Reply::Text("PONG".into()))
}
