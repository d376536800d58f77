//! The servers that are measured: started on sockets in a folder of their own, pinned to one core, ended when dropped.
//! A sidecar has a Redis of its own behind it, so that nobody else's load reaches it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Options;

/// How long one reply may take before the run is given up.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a starting server is asked.
const ATTEMPTS: usize = 5_000;
/// And how long is waited in between; short, since the time to the first answer is measured too.
const STEP: Duration = Duration::from_millis(2);

/// A process of ours; dropped means killed.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a server is to the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What users would talk to instead.
    Redis,
    /// The least that a server can do.
    Floor,
    /// The least that a process between an app and its Redis can do.
    Relay,
    /// Ours.
    Sidecar,
}

/// Something to measure.
pub(crate) struct Server {
    name: &'static str,
    kind: Kind,
    socket: PathBuf,
    /// Where the data lies; its own socket for a Redis.
    data: PathBuf,
    processes: Vec<Process>,
}

impl Server {
    /// What the table calls it.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What it is to the comparison.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The process itself, without the Redis behind it.
    pub(crate) fn pid(&self) -> u32 {
        self.processes[0].0.id()
    }

    /// A new connection to it.
    pub(crate) fn connect(&self) -> Result<UnixStream> {
        connect(&self.socket)
    }

    /// A new connection to where its data lies.
    pub(crate) fn connect_to_data(&self) -> Result<UnixStream> {
        connect(&self.data)
    }

    /// CPU time that its processes have used so far: for a sidecar or a relay, its Redis counts too.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.processes.iter().map(|process| cpu_of(process.0.id())).sum()
    }
}

/// All servers of a run.
pub(crate) struct Servers {
    list: Vec<Server>,
    folder: PathBuf,
    options: Options,
}

impl Servers {
    /// Starts what the table compares.
    pub(crate) fn start(options: &Options) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("caddy-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut this = Self { list: Vec::new(), folder, options: options.clone() };
        this.add_redis("Redis", &options.redis)?;
        if let Some(valkey) = &options.valkey {
            this.add_redis("Valkey", valkey)?;
        }
        this.add_floor()?;
        let (behind, data) = this.redis_behind("relayed")?;
        let relay = this.relay_on(this.core(), "relay", &data, behind)?;
        this.list.push(relay);
        let (behind, data) = this.redis_behind("behind")?;
        let sidecar = this.sidecar("sidecar", &data, behind)?;
        this.list.push(sidecar);
        Ok(this)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Server> {
        self.list.iter()
    }

    /// The folder of all sockets and logs.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn add_redis(&mut self, name: &'static str, binary: &Path) -> Result<()> {
        let socket = self.folder.join(format!("{name}.sock"));
        let process = redis(binary, &socket, self.core())?;
        self.list.push(Server { name, kind: Kind::Redis, data: socket.clone(), socket, processes: vec![process] });
        Ok(())
    }

    /// This very program, as the floor.
    fn add_floor(&mut self) -> Result<()> {
        let socket = self.folder.join("floor.sock");
        let process = start(pinned(&this_program()?, self.core()).arg("--floor").arg(&socket), &socket)?;
        self.list.push(Server {
            name: "floor",
            kind: Kind::Floor,
            data: socket.clone(),
            socket,
            processes: vec![process],
        });
        Ok(())
    }

    /// This very program, as a relay to the Redis on the socket `data`, on whichever core there is; `behind` is kept alive and
    /// counted with it.
    pub(crate) fn free_relay(&self, name: &'static str, data: &Path, behind: Process) -> Result<Server> {
        self.relay_on(self.anywhere()?.as_deref(), name, data, behind)
    }

    fn relay_on(&self, core: Option<&str>, name: &'static str, data: &Path, behind: Process) -> Result<Server> {
        let socket = self.folder.join(format!("{name}.sock"));
        let process = start(pinned(&this_program()?, core).arg("--relay").arg(&socket).arg(data), &socket)?;
        Ok(Server { name, kind: Kind::Relay, socket, data: data.to_owned(), processes: vec![process, behind] })
    }

    /// A Redis for a sidecar, and its socket.
    pub(crate) fn redis_behind(&self, name: &str) -> Result<(Process, PathBuf)> {
        let data = self.folder.join(format!("{name}.sock"));
        Ok((redis(&self.options.redis, &data, self.core())?, data))
    }

