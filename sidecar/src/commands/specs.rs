//! Key specifications as servers write them in `COMMAND`: where a run of keys begins, and how far it goes.
//!
//! Pure arithmetic over the argument vector, bounded by it, as in [`super::keys`].

use caddy_resp::{Value, parse_i64};

use super::keys::KeyPositions;

/// One run of keys of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySpec {
    begin: Begin,
    find: Find,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// At this argument.
    Index(usize),
    /// Behind this word, looked for from there on; negative: backwards, from the end.
    Keyword { word: &'static str, from: isize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Find {
    /// To `last` (counted from the begin; negative: from the end), every `step`-th; of what is counted from the end only
    /// the `limit`-th part, if that is not 0.
    Range { last: isize, step: usize, limit: usize },
    /// The number of keys is at `count`, the keys from `first` on, every `step`-th; both counted from the begin.
    Count { count: usize, first: usize, step: usize },
}

/// A specification as a server sent it, and what it leaves open.
pub(super) struct Parsed {
    /// `None`: a run that only the server can find.
    pub(super) spec: Option<KeySpec>,
    /// The server says itself that there may be more keys.
    pub(super) incomplete: bool,
}

impl KeySpec {
    /// Reads one element of what `COMMAND` lists as key specifications.
    pub(super) fn parse(value: &Value<'_>, leak: fn(&str) -> &'static str) -> Parsed {
        let flags = value.field(b"flags").and_then(Value::as_elements).unwrap_or_default();
        let spec = parse_begin(value, leak).zip(parse_find(value)).map(|(begin, find)| Self { begin, find });
        Parsed { spec, incomplete: flags.iter().any(|flag| flag.as_bytes() == Some(b"incomplete")) }
    }

    pub(super) fn find<'a>(&self, n_args: usize, arg: &impl Fn(usize) -> &'a [u8], into: &mut KeyPositions) {
        let Some(begin) = self.begin.of(n_args, arg).filter(|begin| *begin < n_args) else { return };
        match self.find {
            Find::Range { last, step, limit } => {
                let end = match usize::try_from(last) {
                    Ok(last) => begin.saturating_add(last),
                    Err(_) => (begin + (n_args - begin) / limit.max(1)).saturating_sub(last.unsigned_abs()),
                };
                into.extend((begin..=end.min(n_args - 1)).step_by(step));
            }
            Find::Count { count, first, step } => {
                let at = begin.saturating_add(count);
                let keys = (at < n_args).then(|| arg(at)).and_then(parse_i64).and_then(|n| usize::try_from(n).ok());
                let first = begin.saturating_add(first);
                if let Some(keys) = keys
                    && keys <= n_args.saturating_sub(first).div_ceil(step)
                {
                    into.extend((0..keys).map(|key| first + key * step));
                }
            }
        }
    }
}

impl Begin {
    fn of<'a>(self, n_args: usize, arg: &impl Fn(usize) -> &'a [u8]) -> Option<usize> {
        let (word, from) = match self {
            Self::Index(index) => return Some(index),
            Self::Keyword { word, from } => (word, from),
        };
        let is_word = |index: &usize| arg(*index).eq_ignore_ascii_case(word.as_bytes());
        let found = match usize::try_from(from) {
            Ok(from) => (from..n_args).find(is_word),
            Err(_) => (1..(n_args + 1).saturating_sub(from.unsigned_abs())).rev().find(is_word),
        };
        found.map(|index| index + 1)
    }
}

fn parse_begin(value: &Value<'_>, leak: fn(&str) -> &'static str) -> Option<Begin> {
    let (kind, spec) = kind_and_spec(value, b"begin_search")?;
    match kind {
        b"index" => Some(Begin::Index(number(spec, b"index")?)),
        b"keyword" => {
            let word = std::str::from_utf8(spec.field(b"keyword")?.as_bytes()?).ok()?;
            let from = isize::try_from(spec.field(b"startfrom")?.as_integer()?).ok()?;
            Some(Begin::Keyword { word: leak(word), from })
        }
        _ => None,
    }
}

fn parse_find(value: &Value<'_>) -> Option<Find> {
    let (kind, spec) = kind_and_spec(value, b"find_keys")?;
    match kind {
        b"range" => {
            let last = isize::try_from(spec.field(b"lastkey")?.as_integer()?).ok()?;
            Some(Find::Range { last, step: number(spec, b"keystep")?.max(1), limit: number(spec, b"limit")? })
        }
        b"keynum" => Some(Find::Count {
            count: number(spec, b"keynumidx")?,
            first: number(spec, b"firstkey")?,
            step: number(spec, b"keystep")?.max(1),
        }),
        _ => None,
    }
}

fn kind_and_spec<'a, 'v>(value: &'v Value<'a>, part: &[u8]) -> Option<(&'a [u8], &'v Value<'a>)> {
    let part = value.field(part)?;
    Some((part.field(b"type")?.as_bytes()?, part.field(b"spec")?))
}

fn number(spec: &Value<'_>, field: &[u8]) -> Option<usize> {
    usize::try_from(spec.field(field)?.as_integer()?).ok()
}
