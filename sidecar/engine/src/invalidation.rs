//! Invalidating more than one key: by pattern, and what others are told of it.
//!
//! Owns the words of invalidations ([`InvalidationEvent`]), patterns over the names of keys ([`KeyPattern`]), and their
//! use on a [`MultiTierCache`](crate::MultiTierCache) ([`PatternInvalidator`]). It decides nothing about copies: those die
//! by their stamps, as after any write.

mod event;
mod pattern;
mod pattern_invalidator;

pub use event::{InvalidationEvent, InvalidationMetadata, InvalidationReason, InvalidationSubject};
pub use pattern::{KeyPattern, MAX_COMPILED, MAX_PATTERN, PatternError, PatternKind};
pub use pattern_invalidator::PatternInvalidator;
