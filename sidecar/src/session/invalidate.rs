//! `CACHE.INVALIDATE`: what is to be invalidated, parsed, and the command that does it in L3.
//!
//! Owns the grammar: a kind, what of that kind, then `MODE` and `REASON` in any order at the end. An invalidation is one
//! command on the relay, like any write: whatever becomes of it, local copies die before the app gets its answer. What
//! cannot be parsed changes nothing and gets an error that says what to send.

use bytes::Bytes;
use caddy_engine::invalidation::{InvalidationReason, InvalidationSubject, PatternKind};
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, effect},
};
use crate::{
    commands::{self, Row},
    events,
};

/// Longest reason, bytes.
const MAX_REASON: usize = 512;

/// What a request names.
type Subjects<'a> = SmallVec<[&'a [u8]; 4]>;

/// What is to be invalidated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Invalidation<'a> {
    /// The values of these keys.
    Keys(Subjects<'a>),
    /// The values of keys that match.
    Matching(PatternKind, &'a [u8]),
}

/// What becomes of what is invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    /// It is gone.
    #[default]
    Remove,
}

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order<'a> {
    pub(super) what: Invalidation<'a>,
    pub(super) mode: Mode,
    /// For people.
    pub(super) reason: &'a [u8],
}

impl<'a> Order<'a> {
    /// Reads the arguments behind the command's name.
    pub(super) fn parse(args: Args<'a>) -> Result<Self, String> {
        let end = commands::trailing_options(args.len(), |index| args.get(index));
        let (mut mode, mut reason) = (Mode::default(), &b""[..]);
        let mut at = end;
        while at + 1 < args.len() {
            if args.is(at, "MODE") {
                mode = Mode::parse(args.get(at + 1))?;
            } else {
                reason = args.get(at + 1);
            }
            at += 2;
        }
        if reason.len() > MAX_REASON {
            return Err(format!("LIMIT a reason has {} bytes; at most {MAX_REASON} are allowed", reason.len()));
        }
        let subjects: Subjects<'a> = args.iter().take(end).skip(2).collect();
        let what = match args.get(1).to_ascii_lowercase().as_slice() {
            b"key" if subjects.is_empty() => return Err("ERR CACHE.INVALIDATE KEY takes one key or more".to_owned()),
            b"key" => Invalidation::Keys(subjects),
            kind @ (b"pattern" | b"regex") => {
                let [text] = subjects[..] else {
                    return Err("ERR CACHE.INVALIDATE PATTERN and REGEX take one pattern".to_owned());
                };
                Invalidation::Matching(if kind == b"regex" { PatternKind::Regex } else { PatternKind::Glob }, text)
            }
            _ => {
                let kind = args.get(1);
                return Err(format!(
                    "ERR CACHE.INVALIDATE knows no '{}'; it takes KEY key…, PATTERN glob or REGEX expression, then MODE REMOVE and REASON text",
                    kind[..kind.len().min(64)].escape_ascii()
                ));
            }
        };
        Ok(Self { what, mode, reason })
    }
}

impl Mode {
    fn parse(word: &[u8]) -> Result<Self, String> {
        match word.to_ascii_lowercase().as_slice() {
            b"remove" => Ok(Self::Remove),
            _ => Err(format!("ERR MODE is REMOVE, not '{}'", word[..word.len().min(64)].escape_ascii())),
        }
    }
}

impl Conversation {
    /// `CACHE.INVALIDATE`, and the list of those that take their time.
    pub(super) fn invalidate(&mut self, args: Args<'_>) -> Flow {
        if args.is(0, "CACHE.INVALIDATIONS") {
            return self.invalidations();
        }
        let order = match Order::parse(args) {
            Ok(order) => order,
            Err(message) => {
                self.reply_error(&message);
                return Flow::Done;
            }
        };
        match &order.what {
            Invalidation::Keys(keys) => {
                let flow = self.relay_as(b"UNLINK", keys);
                if flow == Flow::Done {
                    let keys = keys.iter().map(|key| Bytes::copy_from_slice(key)).collect();
                    let note = String::from_utf8_lossy(order.reason).into_owned();
                    let (subject, reason) = (InvalidationSubject::Keys(keys), InvalidationReason::Command);
                    events::tell(&self.worker.shared, subject, reason, note, None, None);
                }
                flow
            }
            Invalidation::Matching(kind, text) => match order.mode {
                Mode::Remove => self.invalidate_matching(*kind, text, order.reason),
            },
        }
    }

