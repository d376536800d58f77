//! Commands about the session itself, answered without asking Redis: they work also while Redis is away.

use caddy_resp::{Protocol, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow, Hush, Pending},
    relaying::effect,
    waiting,
};
use crate::{
    auth::DEFAULT,
    commands::{self, Row},
    shared::Shared,
};

/// The sections of INFO that ours stands behind.
const OUR_SECTIONS: [&[u8]; 4] = [b"caddy", b"default", b"all", b"everything"];

impl Conversation {
    /// A command of the class `Session`.
    pub(super) fn own_command(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        match commands::lookup(args.get(0)).name {
            "ping" => self.ping(args),
            "echo" => self.reply(|out| encode::bulk(out, args.get(1))),
            "hello" => self.hello(args),
            "auth" => self.auth(args),
            "select" => return self.select(row, args),
            "client" => return self.client_command(row, args),
            "quit" => {
                self.reply_ok();
                self.closing = true;
            }
            "reset" => self.reset(),
            // Also where Redis cannot be asked, or refuses INFO.
            "info" if args.len() > 1 && args.from(1).all(|section| section.eq_ignore_ascii_case(OUR_SECTIONS[0])) => {
                let info = self.worker.shared.info_section();
                self.reply_text(&info);
            }
            "info" => {
                let ours = |section: &[u8]| OUR_SECTIONS.iter().any(|ours| section.eq_ignore_ascii_case(ours));
                let pending = Pending::Info { ours: args.len() == 1 || args.from(1).any(ours) };
                return self.relay(row, args, effect(row, args), pending);
            }
            "command" => return self.about_commands(row, args),
            name if name.starts_with("cache.") => self.cache_command(name, args),
            _ => return self.relay(row, args, effect(row, args), Pending::Relayed),
        }
        Flow::Done
    }

    fn ping(&mut self, args: Args<'_>) {
        match args.len() {
            1 => self.reply(|out| encode::simple(out, "PONG")),
            2 => self.reply(|out| encode::bulk(out, args.get(1))),
            // The table knows no upper bounds.
            _ => self.reply_error("ERR wrong number of arguments for 'ping' command"),
        }
    }

    /// `AUTH [user] password`
    fn auth(&mut self, args: Args<'_>) {
        let (user, password) = match args.len() {
            2 => (DEFAULT.as_bytes(), args.get(1)),
            3 => (args.get(1), args.get(2)),
            _ => return self.reply_error("ERR syntax error"),
        };
        if self.log_in(user, password) {
            self.reply_ok();
        } else {
            self.reply_error(WRONG_LOGIN);
        }
    }

    /// `HELLO [2|3 [AUTH user password] [SETNAME name]]`
    fn hello(&mut self, args: Args<'_>) {
        let mut protocol = self.client.protocol;
        if args.len() > 1 {
            protocol = match caddy_resp::parse_i64(args.get(1)) {
                Some(2) => Protocol::Resp2,
                Some(3) => Protocol::Resp3,
                Some(_) => return self.reply_error("NOPROTO unsupported protocol version"),
                None => return self.reply_error("ERR Protocol version is not an integer or out of range"),
            };
        }
        let (mut name, mut login) = (None, None);
        let mut at = 2;
        while at < args.len() {
            if args.is(at, "AUTH") && at + 2 < args.len() {
                login = Some((args.get(at + 1), args.get(at + 2)));
                at += 3;
            } else if args.is(at, "SETNAME") && at + 1 < args.len() {
                name = Some(args.get(at + 1));
                at += 2;
            } else {
                let option = String::from_utf8_lossy(args.get(at)).into_owned();
                return self.reply_error(&format!("ERR Syntax error in HELLO option '{option}'"));
            }
        }
        if let Some((user, password)) = login
            && !self.log_in(user, password)
        {
            return self.reply_error(WRONG_LOGIN);
        }
        if self.is_locked_out() {
            return self.reply_error(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> \
                 <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
            );
        }
        if let Some(name) = name
            && let Err(fault) = self.client.set_name(name)
        {
            return self.reply_error(&fault);
        }
        self.client.set_protocol(protocol);
        self.tell_listener_protocol();
        let shared = self.worker.shared.clone();
        let id = self.client.shown().id;
        self.reply(|out| hello_reply(&shared, protocol, id, out));
    }

