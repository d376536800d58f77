//! A man in the middle between a sidecar and its Redis, over Unix sockets, who does to them what networks do.
//!
//! Each connection is classified by its first bytes: *tracked* if it switches CLIENT TRACKING on, else *relay* (shared and
//! pinned ones alike). Faults are set per class and direction and hold for present and future connections. Bytes that
//! are held back are kept, in order and without bound, so that a test can let exactly some of them through ([`Mark`]);
//! or they are left in the sender's own buffers ([`Proxy::clog`]).
//! Never changes a byte. A connection whose Redis cannot be reached is closed.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use caddy_engine::{BootClock, Clock as _, Moment};
use caddy_resp::{FrameKind, ReplyScanner};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tempfile::TempDir;

/// How long a test waits for something to pass through before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a connection is to the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It has asked for CLIENT TRACKING: fills, pushes and proofs travel on it.
    Tracked = 0,
    /// Any other.
    Relay = 1,
    /// It has asked to be told of every write to keys with some prefix: what negative filters learn from.
    Announcing = 2,
}

/// All classes.
pub const ALL: [Class; 3] = [Class::Tracked, Class::Relay, Class::Announcing];

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Requests.
    ToServer = 0,
    /// Replies and pushes.
    ToClient = 1,
}

/// Both directions.
pub const BOTH: [Direction; 2] = [Direction::ToServer, Direction::ToClient];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Pass,
    Delay(Duration),
    Stall,
    Clog,
}

impl Fault {
    /// Whether what has not been delivered stays where it is.
    fn keeps_back(self) -> bool {
        matches!(self, Self::Stall | Self::Clog)
    }
}

/// Bytes of one direction of one connection.
#[derive(Debug, Default)]
struct Pipe {
    held: VecDeque<(Moment, Vec<u8>)>,
    received: u64,
    delivered: u64,
    /// Nothing behind this position is delivered.
    limit: Option<u64>,
    /// The sender will send no more.
    ended: bool,
}

#[derive(Debug)]
struct Link {
    class: Option<Class>,
    client: UnixStream,
    server: UnixStream,
    pipes: [Pipe; 2],
    /// Directions that are over.
    finished: [bool; 2],
}

#[derive(Debug)]
struct State {
    links: BTreeMap<u64, Link>,
    faults: [[Fault; 2]; 3],
    refused: [bool; 3],
    accepted: [u64; 3],
    next: u64,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    server: PathBuf,
}

/// How far the connections of a class have come in one direction at some moment.
#[derive(Clone, Debug)]
pub struct Mark {
    direction: Direction,
    positions: BTreeMap<u64, u64>,
}

/// A running proxy; ends when dropped, and its connections with it.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    socket: PathBuf,
    _directory: TempDir,
}

