//! The server's side: requests as clients send them, arrays of bulk strings and inline commands.
//!
//! Follows `processMultibulkBuffer` and `processInlineBuffer` of Redis byte for byte, also where Redis
//! is lenient (what stands for `\n` after a length, and for `\r\n` after a bulk, changes nothing): what
//! is relayed as bytes must mean the same to the server behind. Never looks at what arguments mean.
//! Fails by [`ProtocolError`]: send its text after `-ERR `, then close.

use std::{fmt, ops::Range};

use memchr::memchr2;

use crate::{inline, number};

/// What a client may send at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Arguments in one request, its name included.
    pub max_args: usize,
    /// Bytes in one argument (Redis: `proto-max-bulk-len`).
    pub max_bulk: usize,
    /// Bytes in an inline command, and in a line that holds a length.
    pub max_inline: usize,
    /// Bytes in one request, framing included; at most 4 GiB − 1.
    pub max_frame: usize,
}

impl Default for Limits {
    /// Redis's own, but for the frame: 1 Mi arguments, 512 MiB per argument, 64 KiB per line, 1 GiB in all.
    fn default() -> Self {
        Self { max_args: 1 << 20, max_bulk: 512 << 20, max_inline: 64 << 10, max_frame: 1 << 30 }
    }
}

/// How far the client may be trusted with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// [`Limits`] alone apply.
    #[default]
    Authenticated,
    /// Before AUTH, where that is required: at most 10 arguments of at most 16 KiB, as in Redis.
    Unauthenticated,
}

/// Why a connection has to end; the text is Redis's own where Redis has the case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// The count behind `*` is no integer or above [`Limits::max_args`].
    InvalidMultibulkLength,
    /// The length behind `$` is no integer, negative or above [`Limits::max_bulk`].
    InvalidBulkLength,
    /// An argument does not begin with `$` but with this byte.
    ExpectedBulk(u8),
    /// No end of line within [`Limits::max_inline`] in an inline command.
    TooBigInlineRequest,
    /// No end of line within [`Limits::max_inline`] behind `*`.
    TooBigMultibulkCount,
    /// No end of line within [`Limits::max_inline`] behind `$`.
    TooBigBulkCount,
    /// An inline command's quotes do not match.
    UnbalancedQuotes,
    /// More than 10 arguments before AUTH.
    UnauthenticatedMultibulkLength,
    /// More than 16 KiB in an argument before AUTH.
    UnauthenticatedBulkLength,
    /// The request is larger than [`Limits::max_frame`], which is this.
    TooBigRequest(usize),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        f.write_str(match self {
            Self::InvalidMultibulkLength => "invalid multibulk length",
            Self::InvalidBulkLength => "invalid bulk length",
            Self::ExpectedBulk(byte) => {
                // Line ends become spaces, as in Redis; what is not ASCII would be no text.
                let shown = if byte.is_ascii() && !b"\r\n".contains(byte) { char::from(*byte) } else { ' ' };
                return write!(f, "expected '$', got '{shown}'");
            }
            Self::TooBigInlineRequest => "too big inline request",
            Self::TooBigMultibulkCount => "too big mbulk count string",
            Self::TooBigBulkCount => "too big bulk count string",
            Self::UnbalancedQuotes => "unbalanced quotes in request",
            Self::UnauthenticatedMultibulkLength => "unauthenticated multibulk length",
            Self::UnauthenticatedBulkLength => "unauthenticated bulk length",
            Self::TooBigRequest(max) => return write!(f, "request is larger than {max} bytes"),
        })
    }
}

impl std::error::Error for ProtocolError {}

/// Where an argument lies; 8 bytes, since a request may have very many.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing of the request has been understood yet.
    Start,
    /// So many arguments are to come; the next one's length is at `pos`.
    Length { remaining: usize },
    /// So many arguments are to come; the next one, of `len` bytes, is at `pos`.
    Body { remaining: usize, len: usize },
    /// A whole request was returned; the next call begins another.
    Complete,
}

/// An argument vector of this many spans is given back to the allocator after use.
const KEPT_ARGS: usize = 1024;
/// Unquoted inline arguments of this many bytes likewise.
const KEPT_UNQUOTED: usize = 4096;

