//! Who is at the other end of a session: what CLIENT and HELLO tell and change.

use std::sync::Arc;

use caddy_engine::Moment;
use caddy_resp::Protocol;
use parking_lot::Mutex;

use crate::auth::Gate;

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
    pub(crate) peer: String,
    pub(crate) since: Moment,
    changing: Mutex<Changing>,
}

#[derive(Debug, Clone, Default)]
struct Changing {
    name: String,
    library: String,
    library_version: String,
    database: u32,
    protocol: Protocol,
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
        self.shown.changing.lock().name = String::from_utf8_lossy(name).into_owned();
    }

    /// The session is this user's from now on.
    pub(super) fn log_in(&mut self, user: Option<&str>) {
        self.login = user.map(Box::from);
        self.gate_seen = 0;
    }

    pub(crate) fn name(&self) -> String {
        self.shown.changing.lock().name.clone()
    }

    /// CLIENT SETINFO; `false`: no such attribute.
    pub(crate) fn set_info(&self, attribute: &[u8], value: &[u8]) -> bool {
        let mut changing = self.shown.changing.lock();
        let field = match attribute.to_ascii_lowercase().as_slice() {
            b"lib-name" => &mut changing.library,
            b"lib-ver" => &mut changing.library_version,
            _ => return false,
        };
        *field = String::from_utf8_lossy(value).into_owned();
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
    pub(crate) fn new(id: u64, peer: String, since: Moment) -> Self {
        Self { id, peer, since, changing: Mutex::default() }
    }

    /// A line of CLIENT LIST.
    pub(crate) fn line(&self, now: Moment) -> String {
        let Changing { name, library, library_version, database, protocol } = self.changing.lock().clone();
        let resp = if protocol == Protocol::Resp3 { 3 } else { 2 };
        let (id, peer, age) = (self.id, &self.peer, now.since(self.since).as_secs());
        format!(
            "id={id} addr={peer} name={name} age={age} db={database} resp={resp} lib-name={library} lib-ver={library_version}\n"
        )
    }
}
