//! Writers: requests for a server, replies for a client of either protocol.
//!
//! Every writer appends one well-formed frame (or the header of one) to `out` and cannot fail; text
//! that could end a line early is made harmless as Redis does it. Aggregates are a header, then
//! exactly that many elements written by the caller.

/// The version of the protocol that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// What every connection begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// `*2\r\n$3\r\nGET\r\n…`: a request.
///
/// ```
/// let mut out = Vec::new();
/// caddy_resp::encode::command(&mut out, ["GET", "k"]);
/// assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
/// ```
pub fn command<I>(out: &mut Vec<u8>, args: I)
where
    I: IntoIterator<Item: AsRef<[u8]>, IntoIter: ExactSizeIterator>,
{
    let args = args.into_iter();
    array_header(out, args.len());
    for arg in args {
        bulk(out, arg.as_ref());
    }
}

/// `+OK`
pub fn ok(out: &mut Vec<u8>) {
    out.extend_from_slice(b"+OK\r\n");
}

/// `+text`
pub fn simple(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    line(out, b'+', text.as_ref());
}

/// `-text`, where `text` begins with a code such as `ERR`.
pub fn error(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    line(out, b'-', text.as_ref());
}

/// `:value`
pub fn integer(out: &mut Vec<u8>, value: i64) {
    out.push(b':');
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// `$len`, the bytes, and their end.
pub fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    blob(out, b'$', bytes);
}

/// The header of a bulk; the caller appends `len` bytes and `\r\n`.
pub fn bulk_header(out: &mut Vec<u8>, len: usize) {
    header(out, b'$', len);
}

/// No value: `$-1` or `_`.
pub fn null(out: &mut Vec<u8>, protocol: Protocol) {
    out.extend_from_slice(match protocol {
        Protocol::Resp2 => b"$-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// No array: `*-1` or `_`.
pub fn null_array(out: &mut Vec<u8>, protocol: Protocol) {
    out.extend_from_slice(match protocol {
        Protocol::Resp2 => b"*-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// `#t` or `:1`
pub fn boolean(out: &mut Vec<u8>, protocol: Protocol, value: bool) {
    out.extend_from_slice(match (protocol, value) {
        (Protocol::Resp3, true) => b"#t\r\n",
        (Protocol::Resp3, false) => b"#f\r\n",
        (Protocol::Resp2, true) => b":1\r\n",
        (Protocol::Resp2, false) => b":0\r\n",
    });
}

/// `,text`, or a bulk of the same text, which is how Redis writes a number in both.
pub fn double(out: &mut Vec<u8>, protocol: Protocol, text: &[u8]) {
    match protocol {
        Protocol::Resp2 => bulk(out, text),
        Protocol::Resp3 => line(out, b',', text),
    }
}

/// `(digits`, or a bulk.
pub fn big_number(out: &mut Vec<u8>, protocol: Protocol, digits: &[u8]) {
    match protocol {
        Protocol::Resp2 => bulk(out, digits),
        Protocol::Resp3 => line(out, b'(', digits),
    }
}

/// `!len`, or a simple error, whose line ends become spaces.
pub fn blob_error(out: &mut Vec<u8>, protocol: Protocol, text: &[u8]) {
    match protocol {
        Protocol::Resp2 => error(out, text),
        Protocol::Resp3 => blob(out, b'!', text),
    }
}

/// `=len`, format, colon, text; or a bulk of the text.
pub fn verbatim(out: &mut Vec<u8>, protocol: Protocol, format: [u8; 3], text: &[u8]) {
    match protocol {
        Protocol::Resp2 => bulk(out, text),
        Protocol::Resp3 => {
            header(out, b'=', text.len() + 4);
            for part in [&format, &b":"[..], text, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
}

/// The header of an array of `len` elements.
pub fn array_header(out: &mut Vec<u8>, len: usize) {
    header(out, b'*', len);
}

/// The header of `pairs` pairs: a map, or an array of twice as many elements.
pub fn map_header(out: &mut Vec<u8>, protocol: Protocol, pairs: usize) {
    match protocol {
        Protocol::Resp2 => header(out, b'*', pairs * 2),
        Protocol::Resp3 => header(out, b'%', pairs),
    }
}

/// The header of a set, or of an array.
pub fn set_header(out: &mut Vec<u8>, protocol: Protocol, len: usize) {
    header(out, if protocol == Protocol::Resp3 { b'~' } else { b'*' }, len);
}

/// The header of a push, or of an array (as RESP2 has pub/sub messages).
pub fn push_header(out: &mut Vec<u8>, protocol: Protocol, len: usize) {
    header(out, if protocol == Protocol::Resp3 { b'>' } else { b'*' }, len);
}

/// The header of an attribute of `pairs` pairs; RESP3 only: a RESP2 client would take it for a reply.
pub fn attribute_header(out: &mut Vec<u8>, pairs: usize) {
    header(out, b'|', pairs);
}

fn header(out: &mut Vec<u8>, kind: u8, len: usize) {
    out.push(kind);
    if len < 10 {
        out.extend_from_slice(&[b'0' + len as u8, b'\r', b'\n']);
        return;
    }
    out.extend_from_slice(itoa::Buffer::new().format(len).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn blob(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.reserve(bytes.len() + 24);
    header(out, kind, bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// One line; what would end it early becomes a space.
fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend(text.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }));
    out.extend_from_slice(b"\r\n");
}
