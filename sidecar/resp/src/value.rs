//! Decoded replies, for the few that are looked into: pushes, `HELLO`, `PTTL`, `COMMAND`.
//!
//! Borrows all text from the input. Never panics on arbitrary bytes, never reserves more than the
//! input could hold; attributes within an aggregate are skipped. Fails by [`DecodeError`] on anything
//! that [`ReplyScanner`](crate::ReplyScanner) would not have called a complete frame.

use std::fmt;

use memchr::memchr;

use crate::{encode, encode::Protocol, number};

/// One reply of any RESP2 or RESP3 type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `+`, or a bulk where a status is expected.
    Simple(&'a [u8]),
    /// `-`, without the minus: code, space, text.
    Error(&'a [u8]),
    /// `:`
    Integer(i64),
    /// `$`
    Bulk(&'a [u8]),
    /// `_`, and RESP2's `$-1` and `*-1`.
    Null,
    /// `*`
    Array(Vec<Self>),
    /// `#`
    Boolean(bool),
    /// `,`, as the server writes it: the same number may have several texts.
    Double(&'a [u8]),
    /// `(`, as decimal digits.
    BigNumber(&'a [u8]),
    /// `!`
    BlobError(&'a [u8]),
    /// `=`
    Verbatim {
        /// Three letters, such as `txt`.
        format: [u8; 3],
        /// The text itself.
        text: &'a [u8],
    },
    /// `%`, in the order received.
    Map(Vec<(Self, Self)>),
    /// `~`, in the order received.
    Set(Vec<Self>),
    /// `>`
    Push(Vec<Self>),
    /// `|`, only at the top level: the reply that it describes is the next frame.
    Attribute(Vec<(Self, Self)>),
}

/// The bytes are not one complete, well-formed reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends within the reply.
    Incomplete,
    /// A frame that no server sends; the offset of the element at fault.
    Malformed(usize),
    /// Aggregates nest deeper than 128 levels.
    TooDeep,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => f.write_str("the reply is incomplete"),
            Self::Malformed(at) => write!(f, "malformed reply at byte {at}"),
            Self::TooDeep => write!(f, "reply nested deeper than {MAX_DEPTH} levels"),
        }
    }
}

impl std::error::Error for DecodeError {}

const MAX_DEPTH: usize = 128;

impl<'a> Value<'a> {
    /// Decodes the frame at the front of `input`, and says how long it is.
    ///
    /// ```
    /// use caddy_resp::Value;
    /// let (value, len) = Value::decode(b"*2\r\n:1\r\n$1\r\na\r\n+next\r\n")?;
    /// assert_eq!(value, Value::Array(vec![Value::Integer(1), Value::Bulk(b"a")]));
    /// assert_eq!(len, 15);
    /// # Ok::<(), caddy_resp::DecodeError>(())
    /// ```
    pub fn decode(input: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let mut decoder = Decoder { input, pos: 0 };
        let value = decoder.value(0)?;
        Ok((value, decoder.pos))
    }

    /// Text of any kind: simple, bulk, verbatim, big number; not errors.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Simple(text) | Self::Bulk(text) | Self::BigNumber(text) | Self::Verbatim { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The text of a simple or blob error.
    pub fn as_error(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Error(text) | Self::BlobError(text) => Some(text),
            _ => None,
        }
    }

    /// An integer, also one that came as text.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(value) => Some(*value),
            other => number::parse_i64(other.as_bytes()?),
        }
    }

    /// The elements of an array, set or push.
    pub fn as_elements(&self) -> Option<&[Self]> {
        match self {
            Self::Array(elements) | Self::Set(elements) | Self::Push(elements) => Some(elements),
            _ => None,
        }
    }

    /// What `field` has in a map, or in the flat array that RESP2 sends for one.
    pub fn field(&self, field: &[u8]) -> Option<&Self> {
        match self {
            Self::Map(pairs) | Self::Attribute(pairs) => {
                pairs.iter().find(|(key, _)| key.as_bytes() == Some(field)).map(|(_, value)| value)
            }
            Self::Array(elements) => {
                elements.chunks_exact(2).find(|pair| pair[0].as_bytes() == Some(field)).map(|pair| &pair[1])
            }
            _ => None,
        }
    }

    /// Appends the value as `protocol` has it; in RESP2 as Redis downgrades it.
    pub fn encode(&self, protocol: Protocol, out: &mut Vec<u8>) {
        match self {
            Self::Simple(text) => encode::simple(out, text),
            Self::Error(text) => encode::error(out, text),
            Self::Integer(value) => encode::integer(out, *value),
            Self::Bulk(text) => encode::bulk(out, text),
            Self::Null => encode::null(out, protocol),
            Self::Boolean(value) => encode::boolean(out, protocol, *value),
            Self::Double(text) => encode::double(out, protocol, text),
            Self::BigNumber(digits) => encode::big_number(out, protocol, digits),
            Self::BlobError(text) => encode::blob_error(out, protocol, text),
            Self::Verbatim { format, text } => encode::verbatim(out, protocol, *format, text),
            Self::Array(elements) => {
                encode::array_header(out, elements.len());
                encode_all(elements, protocol, out);
            }
            Self::Set(elements) => {
                encode::set_header(out, protocol, elements.len());
                encode_all(elements, protocol, out);
            }
            Self::Push(elements) => {
                encode::push_header(out, protocol, elements.len());
                encode_all(elements, protocol, out);
            }
            Self::Map(pairs) => {
                encode::map_header(out, protocol, pairs.len());
                encode_pairs(pairs, protocol, out);
            }
            // RESP2 has nothing to put in its place.
            Self::Attribute(_) if protocol == Protocol::Resp2 => {}
            Self::Attribute(pairs) => {
                encode::attribute_header(out, pairs.len());
                encode_pairs(pairs, protocol, out);
            }
        }
    }
}

