//! `COMMAND` and this product's own commands: what it says of them, from their rows, and where that goes in a server's reply.
//!
//! Clients ask a server what it has: for the keys of a command, for hints while somebody types. Through the sidecar they
//! are to find what that adds as well. Pure: a question and a reply in, a reply out. A reply that cannot be read is handed
//! on as it is.

use caddy_engine::glob::Glob;
use caddy_resp::{Protocol, Value, encode};

use super::{Effect, Positions, Row, categories_of, lookup, lookup_request, rows};

/// What people are shown of one of our own commands: its arguments, and what it does.
#[derive(Debug)]
pub struct About(pub &'static str, pub &'static str);

/// A question about commands, as far as our own are part of the answer.
#[derive(Debug)]
pub(crate) enum Question {
    /// `COMMAND`, `COMMAND INFO`.
    All,
    /// `COMMAND COUNT`.
    Count,
    /// `COMMAND LIST`: these.
    Names(Vec<Named>),
    /// `COMMAND INFO name…`: what is ours of them, each in its place.
    Each(Vec<Option<Named>>),
    /// `COMMAND DOCS`: of these.
    Docs(Vec<Named>),
}

/// One of our own commands under its full name: `cache.invalidate|tag`.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    name: String,
    row: &'static Row,
}

impl Question {
    /// What a request with these arguments asks; `None`: nothing that our own commands have to do with.
    pub(crate) fn of<'a>(n_args: usize, arg: impl Fn(usize) -> &'a [u8]) -> Option<Self> {
        let is = |index: usize, word: &str| arg(index).eq_ignore_ascii_case(word.as_bytes());
        let named = || (2..n_args).map(|index| Named::find(arg(index)));
        match n_args {
            0 => None,
            1 => Some(Self::All),
            2 if is(1, "INFO") => Some(Self::All),
            2 if is(1, "COUNT") => Some(Self::Count),
            2 if is(1, "LIST") => Some(Self::Names(Named::all().collect())),
            2 if is(1, "DOCS") => Some(Self::Docs(Named::commands().collect())),
            _ if is(1, "INFO") => Some(Self::Each(named().collect())),
            _ if is(1, "DOCS") => Some(Self::Docs(named().flatten().collect())),
            5 if is(1, "LIST") && is(2, "FILTERBY") => {
                let wanted = String::from_utf8_lossy(arg(4)).to_ascii_lowercase();
                let glob = is(3, "PATTERN").then(|| Glob::new(wanted.as_bytes()));
                let is_wanted = |named: &Named| match &glob {
                    Some(glob) => glob.matches(named.name.as_bytes()),
                    None => is(3, "ACLCAT") && named.categories().contains(&wanted.as_str()),
                };
                Some(Self::Names(Named::all().filter(is_wanted).collect()))
            }
            _ => None,
        }
    }

    /// A server's reply with what is ours in it; `None`: it stays as it is.
    pub(crate) fn answer(&self, reply: &[u8], protocol: Protocol) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(reply.len() + 4096);
        match self {
            Self::Count => {
                let (count, _) = Value::decode(reply).ok()?;
                let ours = i64::try_from(Named::commands().count()).ok()?;
                encode::integer(&mut out, count.as_integer()?.checked_add(ours)?);
            }
            Self::Each(named) => {
                let (count, mut rest) = header(reply)?;
                encode::array_header(&mut out, count);
                for named in named {
                    let (_, len) = Value::decode(rest).ok()?;
                    match named {
                        Some(named) => named.describe(protocol, &mut out),
                        None => out.extend_from_slice(&rest[..len]),
                    }
                    rest = &rest[len..];
                }
            }
            Self::All => {
                let (count, rest) = header(reply)?;
                encode::array_header(&mut out, count + Named::commands().count());
                out.extend_from_slice(rest);
                for named in Named::commands() {
                    named.describe(protocol, &mut out);
                }
            }
            Self::Names(names) => {
                let (count, rest) = header(reply)?;
                encode::array_header(&mut out, count + names.len());
                out.extend_from_slice(rest);
                for named in names {
                    encode::bulk(&mut out, named.name.as_bytes());
                }
            }
            Self::Docs(named) => {
                let (count, rest) = header(reply)?;
                // In RESP2 a map is an array of keys and values.
                let pairs = if protocol == Protocol::Resp3 { count } else { count / 2 };
                encode::map_header(&mut out, protocol, pairs + named.len());
                out.extend_from_slice(rest);
                for named in named {
                    named.document(protocol, &mut out);
                }
            }
        }
        Some(out)
    }
}

