//! A real Redis (or Valkey) of a test's own, as a child process on a Unix socket.
//!
//! Owns the process, its directory and its end: dropped ⇒ killed and gone. Listens on TCP (loopback) only where its arguments say so, never
//! writes outside its directory, never touches another server. Fails by errors that name the missing
//! package or show the end of the server's log.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{e2e::eventually, wire::Wire, world::SOON};

/// Names the server's program in place of what PATH has.
pub const SERVER_VARIABLE: &str = "CADDY_REDIS_SERVER";

/// Names a Valkey's program in place of what PATH has.
pub const VALKEY_VARIABLE: &str = "CADDY_VALKEY_SERVER";
/// Why a comparison with Valkey is left out.
pub const NO_VALKEY: &str = "no valkey-server on PATH, and CADDY_VALKEY_SERVER names none; `cargo xtask test --quick` installs one where it can";

/// How long a server may take to answer its first PING.
const START: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// A running (or stopped, or killed) server.
#[derive(Debug)]
pub struct RedisServer {
    child: Option<Child>,
    program: PathBuf,
    socket: PathBuf,
    arguments: Vec<String>,
    /// Configuration, log and data; lives as long as the server may be started again.
    directory: TempDir,
}

impl RedisServer {
    /// A server on a fresh socket.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// A server on a fresh socket, with further arguments as on its command line (`--maxmemory`, `1mb`).
    pub fn start_with(arguments: &[&str]) -> Result<Self> {
        Self::launch(program()?, None, arguments)
    }

    /// A server of another program than the default one.
    pub fn start_program(program: &Path) -> Result<Self> {
        Self::start_program_with(program, &[])
    }

    /// The same with further arguments.
    pub fn start_program_with(program: &Path, arguments: &[&str]) -> Result<Self> {
        Self::launch(program.to_owned(), None, arguments)
    }

    /// A primary that listens on a port of the loopback too, and a replica that follows it.
    pub fn start_pair(program: &Path) -> Result<(Self, Self)> {
        let port = free_port()?.to_string();
        let listening = ["--port", &port, "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"];
        let primary = Self::start_program_with(program, &listening)?;
        let replica = Self::start_program_with(program, &["--replicaof", "127.0.0.1", &port])?;
        eventually("the replica follows", SOON, || {
            let info = String::from_utf8(primary.command(&["INFO", "replication"])?)?;
            ensure!(info.contains("state=online"), "{info}");
            Ok(())
        })?;
        Ok((primary, replica))
    }

    /// A server, with an empty data set, on a given socket: where another one was.
    pub fn start_on(socket: &Path) -> Result<Self> {
        Self::launch(program()?, Some(socket), &[])
    }

    fn launch(program: PathBuf, socket: Option<&Path>, arguments: &[&str]) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("caddy-redis").tempdir().context("failed to make a directory")?;
        let socket = socket.map_or_else(|| directory.path().join("redis.sock"), Path::to_path_buf);
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mut server = Self { child: None, program, socket, arguments, directory };
        server.restart()?;
        Ok(server)
    }

    /// Starts the server again after [`stop`](Self::stop) or [`kill`](Self::kill), empty, on the same socket.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let log = fs::File::create(self.log()).context("failed to create the server's log")?;
        let child = Command::new(&self.program)
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--daemonize",
                "no",
                "--enable-debug-command",
                "local",
            ])
            .args([
                "--unixsocket".as_ref(),
                self.socket.as_os_str(),
                "--dir".as_ref(),
                self.directory.path().as_os_str(),
            ])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {}", self.program.display()))?;
        self.child = Some(child);
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut waited = Duration::ZERO;
        loop {
            let pong = Wire::connect(&self.socket).and_then(|mut wire| wire.request(&["PING"]));
            if pong.is_ok_and(|reply| reply == b"+PONG\r\n") {
                return Ok(());
            }
            let exited = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if exited.is_some() || waited > START {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(8).collect();
                let state = exited.map_or_else(|| "does not answer".to_owned(), |status| status.to_string());
                bail!("{} did not start ({state}): {}", self.program.display(), tail.join(" <- "));
            }
            thread::sleep(POLL);
            waited += POLL;
        }
    }

    /// How often it has closed a client whose output buffer was full.
    pub fn overflows(&self) -> usize {
        fs::read_to_string(self.log()).unwrap_or_default().matches("overcoming of output buffer limits").count()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("redis.log")
    }

    /// Where clients connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `unix:///path`, as client libraries and `--redis` take it.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// A new connection to it.
    pub fn connect(&self) -> Result<Wire> {
        Wire::connect(&self.socket)
    }

    /// Sends one command on a connection of its own; the reply as it came.
    pub fn command<A: AsRef<[u8]>>(&self, args: &[A]) -> Result<Vec<u8>> {
        self.connect()?.request(args)
    }

    /// Ends it politely (SIGTERM) and waits for that.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Ends it at once (SIGKILL); its socket file stays, as after a crash.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        if let Some(mut child) = self.child.take() {
            child.wait().context("failed to wait for the server's end")?;
        }
        Ok(())
    }

    /// Suspends it: connections stay open and nothing is answered.
    pub fn sigstop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn sigcont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(child) = &self.child else { return Ok(()) };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no such process id")?;
        kill_process(pid, signal).with_context(|| format!("failed to signal the server {pid:?}"))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the directory goes anyway.
        let _ = self.kill();
    }
}

/// A port on loopback that nobody uses now, another one each time. It is none of those that the system gives to outgoing
/// connections, so that it stays free while a server is not up yet, or down for a while.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    let mut ports = (0..1000).map(|_| {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        12_000 + u16::try_from(offset).unwrap_or(0)
    });
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).context("no port from 12000 to 32000 is free")
}

/// A Valkey's program, if there is one: named by the environment, else on PATH.
pub fn valkey() -> Option<PathBuf> {
    if let Some(named) = env::var_os(VALKEY_VARIABLE) {
        return Some(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join("valkey-server")).find(|program| program.is_file())
}

/// The server's program: named by the environment, else the first of redis-server and valkey-server on PATH.
pub fn program() -> Result<PathBuf> {
    if let Some(named) = env::var_os(SERVER_VARIABLE) {
        return Ok(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    ["redis-server", "valkey-server"]
        .iter()
        .flat_map(|name| env::split_paths(&path).map(move |directory| directory.join(name)))
        .find(|program| program.is_file())
        .with_context(|| {
            format!("no redis-server or valkey-server on PATH: run `apt-get install redis-server`, or name one in {SERVER_VARIABLE}")
        })
}
