//! Who is at the other end of a session: what CLIENT and HELLO tell and change.

use std::sync::Arc;

use caddy_contract::Listen;
use caddy_engine::Moment;
use caddy_resp::Protocol;
use parking_lot::Mutex;

use crate::{
    auth::{DEFAULT, Gate},
    commands::{self, Row},
    listener::Peer,
};

/// A session's own state, also seen by CLIENT LIST of other sessions.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) protocol: Protocol,
    pub(crate) database: u32,
    /// What stands before its requests.
    pub(super) gate: Gate,
    /// The state of [`Auth`](crate::auth::Auth) that the gate is of.
    pub(super) gate_seen: u64,
    /// Who it logged in as.
    pub(super) login: Option<Box<str>>,
    shown: Arc<Shown>,
}

/// What other sessions may see of a session.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) since: Moment,
    changing: Mutex<Changing>,
}

#[derive(Debug, Clone, Default)]
struct Changing {
    name: Box<str>,
    library: Box<str>,
    library_version: Box<str>,
    database: u32,
    protocol: Protocol,
    user: Option<Box<str>>,
    /// When it last asked for something, and for what.
    active: Option<(Moment, &'static Row)>,
}

impl Client {
    pub(crate) fn new(shown: Arc<Shown>) -> Self {
        Self { protocol: Protocol::Resp2, database: 0, gate: Gate::Open, gate_seen: 0, login: None, shown }
    }

    pub(crate) fn shown(&self) -> &Arc<Shown> {
        &self.shown
    }

    pub(crate) fn set_database(&mut self, database: u32) {
        self.database = database;
        self.shown.changing.lock().database = database;
    }

    pub(crate) fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
        self.shown.changing.lock().protocol = protocol;
    }

    pub(crate) fn set_name(&self, name: &[u8]) {
        self.shown.changing.lock().name = String::from_utf8_lossy(name).into();
    }

    /// The session is this user's from now on.
    pub(super) fn log_in(&mut self, user: Option<&str>) {
        self.login = user.map(Box::from);
        self.gate_seen = 0;
        self.shown.changing.lock().user.clone_from(&self.login);
    }

    /// What was asked for until now is seen by others.
    pub(super) fn note(&self, now: Moment, row: &'static Row) {
        self.shown.changing.lock().active = Some((now, row));
    }

    pub(crate) fn name(&self) -> String {
        self.shown.changing.lock().name.to_string()
    }

    /// CLIENT SETINFO; `false`: no such attribute.
    pub(crate) fn set_info(&self, attribute: &[u8], value: &[u8]) -> bool {
        let mut changing = self.shown.changing.lock();
        let field = match attribute.to_ascii_lowercase().as_slice() {
            b"lib-name" => &mut changing.library,
            b"lib-ver" => &mut changing.library_version,
            _ => return false,
        };
        *field = String::from_utf8_lossy(value).into();
        true
    }

    /// What a new connection begins with, but for its identity.
    pub(crate) fn reset(&mut self) {
        self.set_protocol(Protocol::Resp2);
        self.set_database(0);
        self.set_name(b"");
        self.log_in(None);
    }
}

impl Shown {
    pub(crate) fn new(id: u64, peer: Peer, since: Moment) -> Self {
        Self { id, peer, since, changing: Mutex::default() }
    }

    /// A line of CLIENT LIST, with every field of Redis 7.2: client libraries stop where one is missing. What a server says
    /// of its buffers and of subscriptions is 0 here.
    pub(crate) fn line(&self, now: Moment, listen: &Listen) -> String {
        let Changing { name, library, library_version, database, protocol, user, active } =
            self.changing.lock().clone();
        let (id, age) = (self.id, now.since(self.since).as_secs());
        let idle = active.map_or(age, |(at, _)| now.since(at).as_secs());
        let command = active.map_or_else(|| "NULL".to_owned(), |(_, row)| commands::full_name(row));
        let user = user.as_deref().unwrap_or(DEFAULT);
        let resp = if protocol == Protocol::Resp3 { 3 } else { 2 };
        let (flags, from, to) = match self.peer {
            Peer::Unix { .. } => {
                let path = format!("{}:0", listen.socket.display());
                ("U", path.clone(), path)
            }
            Peer::Tcp { .. } => {
                ("N", self.peer.to_string(), format!("127.0.0.1:{}", listen.tcp_port.unwrap_or_default()))
            }
        };
        format!(
            "id={id} addr={from} laddr={to} fd=0 name={name} age={age} idle={idle} flags={flags} db={database} sub=0 psub=0 \
             ssub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r \
             cmd={command} user={user} redir=-1 resp={resp} lib-name={library} lib-ver={library_version}\n"
        )
    }
}
