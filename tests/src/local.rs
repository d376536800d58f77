//! Real servers on this machine for tests: a Redis and sidecars, on Unix sockets in a folder of their own. They end when
//! dropped, by their own process ids. A server that does not start fails with what it said; a missing program with how to
//! get it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How often a starting server is asked, every 20 ms.
const ATTEMPTS: usize = 750;
/// How long a server may take for one PING.
const PING: Duration = Duration::from_secs(2);

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A URL for Redis clients.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A redis-server without persistence on `folder/redis.sock`.
pub fn redis(folder: &Path) -> Result<Server> {
    let socket = folder.join("redis.sock");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
    start(command, socket).context("redis-server; `cargo xtask test --quick` installs it")
}

/// A sidecar on `folder/<name>.sock` in front of `redis`.
pub fn sidecar(folder: &Path, name: &str, redis: &Server) -> Result<Server> {
    let socket = folder.join(format!("{name}.sock"));
    let config = folder.join(format!("{name}.yaml"));
    let text = format!(
        "listen: {{socket: {}}}\nadmin: {{port: {}}}\nl3: {{redis: {{endpoints: [\"unix:{}\"]}}}}\n",
        socket.display(),
        free_port()?,
        redis.socket.display()
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let mut command = Command::new(sidecar_binary()?);
    command.arg("--config").arg(&config);
    start(command, socket).context("caddy-sidecar")
}

/// The sidecar to test: `CADDY_SIDECAR_BIN`, else what cargo builds now.
pub fn sidecar_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CADDY_SIDECAR_BIN") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "-p", "caddy-sidecar", "--message-format=json"]).stderr(Stdio::inherit());
    let output = build.output().context("start cargo build -p caddy-sidecar")?;
    ensure!(output.status.success(), "cargo build -p caddy-sidecar ended with {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = messages.rmatch_indices("\"executable\":\"").next();
    let path = found.and_then(|(at, start)| messages[at + start.len()..].split('"').next());
    path.map(PathBuf::from).context("cargo build -p caddy-sidecar names no executable")
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?.local_addr()?.port())
}

fn start(mut command: Command, socket: PathBuf) -> Result<Server> {
    let log = socket.with_extension("log");
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    let server = Server { child, socket };
    for _ in 0..ATTEMPTS {
        if ping(&server.socket).is_ok() {
            return Ok(server);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let said = fs::read_to_string(&log).unwrap_or_default();
    bail!("no answer on {}; it said:\n{said}", server.socket.display())
}

fn ping(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PING))?;
    stream.write_all(b"PING\r\n")?;
    let mut reply = [0; 7];
    stream.read_exact(&mut reply)?;
    ensure!(&reply == b"+PONG\r\n", "PING is answered with {}", reply.escape_ascii());
    Ok(())
}
