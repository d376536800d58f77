//! Which arguments of a request are keys.
//!
//! Pure arithmetic over the argument vector, bounded by it. What cannot be parsed has no keys: the
//! server refuses such a request, so it touches none.

use caddy_resp::parse_i64;
use smallvec::SmallVec;

use super::specs::KeySpec;

/// Argument indexes; most commands have one key.
pub type KeyPositions = SmallVec<[usize; 4]>;

/// How to find a command's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// It has none, or none that its arguments name.
    None,
    /// From `first` to `last` (negative: from the end, −1 is the last argument), every `step`-th.
    Range {
        /// Index of the first key.
        first: usize,
        /// Index of the last key.
        last: isize,
        /// Distance between keys.
        step: usize,
    },
    /// The number of keys at `count`, then that many, every `step`-th: `EVAL`, `ZUNION`, `LMPOP`, `MSETEX`.
    Counted {
        /// Index of the number of keys.
        count: usize,
        /// Distance between keys.
        step: usize,
    },
    /// A destination, the number of sources, the sources: `ZUNIONSTORE`.
    DestinationAndCounted,
    /// The first half of what follows `STREAMS`: `XREAD`.
    Streams,
    /// The first argument, and what follows `STORE`: `SORT`.
    Sort,
    /// The first argument, and what follows `STORE` or `STOREDIST` from `options` on: `GEORADIUS`.
    Georadius {
        /// Index of the first option.
        options: usize,
    },
    /// The third argument, or if that is empty what follows `KEYS`: `MIGRATE`.
    Migrate,
    /// All behind the subcommand, up to options at the end: `CACHE.INVALIDATE KEY`.
    UpToOptions,
    /// As a server described it in `COMMAND`, where the built-in table has no row.
    Specs(&'static [KeySpec]),
}

impl Positions {
    /// One key, the first argument.
    pub(super) const ONE: Self = Self::Range { first: 1, last: 1, step: 1 };
    /// Two keys, the first arguments.
    pub(super) const TWO: Self = Self::Range { first: 1, last: 2, step: 1 };
    /// All arguments.
    pub(super) const ALL: Self = Self::Range { first: 1, last: -1, step: 1 };
    /// All arguments but the last, which is a timeout.
    pub(super) const ALL_BUT_LAST: Self = Self::Range { first: 1, last: -2, step: 1 };
    /// Keys and values in turn.
    pub(super) const PAIRS: Self = Self::Range { first: 1, last: -1, step: 2 };
    /// One key behind a subcommand.
    pub(super) const SECOND: Self = Self::Range { first: 2, last: 2, step: 1 };
    /// The number of keys is the first argument.
    pub(super) const COUNTED: Self = Self::Counted { count: 1, step: 1 };
    /// The number of keys is the second argument, behind a script or a timeout.
    pub(super) const COUNTED_SECOND: Self = Self::Counted { count: 2, step: 1 };

    pub(super) fn find<'a>(self, n_args: usize, arg: impl Fn(usize) -> &'a [u8]) -> KeyPositions {
        match self {
            Self::None => KeyPositions::new(),
            Self::Range { first, last, step } => {
                let end = match usize::try_from(last) {
                    Ok(last) => last + 1,
                    Err(_) => (n_args + 1).saturating_sub(last.unsigned_abs()),
                };
                (first..end.min(n_args)).step_by(step).collect()
            }
            Self::Counted { count, step } => counted(n_args, &arg, count, step),
            Self::DestinationAndCounted => {
                let mut keys = counted(n_args, &arg, 2, 1);
                if !keys.is_empty() {
                    keys.insert(0, 1);
                }
                keys
            }
            Self::Streams => match StreamOptions::of(n_args, &arg).streams {
                // As many IDs follow as keys.
                Some(streams) if (n_args - streams - 1).is_multiple_of(2) => {
                    let keys = (n_args - streams - 1) / 2;
                    (streams + 1..streams + 1 + keys).collect()
                }
                _ => KeyPositions::new(),
            },
            Self::Sort => with_destination(n_args, &arg, 2, &[b"STORE"]),
            Self::Georadius { options } => with_destination(n_args, &arg, options, &[b"STORE", b"STOREDIST"]),
            Self::Migrate => migrate(n_args, &arg),
            Self::UpToOptions => (2..trailing_options(n_args, arg)).collect(),
            Self::Specs(specs) => {
                let mut keys = KeyPositions::new();
                for spec in specs {
                    spec.find(n_args, &arg, &mut keys);
                }
                keys
            }
        }
    }
}