/// What `COMMAND GETKEYS` and `GETKEYSANDFLAGS` answer of one of our own commands; `None`: a server knows.
pub(crate) fn keys<'a>(protocol: Protocol, n_args: usize, arg: impl Fn(usize) -> &'a [u8]) -> Option<Vec<u8>> {
    let is = |word: &str| arg(1).eq_ignore_ascii_case(word.as_bytes());
    let with_flags = is("GETKEYSANDFLAGS");
    if n_args < 3 || !(with_flags || is("GETKEYS")) {
        return None;
    }
    let row = lookup_request(n_args - 2, |index| arg(index + 2));
    if !row.is_ours() {
        return None;
    }
    let mut out = Vec::new();
    let keys = row.keys(n_args - 2, |index| arg(index + 2));
    if !row.accepts(n_args - 2) {
        encode::error(&mut out, "ERR Invalid number of arguments specified for command");
    } else if keys.is_empty() {
        encode::error(&mut out, "ERR The command has no key arguments");
    } else {
        encode::array_header(&mut out, keys.len());
        for key in keys {
            if with_flags {
                encode::array_header(&mut out, 2);
            }
            encode::bulk(&mut out, arg(key + 2));
            if with_flags {
                key_flags(row, protocol, &mut out);
            }
        }
    }
    Some(out)
}

impl Named {
    fn find(name: &[u8]) -> Option<Self> {
        let mut parts = name.splitn(2, |byte| *byte == b'|');
        let container = lookup(parts.next()?);
        let Some(own) = parts.next() else {
            return container.is_ours().then(|| Self { name: container.name.to_owned(), row: container });
        };
        let row = container.subcommands.iter().find(|row| row.name.as_bytes().eq_ignore_ascii_case(own))?;
        row.is_ours().then(|| Self { name: format!("{}|{}", container.name, row.name), row })
    }

    /// Ours, without subcommands.
    fn commands() -> impl Iterator<Item = Self> {
        rows().filter(|row| row.is_ours()).map(|row| Self { name: row.name.to_owned(), row })
    }

    fn all() -> impl Iterator<Item = Self> {
        Self::commands().flat_map(|named| {
            let subcommands = named.subcommands();
            std::iter::once(named).chain(subcommands)
        })
    }

    fn subcommands(&self) -> Vec<Self> {
        let full = |row: &'static Row| Self { name: format!("{}|{}", self.name, row.name), row };
        self.row.subcommands.iter().map(full).collect()
    }

    fn categories(&self) -> Vec<&'static str> {
        categories_of(&self.name.replace('|', " "), self.row)
    }

    /// `[name, arity, flags, first, last, step, categories, tips, key specifications, subcommands]`
    fn describe(&self, protocol: Protocol, out: &mut Vec<u8>) {
        let (row, subcommands) = (self.row, self.subcommands());
        encode::array_header(out, 10);
        encode::bulk(out, self.name.as_bytes());
        encode::integer(out, row.arity.into());
        // No script can call it, no transaction holds it.
        let mut flags = vec!["noscript", "no_multi"];
        flags.extend(match row.effect {
            Effect::ReadsKeys => Some("readonly"),
            Effect::WritesKeys | Effect::KeysUnknown => Some("write"),
            Effect::Harmless | Effect::Flush => None,
        });
        flags.extend((row.keys == Positions::UpToOptions).then_some("movablekeys"));
        encode::set_header(out, protocol, flags.len());
        for flag in flags {
            encode::simple(out, flag);
        }
        let (first, last, step) = match row.keys {
            Positions::Range { first, last, step } => (number(first), last as i64, number(step)),
            _ => (0, 0, 0),
        };
        for position in [first, last, step] {
            encode::integer(out, position);
        }
        let categories = self.categories();
        encode::set_header(out, protocol, categories.len());
        for category in categories {
            encode::simple(out, format!("@{category}"));
        }
        encode::set_header(out, protocol, 0);
        describe_keys(row, protocol, out);
        encode::set_header(out, protocol, subcommands.len());
        for subcommand in subcommands {
            subcommand.describe(protocol, out);
        }
    }

    fn document(&self, protocol: Protocol, out: &mut Vec<u8>) {
        let About(arguments, summary) = self.row.about;
        let subcommands = self.subcommands();
        encode::bulk(out, self.name.as_bytes());
        let pairs = 3 + usize::from(!arguments.is_empty()) + usize::from(!subcommands.is_empty());
        encode::map_header(out, protocol, pairs);
        let text = |out: &mut Vec<u8>, name: &str, value: &str| {
            encode::bulk(out, name.as_bytes());
            encode::bulk(out, value.as_bytes());
        };
        text(out, "summary", summary);
        text(out, "since", env!("CARGO_PKG_VERSION"));
        text(out, "group", "caddy");
        if !arguments.is_empty() {
            // As one, as it is written: what clients show.
            encode::bulk(out, b"arguments");
            encode::array_header(out, 1);
            encode::map_header(out, protocol, 2);
            text(out, "name", arguments);
            text(out, "type", "string");
        }
        if !subcommands.is_empty() {
            encode::bulk(out, b"subcommands");
            encode::map_header(out, protocol, subcommands.len());
            for subcommand in subcommands {
                subcommand.document(protocol, out);
            }
        }
    }
}

