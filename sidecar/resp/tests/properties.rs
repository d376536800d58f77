//! What holds for every stream: any split gives the same frames, what is written is read back, and
//! arbitrary bytes do no harm.

use caddy_resp::{Frame, Limits, Protocol, ProtocolError, ReplyError, ReplyScanner, RequestParser, Value, encode};
use proptest::{collection::vec, prelude::*};

type Request = Vec<Vec<u8>>;

/// Feeds `stream` in pieces that end at `cuts`: the requests, and the error that ended them.
fn requests(stream: &[u8], limits: Limits, cuts: &[usize]) -> (Vec<Request>, Option<ProtocolError>) {
    let mut parser = RequestParser::new(limits);
    let mut found = Vec::new();
    let mut begin = 0;
    for end in ends(stream, cuts) {
        loop {
            let input = &stream[begin..end];
            match parser.parse(input) {
                Ok(None) => break,
                Ok(Some(consumed)) => {
                    assert!(consumed > 0 && consumed <= input.len());
                    found.push(parser.args(input).map(<[u8]>::to_vec).collect());
                    begin += consumed;
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn frames(stream: &[u8], cuts: &[usize]) -> (Vec<Frame>, Option<ReplyError>) {
    let mut scanner = ReplyScanner::default();
    let mut found = Vec::new();
    let mut begin = 0;
    for end in ends(stream, cuts) {
        loop {
            match scanner.scan(&stream[begin..end]) {
                Ok(None) => {
                    assert!(scanner.bytes_needed() > 0);
                    break;
                }
                Ok(Some(frame)) => {
                    found.push(frame);
                    begin += frame.len;
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn ends(stream: &[u8], cuts: &[usize]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| *cut.min(&stream.len())).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    ends
}

/// Bytes that look enough like the protocol to get deep into the parsers.
fn nearly_resp() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        4 => prop::sample::select(vec![
            "*1\r\n", "*2\r\n", "$3\r\n", "$0\r\n", "$-1\r\n", "*0\r\n", "*-1\r\n", "\r\n", "\n", "GET", "abc\r\n", "+OK\r\n",
            ":1\r\n", "%1\r\n", "|1\r\n", ">1\r\n", "~0\r\n", "_\r\n", "!3\r\n", "=5\r\ntxt:a\r\n", "\"", "'", "\\x41", "\\", " ",
            "\0", "*1000000\r\n", "$1000\r\n", "*99999999999\r\n", "$?\r\n", "\r", "$", "*", "-ERR x\r\n", "PING\r\n", "1", "9",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..8),
    ];
    vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

fn request() -> impl Strategy<Value = Request> {
    vec(vec(any::<u8>(), 0..40), 1..8)
}

/// A value that owns its text, to borrow [`Value`]s from.
#[derive(Debug, Clone)]
enum Owned {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Boolean(bool),
    Double(String),
    BigNumber(String),
    BlobError(Vec<u8>),
    Verbatim(Vec<u8>),
    Array(Vec<Self>),
    Set(Vec<Self>),
    Map(Vec<(Self, Self)>),
}

impl Owned {
    fn borrow(&self) -> Value<'_> {
        match self {
            Self::Simple(text) => Value::Simple(text.as_bytes()),
            Self::Error(text) => Value::Error(text.as_bytes()),
            Self::Integer(value) => Value::Integer(*value),
            Self::Bulk(bytes) => Value::Bulk(bytes),
            Self::Null => Value::Null,
            Self::Boolean(value) => Value::Boolean(*value),
            Self::Double(text) => Value::Double(text.as_bytes()),
            Self::BigNumber(digits) => Value::BigNumber(digits.as_bytes()),
            Self::BlobError(bytes) => Value::BlobError(bytes),
            Self::Verbatim(text) => Value::Verbatim { format: *b"txt", text },
            Self::Array(elements) => Value::Array(elements.iter().map(Self::borrow).collect()),
            Self::Set(elements) => Value::Set(elements.iter().map(Self::borrow).collect()),
            Self::Map(pairs) => Value::Map(pairs.iter().map(|(key, value)| (key.borrow(), value.borrow())).collect()),
        }
    }
}

fn value() -> impl Strategy<Value = Owned> {
    let bytes = || vec(any::<u8>(), 0..20);
    let scalar = prop_oneof![
        "[ -~]{0,20}".prop_map(Owned::Simple),
        "[A-Z]{1,8} [ -~]{0,20}".prop_map(Owned::Error),
        any::<i64>().prop_map(Owned::Integer),
        bytes().prop_map(Owned::Bulk),
        Just(Owned::Null),
        any::<bool>().prop_map(Owned::Boolean),
        prop_oneof![
            any::<f64>().prop_map(|value| format!("{value:?}")),
            any::<f64>().prop_map(|value| format!("{value:e}")),
            Just("-inf".to_owned())
        ]
        .prop_map(Owned::Double),
        "-?[1-9][0-9]{0,40}".prop_map(Owned::BigNumber),
        bytes().prop_map(Owned::BlobError),
        bytes().prop_map(Owned::Verbatim),
    ];
    scalar.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Owned::Array),
            vec(inner.clone(), 0..6).prop_map(Owned::Set),
            vec((inner.clone(), inner), 0..4).prop_map(Owned::Map),
        ]
    })
}

proptest! {
    #[test]
    fn requests_are_read_back_whatever_the_split(requests_sent in vec(request(), 1..6), cuts in vec(0_usize..400, 0..12)) {
        let mut stream = Vec::new();
        for request in &requests_sent {
            encode::command(&mut stream, request);
        }
        prop_assert_eq!(requests(&stream, Limits::default(), &cuts), (requests_sent, None));
    }

    #[test]
    fn any_split_of_any_bytes_gives_the_same_requests(stream in nearly_resp(), cuts in vec(0_usize..400, 0..12)) {
        let limits = Limits { max_args: 20, max_bulk: 1 << 10, max_inline: 40, max_frame: 1100 };
        let every_byte: Vec<usize> = (0..stream.len()).collect();
        let whole = requests(&stream, limits, &[]);
        prop_assert_eq!(&requests(&stream, limits, &cuts), &whole);
        prop_assert_eq!(requests(&stream, limits, &every_byte), whole);
    }

    #[test]
    fn replies_are_read_back_whatever_the_split(values in vec(value(), 1..5), cuts in vec(0_usize..400, 0..12)) {
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let mut stream = Vec::new();
            let mut lens = Vec::new();
            for value in &values {
                let before = stream.len();
                value.borrow().encode(protocol, &mut stream);
                lens.push(stream.len() - before);
            }
            let (frames, error) = frames(&stream, &cuts);
            prop_assert_eq!(error, None);
            prop_assert_eq!(frames.iter().map(|frame| frame.len).collect::<Vec<_>>(), lens);
            let mut rest = &stream[..];
            for (value, frame) in values.iter().zip(frames) {
                let (decoded, len) = Value::decode(rest).expect("what was encoded");
                prop_assert_eq!(len, frame.len);
                prop_assert_eq!(decoded.as_error().is_some(), frame.is_error);
                if protocol == Protocol::Resp3 {
                    prop_assert_eq!(decoded, value.borrow());
                }
                rest = &rest[len..];
            }
        }
    }

    #[test]
    fn any_split_of_any_bytes_gives_the_same_frames(stream in nearly_resp(), cuts in vec(0_usize..400, 0..12)) {
        let whole = frames(&stream, &[]);
        prop_assert_eq!(&frames(&stream, &cuts), &whole);
        let every_byte: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(frames(&stream, &every_byte), whole);
    }

    #[test]
    fn scanner_and_decoder_agree_on_lengths(stream in nearly_resp()) {
        if let Ok((_, len)) = Value::decode(&stream) {
            let frame = ReplyScanner::default().scan(&stream).expect("decodable").expect("complete");
            prop_assert_eq!(frame.len, len);
        }
    }
}

#[test]
fn a_request_of_very_many_arguments_in_pieces_is_linear() {
    // 10,000 arguments in 1,000 pieces, and a parser that looked at everything again would need
    // 1,000 × 10,000 / 2 steps; the count of arguments found shows that it goes on where it was.
    let args: Vec<String> = (0..10_000).map(|n| format!("argument-{n}")).collect();
    let mut stream = Vec::new();
    encode::command(&mut stream, &args);
    let mut parser = RequestParser::default();
    let mut seen = 0;
    let piece = stream.len() / 1000;
    for end in (piece..stream.len()).step_by(piece) {
        assert_eq!(parser.parse(&stream[..end]), Ok(None));
        assert!(parser.len() >= seen, "arguments already found are kept");
        assert!(parser.bytes_needed() > end - 40, "it stands at the end of what it has");
        seen = parser.len();
    }
    assert!(seen > 9_900);
    assert_eq!(parser.parse(&stream), Ok(Some(stream.len())));
    assert_eq!(parser.len(), args.len());
}

#[test]
fn protocol_errors_are_redis_s() {
    for (stream, text) in [
        ("*x\r\n", "Protocol error: invalid multibulk length"),
        ("*\r\n", "Protocol error: invalid multibulk length"),
        ("*1048577\r\n", "Protocol error: invalid multibulk length"),
        ("*99999999999999999999\r\n", "Protocol error: invalid multibulk length"),
        ("*1\r\n$x\r\n", "Protocol error: invalid bulk length"),
        ("*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
        ("*1\r\n$536870913\r\n", "Protocol error: invalid bulk length"),
        ("*1\r\n:1\r\n", "Protocol error: expected '$', got ':'"),
        ("*1\r\n\r\n", "Protocol error: expected '$', got ' '"),
        ("get \"k\r\n", "Protocol error: unbalanced quotes in request"),
        (&format!("*{}", "1".repeat(70_000)), "Protocol error: too big mbulk count string"),
        (&format!("*1\r\n${}", "1".repeat(70_000)), "Protocol error: too big bulk count string"),
        (&"a".repeat(70_000), "Protocol error: too big inline request"),
        ("*3\r\n$500000000\r\n", "Protocol error: request is larger than 400000000 bytes"),
    ] {
        let limits = if text.contains("larger") {
            Limits { max_frame: 400_000_000, ..Limits::default() }
        } else {
            Limits::default()
        };
        let error = RequestParser::new(limits).parse(stream.as_bytes()).expect_err(text);
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn before_auth_little_is_accepted() {
    use caddy_resp::Stage;
    let mut parser = RequestParser::default();
    parser.set_stage(Stage::Unauthenticated);
    assert_eq!(parser.parse(b"*11\r\n"), Err(ProtocolError::UnauthenticatedMultibulkLength));
    let mut parser = RequestParser::default();
    parser.set_stage(Stage::Unauthenticated);
    assert_eq!(parser.parse(b"*1\r\n$16385\r\n"), Err(ProtocolError::UnauthenticatedBulkLength));
    let mut parser = RequestParser::default();
    parser.set_stage(Stage::Unauthenticated);
    assert_eq!(parser.parse(b"*10\r\n$16384\r\n"), Ok(None));
}

#[test]
fn empty_requests_have_no_arguments() {
    let (found, error) = requests(b"\r\n\n*0\r\n*-1\r\n*-7\r\n  \r\nPING\r\n", Limits::default(), &[]);
    assert_eq!(error, None);
    let (last, empty) = found.split_last().unwrap();
    assert_eq!(last, &[b"PING"]);
    assert_eq!(empty, &vec![Request::new(); 6][..]);
}