/// Finds requests at the front of a connection's input.
///
/// ```
/// use caddy_resp::RequestParser;
///
/// let mut parser = RequestParser::default();
/// let mut input = b"*2\r\n$3\r\nGET\r\n$1\r\n".to_vec();
/// assert_eq!(parser.parse(&input), Ok(None)); // not all there yet
/// input.extend(b"k\r\nPING\r\n");
/// let consumed = parser.parse(&input)?.expect("complete");
/// assert_eq!(parser.arg(&input, 0), b"GET");
/// assert_eq!(parser.arg(&input, 1), b"k");
/// assert_eq!(&input[consumed..], b"PING\r\n");
/// # Ok::<(), caddy_resp::ProtocolError>(())
/// ```
#[derive(Debug)]
pub struct RequestParser {
    limits: Limits,
    stage: Stage,
    state: State,
    args: Vec<Span>,
    /// Arguments of an inline command, unquoted; `args` then points here.
    unquoted: Vec<u8>,
    inline: bool,
    /// Something else stood where `\r\n` should.
    odd: bool,
    /// First byte that is not understood yet.
    pos: usize,
    /// The line at `pos` has no end before this.
    searched: usize,
}

impl Default for RequestParser {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl RequestParser {
    /// A parser for one connection.
    pub fn new(limits: Limits) -> Self {
        let limits = Limits { max_frame: limits.max_frame.min(u32::MAX as usize), ..limits };
        Self {
            limits,
            stage: Stage::default(),
            state: State::Start,
            args: Vec::new(),
            unquoted: Vec::new(),
            inline: false,
            odd: false,
            pos: 0,
            searched: 0,
        }
    }

    /// Says whether the client has authenticated; counts from the next header on.
    pub fn set_stage(&mut self, stage: Stage) {
        self.stage = stage;
    }

    /// Looks for a whole request at the front of `input`; `Some` is its length.
    ///
    /// After `None` call again with the same bytes and more behind them. After `Some(n)` the arguments
    /// can be read (from the same `input`) until the next call, which begins behind those `n` bytes.
    /// A request may have no arguments ([`is_empty`](Self::is_empty): an empty line, `*0`, `*-1`);
    /// Redis drops it without a reply.
    ///
    /// # Errors
    /// The stream cannot be understood from here on; later calls make no sense.
    pub fn parse(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.state == State::Complete {
            self.reset();
        }
        if self.state == State::Start {
            match input.first() {
                None => return Ok(None),
                Some(b'*') => {
                    let Some(count) = self.multibulk_header(input)? else { return Ok(None) };
                    self.state = State::Length { remaining: count };
                }
                Some(_) => return self.inline(input),
            }
        }
        self.bulks(input)
    }

    /// The number of arguments, the command's name included.
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// Whether the request has no arguments and is to be dropped without a reply.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// Argument `index` of the request just parsed from `input`; 0 is the command's name.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len), or `input` is not what was parsed.
    #[inline]
    pub fn arg<'a>(&'a self, input: &'a [u8], index: usize) -> &'a [u8] {
        let Span { start, end } = self.args[index];
        let bytes = if self.inline { &self.unquoted } else { input };
        &bytes[start as usize..end as usize]
    }

    /// All arguments of the request just parsed from `input`.
    pub fn args<'a>(&'a self, input: &'a [u8]) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        (0..self.len()).map(move |index| self.arg(input, index))
    }

    /// Where argument `index` lies in the input; `None` for an inline command, whose arguments had to
    /// be unquoted.
    pub fn arg_range(&self, index: usize) -> Option<Range<usize>> {
        let span = self.args.get(index).filter(|_| !self.inline)?;
        Some(span.start as usize..span.end as usize)
    }

    /// Whether the bytes of the request just parsed are those that every server understands as we do: an inline command may be
    /// read otherwise by another version, and newer ones refuse what stands for a line's end without being one.
    pub fn is_canonical(&self) -> bool {
        !self.inline && !self.odd
    }

    /// After `None`: a length of input below which the next call cannot succeed either. Reading at
    /// least so much at once spares wake-ups on large arguments.
    pub fn bytes_needed(&self) -> usize {
        match self.state {
            State::Body { len, .. } => self.pos + len + 2,
            State::Start | State::Length { .. } | State::Complete => self.pos + 1,
        }
    }

    fn reset(&mut self) {
        self.state = State::Start;
        self.pos = 0;
        self.searched = 0;
        self.odd = false;
        if self.inline {
            self.inline = false;
            self.unquoted.clear();
            self.unquoted.shrink_to(KEPT_UNQUOTED);
        }
        if self.args.len() > KEPT_ARGS {
            self.args = Vec::new();
        }
        self.args.clear();
    }

    fn complete(&mut self) -> usize {
        self.state = State::Complete;
        self.pos
    }

    /// `*<count>\r\n`; a count below 1 is an empty request.
    fn multibulk_header(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let (count, end) = match number::short_header(&input[1..]) {
            Some((count, len)) => (count as usize, 1 + len),
            None => match self.line(input, ProtocolError::TooBigMultibulkCount)? {
                None => return Ok(None),
                Some(line) => {
                    let count = number::parse_i64(&input[1..line]).ok_or(ProtocolError::InvalidMultibulkLength)?;
                    // Negative: an empty request.
                    (usize::try_from(count).unwrap_or(0), line + 2)
                }
            },
        };
        if count > self.limits.max_args {
            return Err(ProtocolError::InvalidMultibulkLength);
        }
        if count > 10 && self.stage == Stage::Unauthenticated {
            return Err(ProtocolError::UnauthenticatedMultibulkLength);
        }
        self.pos = end;
        self.odd |= input[end - 1] != b'\n';
        Ok(Some(count))
    }

