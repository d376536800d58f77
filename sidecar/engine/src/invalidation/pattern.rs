//! Patterns over the names of keys: Redis's globs, and regular expressions in linear time.
//!
//! Bounded where somebody else writes them: a pattern has at most [`MAX_PATTERN`] bytes, a compiled expression at most
//! [`MAX_COMPILED`]; matching takes time proportional to pattern × name at worst, whatever the pattern. Fails with
//! [`PatternError`], which says what to change.

use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

use crate::glob::Glob;

/// The longest pattern, bytes.
pub const MAX_PATTERN: usize = 1024;
/// What a compiled regular expression may take, bytes.
pub const MAX_COMPILED: usize = 256 << 10;

/// How a pattern is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PatternKind {
    /// As in `KEYS`: matches whole names.
    Glob,
    /// A regular expression that may match anywhere in a name; `^` and `$` tie it to its ends.
    Regex,
}

impl PatternKind {
    /// One word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Glob => "pattern",
            Self::Regex => "regex",
        }
    }
}

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatternError {
    /// It is empty: nothing, or everything, would match.
    #[error("the pattern is empty; * is every key")]
    Empty,
    /// It is longer than [`MAX_PATTERN`].
    #[error("the pattern has {bytes} bytes; at most {MAX_PATTERN} are allowed: split it, or use a tag")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Regular expressions are text.
    #[error("the regular expression is not UTF-8; write bytes as (?-u)\\xFF")]
    NotText,
    /// It is none, or a repetition in it is too large.
    #[error("the regular expression cannot be used: {reason}")]
    Regex {
        /// What is wrong with it.
        reason: String,
    },
}

/// A set of keys, by the form of their names. Names are bytes, and so may patterns be.
///
/// ```
/// use caddy_engine::invalidation::KeyPattern;
///
/// let glob = KeyPattern::glob("user:[0-9]*")?;
/// assert!(glob.matches(b"user:7:name") && !glob.matches(b"a user:7"));
/// let regex = KeyPattern::regex(r"^user:\d+$")?;
/// assert!(regex.matches(b"user:7") && !regex.matches(b"user:7:name"));
/// # Ok::<(), caddy_engine::invalidation::PatternError>(())
/// ```
#[derive(Debug, Clone)]
pub struct KeyPattern(Form);

#[derive(Debug, Clone)]
enum Form {
    Glob(Glob),
    Regex(Regex),
}

impl PartialEq for KeyPattern {
    fn eq(&self, other: &Self) -> bool {
        (self.kind(), self.text()) == (other.kind(), other.text())
    }
}

impl Eq for KeyPattern {}

impl KeyPattern {
    /// A pattern as its kind has it.
    ///
    /// # Errors
    ///
    /// It is empty, too long, or no regular expression that can be compiled within its bounds.
    pub fn new(kind: PatternKind, text: &[u8]) -> Result<Self, PatternError> {
        match kind {
            PatternKind::Glob => Self::glob(text),
            PatternKind::Regex => Self::regex(text),
        }
    }

    /// Names that match a glob as a whole.
    ///
    /// # Errors
    ///
    /// See [`new`](Self::new).
    pub fn glob(pattern: impl AsRef<[u8]>) -> Result<Self, PatternError> {
        let pattern = pattern.as_ref();
        within_bounds(pattern)?;
        Ok(Self(Form::Glob(Glob::new(pattern))))
    }

    /// Names in which a regular expression matches.
    ///
    /// # Errors
    ///
    /// See [`new`](Self::new).
    pub fn regex(pattern: impl AsRef<[u8]>) -> Result<Self, PatternError> {
        let pattern = pattern.as_ref();
        within_bounds(pattern)?;
        let text = std::str::from_utf8(pattern).map_err(|_| PatternError::NotText)?;
        let compiled = RegexBuilder::new(text).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build();
        let regex = compiled.map_err(|error| PatternError::Regex { reason: in_one_line(&error) })?;
        Ok(Self(Form::Regex(regex)))
    }

    /// Whether it has the key of this name.
    pub fn matches(&self, name: &[u8]) -> bool {
        match &self.0 {
            Form::Glob(glob) => glob.matches(name),
            Form::Regex(regex) => regex.is_match(name),
        }
    }

    /// How it is written.
    pub const fn kind(&self) -> PatternKind {
        match self.0 {
            Form::Glob(_) => PatternKind::Glob,
            Form::Regex(_) => PatternKind::Regex,
        }
    }

    /// As it was given.
    pub fn text(&self) -> &[u8] {
        match &self.0 {
            Form::Glob(glob) => glob.pattern(),
            Form::Regex(regex) => regex.as_str().as_bytes(),
        }
    }
}

fn within_bounds(pattern: &[u8]) -> Result<(), PatternError> {
    match pattern.len() {
        0 => Err(PatternError::Empty),
        1..=MAX_PATTERN => Ok(()),
        bytes => Err(PatternError::TooLong { bytes }),
    }
}

/// The last line of the library's drawing says what is wrong.
fn in_one_line(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => {
            format!("compiled it would take more than {} KiB; use smaller repetitions", MAX_COMPILED >> 10)
        }
        error => {
            let text = error.to_string();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            last.trim().trim_start_matches("error: ").to_owned()
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_patterns_are_told_what_to_change() {
        let said = |error: Result<KeyPattern, PatternError>| error.unwrap_err().to_string();
        assert!(said(KeyPattern::glob(b"")).contains("* is every key"));
        assert!(said(KeyPattern::glob([b'a'; 1025])).contains("1025 bytes; at most 1024"));
        assert!(said(KeyPattern::regex(b"a\xff")).contains("not UTF-8"));
        assert!(said(KeyPattern::regex(b"a(b")).contains("unclosed group"));
        assert!(said(KeyPattern::regex(br"((\w{100}){100}){10}")).contains("256 KiB"));
    }

    #[test]
    fn an_expression_that_would_explode_elsewhere_is_linear() {
        let evil = KeyPattern::regex(b"^(a+)+(a|a?)+$").unwrap();
        let mut name = vec![b'a'; 100_000];
        assert!(evil.matches(&name));
        name.push(b'!');
        assert!(!evil.matches(&name));
    }

    proptest! {
        #[test]
        fn a_glob_is_the_glob(pattern in "[ab*?\\[\\]^-]{1,8}", name in "[ab-]{0,8}") {
            let whole = KeyPattern::glob(pattern.as_bytes()).unwrap();
            prop_assert_eq!(whole.matches(name.as_bytes()), Glob::new(pattern.as_bytes()).matches(name.as_bytes()));
        }

        #[test]
        fn a_literal_expression_finds_its_text(literal in "[a-c:]{1,4}", name in "[a-c:]{0,12}") {
            let regex = KeyPattern::regex(literal.as_bytes()).unwrap();
            prop_assert_eq!(regex.matches(name.as_bytes()), name.contains(&literal));
        }
    }
}
