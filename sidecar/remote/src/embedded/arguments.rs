//! What arguments mean, and what is said of those that mean nothing; the texts are Redis 7's.

use caddy_resp::parse_i64;

/// Why a command was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(&'static str),
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    #[error("ERR value is out of range, value must between -2147483648 and 2147483647")]
    NotAnInt,
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    #[error("ERR decrement would overflow")]
    DecrementOverflow,
    #[error("ERR value is not a valid float")]
    NotAFloat,
    #[error("ERR increment would produce NaN or Infinity")]
    NotFinite,
    #[error("ERR invalid expire time in '{0}' command")]
    InvalidExpireTime(&'static str),
    #[error("ERR Unsupported option {0}")]
    UnsupportedOption(String),
    #[error("ERR NX and XX, GT or LT options at the same time are not compatible")]
    NxWithOthers,
    #[error("ERR GT and LT options at the same time are not compatible")]
    GtWithLt,
    #[error("ERR no such key")]
    NoSuchKey,
    #[error("ERR source and destination objects are the same")]
    SameObject,
    #[error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")]
    TooLong,
    #[error("ERR If you want both the length and indexes, please just use IDX.")]
    LengthAndMatches,
    #[error("ERR the strings are too long for LCS here: their lengths, multiplied, may be 4194304 at most")]
    TooLongForLcs,
    #[error("ERR offset is out of range")]
    OffsetOutOfRange,
    #[error("ERR DB index is out of range")]
    DatabaseOutOfRange,
    #[error("ERR invalid first DB index")]
    InvalidFirstDatabase,
    #[error("ERR invalid second DB index")]
    InvalidSecondDatabase,
    #[error("ERR invalid cursor")]
    InvalidCursor,
    #[error("ERR unknown subcommand '{1}'. Try {0} HELP.")]
    UnknownSubcommand(&'static str, String),
    #[error("ERR Invalid command specified")]
    InvalidCommand,
    #[error("ERR Invalid number of arguments specified for command")]
    InvalidArguments,
    #[error("ERR The command has no key arguments")]
    NoKeyArguments,
    #[error("ERR subscriptions need a connection")]
    NeedsConnection,
    #[error("ERR '{0}' needs a Redis L3: start with --redis URL, or set spec.l3.redis")]
    NeedsRedis(String),
}

pub(super) fn integer(argument: &[u8]) -> Result<i64, Fault> {
    parse_i64(argument).ok_or(Fault::NotAnInteger)
}

/// A C `int`.
pub(super) fn int(argument: &[u8]) -> Result<i32, Fault> {
    i32::try_from(integer(argument)?).map_err(|_| Fault::NotAnInt)
}

/// The index of a database that exists.
pub(super) fn database(argument: &[u8], databases: usize) -> Result<usize, Fault> {
    let index = int(argument)?;
    usize::try_from(index).ok().filter(|index| *index < databases).ok_or(Fault::DatabaseOutOfRange)
}

/// Whether `argument` is `word`, in any case.
pub(super) fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

/// A number of keys or bytes as the protocol has it.
pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
