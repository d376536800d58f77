//! A primary, two replicas and three Sentinels of a test's own, on loopback; asked and followed as a good client does.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use caddy_resp::{Value, encode};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    e2e::eventually,
    redis::{RedisServer, free_port, program},
    sidecar::SidecarOptions,
    world::{SOON, show},
};

/// What the Sentinels call the primary.
pub const NAME: &str = "shop";

/// How long a failover, with everything that the Sentinels wait for, may take on a busy machine.
pub const FAILOVER: Duration = Duration::from_mins(3);

/// How long a server may be silent before a Sentinel holds it for down: longer than a busy machine forgets a process.
const DOWN_AFTER: Duration = Duration::from_millis(2500);

/// One Sentinel.
#[derive(Debug)]
pub struct Sentinel {
    child: Child,
    port: u16,
    directory: TempDir,
}

/// All of them.
#[derive(Debug)]
pub struct Watched {
    /// The servers by port; which is the primary changes.
    pub servers: BTreeMap<u16, RedisServer>,
    /// Those who watch them.
    pub sentinels: Vec<Sentinel>,
}

impl Watched {
    /// Starts them and waits until they all know each other.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// As [`start`](Self::start), with further lines in the configuration of each Sentinel.
    pub fn start_with(lines: &str) -> Result<Self> {
        let mut servers = BTreeMap::new();
        let mut primary = None;
        for _ in 0..3 {
            let port = free_port()?;
            let number = port.to_string();
            let mut arguments = vec!["--port", &number, "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"];
            let of = primary.map(|port: u16| port.to_string());
            if let Some(of) = &of {
                arguments.extend(["--replicaof", "127.0.0.1", of]);
            }
            servers.insert(port, RedisServer::start_with(&arguments)?);
            primary.get_or_insert(port);
        }
        let primary = primary.context("no server")?;
        eventually("both replicas follow", SOON, || {
            let info = String::from_utf8(servers[&primary].command(&["INFO", "replication"])?)?;
            ensure!(info.matches("state=online").count() == 2, "{info}");
            Ok(())
        })?;
        let sentinels = (0..3).map(|_| Sentinel::start(primary, lines)).collect::<Result<Vec<_>>>()?;
        let watched = Self { servers, sentinels };
        if lines.is_empty() {
            watched.wait_until_known()?;
        }
        Ok(watched)
    }

    /// A failover needs replicas and other Sentinels that are known.
    pub fn wait_until_known(&self) -> Result<()> {
        eventually("the Sentinels know each other and the replicas", SOON, || {
            for sentinel in &self.sentinels {
                let reply = sentinel.ask(&["SENTINEL", "MASTER", NAME])?;
                let (value, _) = Value::decode(&reply)?;
                let number = |name: &[u8]| value.field(name).and_then(Value::as_bytes).map(<[u8]>::to_vec);
                let (others, replicas) = (number(b"num-other-sentinels"), number(b"num-slaves"));
                ensure!(others.as_deref() == Some(b"2") && replicas.as_deref() == Some(b"2"), "{}", show(&reply));
            }
            Ok(())
        })?;
        Ok(())
    }

    /// A sidecar that asks them.
    pub fn options(&self, fields: &str) -> SidecarOptions {
        let ports: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("\"127.0.0.1:{}\"", sentinel.port)).collect();
        SidecarOptions::l3_redis(&format!(
            "mode: Sentinel, endpoints: [{}], sentinel: {{masterName: {NAME}{fields}}}",
            ports.join(", ")
        ))
    }

    /// The port of the primary, by the first Sentinel that names another than `but`; by any if there is none.
    pub fn primary_but(&self, but: Option<u16>) -> Result<u16> {
        let mut named = Vec::new();
        for sentinel in &self.sentinels {
            let Ok(reply) = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]) else { continue };
            let (value, _) = Value::decode(&reply)?;
            let port = value.as_elements().and_then(|parts| parts.get(1)).and_then(Value::as_bytes);
            named.push(String::from_utf8_lossy(port.context("no address")?).parse::<u16>()?);
        }
        named.iter().find(|port| Some(**port) != but).copied().with_context(|| format!("they name {named:?}"))
    }

    /// The port of the primary.
    pub fn primary(&self) -> Result<u16> {
        self.primary_but(None)
    }

    /// Waits until a Sentinel names another primary than `old`, and that takes writes; its port.
    pub fn wait_for_another(&self, old: u16) -> Result<u16> {
        let (port, _) = eventually("another primary is named", FAILOVER, || {
            let port = self.primary_but(Some(old))?;
            let role = show(&self.servers[&port].command(&["ROLE"])?);
            ensure!(role.starts_with("[master"), "{port} says {role}");
            Ok(port)
        })?;
        Ok(port)
    }

    /// Asks the first Sentinel for a failover; tried again while it refuses.
    pub fn fail_over(&self) -> Result<()> {
        eventually("a failover is begun", SOON, || {
            let told = show(&self.sentinels[0].ask(&["SENTINEL", "FAILOVER", NAME])?);
            ensure!(told == "OK", "SENTINEL FAILOVER answers {told}");
            Ok(())
        })?;
        Ok(())
    }
}

impl Sentinel {
    fn start(primary: u16, lines: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("caddy-sentinel").tempdir().context("make a directory")?;
        let port = free_port()?;
        let file = directory.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nlogfile {}\n\
             sentinel monitor {NAME} 127.0.0.1 {primary} 2\nsentinel down-after-milliseconds {NAME} {}\n\
             sentinel failover-timeout {NAME} 5000\nsentinel parallel-syncs {NAME} 2\n{lines}\n",
            directory.path().display(),
            directory.path().join("log").display(),
            DOWN_AFTER.as_millis(),
        );
        fs::write(&file, text).context("write a Sentinel's configuration")?;
        let child = Command::new(program()?)
            .arg(&file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start a Sentinel")?;
        let mut sentinel = Self { child, port, directory };
        eventually("a Sentinel answers", SOON, || {
            if let Some(status) = sentinel.child.try_wait()? {
                bail!("it ended with {status}: {}", file_end(&sentinel.log()));
            }
            sentinel.ask(&["PING"])
        })?;
        Ok(sentinel)
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Sends one command on a connection of its own; its reply.
    pub fn ask(&self, args: &[&str]) -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("connect to a Sentinel")?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut request = Vec::new();
        encode::command(&mut request, args);
        stream.write_all(&request)?;
        let mut reply = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let read = stream.read(&mut chunk).context("read a Sentinel's reply")?;
            ensure!(read > 0, "the Sentinel closed the connection");
            reply.extend_from_slice(&chunk[..read]);
            if caddy_resp::ReplyScanner::default().scan(&reply)?.is_some() {
                return Ok(reply);
            }
        }
    }

    /// Suspends it.
    pub fn sigstop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn sigcont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no such process id")?;
        kill_process(pid, signal).with_context(|| format!("signal the Sentinel {pid:?}"))
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file_end(path: &PathBuf) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().rev().take(8).collect::<Vec<_>>().join(" <- ")
}
