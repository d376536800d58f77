//! The client's side: where the frames of a server's stream end.
//!
//! Measures frames of every RESP2 and RESP3 type without decoding or copying them; nested aggregates
//! are counted on a small stack of bounded depth. Never looks at what a frame says beyond its lengths
//! ([`Value`](crate::Value) does). Fails by [`ReplyError`]: the stream is lost, close the connection.

use std::fmt;

use memchr::memchr;
use smallvec::SmallVec;

use crate::number;

/// What a server may send at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyLimits {
    /// Aggregates within aggregates.
    pub max_depth: usize,
    /// Bytes in one frame, framing included.
    pub max_frame: usize,
}

impl Default for ReplyLimits {
    /// Depth 16,384 (a script's reply may nest as deep as Lua's stack, some thousands), 1 GiB.
    fn default() -> Self {
        Self { max_depth: 1 << 14, max_frame: 1 << 30 }
    }
}

/// Bytes in a line that holds a length.
const MAX_HEADER: usize = 32;
/// Bytes in the smallest element, `_\r\n`.
const MIN_ELEMENT: usize = 3;

/// What a frame is to the one who waits for replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// The answer to the oldest request that has none.
    Reply,
    /// `>`: out of band, answers nothing.
    Push,
    /// `|`: belongs to the frame that follows it.
    Attribute,
}

/// One complete frame at the front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its length in bytes.
    pub len: usize,
    /// How to treat it.
    pub kind: FrameKind,
    /// Whether it is a simple or a blob error (at its top level).
    pub is_error: bool,
}

/// Why a server's stream cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyError {
    /// A frame begins with a byte that is no type.
    UnknownType(u8),
    /// A length is no integer, negative where it may not be, or its line is malformed.
    InvalidLength,
    /// A line does not end in `\r\n`, or a blob is not followed by it.
    MissingTerminator,
    /// Streamed strings or aggregates (`$?`, `*?`), which no server sends.
    Streamed,
    /// A push within an aggregate.
    NestedPush,
    /// Aggregates nest deeper than [`ReplyLimits::max_depth`], which is this.
    TooDeep(usize),
    /// The frame is larger than [`ReplyLimits::max_frame`], which is this.
    TooBig(usize),
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(byte) => write!(f, "unknown reply type {:?}", char::from(*byte)),
            Self::InvalidLength => f.write_str("invalid length in a reply"),
            Self::MissingTerminator => f.write_str("a line or blob of a reply does not end in CRLF"),
            Self::Streamed => f.write_str("streamed replies are not supported"),
            Self::NestedPush => f.write_str("a push within a reply"),
            Self::TooDeep(max) => write!(f, "reply nested deeper than {max} levels"),
            Self::TooBig(max) => write!(f, "reply larger than {max} bytes"),
        }
    }
}

impl std::error::Error for ReplyError {}

/// Finds frames at the front of a server's stream.
///
/// ```
/// use caddy_resp::{FrameKind, ReplyScanner};
///
/// let mut scanner = ReplyScanner::default();
/// let stream = b"*2\r\n$1\r\na\r\n:1\r\n+OK\r\n";
/// assert_eq!(scanner.scan(&stream[..9])?, None);
/// let frame = scanner.scan(stream)?.expect("complete");
/// assert_eq!((frame.len, frame.kind, frame.is_error), (15, FrameKind::Reply, false));
/// assert_eq!(scanner.scan(&stream[frame.len..])?.expect("complete").len, 5);
/// # Ok::<(), caddy_resp::ReplyError>(())
/// ```
#[derive(Debug, Default)]
pub struct ReplyScanner {
    limits: ReplyLimits,
    /// Elements still missing in each open aggregate, outermost first.
    open: SmallVec<[usize; 8]>,
    /// Kind and error flag, once the first header is read.
    top: Option<(FrameKind, bool)>,
    /// First byte that is not understood yet: an element's begin, or within `blob` its content's.
    pos: usize,
    /// The length of the blob whose content is at `pos`.
    blob: Option<usize>,
    /// The line at `pos` has no end before this.
    searched: usize,
}

/// What the header of an element announces.
enum Element {
    /// Nothing more.
    Scalar,
    /// So many bytes and `\r\n`.
    Blob(usize),
    /// So many elements.
    Aggregate(usize),
    /// So many elements, and then the one that they describe.
    Attribute(usize),
}