fn encode_all(elements: &[Value<'_>], protocol: Protocol, out: &mut Vec<u8>) {
    for element in elements {
        element.encode(protocol, out);
    }
}

fn encode_pairs(pairs: &[(Value<'_>, Value<'_>)], protocol: Protocol, out: &mut Vec<u8>) {
    for (key, value) in pairs {
        key.encode(protocol, out);
        value.encode(protocol, out);
    }
}

struct Decoder<'a> {
    input: &'a [u8],
    pos: usize,
}

impl<'a> Decoder<'a> {
    fn value(&mut self, depth: usize) -> Result<Value<'a>, DecodeError> {
        let begin = self.pos;
        let malformed = || DecodeError::Malformed(begin);
        let kind = *self.input.get(begin).ok_or(DecodeError::Incomplete)?;
        if depth >= MAX_DEPTH && matches!(kind, b'*' | b'~' | b'%' | b'|') {
            return Err(DecodeError::TooDeep);
        }
        self.pos += 1;
        let line = self.line(begin)?;
        Ok(match kind {
            b'+' => Value::Simple(line),
            b'-' => Value::Error(line),
            b':' => Value::Integer(integer(line).ok_or_else(malformed)?),
            b'_' if line.is_empty() => Value::Null,
            b'#' if line == b"t" => Value::Boolean(true),
            b'#' if line == b"f" => Value::Boolean(false),
            b',' if is_double(line) => Value::Double(line),
            b'(' if is_big_number(line) => Value::BigNumber(line),
            b'$' | b'*' if line == b"-1" => Value::Null,
            b'$' => Value::Bulk(self.blob(line, begin)?),
            b'!' => Value::BlobError(self.blob(line, begin)?),
            b'=' => match self.blob(line, begin)? {
                [a, b, c, b':', text @ ..] => Value::Verbatim { format: [*a, *b, *c], text },
                _ => return Err(malformed()),
            },
            b'*' => Value::Array(self.elements(line, begin, depth)?),
            b'~' => Value::Set(self.elements(line, begin, depth)?),
            b'>' if depth == 0 && line != b"0" => Value::Push(self.elements(line, begin, depth)?),
            b'%' => Value::Map(self.pairs(line, begin, depth)?),
            b'|' if depth == 0 => Value::Attribute(self.pairs(line, begin, depth)?),
            b'|' => {
                self.pairs(line, begin, depth)?;
                // Bounded like nesting, which it is to the stack.
                return self.value(depth + 1);
            }
            _ => return Err(malformed()),
        })
    }

    fn line(&mut self, begin: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.input[self.pos..];
        let end = memchr(b'\r', rest).ok_or(DecodeError::Incomplete)?;
        match rest.get(end + 1) {
            None => Err(DecodeError::Incomplete),
            Some(b'\n') => {
                self.pos += end + 2;
                Ok(&rest[..end])
            }
            Some(_) => Err(DecodeError::Malformed(begin)),
        }
    }

    fn blob(&mut self, length: &[u8], begin: usize) -> Result<&'a [u8], DecodeError> {
        let length = Self::length(length, begin)?;
        let rest = &self.input[self.pos..];
        match length.checked_add(2).and_then(|whole| rest.get(length..whole)) {
            None => Err(DecodeError::Incomplete),
            Some(b"\r\n") => {
                self.pos += length + 2;
                Ok(&rest[..length])
            }
            Some(_) => Err(DecodeError::Malformed(begin)),
        }
    }

    fn elements(&mut self, count: &[u8], begin: usize, depth: usize) -> Result<Vec<Value<'a>>, DecodeError> {
        let count = Self::length(count, begin)?;
        let mut elements = Vec::with_capacity(self.plausible(count));
        for _ in 0..count {
            elements.push(self.value(depth + 1)?);
        }
        Ok(elements)
    }

    fn pairs(&mut self, count: &[u8], begin: usize, depth: usize) -> Result<Vec<(Value<'a>, Value<'a>)>, DecodeError> {
        let count = Self::length(count, begin)?;
        let mut pairs = Vec::with_capacity(self.plausible(count));
        for _ in 0..count {
            pairs.push((self.value(depth + 1)?, self.value(depth + 1)?));
        }
        Ok(pairs)
    }

    fn length(text: &[u8], begin: usize) -> Result<usize, DecodeError> {
        number::parse_i64(text).and_then(|length| usize::try_from(length).ok()).ok_or(DecodeError::Malformed(begin))
    }

    /// How much to reserve for an announced count: little in advance, since nested announcements
    /// multiply; the rest grows with what is really there.
    fn plausible(&self, count: usize) -> usize {
        count.min((self.input.len() - self.pos) / 3).min(64)
    }
}

