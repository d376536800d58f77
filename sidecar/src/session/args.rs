//! One parsed request, borrowed from the input.

use bytes::Bytes;
use caddy_resp::{RequestParser, encode};

/// A request's arguments; the first is the command's name.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a> {
    parser: &'a RequestParser,
    frame: &'a [u8],
    instead: Option<&'a Instead>,
}

/// What is sent in place of a request. The request stays what it is for all else: where it goes, what it means for copies,
/// what a store is told.
#[derive(Debug, Clone)]
pub(crate) struct Instead {
    pub(crate) words: Vec<Bytes>,
    /// How its reply becomes the one to the request.
    pub(crate) reply: ReplyForm,
}

/// See [`Instead::reply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyForm {
    /// It is.
    Same,
    /// It is computed from the values in it, see [`crate::strings`].
    Computed,
    /// The same, of the one value that was there before.
    Former,
    /// It is; and what is sent is [`crate::generations::expiring`] the request's keys.
    Expiring,
}

impl<'a> Args<'a> {
    /// `frame` is the whole request that `parser` has just found.
    pub(crate) fn new(parser: &'a RequestParser, frame: &'a [u8]) -> Self {
        Self { parser, frame, instead: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.parser.len()
    }

    /// The argument at `index`; empty if there is none.
    pub(crate) fn get(&self, index: usize) -> &'a [u8] {
        if index < self.len() { self.parser.arg(self.frame, index) } else { b"" }
    }

    /// Whether the argument at `index` is `word`, in any case.
    pub(crate) fn is(&self, index: usize, word: &str) -> bool {
        self.get(index).eq_ignore_ascii_case(word.as_bytes())
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        self.parser.args(self.frame)
    }

    /// Those from `index` on.
    pub(crate) fn from(&self, index: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        self.iter().skip(index)
    }

    /// The same request, in place of which something else is sent.
    pub(crate) fn sent_as<'b>(self, instead: Option<&'b Instead>) -> Args<'b>
    where
        'a: 'b,
    {
        Args { parser: self.parser, frame: self.frame, instead }
    }

    /// What is sent in its place.
    pub(crate) fn instead(&self) -> Option<&'a Instead> {
        self.instead
    }

    /// The request as it goes upstream.
    pub(crate) fn to_bytes(self) -> Bytes {
        if let Some(instead) = self.instead {
            let mut out = Vec::with_capacity(instead.words.iter().map(|word| word.len() + 16).sum());
            encode::command(&mut out, instead.words.iter().map(|word| &word[..]));
            out.into()
        } else if self.parser.is_canonical() {
            Bytes::copy_from_slice(self.frame)
        } else {
            let mut out = Vec::with_capacity(self.frame.len() + 32);
            self.append_to(&mut out);
            out.into()
        }
    }

    /// Appends the request itself.
    pub(crate) fn append_to(self, out: &mut Vec<u8>) {
        if self.parser.is_canonical() {
            out.extend_from_slice(self.frame);
        } else {
            encode::command(out, self.iter());
        }
    }

    /// Whether it is the very request that was passed on as `bytes`.
    pub(crate) fn is_same(&self, bytes: &[u8]) -> bool {
        self.frame == bytes
    }

    /// The first arguments as text for messages, cut to a readable length.
    pub(crate) fn name(&self) -> String {
        let name = self.get(0);
        String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned()
    }
}
