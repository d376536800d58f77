//! The request parser against a real Redis: what it finds in arbitrary bytes is what Redis executes, and
//! what it refuses Redis refuses in the same words.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use caddy_resp::{Limits, RequestParser, encode};
use caddy_tests::{random::Random, redis::RedisServer};

const STREAMS: usize = 3000;

const TOKENS: &[&[u8]] = &[
    b"*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$4\r\nECHO\r\n$3\r\na\r\n\r\n",
    b"*2\r\n$4\r\nECHO\r\n",
    b"$0\r\n\r\n",
    b"$1\r\nx\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"*-5\r\n",
    b"\r\n",
    b"\n",
    b"PING\r\n",
    b"ECHO \"a\\x41\\n b\"\r\n",
    b"ECHO 'it\\'s'\n",
    b"ECHO \"x\"y\r\n",
    b"ECHO \"open\r\n",
    b"  ping  \r\n",
    b"*x\r\n",
    b"*01\r\n",
    b"*+1\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$04\r\nPING\r\n",
    b"*1\r\n:4\r\n",
    b"*1\r\n$4\r\nPINGxy",
    b"*1\rX$4\rYPING\r\n",
    b"ECHO a\0b\r\n",
    b"*\r\n",
    b"*1\r\n\r\n",
    b"$4\r\nPING\r\n",
    b"ECHO",
    b" v\r\n",
    b"*1\r\n$99999999999999999999\r\n",
    b"*99999999999\r\n",
    b"*1\r\n$536870913\r\n",
    b"*3\r\n",
    b"\x0bPING\x0c\r\n",
    b"ECHO \x0b\r\n",
];

/// What Redis says to `stream` before it closes the connection.
fn redis(server: &RedisServer, stream: &[u8]) -> Vec<u8> {
    let mut connection = UnixStream::connect(server.socket()).unwrap();
    // Redis may have refused and closed before all is written.
    let _ = connection.write_all(stream);
    let _ = connection.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    let _ = connection.read_to_end(&mut said);
    said
}

/// What a server behind our parser would have to say.
fn ours(server: &RedisServer, stream: &[u8]) -> Vec<u8> {
    let mut wire = server.connect().unwrap();
    // Redis takes as many arguments as an int counts; our own default is lower.
    let mut parser = RequestParser::new(Limits { max_args: i32::MAX as usize, ..Limits::default() });
    let (mut said, mut rest) = (Vec::new(), stream);
    loop {
        match parser.parse(rest) {
            Ok(None) => return said,
            Ok(Some(consumed)) => {
                if !parser.is_empty() {
                    let args: Vec<&[u8]> = parser.args(rest).collect();
                    said.extend(wire.request(&args).unwrap());
                }
                rest = &rest[consumed..];
            }
            Err(error) => {
                encode::error(&mut said, format!("ERR {error}"));
                return said;
            }
        }
    }
}

#[test]
fn any_bytes_mean_what_they_mean_to_redis() {
    let server = RedisServer::start().unwrap();
    let (mut answered, mut refused) = (0, 0);
    for seed in 0..STREAMS as u64 {
        let mut random = Random::new(seed);
        let mut stream: Vec<u8> =
            (0..=random.below(6)).flat_map(|_| TOKENS[random.below(TOKENS.len())]).copied().collect();
        if random.below(4) == 0 {
            let at = random.below(stream.len());
            stream[at] = b"\r\n$*:0123 \"'\\\0"[random.below(14)];
        }
        let theirs = redis(&server, &stream);
        assert_eq!(
            ours(&server, &stream).escape_ascii().to_string(),
            theirs.escape_ascii().to_string(),
            "seed {seed}: {}",
            stream.escape_ascii()
        );
        answered += usize::from(!theirs.is_empty() && !theirs.starts_with(b"-"));
        refused += usize::from(theirs.windows(14).any(|text| text == b"Protocol error"));
    }
    assert!(answered > STREAMS / 10 && refused > STREAMS / 10, "no test: {answered} answered, {refused} refused");
}