/// RESP3 allows a plus sign.
fn integer(text: &[u8]) -> Option<i64> {
    number::parse_i64(text.strip_prefix(b"+").unwrap_or(text))
}

fn is_double(text: &[u8]) -> bool {
    str::from_utf8(text).is_ok_and(|text| text.parse::<f64>().is_ok())
}

fn is_big_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::{DecodeError, Value};
    use crate::Protocol;

    #[test]
    fn a_map_answers_by_field_in_both_protocols() {
        for text in
            ["%2\r\n+proto\r\n:3\r\n+role\r\n$6\r\nmaster\r\n", "*4\r\n+proto\r\n:3\r\n+role\r\n$6\r\nmaster\r\n"]
        {
            let (hello, _) = Value::decode(text.as_bytes()).unwrap();
            assert_eq!(hello.field(b"proto").and_then(Value::as_integer), Some(3));
            assert_eq!(hello.field(b"role").and_then(Value::as_bytes), Some(&b"master"[..]));
            assert_eq!(hello.field(b"id"), None);
        }
    }

    #[test]
    fn attributes_within_an_aggregate_are_skipped() {
        let (value, len) = Value::decode(b"*2\r\n|1\r\n+ttl\r\n:3\r\n:1\r\n:2\r\n").unwrap();
        assert_eq!((value, len), (Value::Array(vec![Value::Integer(1), Value::Integer(2)]), 26));
    }

    #[test]
    fn malformed_and_incomplete_differ() {
        for text in ["$3\r\nab", "*2\r\n:1\r\n", "+OK", "+OK\r", "", "%1\r\n+a\r\n", "*9223372036854775807\r\n"] {
            assert_eq!(Value::decode(text.as_bytes()), Err(DecodeError::Incomplete), "{text:?}");
        }
        for text in [
            ":a\r\n",
            "$2\r\nabcd",
            "#x\r\n",
            "_x\r\n",
            ",x\r\n",
            "(\r\n",
            "=2\r\nab\r\n",
            "*1\r\n>1\r\n+a\r\n",
            "x\r\n",
        ] {
            assert!(matches!(Value::decode(text.as_bytes()), Err(DecodeError::Malformed(_))), "{text:?}");
        }
        let deep = "*1\r\n".repeat(100_000);
        assert_eq!(Value::decode(deep.as_bytes()), Err(DecodeError::TooDeep));
        let attributes = "*1\r\n".to_owned() + &"|0\r\n".repeat(100_000);
        assert_eq!(Value::decode(attributes.as_bytes()), Err(DecodeError::TooDeep));
    }

    #[test]
    fn resp2_has_what_redis_sends_in_it() {
        let mut out = Vec::new();
        for value in [
            Value::Null,
            Value::Boolean(true),
            Value::Double(b"3.1400000000000001"),
            Value::Double(b"inf"),
            Value::BigNumber(b"123"),
            Value::BlobError(b"ERR a\r\nb"),
            Value::Verbatim { format: *b"txt", text: b"hi" },
            Value::Map(vec![(Value::Simple(b"a"), Value::Integer(1))]),
            Value::Set(vec![Value::Integer(1)]),
            Value::Push(vec![Value::Bulk(b"message")]),
            Value::Attribute(vec![]),
        ] {
            value.encode(Protocol::Resp2, &mut out);
        }
        let expected = "$-1\r\n:1\r\n$18\r\n3.1400000000000001\r\n$3\r\ninf\r\n$3\r\n123\r\n-ERR a  b\r\n$2\r\nhi\r\n*2\r\n+a\r\n:1\r\n*1\r\n:1\r\n*1\r\n$7\r\nmessage\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
