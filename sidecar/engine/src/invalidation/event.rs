//! What is told of an invalidation: which kind, what it was about, why, when, where from, how much.
//!
//! Plain values. How they travel, and in which form, is the business of whoever sends them.

use std::time::SystemTime;

/// One invalidation, as others are told of it. `K` is how keys are written.
///
/// ```
/// use caddy_engine::invalidation::{InvalidationEvent, InvalidationMetadata, InvalidationReason, InvalidationSubject};
///
/// let event = InvalidationEvent::<String> {
///     subject: InvalidationSubject::Pattern("user:*".to_owned()),
///     metadata: InvalidationMetadata::now(InvalidationReason::Command, "shop-7d9f"),
/// };
/// assert_eq!((event.subject.kind(), event.metadata.removed), ("pattern", None));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidationEvent<K> {
    /// What was invalidated.
    pub subject: InvalidationSubject<K>,
    /// Why, when, from where, how much.
    pub metadata: InvalidationMetadata,
}

/// What an invalidation was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidationSubject<K> {
    /// These keys.
    Keys(Vec<K>),
    /// Whatever carries one of these tags.
    Tags(Vec<String>),
    /// Keys that match a Redis glob.
    Pattern(K),
    /// Keys in which a regular expression finds something.
    Regex(K),
    /// These keys and whatever depends on them.
    Cascade(Vec<K>),
    /// All keys of these keyspaces.
    Keyspaces(Vec<String>),
    /// Everything.
    All,
}

impl<K> InvalidationSubject<K> {
    /// One word for its kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Keys(_) => "key",
            Self::Tags(_) => "tag",
            Self::Pattern(_) => "pattern",
            Self::Regex(_) => "regex",
            Self::Cascade(_) => "cascade",
            Self::Keyspaces(_) => "keyspace",
            Self::All => "all",
        }
    }
}

/// Who or what wanted an invalidation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidationReason {
    /// An app, or a person, by a command.
    Command,
    /// A program, through the library.
    Call,
    /// A Kubernetes object.
    Object,
    /// A key that others depend on was written.
    ParentWritten,
    /// It may have been lost in a failover of L3, and is repeated.
    Repeated,
}

impl InvalidationReason {
    /// One word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Call => "call",
            Self::Object => "object",
            Self::ParentWritten => "parent-written",
            Self::Repeated => "repeated",
        }
    }
}

/// What is known of an invalidation beside its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidationMetadata {
    /// Who or what wanted it.
    pub reason: InvalidationReason,
    /// Why, in somebody's words; empty if nobody said.
    pub note: String,
    /// When it took effect, on the clock of whoever did it.
    pub at: SystemTime,
    /// Who did it: a pod, a process.
    pub origin: String,
    /// How many entries it removed from L3; `None`: that is not known, or not yet.
    pub removed: Option<u64>,
}

impl InvalidationMetadata {
    /// Of something that `origin` does at this moment.
    pub fn now(reason: InvalidationReason, origin: impl Into<String>) -> Self {
        Self { reason, note: String::new(), at: SystemTime::now(), origin: origin.into(), removed: None }
    }
}