    fn client_command(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let shared = self.worker.shared.clone();
        let now = shared.now();
        match args.get(1).to_ascii_lowercase().as_slice() {
            b"id" => {
                let id = self.client.shown().id;
                self.reply(|out| encode::integer(out, id.cast_signed()));
            }
            b"getname" => {
                let (name, protocol) = (self.client.name(), self.client.protocol);
                self.reply(|out| match name.as_str() {
                    "" => encode::null(out, protocol),
                    name => encode::bulk(out, name.as_bytes()),
                });
            }
            b"setname" if args.len() == 3 => self.reply_whether(self.client.set_name(args.get(2))),
            b"setinfo" if args.len() == 4 => self.reply_whether(self.client.set_info(args.get(2), args.get(3))),
            b"reply" if args.len() == 3 => match args.get(2).to_ascii_lowercase().as_slice() {
                b"on" => {
                    self.hush = Hush::No;
                    self.reply_ok();
                }
                b"off" => self.hush = Hush::Always,
                b"skip" if self.hush != Hush::Always => self.hush = Hush::Next,
                b"skip" => {}
                _ => self.reply_error("ERR syntax error"),
            },
            b"info" => {
                self.client.note(self.now, row);
                let line = self.client.shown().line(now, &shared.config().listen);
                self.reply_text(&line);
            }
            b"list" => match listed(args) {
                Ok(is_listed) => {
                    self.client.note(self.now, row);
                    let (sessions, config) = (shared.sessions(), shared.config());
                    let sessions = sessions.iter().filter(|shown| is_listed(shown.id));
                    let lines: String = sessions.map(|shown| shown.line(now, &config.listen)).collect();
                    self.reply_text(&lines);
                }
                Err(fault) => self.reply_error(&fault),
            },
            // Hints to a server about one of its connections: this one is ours.
            b"no-evict" | b"no-touch" if args.is(2, "ON") || args.is(2, "OFF") => self.reply_ok(),
            b"capa" if args.len() > 2 && shared.status.takes_capabilities() => self.reply_ok(),
            b"tracking" | b"caching" => return self.pin(row, args),
            // About the session's own tracking, if it has one.
            b"trackinginfo" | b"getredir" if self.has_own_lane() => return self.send(row, args, Pending::Relayed),
            // On a shared connection it would change what others get: whatever it is, it is not for this one.
            _ if matches!(row.name, "client" | "capa") => {
                let name = args.get(1);
                let name = String::from_utf8_lossy(&name[..name.len().min(128)]).into_owned();
                self.reply_error(&format!("ERR unknown subcommand '{name}'. Try CLIENT HELP."));
            }
            _ => return self.relay(row, args, effect(row, args), Pending::Relayed),
        }
        Flow::Done
    }

    fn reply_whether(&mut self, done: Result<(), String>) {
        match done {
            Ok(()) => self.reply_ok(),
            Err(fault) => self.reply_error(&fault),
        }
    }

    fn reply_text(&mut self, text: &str) {
        let protocol = self.client.protocol;
        self.reply(|out| encode::verbatim(out, protocol, *b"txt", text.as_bytes()));
    }

    /// RESET: everything the session set is gone, its own connection too.
    pub(super) fn reset(&mut self) {
        self.pinned = None;
        self.listener = None;
        self.locking = None;
        self.losses_at_write = None;
        self.written = waiting::Written::default();
        self.hush = Hush::No;
        self.client.reset();
        self.reply(|out| encode::simple(out, "RESET"));
    }
}

const WRONG_LOGIN: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// Which sessions `CLIENT LIST [TYPE type] [ID id…]` is about. All are normal ones.
fn listed(args: Args<'_>) -> Result<impl Fn(u64) -> bool, String> {
    let mut ids = None;
    let mut any = true;
    match args.len() {
        2 => {}
        4 if args.is(2, "TYPE") => {
            let kind = String::from_utf8_lossy(args.get(3)).to_ascii_lowercase();
            any = match kind.as_str() {
                "normal" => true,
                "master" | "replica" | "slave" | "pubsub" => false,
                _ => return Err(format!("ERR Unknown client type '{}'", String::from_utf8_lossy(args.get(3)))),
            };
        }
        4.. if args.is(2, "ID") => {
            let id = |arg: &[u8]| caddy_resp::parse_i64(arg).and_then(|id| u64::try_from(id).ok());
            let named: Option<Vec<u64>> = args.from(3).map(id).collect();
            ids = Some(named.ok_or("ERR Invalid client ID")?);
        }
        _ => return Err("ERR syntax error".to_owned()),
    }
    Ok(move |id| any && ids.as_ref().is_none_or(|ids| ids.contains(&id)))
}

/// What Redis answers to HELLO, with the server that is behind us.
fn hello_reply(shared: &Shared, protocol: Protocol, id: u64, out: &mut Vec<u8>) {
    let status = shared.status.get();
    let (server, version) =
        status.server.as_ref().map_or(("redis", "7.0.0"), |info| (info.server.as_str(), info.version.as_str()));
    encode::map_header(out, protocol, 7);
    let mut text = |key: &str, value: &str| {
        encode::bulk(out, key.as_bytes());
        encode::bulk(out, value.as_bytes());
    };
    text("server", server);
    text("version", version);
    encode::bulk(out, b"proto");
    encode::integer(out, if protocol == Protocol::Resp3 { 3 } else { 2 });
    encode::bulk(out, b"id");
    encode::integer(out, id.cast_signed());
    for (key, value) in [("mode", "standalone"), ("role", "master")] {
        encode::bulk(out, key.as_bytes());
        encode::bulk(out, value.as_bytes());
    }
    encode::bulk(out, b"modules");
    encode::array_header(out, 0);
}