impl Proxy {
    /// One in front of the server on `server`.
    pub fn start(server: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("caddy-proxy").tempdir().context("make a directory")?;
        let socket = directory.path().join("proxy.sock");
        let listener = UnixListener::bind(&socket).context("listen as proxy")?;
        let state = State {
            links: BTreeMap::new(),
            faults: [[Fault::Pass; 2]; 3],
            refused: [false; 3],
            accepted: [0; 3],
            next: 0,
            ended: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), server: server.to_owned() });
        let accepting = shared.clone();
        thread::spawn(move || accepting.accept(&listener));
        Ok(Self { shared, socket, _directory: directory })
    }

    /// Where sidecars connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    // === faults ===

    /// Delivers what has arrived until now and keeps back what comes from now on: a half-open connection. Again: lets
    /// through what has arrived since.
    pub fn stall(&self, class: Class, direction: Direction) {
        self.set(class, direction, Fault::Stall);
    }

    /// The same without reading on: the sender's buffers fill, as before a receiver that has stopped reading.
    pub fn clog(&self, class: Class, direction: Direction) {
        self.set(class, direction, Fault::Clog);
    }

    /// Delivers everything `by` later than it came.
    pub fn delay(&self, class: Class, direction: Direction, by: Duration) {
        self.set(class, direction, Fault::Delay(by));
    }

    /// Delivers everything, what was kept back included.
    pub fn pass(&self, class: Class, direction: Direction) {
        self.set(class, direction, Fault::Pass);
    }

    /// Ends all faults but cuts, which have happened.
    pub fn heal(&self) {
        for class in ALL {
            self.accept_again(class);
            for direction in BOTH {
                self.pass(class, direction);
            }
        }
    }

    fn set(&self, class: Class, direction: Direction, fault: Fault) {
        let mut state = self.shared.state.lock();
        state.faults[class as usize][direction as usize] = fault;
        for link in state.links.values_mut().filter(|link| link.class == Some(class)) {
            let pipe = &mut link.pipes[direction as usize];
            pipe.limit = fault.keeps_back().then_some(pipe.received);
        }
        self.shared.changed.notify_all();
    }

    /// How far the stream has come, delivered or not.
    pub fn mark(&self, class: Class, direction: Direction) -> Mark {
        let state = self.shared.state.lock();
        let links = state.links.iter().filter(|(_, link)| link.class == Some(class));
        Mark { direction, positions: links.map(|(id, link)| (*id, link.pipes[direction as usize].received)).collect() }
    }

    /// Lets what had arrived at the mark through a stall.
    pub fn release(&self, mark: &Mark) {
        let mut state = self.shared.state.lock();
        for (id, position) in &mark.positions {
            if let Some(link) = state.links.get_mut(id) {
                let limit = &mut link.pipes[mark.direction as usize].limit;
                *limit = limit.map(|limit| limit.max(*position));
            }
        }
        self.shared.changed.notify_all();
    }

    /// Lets the next so many bytes through a stall.
    pub fn let_through(&self, class: Class, direction: Direction, bytes: u64) {
        let mut state = self.shared.state.lock();
        for link in state.links.values_mut().filter(|link| link.class == Some(class)) {
            let pipe = &mut link.pipes[direction as usize];
            pipe.limit = pipe.limit.map(|limit| limit + bytes);
        }
        self.shared.changed.notify_all();
    }

    /// Cuts all connections of a class at once; what was kept back is lost.
    pub fn cut(&self, class: Class) {
        let mut state = self.shared.state.lock();
        state.links.retain(|_, link| {
            let cut = link.class == Some(class);
            if cut {
                link.shut_down();
            }
            !cut
        });
        self.shared.changed.notify_all();
    }

    /// Closes new connections of a class as soon as they show what they are.
    pub fn refuse(&self, class: Class) {
        self.shared.state.lock().refused[class as usize] = true;
    }

    /// Takes new connections of a class again.
    pub fn accept_again(&self, class: Class) {
        self.shared.state.lock().refused[class as usize] = false;
    }

    // === watching ===

    /// Connections of a class that were ever let through.
    pub fn accepted(&self, class: Class) -> u64 {
        self.shared.state.lock().accepted[class as usize]
    }

    /// Connections of a class that are open.
    pub fn open(&self, class: Class) -> usize {
        self.shared.state.lock().links.values().filter(|link| link.class == Some(class)).count()
    }

    /// Waits until so many whole replies are kept back on the way to the client; pushes are not counted.
    pub fn wait_for_replies(&self, class: Class, count: usize) -> Result<()> {
        self.wait(&format!("{count} replies kept back on {class:?}"), |state| {
            state.held(class, Direction::ToClient).map(|bytes| count_frames(&bytes, FrameKind::Reply)).sum::<usize>()
                >= count
        })
    }

    /// Waits until a push is kept back on the way to the client.
    pub fn wait_for_push(&self, class: Class) -> Result<()> {
        self.wait(&format!("a push kept back on {class:?}"), |state| {
            state.held(class, Direction::ToClient).any(|bytes| count_frames(&bytes, FrameKind::Push) > 0)
        })
    }

    /// Waits until bytes that contain `text` are kept back.
    pub fn wait_for(&self, class: Class, direction: Direction, text: &str) -> Result<()> {
        self.wait(&format!("{text:?} kept back on {class:?}"), |state| {
            state.held(class, direction).any(|bytes| contains(&bytes, text.as_bytes()))
        })
    }

    /// Waits until a further connection of the class than `before` has been let through.
    pub fn wait_for_connection(&self, class: Class, before: u64) -> Result<()> {
        self.wait(&format!("a new {class:?} connection"), |state| state.accepted[class as usize] > before)
    }

    fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) -> Result<()> {
        let mut state = self.shared.state.lock();
        let deadline = BootClock.now() + PATIENCE;
        while !holds(&state) {
            if BootClock.now() >= deadline {
                bail!("{what}: not within {PATIENCE:?}");
            }
            self.shared.changed.wait_for(&mut state, Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.ended = true;
        for link in state.links.values() {
            link.shut_down();
        }
        state.links.clear();
        self.shared.changed.notify_all();
        drop(state);
        // Wakes the accepting thread, which then sees that all is over.
        let _ = UnixStream::connect(&self.socket);
    }
}

impl State {
    /// What is kept back, connection by connection.
    fn held(&self, class: Class, direction: Direction) -> impl Iterator<Item = Vec<u8>> {
        self.links
            .values()
            .filter(move |link| link.class == Some(class))
            .map(move |link| link.pipes[direction as usize].held.iter().flat_map(|(_, bytes)| bytes).copied().collect())
    }

    /// Decides what a connection is by the first bytes that its client sent.
    fn classify(&mut self, id: u64, first: &[u8]) {
        let class = match contains(first, b"\r\nTRACKING\r\n") {
            true if contains(first, b"\r\nPREFIX\r\n") => Class::Announcing,
            true => Class::Tracked,
            false => Class::Relay,
        };
        let faults = self.faults[class as usize];
        let Some(link) = self.links.get_mut(&id) else { return };
        if self.refused[class as usize] {
            link.shut_down();
            self.links.remove(&id);
            return;
        }
        link.class = Some(class);
        for direction in BOTH {
            link.pipes[direction as usize].limit = faults[direction as usize].keeps_back().then_some(0);
        }
        self.accepted[class as usize] += 1;
    }
}

impl Link {
    fn shut_down(&self) {
        // They may have been closed by their owners.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

/// What a pipe can do now.
enum Next {
    Deliver(Vec<u8>),
    /// At the latest then; `None`: when something changes.
    Wait(Option<Duration>),
    Close,
}

impl Pipe {
    fn next(&mut self, fault: Fault, now: Moment) -> Next {
        let Some((arrived, chunk)) = self.held.front_mut() else {
            return if self.ended { Next::Close } else { Next::Wait(None) };
        };
        if let Fault::Delay(by) = fault
            && now < *arrived + by
        {
            return Next::Wait(Some((*arrived + by).since(now)));
        }
        let room = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.delivered));
        let length = usize::try_from(room).unwrap_or(usize::MAX).min(chunk.len());
        if length == 0 {
            return Next::Wait(None);
        }
        let rest = chunk.split_off(length);
        let bytes = std::mem::replace(chunk, rest);
        if chunk.is_empty() {
            self.held.pop_front();
        }
        self.delivered += length as u64;
        Next::Deliver(bytes)
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for client in listener.incoming() {
            if self.state.lock().ended {
                return;
            }
            let Ok(client) = client else { continue };
            // Without a server there is nothing to pass on: the client sees its connection close.
            let Ok(server) = UnixStream::connect(&self.server) else { continue };
            if let Err(error) = self.open(client, server) {
                eprintln!("the fault proxy cannot serve a connection: {error:#}");
            }
        }
    }

    fn open(self: &Arc<Self>, client: UnixStream, server: UnixStream) -> Result<()> {
        let ends = [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)];
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        let link = Link { class: None, client, server, pipes: Default::default(), finished: [false; 2] };
        state.links.insert(id, link);
        drop(state);
        for (direction, (from, to)) in BOTH.into_iter().zip(ends) {
            let (reading, writing) = (self.clone(), self.clone());
            thread::spawn(move || reading.read(id, direction, from));
            thread::spawn(move || writing.write(id, direction, to));
        }
        Ok(())
    }

    fn read(&self, id: u64, direction: Direction, mut from: UnixStream) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            self.wait_while_clogged(id, direction);
            let length = from.read(&mut buffer).unwrap_or(0);
            let bytes = &buffer[..length];
            let mut state = self.state.lock();
            if direction == Direction::ToServer && state.links.get(&id).is_some_and(|link| link.class.is_none()) {
                state.classify(id, bytes);
            }
            let Some(link) = state.links.get_mut(&id) else { return };
            let pipe = &mut link.pipes[direction as usize];
            if length == 0 {
                pipe.ended = true;
            } else {
                pipe.received += length as u64;
                pipe.held.push_back((BootClock.now(), bytes.to_vec()));
            }
            self.changed.notify_all();
            if length == 0 {
                return;
            }
        }
    }

    fn wait_while_clogged(&self, id: u64, direction: Direction) {
        let mut state = self.state.lock();
        while state
            .links
            .get(&id)
            .and_then(|link| link.class)
            .is_some_and(|class| state.faults[class as usize][direction as usize] == Fault::Clog)
        {
            self.changed.wait(&mut state);
        }
    }

    fn write(&self, id: u64, direction: Direction, mut to: UnixStream) {
        let mut state = self.state.lock();
        loop {
            let faults = state.faults;
            let Some(link) = state.links.get_mut(&id) else { return };
            let fault = link.class.map_or(Fault::Pass, |class| faults[class as usize][direction as usize]);
            match link.pipes[direction as usize].next(fault, BootClock.now()) {
                Next::Deliver(bytes) => {
                    let written = MutexGuard::unlocked(&mut state, || to.write_all(&bytes));
                    if written.is_err() {
                        return Self::finish(&mut state, id, direction, &to, false);
                    }
                }
                Next::Wait(Some(time)) => drop(self.changed.wait_for(&mut state, time)),
                Next::Wait(None) => self.changed.wait(&mut state),
                Next::Close => return Self::finish(&mut state, id, direction, &to, direction == Direction::ToClient),
            }
        }
    }

    /// Passes the end of one direction on. The connection is over if the server has gone or both directions have ended;
    /// requests of a client that has gone are still delivered, however late.
    fn finish(state: &mut State, id: u64, direction: Direction, to: &UnixStream, server_gone: bool) {
        let _ = to.shutdown(Shutdown::Write);
        let Some(link) = state.links.get_mut(&id) else { return };
        link.finished[direction as usize] = true;
        if server_gone || link.finished == [true; 2] {
            link.shut_down();
            state.links.remove(&id);
        }
    }
}

fn count_frames(bytes: &[u8], kind: FrameKind) -> usize {
    let mut scanner = ReplyScanner::default();
    let mut rest = bytes;
    let mut count = 0;
    while let Ok(Some(frame)) = scanner.scan(rest) {
        count += usize::from(frame.kind == kind);
        rest = &rest[frame.len..];
    }
    count
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