/// Where the keys are, in a server's words.
fn describe_keys(row: &Row, protocol: Protocol, out: &mut Vec<u8>) {
    let (first, run) = match row.keys {
        Positions::Range { first, last, step } => {
            // Counted from the first, unless from the end.
            let last = if last < 0 { last as i64 } else { last as i64 - number(first) };
            (first, Some((last, number(step))))
        }
        Positions::UpToOptions => (2, None),
        _ => return encode::set_header(out, protocol, 0),
    };
    encode::set_header(out, protocol, 1);
    encode::map_header(out, protocol, 3);
    encode::bulk(out, b"flags");
    key_flags(row, protocol, out);
    let begin = |out: &mut Vec<u8>, part: &str, kind: &str| {
        encode::bulk(out, part.as_bytes());
        encode::map_header(out, protocol, 2);
        encode::bulk(out, b"type");
        encode::bulk(out, kind.as_bytes());
        encode::bulk(out, b"spec");
    };
    begin(out, "begin_search", "index");
    encode::map_header(out, protocol, 1);
    encode::bulk(out, b"index");
    encode::integer(out, number(first));
    let Some((last, step)) = run else {
        begin(out, "find_keys", "unknown");
        return encode::map_header(out, protocol, 0);
    };
    begin(out, "find_keys", "range");
    encode::map_header(out, protocol, 3);
    for (name, value) in [("lastkey", last), ("keystep", step), ("limit", 0)] {
        encode::bulk(out, name.as_bytes());
        encode::integer(out, value);
    }
}

fn key_flags(row: &Row, protocol: Protocol, out: &mut Vec<u8>) {
    let flags = if row.effect == Effect::WritesKeys { ["RW", "update"] } else { ["RO", "access"] };
    encode::set_header(out, protocol, flags.len());
    for flag in flags {
        encode::simple(out, flag);
    }
}

fn number(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(0)
}

/// How many elements an aggregate's header says, and what is behind it.
fn header(reply: &[u8]) -> Option<(usize, &[u8])> {
    let end = reply.iter().position(|byte| *byte == b'\n')?;
    let count = reply.strip_prefix(b"*").or_else(|| reply.strip_prefix(b"%"))?;
    let count = std::str::from_utf8(&count[..end - 2]).ok()?.parse().ok()?;
    Some((count, &reply[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str, reply: &[u8]) -> Vec<u8> {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let question = Question::of(args.len(), |index| args[index]).unwrap();
        question.answer(reply, Protocol::Resp3).unwrap()
    }

    #[test]
    fn every_own_command_says_what_it_is_for() {
        for named in Named::all() {
            let About(_, summary) = named.row.about;
            assert!(!summary.is_empty() && !summary.ends_with('.'), "{}: {summary:?}", named.name);
            let needs_arguments = named.row.arity.unsigned_abs() > 1 + u8::from(named.name.contains('|'));
            let is_container = !named.row.subcommands.is_empty();
            assert!(is_container || !needs_arguments || !named.row.about.0.is_empty(), "{}", named.name);
        }
        assert!(
            rows().filter(|row| !row.is_ours()).all(|row| row.about.1.is_empty()),
            "those of others are the server's"
        );
    }

    #[test]
    fn ours_stand_in_their_places_and_others_stay_what_they_are() {
        let reply =
            ask("COMMAND INFO get nosuch Cache.Get cache.invalidate|TAG", b"*4\r\n*1\r\n+get\r\n_\r\n_\r\n_\r\n");
        let (reply, _) = Value::decode(&reply).unwrap();
        let elements = reply.as_elements().unwrap();
        assert_eq!(elements.len(), 4);
        assert_eq!(elements[0].as_elements().unwrap().len(), 1);
        assert!(elements[1].as_elements().is_none());
        let name = |at: usize| elements[at].as_elements().unwrap()[0].as_bytes().unwrap().to_vec();
        assert_eq!((name(2), name(3)), (b"cache.get".to_vec(), b"cache.invalidate|tag".to_vec()));
        let ours = Named::commands().count();
        assert_eq!(ask("command count", b":200\r\n"), format!(":{}\r\n", 200 + ours).as_bytes());
        let listed = ask("COMMAND LIST FILTERBY PATTERN lock.*", b"*0\r\n");
        assert_eq!(Value::decode(&listed).unwrap().0.as_elements().unwrap().len(), 6);
        let read = ask("COMMAND LIST FILTERBY ACLCAT read", b"*1\r\n$3\r\nget\r\n");
        assert!(read.windows(9).any(|window| window == b"cache.get") && !read.windows(9).any(|w| w == b"cache.set"));
        assert!(ask("COMMAND LIST FILTERBY MODULE x", b"*0\r\n") == b"*0\r\n");
    }
}
