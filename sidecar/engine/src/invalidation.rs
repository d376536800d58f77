//! Invalidating more than one key: by pattern, by tag, along dependencies; and what others are told of it.
//!
//! Owns the words of invalidations ([`InvalidationEvent`]), patterns over the names of keys ([`KeyPattern`]), and their
//! use on a [`MultiTierCache`](crate::MultiTierCache) ([`PatternInvalidator`]); caches whose values belong to groups
//! ([`TagInvalidator`], [`CascadeInvalidator`]); and telling others ([`PubSubInvalidator`]). It decides nothing about copies: those die
//! by their stamps, as after any write.

mod event;
mod groups;
mod pattern;
mod pattern_invalidator;
mod pub_sub;

pub use event::{InvalidationEvent, InvalidationMetadata, InvalidationReason, InvalidationSubject};
pub use groups::{CascadeInvalidator, GroupToken, TagInvalidator, TaggedEntry};
pub use pattern::{KeyPattern, MAX_COMPILED, MAX_PATTERN, PatternError, PatternKind};
pub use pattern_invalidator::PatternInvalidator;
pub use pub_sub::{Missed, PubSubInvalidator, Subscription};
