//! The real sidecar of a test's own, as a child process on a Unix socket in front of a [`RedisServer`].
//!
//! Owns the process, its directory and its end: dropped ⇒ killed and gone. Fails by errors that show what the sidecar said.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{redis::RedisServer, wire::Wire};

/// Names the program in place of what cargo builds.
pub const PROGRAM_VARIABLE: &str = "CADDY_SIDECAR_BIN";

/// How often a starting sidecar is asked, every 20 ms.
const ATTEMPTS: usize = 500;

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    child: Child,
    socket: PathBuf,
    admin_port: u16,
    _directory: TempDir,
}

impl Sidecar {
    /// One in front of `redis`, with defaults for everything else.
    pub fn start(redis: &RedisServer) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("caddy-sidecar").tempdir().context("make a directory")?;
        let (socket, config) = (directory.path().join("cache.sock"), directory.path().join("config.yaml"));
        let admin_port = free_port()?;
        let text = format!(
            "listen: {{socket: {}}}\nadmin: {{port: {admin_port}}}\nl3: {{redis: {{endpoints: [\"unix:{}\"]}}}}\n",
            socket.display(),
            redis.socket().display()
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let log = directory.path().join("log");
        let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new(program()?);
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        let sidecar = Self { child, socket, admin_port, _directory: directory };
        for _ in 0..ATTEMPTS {
            let pong = Wire::connect(&sidecar.socket).and_then(|mut wire| wire.request(&["PING"]));
            if pong.is_ok_and(|reply| reply == b"+PONG\r\n") {
                return Ok(sidecar);
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("the sidecar does not answer; it said:\n{}", fs::read_to_string(log).unwrap_or_default())
    }

    /// Where clients connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A new connection to it.
    pub fn connect(&self) -> Result<Wire> {
        Wire::connect(&self.socket)
    }

    /// Its OpenMetrics text of this moment.
    pub fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin_port)).context("connect to the admin port")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("read the metrics")?;
        ensure!(text.starts_with("HTTP/1.1 200"), "/metrics answers {}", text.lines().next().unwrap_or_default());
        Ok(text)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sidecar to test: what [`PROGRAM_VARIABLE`] names, else what cargo builds now.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os(PROGRAM_VARIABLE) {
        return Ok(path.into());
    }
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "-p", "caddy-sidecar", "--message-format=json"]).stderr(Stdio::inherit());
    let output = build.output().context("start cargo build -p caddy-sidecar")?;
    ensure!(output.status.success(), "cargo build -p caddy-sidecar ended with {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = messages.rmatch_indices("\"executable\":\"").next();
    let path = found.and_then(|(at, start)| messages[at + start.len()..].split('"').next());
    path.map(PathBuf::from).context("cargo build -p caddy-sidecar names no executable")
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?.local_addr()?.port())
}