    /// The same on whichever core there is.
    pub(crate) fn free_redis(&self, name: &str) -> Result<(Process, PathBuf)> {
        let data = self.folder.join(format!("{name}.sock"));
        Ok((redis(&self.options.redis, &data, self.anywhere()?.as_deref())?, data))
    }

    /// A sidecar in front of the Redis on the socket `data`; `behind` is kept alive and counted with it.
    pub(crate) fn sidecar(&self, name: &'static str, data: &Path, behind: Process) -> Result<Server> {
        self.sidecar_on(self.core(), name, data, behind, "")
    }

    /// The same on whichever core there is, with more in its configuration.
    pub(crate) fn free_sidecar(&self, name: &'static str, data: &Path, behind: Process, more: &str) -> Result<Server> {
        self.sidecar_on(self.anywhere()?.as_deref(), name, data, behind, more)
    }

    /// The same on the core of the load, so that the Redis has its own for itself.
    pub(crate) fn sidecar_beside_the_load(&self, name: &'static str, data: &Path, behind: Process) -> Result<Server> {
        self.sidecar_on(None, name, data, behind, "")
    }

    fn sidecar_on(
        &self,
        core: Option<&str>,
        name: &'static str,
        data: &Path,
        behind: Process,
        more: &str,
    ) -> Result<Server> {
        let socket = self.folder.join(format!("{name}.sock"));
        let config = self.folder.join(format!("{name}.yaml"));
        let text = format!(
            "listen: {{socket: {}}}\nadmin: {{port: {}}}\nl3: {{redis: {{endpoints: [\"unix:{}\"]}}}}\n{more}",
            socket.display(),
            free_port()?,
            data.display()
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let mut command = pinned(&self.options.sidecar, core);
        command.arg("--config").arg(&config).env("RUST_LOG", "warn");
        let process = start(&mut command, &socket)?;
        Ok(Server { name, kind: Kind::Sidecar, socket, data: data.to_owned(), processes: vec![process, behind] })
    }

    /// The core of the load and that of the servers.
    fn anywhere(&self) -> Result<Option<String>> {
        let Some(servers) = self.core() else { return Ok(None) };
        let status = fs::read_to_string("/proc/self/status").context("read where this process may run")?;
        let own = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        Ok(Some(format!("{},{servers}", own.trim())))
    }

    fn core(&self) -> Option<&str> {
        self.options.server_core.as_deref()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.list.clear();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn redis(binary: &Path, socket: &Path, core: Option<&str>) -> Result<Process> {
    let mut command = pinned(binary, core);
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(socket);
    start(&mut command, socket)
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program")
}

fn pinned(binary: &Path, core: Option<&str>) -> Command {
    let Some(core) = core else { return Command::new(binary) };
    // taskset becomes the server: the process id stays.
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(binary);
    command
}

fn start(command: &mut Command, socket: &Path) -> Result<Process> {
    let log = socket.with_extension("log");
    let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let process = Process(command.spawn().with_context(|| format!("start {}", command.get_program().display()))?);
    for _ in 0..ATTEMPTS {
        if connect(socket).and_then(ping).is_ok() {
            return Ok(process);
        }
        thread::sleep(STEP);
    }
    bail!("no answer on {}; the server said: {}", socket.display(), fs::read_to_string(log).unwrap_or_default())
}

fn ping(mut stream: UnixStream) -> Result<()> {
    stream.write_all(b"PING\r\n")?;
    let mut reply = [0; 7];
    stream.read_exact(&mut reply)?;
    anyhow::ensure!(&reply == b"+PONG\r\n", "PING is answered with {}", reply.escape_ascii());
    Ok(())
}

pub(crate) fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?.local_addr()?.port())
}

/// CPU time of all threads of a process, from the scheduler's own count in nanoseconds.
fn cpu_of(process: u32) -> Result<Duration> {
    let tasks = format!("/proc/{process}/task");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
        let file = task?.path().join("schedstat");
        // A thread may end between the two reads.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let first = text.split_whitespace().next().with_context(|| format!("read {}", file.display()))?;
        sum += first.parse::<u64>().with_context(|| format!("read {}", file.display()))?;
    }
    Ok(Duration::from_nanos(sum))
}