    /// The arguments of a multibulk request, from wherever the last call stopped.
    fn bulks(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        loop {
            let (remaining, len) = match self.state {
                State::Length { remaining: 0 } => return Ok(Some(self.complete())),
                State::Length { remaining } => match self.bulk_header(input)? {
                    Some(len) => (remaining, len),
                    None => return Ok(None),
                },
                State::Body { remaining, len } => (remaining, len),
                State::Start | State::Complete => return Ok(None),
            };
            let end = self.pos + len;
            if input.len() < end + 2 {
                self.state = State::Body { remaining, len };
                return Ok(None);
            }
            // `end` is below `max_frame`, which fits.
            self.args.push(Span { start: self.pos as u32, end: end as u32 });
            self.state = State::Length { remaining: remaining - 1 };
            self.odd |= input[end..end + 2] != *b"\r\n";
            self.pos = end + 2;
        }
    }

    /// `$<length>\r\n`.
    #[inline]
    fn bulk_header(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let (len, end) = match &input[self.pos..] {
            [b'$', digits @ ..] => match number::short_header(digits) {
                Some((len, header)) => (len as usize, self.pos + 1 + header),
                None => match self.unusual_bulk_header(input)? {
                    Some(found) => found,
                    None => return Ok(None),
                },
            },
            [] => return Ok(None),
            _ => match self.unusual_bulk_header(input)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        if len > self.limits.max_bulk {
            return Err(ProtocolError::InvalidBulkLength);
        }
        if len > 16_384 && self.stage == Stage::Unauthenticated {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        if len + 2 > self.limits.max_frame.saturating_sub(end) {
            return Err(ProtocolError::TooBigRequest(self.limits.max_frame));
        }
        self.pos = end;
        self.odd |= input[end - 1] != b'\n';
        Ok(Some(len))
    }

    /// A length that is incomplete, long or wrong: the value and where the line ends.
    #[cold]
    fn unusual_bulk_header(&mut self, input: &[u8]) -> Result<Option<(usize, usize)>, ProtocolError> {
        let Some(line) = self.line(input, ProtocolError::TooBigBulkCount)? else { return Ok(None) };
        // Redis looks at the first byte only when the line is there.
        if input[self.pos] != b'$' {
            return Err(ProtocolError::ExpectedBulk(input[self.pos]));
        }
        let len = number::parse_i64(&input[self.pos + 1..line]).and_then(|len| usize::try_from(len).ok());
        Ok(Some((len.ok_or(ProtocolError::InvalidBulkLength)?, line + 2)))
    }

    /// Where the `\r` of the line at `pos` is, if that and one more byte have arrived.
    fn line(&mut self, input: &[u8], too_big: ProtocolError) -> Result<Option<usize>, ProtocolError> {
        let from = self.searched.max(self.pos);
        // Redis searches by strchr, which a zero byte stops: such a line never ends.
        match memchr2(b'\r', 0, &input[from..]).map(|found| from + found) {
            Some(end) if input[end] == b'\r' => {
                self.searched = end;
                if end - self.pos > self.limits.max_inline {
                    return Err(too_big);
                }
                Ok((input.len() > end + 1).then_some(end))
            }
            found => {
                self.searched = found.unwrap_or(input.len());
                if input.len() - self.pos > self.limits.max_inline { Err(too_big) } else { Ok(None) }
            }
        }
    }

    /// A line of words.
    fn inline(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let end = match memchr2(b'\n', 0, &input[self.searched..]).map(|found| self.searched + found) {
            Some(end) if input[end] == b'\n' => end,
            found => {
                self.searched = found.unwrap_or(input.len());
                return if input.len() > self.limits.max_inline {
                    Err(ProtocolError::TooBigInlineRequest)
                } else {
                    Ok(None)
                };
            }
        };
        if end > self.limits.max_inline {
            return Err(ProtocolError::TooBigInlineRequest);
        }
        let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
        self.inline = true;
        let (args, max_args) = (&mut self.args, self.limits.max_args);
        let mut start = 0;
        inline::split(line, &mut self.unquoted, |end| {
            args.push(Span { start, end: end as u32 });
            start = end as u32;
        })
        .map_err(|inline::UnbalancedQuotes| ProtocolError::UnbalancedQuotes)?;
        if self.args.len() > max_args {
            return Err(ProtocolError::InvalidMultibulkLength);
        }
        self.pos = end + 1;
        Ok(Some(self.complete()))
    }
}