/// Where the options of `CACHE.INVALIDATE` begin: `MODE` and `REASON`, each with one word, at most once, at the end.
pub(crate) fn trailing_options<'a>(n_args: usize, arg: impl Fn(usize) -> &'a [u8]) -> usize {
    let mut options: SmallVec<[&[u8]; 2]> = SmallVec::from_slice(&[b"MODE" as &[u8], b"REASON"]);
    let mut end = n_args;
    // Behind the command and its kind.
    while end >= 4
        && let Some(at) = options.iter().position(|option| arg(end - 2).eq_ignore_ascii_case(option))
    {
        options.swap_remove(at);
        end -= 2;
    }
    end
}

/// What stands before the keys of `XREAD` and `XREADGROUP`.
pub(super) struct StreamOptions {
    /// Whether the command may wait.
    pub(super) blocks: bool,
    /// Where the word `STREAMS` is.
    pub(super) streams: Option<usize>,
}

impl StreamOptions {
    /// Walks as the server does, since groups and consumers may be called like options.
    pub(super) fn of<'a>(n_args: usize, arg: &impl Fn(usize) -> &'a [u8]) -> Self {
        let mut found = Self { blocks: false, streams: None };
        let mut at = 1;
        while at < n_args {
            let option = arg(at);
            if option.eq_ignore_ascii_case(b"STREAMS") {
                found.streams = Some(at);
                return found;
            }
            found.blocks |= option.eq_ignore_ascii_case(b"BLOCK");
            at += if option.eq_ignore_ascii_case(b"GROUP") {
                3
            } else if option.eq_ignore_ascii_case(b"NOACK") {
                1
            } else {
                2 // BLOCK, COUNT, CLAIM; whatever comes after our time has a value, too, or is an error.
            };
        }
        found
    }
}

fn counted<'a>(n_args: usize, arg: &impl Fn(usize) -> &'a [u8], count: usize, step: usize) -> KeyPositions {
    let first = count + 1;
    let keys = (count < n_args).then(|| arg(count)).and_then(parse_i64).and_then(|keys| usize::try_from(keys).ok());
    match keys {
        // As many must be there, each with what belongs to it.
        Some(keys) if keys <= n_args.saturating_sub(first) / step => (0..keys).map(|key| first + key * step).collect(),
        _ => KeyPositions::new(),
    }
}

/// The first argument, and the one behind the last of `options`: of several the last one counts.
fn with_destination<'a>(
    n_args: usize,
    arg: &impl Fn(usize) -> &'a [u8],
    from: usize,
    options: &[&[u8]],
) -> KeyPositions {
    let mut keys: KeyPositions = (1..2.min(n_args)).collect();
    let is_option = |index: usize| options.iter().any(|option| arg(index).eq_ignore_ascii_case(option));
    // All of them: one that is really a pattern's text costs a spare miss, a destination missed a stale copy.
    keys.extend((from..n_args.saturating_sub(1)).filter(|index| is_option(*index)).map(|index| index + 1));
    keys
}

fn migrate<'a>(n_args: usize, arg: &impl Fn(usize) -> &'a [u8]) -> KeyPositions {
    if n_args <= 3 {
        return KeyPositions::new();
    }
    if !arg(3).is_empty() {
        return (3..4).collect();
    }
    match position(6.min(n_args)..n_args, arg, b"KEYS") {
        Some(keys) => (keys + 1..n_args).collect(),
        None => KeyPositions::new(),
    }
}

fn position<'a>(mut within: std::ops::Range<usize>, arg: &impl Fn(usize) -> &'a [u8], word: &[u8]) -> Option<usize> {
    within.find(|index| arg(*index).eq_ignore_ascii_case(word))
}
