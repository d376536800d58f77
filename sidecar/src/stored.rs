//! Replies as L2 holds them: ready to send, or packed where that pays.
//!
//! Owns the two forms and the way between them. What cannot be unpacked is [`Damaged`]: a miss, never another answer. A
//! packed entry that L1 would point to is unpacked for good first: see `session/unpack.rs`.

use std::borrow::Cow;

use bytes::Bytes;
use caddy_engine::{
    Weigh,
    codec::{Compressed, KeyspaceCodec},
    generations::Dependency,
};
use smallvec::SmallVec;

use crate::{cache::Cached, envelope::Notes};

/// What an entry of L2 holds: a reply ready to send, or one of the kinds of [`Cached`] that have bytes, packed.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    Plain(Cached),
    Bulk(Compressed),
    Same(Compressed),
    Resp3(Compressed),
    /// Any of these, of a value from an envelope that says more of it.
    Tagged(Box<Tagged>),
}

/// The generations of one value; each value that `CACHE.SET` writes has those of everything and of its keyspace.
pub(crate) type Dependencies = SmallVec<[Dependency; 5]>;

/// See [`Stored::Tagged`].
#[derive(Debug, Clone)]
pub(crate) struct Tagged {
    value: Stored,
    dependencies: Dependencies,
    notes: Notes,
}

/// A packed reply cannot be had back.
#[derive(Debug, thiserror::Error)]
#[error("failed to unpack a copy: {0}")]
pub(crate) struct Damaged(#[from] caddy_engine::codec::CompressionError);

impl Stored {
    /// The packed form of a reply, if that is smaller.
    pub(crate) fn pack(codec: &KeyspaceCodec, value: &Cached) -> Option<Self> {
        let (form, bytes): (fn(Compressed) -> Self, _) = match value {
            Cached::Nil => return None,
            Cached::Bulk(bytes) => (Self::Bulk, bytes),
            Cached::Same(bytes) => (Self::Same, bytes),
            Cached::Resp3(bytes) => (Self::Resp3, bytes),
        };
        let compressed = codec.compress(bytes).ok()?;
        #[cfg(feature = "mutations")]
        let compressed = crate::guards::damaged(compressed);
        Some(form(compressed))
    }

    /// The same with what it depends on, and what else its envelope says.
    pub(crate) fn depending(self, dependencies: Dependencies, notes: Notes) -> Self {
        if dependencies.is_empty() && notes == Notes::default() {
            return self;
        }
        Self::Tagged(Box::new(Tagged { value: self, dependencies, notes }))
    }

    /// What its envelope says beside the value.
    pub(crate) fn notes(&self) -> Notes {
        match self {
            Self::Tagged(tagged) => tagged.notes,
            _ => Notes::default(),
        }
    }

    /// Another form of the same value, with what this one depends on.
    pub(crate) fn in_form(&self, form: Self) -> Self {
        match self {
            Self::Tagged(tagged) => form.depending(tagged.dependencies.clone(), tagged.notes),
            _ => form,
        }
    }

    /// The reply, if it is ready to be sent.
    #[inline]
    pub(crate) fn ready(&self) -> Option<&Cached> {
        match self {
            Self::Plain(value) => Some(value),
            Self::Tagged(tagged) => tagged.value.ready(),
            Self::Bulk(_) | Self::Same(_) | Self::Resp3(_) => None,
        }
    }

    /// The reply.
    pub(crate) fn open(&self) -> Result<Cow<'_, Cached>, Damaged> {
        let (form, packed): (fn(Bytes) -> Cached, _) = match self {
            Self::Plain(value) => return Ok(Cow::Borrowed(value)),
            Self::Bulk(packed) => (Cached::Bulk, packed),
            Self::Same(packed) => (Cached::Same, packed),
            Self::Resp3(packed) => (Cached::Resp3, packed),
            Self::Tagged(tagged) => return tagged.value.open(),
        };
        Ok(Cow::Owned(form(packed.decompress()?.into())))
    }

    /// As [`Cached::exists`].
    pub(crate) fn exists(&self) -> bool {
        match self {
            Self::Plain(value) => value.exists(),
            Self::Bulk(_) => true,
            Self::Same(_) | Self::Resp3(_) => false,
            Self::Tagged(tagged) => tagged.value.exists(),
        }
    }
}

impl Weigh for Stored {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Plain(value) => value.heap_bytes(),
            Self::Bulk(packed) | Self::Same(packed) | Self::Resp3(packed) => packed.payload_bytes(),
            Self::Tagged(tagged) => {
                let spilled = if tagged.dependencies.spilled() { tagged.dependencies.capacity() } else { 0 };
                size_of::<Tagged>() + tagged.value.heap_bytes() + spilled * size_of::<Dependency>()
            }
        }
    }

    #[inline]
    fn dependencies(&self) -> &[Dependency] {
        match self {
            Self::Tagged(tagged) => &tagged.dependencies,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use caddy_engine::codec::{CodecConfig, Dictionaries};
    use caddy_resp::encode;

    use super::*;

    fn codec() -> KeyspaceCodec {
        KeyspaceCodec::new(CodecConfig { min_bytes: 1, ..CodecConfig::default() }, Arc::new(Dictionaries::default()))
    }

    fn bulk(length: usize) -> Cached {
        let mut reply = Vec::new();
        encode::bulk(&mut reply, &vec![b'x'; length]);
        Cached::Bulk(reply.into())
    }

    #[test]
    fn what_is_packed_is_the_same_reply() {
        for value in [bulk(3000), Cached::Same(vec![b'y'; 999].into()), Cached::Resp3(vec![b'z'; 999].into())] {
            let packed = Stored::pack(&codec(), &value).unwrap();
            assert!(packed.heap_bytes() < 200, "{packed:?}");
            assert_eq!(*packed.open().unwrap(), value);
            assert_eq!(packed.exists(), value.exists());
        }
        assert!(Stored::pack(&codec(), &Cached::Nil).is_none());
    }

    #[test]
    fn entries_are_no_larger_for_the_choice() {
        assert_eq!(size_of::<Stored>(), size_of::<Cached>());
    }
}