    /// Relays another command than the app sent, as if it had sent that.
    pub(super) fn relay_as(&mut self, command: &[u8], rest: &[&[u8]]) -> Flow {
        let words: SmallVec<[&[u8]; 8]> = std::iter::once(command).chain(rest.iter().copied()).collect();
        Request::new(&words).with(|row, args| self.relay(row, args, effect(row, args), Pending::Relayed))
    }
}

/// A request that the sidecar makes up.
pub(super) struct Request {
    parser: caddy_resp::RequestParser,
    frame: Vec<u8>,
}

impl Request {
    pub(super) fn new(words: &[&[u8]]) -> Self {
        let mut frame = Vec::with_capacity(words.iter().map(|word| word.len() + 16).sum());
        caddy_resp::encode::command(&mut frame, words.iter().copied());
        let limits =
            caddy_resp::Limits { max_args: usize::MAX, max_frame: usize::MAX, ..caddy_resp::Limits::default() };
        Self { parser: caddy_resp::RequestParser::new(limits), frame }
    }

    /// Shows it as requests of apps are shown.
    pub(super) fn with<T>(mut self, show: impl FnOnce(&'static Row, Args<'_>) -> T) -> T {
        // It was encoded just now.
        let parsed = self.parser.parse(&self.frame);
        debug_assert_eq!(parsed.ok().flatten(), Some(self.frame.len()));
        let args = Args::new(&self.parser, &self.frame);
        show(commands::lookup_request(args.len(), |index| args.get(index)), args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys and the reason.
    fn parse(words: &[&str]) -> Result<(Vec<String>, String), String> {
        let words: Vec<&[u8]> = [&["CACHE.INVALIDATE"], words].concat().iter().map(|word| word.as_bytes()).collect();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Request::new(&words).with(|_, args| {
            let Order { what, reason, .. } = Order::parse(args)?;
            let subjects = match what {
                Invalidation::Keys(keys) => keys.iter().map(|key| text(key)).collect(),
                Invalidation::Matching(kind, pattern) => vec![kind.word().to_owned(), text(pattern)],
            };
            Ok((subjects, text(reason)))
        })
    }

    #[test]
    fn options_stand_at_the_end_in_any_order() {
        let order = |keys: &[&str], reason: &str| {
            Ok((keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>(), reason.to_owned()))
        };
        let words = ["key", "a", "b", "mode", "remove", "REASON", "a price has changed"];
        assert_eq!(parse(&words), order(&["a", "b"], "a price has changed"));
        assert_eq!(parse(&["KEY", "a", "REASON", "x", "MODE", "REMOVE"]), order(&["a"], "x"));
        assert_eq!(parse(&["regex", "^a$", "REASON", "x"]), order(&["regex", "^a$"], "x"));
        // Words that are not at the end are keys.
        assert_eq!(parse(&["KEY", "MODE", "REASON", "a"]), order(&["MODE"], "a"));
        assert_eq!(parse(&["KEY", "MODE", "x", "a"]), order(&["MODE", "x", "a"], ""));
    }

    #[test]
    fn bad_input_is_told_what_to_send() {
        for (words, said) in [
            (&["KEY"][..], "takes one key or more"),
            (&["KEYS", "a"], "knows no 'KEYS'"),
            (&["PATTERN", "a", "b"], "take one pattern"),
            (&["KEY", "a", "MODE", "gone"], "MODE is REMOVE, not 'gone'"),
            (&["KEY", "a", "REASON", &"x".repeat(513)], "LIMIT a reason has 513 bytes"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(said), "{words:?}: {error}");
        }
    }
}
