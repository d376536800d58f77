//! `CACHE.INVALIDATE`: what is to be invalidated, parsed, and the command that does it in L3.
//!
//! Owns the grammar: a kind, what of that kind, then `MODE` and `REASON` in any order at the end. An invalidation is one
//! UNLINK on the relay (or with `MODE EXPIRE` one script), of keys, of generations, or of both: whatever becomes of it, local copies die before the app gets
//! its answer. What cannot be parsed changes nothing and gets an error that says what to send.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use caddy_engine::{
    Moment,
    invalidation::{InvalidationReason, InvalidationSubject, PatternKind},
};
use smallvec::SmallVec;

use super::{
    args::{Args, Instead, ReplyForm},
    caching::{MAX_TAG, too_long},
    conversation::{Conversation, Flow, Pending},
    relaying::effect,
};
use crate::{
    commands::{self, Row},
    events,
    generations::{ALL, Mode, expiring, of_keyspace, of_parent, of_tag},
    shared::{L3, Shared},
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
    /// Whatever carries one of these tags.
    Tags(Subjects<'a>),
    /// The values of these keys, and whatever depends on them, or on what does.
    Cascade(Subjects<'a>),
    /// What `CACHE.SET` wrote in a keyspace.
    Keyspace(&'a [u8]),
    /// What `CACHE.SET` wrote anywhere in the domain.
    All,
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
        let what = match (args.get(1).to_ascii_lowercase().as_slice(), subjects.as_slice()) {
            (b"all", []) => Invalidation::All,
            (b"keyspace", [name]) => Invalidation::Keyspace(name),
            (b"pattern", [glob]) => Invalidation::Matching(PatternKind::Glob, glob),
            (b"regex", [expression]) => Invalidation::Matching(PatternKind::Regex, expression),
            (b"key", [_, ..]) => Invalidation::Keys(subjects),
            (b"cascade", [_, ..]) => Invalidation::Cascade(subjects),
            (b"tag", [_, ..]) => {
                if let Some(tag) = subjects.iter().find(|tag| tag.is_empty() || tag.len() > MAX_TAG) {
                    return Err(too_long("tag", tag, MAX_TAG));
                }
                Invalidation::Tags(subjects)
            }
            _ => {
                let kind = args.get(1);
                return Err(format!(
                    "ERR CACHE.INVALIDATE takes KEY key…, TAG tag…, CASCADE key…, PATTERN glob, REGEX expression, KEYSPACE \
                     name or ALL, and then MODE REMOVE|EXPIRE and REASON text; '{}' with {} more is none of them",
                    kind[..kind.len().min(64)].escape_ascii(),
                    subjects.len()
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
            b"expire" => Ok(Self::Expire),
            _ => Err(format!("ERR MODE is REMOVE or EXPIRE, not '{}'", word[..word.len().min(64)].escape_ascii())),
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
            Invalidation::Matching(kind, text) => match order.mode {
                Mode::Remove => self.invalidate_matching(*kind, text, order.reason),
                Mode::Expire => {
                    self.reply_error(
                        "ERR a pattern removes what matches; MODE EXPIRE is for keys, tags, cascades and keyspaces",
                    );
                    Flow::Done
                }
            },
            what => self.invalidate_now(what, order.mode, order.reason),
        }
    }

    /// What one UNLINK does: of keys, of generations, or of both; or one script that makes them stale instead.
    fn invalidate_now(&mut self, what: &Invalidation<'_>, mode: Mode, note: &[u8]) -> Flow {
        let shared = self.worker.shared.clone();
        let own = |names: &[&[u8]]| names.iter().map(|name| Bytes::copy_from_slice(name)).collect();
        let text = |name: &&[u8]| String::from_utf8_lossy(name).into_owned();
        let (values, generations, subject): (&[&[u8]], Vec<Vec<u8>>, _) = match what {
            Invalidation::Matching(..) => return Flow::Done,
            Invalidation::Keys(keys) => (keys, Vec::new(), InvalidationSubject::Keys(own(keys))),
            Invalidation::Tags(tags) => {
                let subject = InvalidationSubject::Tags(tags.iter().map(text).collect());
                (&[], tags.iter().map(|tag| of_tag(tag)).collect(), subject)
            }
            Invalidation::Cascade(keys) => {
                (keys, keys.iter().map(|key| of_parent(key)).collect(), InvalidationSubject::Cascade(own(keys)))
            }
            Invalidation::Keyspace(name) => {
                let known = shared.names.all();
                let Some(name) = known.iter().find(|known| known.as_bytes() == *name) else {
                    self.reply_error(&format!(
                        "ERR no keyspace is named '{}'; there are {} (* is what no rule matches)",
                        String::from_utf8_lossy(&name[..name.len().min(64)]),
                        known.join(", "),
                    ));
                    return Flow::Done;
                };
                (&[], vec![of_keyspace(name)], InvalidationSubject::Keyspaces(vec![name.clone()]))
            }
            Invalidation::All => (&[], vec![ALL.to_vec()], InvalidationSubject::All),
        };
        let generations: Vec<_> = generations.iter().map(|name| shared.domain.key(name)).collect();
        let all: SmallVec<[&[u8]; 8]> = values.iter().copied().chain(generations.iter().map(|name| &**name)).collect();
        let instead = match (&shared.l3, mode) {
            // Nothing that loads lies in front of it, so that nothing stale is answered.
            (L3::Embedded(_), _) | (_, Mode::Remove) => None,
            (L3::Redis(_), Mode::Expire) => {
                Some(Instead { words: expiring(&shared.domain, &all), reply: ReplyForm::Expiring })
            }
        };
        let seq = self.replies.next_seq();
        let order = UnderWay::new(&shared, self.client.database, generations.clone(), mode, subject, note);
        self.invalidating.get_or_insert_default().0.push_back((seq, order));
        let flow = self.relay_instead(b"UNLINK", &all, instead.as_ref(), Pending::Relayed);
        if flow != Flow::Done || self.replies.pending_mut(seq).is_none() {
            // It comes again, or was answered without Redis.
            self.has_invalidated(seq, false);
        }
        flow
    }

    /// An invalidation that was under way as `seq` is answered; if it is none, nothing.
    #[inline]
    pub(super) fn has_invalidated(&mut self, seq: u64, is_done: bool) {
        let Some(invalidating) = &mut self.invalidating else { return };
        let Ok(at) = invalidating.0.binary_search_by_key(&seq, |(of, _)| *of) else { return };
        if let Some((_, mut order)) = invalidating.0.remove(at) {
            order.is_refused = !is_done;
        }
        if invalidating.0.is_empty() {
            self.invalidating = None;
        }
    }

    /// Relays another command than the app sent, as if it had sent that.
    pub(super) fn relay_as(&mut self, command: &[u8], rest: &[&[u8]], pending: Pending) -> Flow {
        self.relay_instead(command, rest, None, pending)
    }

    fn relay_instead(&mut self, command: &[u8], rest: &[&[u8]], instead: Option<&Instead>, pending: Pending) -> Flow {
        let words: SmallVec<[&[u8]; 8]> = std::iter::once(command).chain(rest.iter().copied()).collect();
        Request::new(&words).with(|row, args| self.relay(row, args.sent_as(instead), effect(row, args), pending))
    }
}

/// Invalidations of a session that are not answered yet, in the order of the numbers of their requests.
#[derive(Default)]
pub(super) struct Invalidating(VecDeque<(u64, UnderWay)>);

/// An invalidation that was sent, or is about to be. The sidecar answers for it from before: should a failover lose it, it is
/// repeated, whichever connection hears of that first. Dropped it is told of, also where nobody waits for its answer any
/// more; unless it was refused, which is as if it had not been.
struct UnderWay {
    shared: Arc<Shared>,
    at: Moment,
    database: u32,
    generations: Vec<Bytes>,
    event: Option<(InvalidationSubject<Bytes>, String)>,
    is_refused: bool,
}

impl UnderWay {
    fn new(
        shared: &Arc<Shared>,
        database: u32,
        generations: Vec<Bytes>,
        mode: Mode,
        subject: InvalidationSubject<Bytes>,
        note: &[u8],
    ) -> Self {
        let at = shared.now();
        shared.domain.remember(at, database, generations.iter().cloned(), mode);
        let event = Some((subject, String::from_utf8_lossy(note).into_owned()));
        Self { shared: shared.clone(), at, database, generations, event, is_refused: false }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.is_refused {
            self.shared.domain.forget(self.at, self.database, &self.generations);
        } else if let Some((subject, note)) = self.event.take() {
            events::tell(&self.shared, subject, InvalidationReason::Command, note, None, None);
        }
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
                other => return Err(format!("{other:?}")),
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
            (&["KEY"][..], "'KEY' with 0 more"),
            (&["KEYS", "a"], "'KEYS' with 1 more"),
            (&["PATTERN", "a", "b"], "'PATTERN' with 2 more"),
            (&["ALL", "a"], "'ALL' with 1 more"),
            (&["KEYSPACE", "a", "b"], "'KEYSPACE' with 2 more"),
            (&["TAG", ""], "a tag must not be empty"),
            (&["TAG", "a", &"x".repeat(513)], "LIMIT a tag has 513 bytes"),
            (&["KEY", "a", "MODE", "gone"], "MODE is REMOVE or EXPIRE, not 'gone'"),
            (&["KEY", "a", "REASON", &"x".repeat(513)], "LIMIT a reason has 513 bytes"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(said), "{words:?}: {error}");
        }
    }
}