impl ReplyScanner {
    /// A scanner for one connection.
    pub fn new(limits: ReplyLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Looks for a whole frame at the front of `input`.
    ///
    /// After `None` call again with the same bytes and more behind them; after `Some` with what is
    /// behind the frame.
    ///
    /// # Errors
    /// The stream cannot be understood from here on; later calls make no sense.
    pub fn scan(&mut self, input: &[u8]) -> Result<Option<Frame>, ReplyError> {
        loop {
            if let Some(len) = self.blob {
                let end = self.pos + len;
                let Some(terminator) = input.get(end..end + 2) else { return Ok(None) };
                if terminator != b"\r\n" {
                    return Err(ReplyError::MissingTerminator);
                }
                self.blob = None;
                self.pos = end + 2;
                self.searched = self.pos;
            } else {
                let Some(element) = self.header(input)? else { return Ok(None) };
                match element {
                    Element::Scalar => {}
                    Element::Blob(len) => {
                        self.blob = Some(len);
                        continue;
                    }
                    Element::Aggregate(elements) => self.descend(elements)?,
                    Element::Attribute(elements) => {
                        // It is not the element that its aggregate waits for.
                        if let Some(missing) = self.open.last_mut() {
                            *missing += 1;
                        }
                        self.descend(elements)?;
                    }
                }
            }
            if self.close_element() {
                let (kind, is_error) = self.top.take().unwrap_or((FrameKind::Reply, false));
                let len = std::mem::take(&mut self.pos);
                self.searched = 0;
                return Ok(Some(Frame { len, kind, is_error }));
            }
        }
    }

    /// After `None`: a length of input below which the next call cannot succeed either. Reading at
    /// least so much at once spares wake-ups on large frames.
    pub fn bytes_needed(&self) -> usize {
        let next = self.blob.map_or(1, |len| len + 2);
        // Each count but the innermost includes the aggregate that is open in it.
        let missing = self.open.iter().sum::<usize>().saturating_sub(self.open.len());
        self.pos.saturating_add(next).saturating_add(missing.saturating_mul(MIN_ELEMENT))
    }

    /// Reads the header line at `pos` and goes behind it.
    fn header(&mut self, input: &[u8]) -> Result<Option<Element>, ReplyError> {
        let Some(&kind) = input.get(self.pos) else { return Ok(None) };
        let scalar = match kind {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => true,
            b'$' | b'!' | b'=' | b'*' | b'~' | b'%' | b'>' | b'|' => false,
            b';' | b'.' => return Err(ReplyError::Streamed),
            other => return Err(ReplyError::UnknownType(other)),
        };
        let Some(end) = self.line(input, if scalar { self.limits.max_frame } else { MAX_HEADER })? else {
            return Ok(None);
        };
        let text = &input[self.pos + 1..end];
        let element = if scalar { Element::Scalar } else { announced(kind, text)? };
        if self.top.is_none() {
            let frame = match kind {
                b'>' => FrameKind::Push,
                b'|' => FrameKind::Attribute,
                _ => FrameKind::Reply,
            };
            self.top = Some((frame, matches!(kind, b'-' | b'!')));
        } else if kind == b'>' {
            return Err(ReplyError::NestedPush);
        }
        self.pos = end + 2;
        self.searched = self.pos;
        let announced = match element {
            Element::Scalar => 0,
            Element::Blob(len) => len.saturating_add(2),
            Element::Aggregate(elements) | Element::Attribute(elements) => elements.saturating_mul(MIN_ELEMENT),
        };
        if announced > self.limits.max_frame.saturating_sub(self.pos) {
            return Err(ReplyError::TooBig(self.limits.max_frame));
        }
        Ok(Some(element))
    }

    /// Where the `\r` of the line at `pos` is, once `\r\n` has arrived.
    fn line(&mut self, input: &[u8], max: usize) -> Result<Option<usize>, ReplyError> {
        let from = self.searched.max(self.pos);
        let found = memchr(b'\r', &input[from..]).map(|found| from + found);
        let end = found.unwrap_or(input.len());
        self.searched = end;
        if end - self.pos > max {
            return Err(if max == MAX_HEADER { ReplyError::InvalidLength } else { ReplyError::TooBig(max) });
        }
        match (found, input.get(end + 1)) {
            (Some(_), Some(b'\n')) => Ok(Some(end)),
            (Some(_), Some(_)) => Err(ReplyError::MissingTerminator),
            _ => Ok(None),
        }
    }

    fn descend(&mut self, elements: usize) -> Result<(), ReplyError> {
        if self.open.len() == self.limits.max_depth {
            return Err(ReplyError::TooDeep(self.limits.max_depth));
        }
        // One more, for itself: `close_element` counts what was just read.
        self.open.push(elements + 1);
        Ok(())
    }

    /// Counts the element just read; whether the whole frame is complete.
    fn close_element(&mut self) -> bool {
        while let Some(missing) = self.open.last_mut() {
            *missing -= 1;
            if *missing > 0 {
                return false;
            }
            self.open.pop();
        }
        true
    }
}

/// The element that a header with a length announces.
fn announced(kind: u8, text: &[u8]) -> Result<Element, ReplyError> {
    if text == b"?" {
        return Err(ReplyError::Streamed);
    }
    let length = number::parse_i64(text).ok_or(ReplyError::InvalidLength)?;
    if length == -1 && matches!(kind, b'$' | b'*') {
        return Ok(Element::Scalar); // RESP2's nulls
    }
    let length = usize::try_from(length).map_err(|_| ReplyError::InvalidLength)?;
    match kind {
        b'$' | b'!' | b'=' => Ok(Element::Blob(length)),
        b'*' | b'~' => Ok(Element::Aggregate(length)),
        b'%' => Ok(Element::Aggregate(length.saturating_mul(2))),
        b'|' => Ok(Element::Attribute(length.saturating_mul(2))),
        // A push has at least its type.
        _ if length == 0 => Err(ReplyError::InvalidLength),
        _ => Ok(Element::Aggregate(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Frame, FrameKind, ReplyError, ReplyLimits, ReplyScanner};

    fn scan(input: &[u8]) -> Result<Option<Frame>, ReplyError> {
        ReplyScanner::default().scan(input)
    }

    #[test]
    fn every_type_is_measured() {
        for text in [
            "+OK\r\n",
            "+\r\n",
            "-ERR no\r\n",
            ":-12\r\n",
            "$5\r\nhe\r\no\r\n",
            "$0\r\n\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "*0\r\n",
            "*2\r\n*1\r\n$1\r\na\r\n*0\r\n",
            "_\r\n",
            "#t\r\n",
            ",1.5\r\n",
            ",inf\r\n",
            "(3492890328409238509324850943850943825024385\r\n",
            "!8\r\nERR a\r\nb\r\n",
            "=7\r\ntxt:abc\r\n",
            "%1\r\n+k\r\n*1\r\n:1\r\n",
            "~2\r\n:1\r\n:2\r\n",
            "*2\r\n|1\r\n+ttl\r\n:3\r\n:1\r\n:2\r\n",
            "*1\r\n|0\r\n:1\r\n",
            ">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n",
            "|1\r\n+stale\r\n#t\r\n",
        ] {
            let frame = scan(text.as_bytes()).unwrap().expect(text);
            assert_eq!(frame.len, text.len(), "{text:?}");
            let kind = match text.as_bytes()[0] {
                b'>' => FrameKind::Push,
                b'|' => FrameKind::Attribute,
                _ => FrameKind::Reply,
            };
            assert_eq!((frame.kind, frame.is_error), (kind, text.starts_with(['-', '!'])), "{text:?}");
            for cut in 0..text.len() {
                assert_eq!(scan(&text.as_bytes()[..cut]), Ok(None), "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_no_server_sends_is_refused() {
        for (text, error) in [
            ("hello\r\n", ReplyError::UnknownType(b'h')),
            ("$x\r\n", ReplyError::InvalidLength),
            ("$-2\r\n", ReplyError::InvalidLength),
            ("%-1\r\n", ReplyError::InvalidLength),
            (">0\r\n", ReplyError::InvalidLength),
            ("$00000000000000000000000000000000000", ReplyError::InvalidLength),
            ("$?\r\n", ReplyError::Streamed),
            ("*?\r\n", ReplyError::Streamed),
            (";4\r\n", ReplyError::Streamed),
            ("+a\rb\r\n", ReplyError::MissingTerminator),
            ("$1\r\nabc", ReplyError::MissingTerminator),
            ("*1\r\n>1\r\n+x\r\n", ReplyError::NestedPush),
            ("*9223372036854775807\r\n", ReplyError::TooBig(1 << 30)),
            ("%9223372036854775807\r\n", ReplyError::TooBig(1 << 30)),
            ("$9223372036854775807\r\n", ReplyError::TooBig(1 << 30)),
        ] {
            assert_eq!(scan(text.as_bytes()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let limits = ReplyLimits { max_depth: 3, max_frame: 64 };
        let scan = |text: &[u8]| ReplyScanner::new(limits).scan(text);
        assert!(scan(b"*1\r\n*1\r\n*1\r\n:1\r\n").unwrap().is_some());
        assert_eq!(scan(b"*1\r\n*1\r\n*1\r\n*1\r\n"), Err(ReplyError::TooDeep(3)));
        assert_eq!(scan(b"$63\r\n"), Err(ReplyError::TooBig(64)));
        assert_eq!(scan(&[b'+'; 80]), Err(ReplyError::TooBig(64)));
    }

    #[test]
    fn the_hint_never_asks_for_more_than_the_frame() {
        let text = b"*3\r\n$10\r\n0123456789\r\n*1\r\n|1\r\n+a\r\n_\r\n_\r\n_\r\n";
        let mut scanner = ReplyScanner::default();
        for cut in 0..text.len() {
            assert_eq!(scanner.scan(&text[..cut]), Ok(None));
            let needed = scanner.bytes_needed();
            assert!(cut != 9 || needed == 9 + 12 + 2 * 3, "a blob is asked for with what must follow");
            assert!(needed <= text.len(), "{needed} at {cut}");
        }
    }
}
