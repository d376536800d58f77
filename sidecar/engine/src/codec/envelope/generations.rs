//! The generations an entry depends on, with the values seen before it was computed.
//!
//! A list is bytes in the envelope's own form, borrowed and walked in place, so that a decoded list allocates nothing.
//! One item is `kind (1 byte) ‖ length (varint) ‖ body`; a kind that this build does not know makes the whole envelope
//! unreadable, because a dependency that cannot be checked must not be taken for granted. New kinds may be added.

use super::EnvelopeError;
use super::wire::{Cursor, put_varint};

/// More than any sane entry depends on; bounds what one value can make a reader walk.
pub const MAX_GENERATION_BYTES: usize = 64 * 1024;

const VALUE_BYTES: usize = 16;
const KIND_NAME: u8 = 0;
const KIND_ID: u8 = 1;

/// A generation's value: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GenerationValue(pub [u8; VALUE_BYTES]);

/// Which generation is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GenerationName<'a> {
    /// Its name below the domain's prefix, such as `t:news`.
    Name(&'a [u8]),
    /// A number that stands for a name by agreement outside the envelope.
    Id(u64),
}

/// The value of one generation, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation<'a> {
    /// Which one.
    pub name: GenerationName<'a>,
    /// What it was.
    pub value: GenerationValue,
}

/// A list of generations, borrowed from an envelope or from a [`GenerationList`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generations<'a> {
    items: &'a [u8],
}

impl<'a> Generations<'a> {
    /// Whether the entry depends on none.
    pub fn is_empty(self) -> bool {
        self.items.is_empty()
    }

    /// Every generation, in the order in which they were put in.
    pub fn iter(self) -> impl Iterator<Item = Generation<'a>> {
        let mut cursor = Cursor(self.items);
        // Every item was parsed once when the list was made: the walk ends at the end, never at a fault.
        std::iter::from_fn(move || if cursor.0.is_empty() { None } else { item(&mut cursor).ok() })
    }

    pub(super) fn parse(items: &'a [u8]) -> Result<Self, EnvelopeError> {
        let mut cursor = Cursor(items);
        while !cursor.0.is_empty() {
            item(&mut cursor)?;
        }
        Ok(Self { items })
    }

    pub(super) fn as_bytes(self) -> &'a [u8] {
        self.items
    }
}

fn item<'a>(cursor: &mut Cursor<'a>) -> Result<Generation<'a>, EnvelopeError> {
    const MALFORMED: EnvelopeError = EnvelopeError::Malformed { part: "generations" };
    let kind = cursor.byte().ok_or(MALFORMED)?;
    let length = cursor.varint().and_then(|length| usize::try_from(length).ok()).ok_or(MALFORMED)?;
    let mut body = Cursor(cursor.take(length).ok_or(MALFORMED)?);
    if !matches!(kind, KIND_NAME | KIND_ID) {
        return Err(EnvelopeError::UnknownGenerationKind { kind });
    }
    let value = GenerationValue(body.array().ok_or(MALFORMED)?);
    let name = if kind == KIND_NAME {
        GenerationName::Name(body.0)
    } else {
        GenerationName::Id(u64::from_le_bytes(body.0.try_into().map_err(|_| MALFORMED)?))
    };
    Ok(Generation { name, value })
}

/// A list of generations in the making.
///
/// ```
/// use caddy_engine::codec::envelope::{Generation, GenerationList, GenerationName, GenerationValue};
///
/// let news = Generation { name: GenerationName::Name(b"t:news"), value: GenerationValue([7; 16]) };
/// let mut list = GenerationList::default();
/// list.push(news)?;
/// assert!(list.generations().iter().eq([news]));
/// # Ok::<(), caddy_engine::codec::EnvelopeError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationList {
    items: Vec<u8>,
}

impl GenerationList {
    /// Adds one.
    ///
    /// # Errors
    ///
    /// The list would be longer than [`MAX_GENERATION_BYTES`]; it is as it was.
    pub fn push(&mut self, generation: Generation<'_>) -> Result<(), EnvelopeError> {
        let id;
        let (kind, name) = match generation.name {
            GenerationName::Name(name) => (KIND_NAME, name),
            GenerationName::Id(number) => {
                id = number.to_le_bytes();
                (KIND_ID, id.as_slice())
            }
        };
        let before = self.items.len();
        if name.len() <= MAX_GENERATION_BYTES {
            self.items.push(kind);
            put_varint(&mut self.items, (VALUE_BYTES + name.len()) as u64);
            self.items.extend_from_slice(&generation.value.0);
            self.items.extend_from_slice(name);
            if self.items.len() <= MAX_GENERATION_BYTES {
                return Ok(());
            }
            self.items.truncate(before);
        }
        Err(EnvelopeError::TooManyGenerations)
    }

    /// The list, for a [`Header`](super::Header).
    pub fn generations(&self) -> Generations<'_> {
        Generations { items: &self.items }
    }
}
