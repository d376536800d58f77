//! Who is at the other end of a session: what CLIENT and HELLO tell and change.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _, sync::Arc};

use caddy_contract::Listen;
use caddy_engine::Moment;
use caddy_resp::Protocol;
use parking_lot::Mutex;

use crate::{
    auth::{DEFAULT, Gate},
    commands::{self, Row},
    listener::Peer,
};

/// Longest name or attribute that a client may give itself; Redis has no bound, and would keep whatever somebody sends.
const MAX_SAID: usize = 1024;

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

    /// CLIENT SETNAME; the error says what is wrong with the name.
    pub(super) fn set_name(&self, name: &[u8]) -> Result<(), String> {
        self.shown.changing.lock().name = said("Client names", name)?;
        Ok(())
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

    /// CLIENT SETINFO; the error says what is wrong with the attribute or its value.
    pub(super) fn set_info(&self, attribute: &[u8], value: &[u8]) -> Result<(), String> {
        let shown = String::from_utf8_lossy(attribute);
        let mut changing = self.shown.changing.lock();
        let field = match attribute.to_ascii_lowercase().as_slice() {
            b"lib-name" => &mut changing.library,
            b"lib-ver" => &mut changing.library_version,
            _ => return Err(format!("ERR Unrecognized option '{shown}'")),
        };
        *field = said(&shown, value)?;
        Ok(())
    }

    /// What a new connection begins with, but for its identity.
    pub(crate) fn reset(&mut self) {
        self.set_protocol(Protocol::Resp2);
        self.set_database(0);
        self.shown.changing.lock().name = Box::default();
        self.log_in(None);
    }
}

impl Shown {
    pub(crate) fn new(id: u64, peer: Peer, since: Moment) -> Self {
        Self { id, peer, since, changing: Mutex::default() }
    }

    /// A line of CLIENT LIST, with every field of Redis 7.2: client libraries stop where one is missing. What a server says
    /// of its buffers and of subscriptions is 0 here. Names, of clients and of users, were checked when they were taken.
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
                let address = format!("{}:0", word(listen.socket.as_os_str().as_bytes()));
                ("U", address.clone(), address)
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

/// What a client says of itself, as one word of a line; `what` is that in the error.
fn said(what: &str, value: &[u8]) -> Result<Box<str>, String> {
    if value.len() > MAX_SAID {
        return Err(format!("LIMIT what a client says of itself has at most {MAX_SAID} bytes here"));
    }
    match std::str::from_utf8(value) {
        Ok(value) if value.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(value.into()),
        _ => Err(format!("ERR {what} cannot contain spaces, newlines or special characters.")),
    }
}

/// As one word of a line that is split at spaces and at `=`: percent-encoded, as in a URL.
fn word(bytes: &[u8]) -> String {
    let mut word = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            byte if byte.is_ascii_graphic() && !b"=%".contains(byte) => word.push(char::from(*byte)),
            // Into a string nothing fails.
            _ => _ = write!(word, "%{byte:02X}"),
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_at_spaces_and_equals_signs_whatever_the_socket_is_called() {
        let listen = Listen { socket: "/run/my apps/a=b\n%/c\u{e4}che.sock".into(), tcp_port: None };
        let shown = Shown::new(7, Peer::Unix { pid: None, uid: None }, Moment::ZERO);
        let line = shown.line(Moment::ZERO, &listen);
        let fields = line.strip_suffix('\n').unwrap().split(' ').map(|field| field.split_once('=').unwrap());
        let fields: Vec<_> = fields.collect();
        assert!(fields.iter().all(|(name, value)| !name.is_empty() && !value.contains(['=', '\n'])), "{line}");
        let address = "/run/my%20apps/a%3Db%0A%25/c%C3%A4che.sock:0";
        assert_eq!(fields[..3], [("id", "7"), ("addr", address), ("laddr", address)]);
    }
}
