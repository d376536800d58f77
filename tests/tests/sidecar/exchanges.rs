//! What two programs say to each other at the edges of the protocol, byte for byte as Redis says it: each exchange is sent to a
//! sidecar and to an identical server, line by line, and all that came back has to be the same.
//!
//! Apart from the random streams (`differential`): what ends a connection, what changes its mode, and what comes unasked.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use caddy_resp::Value;
use caddy_tests::{
    redis::{self, RedisServer},
    sidecar::SidecarOptions,
};

/// The end of an exchange that leaves the connection open, whatever mode it is in.
const END: &[u8] = b"RESET\r\n";
const ENDED: &[u8] = b"+RESET\r\n";

/// Lines; one that ends in `\` has no end of line.
const EXCHANGES: &[&[&str]] = &[
    // RESET ends whatever there is.
    &["SET a 1", "MULTI", "GET a", "RESET", "GET a", "PING"],
    &["WATCH a", "RESET", "SET a 2", "MULTI", "GET a", "EXEC"],
    &["SUBSCRIBE c", "RESET", "GET a", "PING"],
    &["CLIENT SETNAME foo", "SELECT 2", "RESET", "CLIENT GETNAME", "SET q 1", "SELECT 2", "EXISTS q", "FLUSHDB"],
    &["CLIENT REPLY OFF", "GET a", "RESET", "GET a"],
    &["CLIENT TRACKING ON", "RESET", "CLIENT TRACKINGINFO"],
    // As a person types.
    &["\"GET\" \"a\"", "get 'a'", "get \"\\x61\"", "", "  PING  ", "SET sp \"a b\\r\\n\\\"c\"", "GET sp"],
    &["SET q 'it\\'s'", "GET q", "SET \"\" x", "GET \"\"", "DEL q \"\"", "*1\r\n$4\r\nPING", "PING"],
    &["GET \"a"],
    // Who wants no replies.
    &["CLIENT REPLY OFF", "GET a", "CLIENT REPLY ON", "GET a", "CLIENT REPLY SKIP", "GET a", "GET a"],
    &["CLIENT REPLY SKIP", "CLIENT REPLY SKIP", "GET a", "GET a"],
    &["CLIENT REPLY SKIP", "MULTI", "GET a", "EXEC", "PING"],
    &["CLIENT REPLY foo", "CLIENT REPLY", "CLIENT REPLY ON x", "PING"],
    &["CLIENT REPLY OFF", "SUBSCRIBE a", "PING", "UNSUBSCRIBE a", "CLIENT REPLY ON", "PING"],
    // Who says what it can do; older servers do not know that.
    &["CLIENT CAPA redirect", "CLIENT CAPA nosuch redirect", "CLIENT CAPA", "PING"],
    // Who asks for others.
    &["CLIENT LIST TYPE foo", "CLIENT LIST TYPE replica", "CLIENT LIST ID 99999 99998", "PING"],
    // It contains itself: as deep as Lua's stack.
    &["EVAL return(function(a)a[1]=a;return(a)end)({}) 0", "PING"],
    &["CLIENT LIST FOO", "CLIENT LIST TYPE", "CLIENT LIST ID", "INFO nosuch", "PING"],
    // What RESP3 has.
    &["HELLO 3\\", " SETNAME x y", "DEBUG PROTOCOL attrib", "DEBUG PROTOCOL null", "PING"],
    &["CLIENT NO-EVICT on", "DEBUG PROTOCOL attrib", "DEBUG PROTOCOL verbatim", "DEBUG PROTOCOL true", "PING"],
    // Subscribers.
    &["SSUBSCRIBE s1 s2", "SPUBLISH s1 hi", "PING", "SUNSUBSCRIBE s1 s2", "SPUBLISH s1 x"],
    &[
        "SUBSCRIBE a",
        "GET a",
        "PING",
        "PING x",
        "PSUBSCRIBE p*",
        "PUBLISH p1 x",
        "UNSUBSCRIBE",
        "PUNSUBSCRIBE",
        "GET a",
    ],
    &["SUBSCRIBE c", "PING a", "GET a", "PING", "SET a 1", "PING c", "UNSUBSCRIBE", "PING"],
    &["SUBSCRIBE c", "PING", "QUIT"],
    // Shard channels are counted apart.
    &["SUBSCRIBE a", "SSUBSCRIBE s", "SUNSUBSCRIBE s", "GET a", "PING", "PUNSUBSCRIBE", "PING", "UNSUBSCRIBE", "PING"],
    &["SSUBSCRIBE s", "SUBSCRIBE a", "UNSUBSCRIBE a", "GET a", "SPUBLISH s x", "PING", "SUNSUBSCRIBE", "GET a"],
    &["MULTI", "SUBSCRIBE a", "SSUBSCRIBE s", "SUNSUBSCRIBE s", "EXEC", "GET a", "PING", "UNSUBSCRIBE", "PING"],
    // A null of an array, from a copy, too.
    &["ZRANK none m WITHSCORE", "ZREVRANK none m withscore", "ZRANK none m", "ZRANK none m WITHSCORE"],
    // Without a tracking of one's own.
    &["CLIENT TRACKINGINFO", "CLIENT GETREDIR", "PING"],
    // Transactions and their faults.
    &["DISCARD", "EXEC", "MULTI", "MULTI", "WATCH a", "FOO", "EXEC", "UNWATCH", "PING"],
    &["MULTI", "GET", "EXEC", "MULTI", "INCR sp", "GET a", "EXEC"],
    // What one server says of a cluster.
    &["CLUSTER INFO", "CLUSTER SLOTS", "CLUSTER KEYSLOT a", "ASKING", "CLUSTER"],
    // Arguments that are wrong.
    &["GET", "GET a b", "SETEX a", "set", "MGET", "FOO", "foo bar baz", "OBJECT FOO a", "CLIENT NOPE"],
    &["SELECT 17", "SELECT x", "SELECT -1", "SELECT 99999999999", "HELLO 4", "HELLO x", "HELLO 3 SETNAME", "PING"],
    &["WAIT 0 10", "WAIT x 1", "WAIT 1", "WAIT 1 -1", "BLPOP nokey x", "BLPOP nokey -1", "BLPOP nokey 0.01"],
    // Frames that are none.
    &["*-1", "*0", "*1\r\n$4\r\nPING"],
    &["*abc"],
    &["*1\r\nfoo"],
    &["*1\r\n$abc"],
    &["*1\r\n$-5"],
    &["*2147483648"],
    &["*1\r\n$536870913"],
    &["%2\r\n+a\r\n+b"],
    &["~1\r\n$4\r\nPING"],
    &[">1\r\n$4\r\nPING"],
    // A web browser.
    &["POST / HTTP/1.1", "PING"],
    &["Host: a", "PING"],
    &["PING", "QUIT", "PING"],
];

/// The same in RESP3.
const OF_RESP3: &[&[&str]] = &[
    &["DEBUG PROTOCOL attrib", "DEBUG PROTOCOL verbatim", "DEBUG PROTOCOL bignum", "PING"],
    &[
        "DEBUG PROTOCOL set",
        "DEBUG PROTOCOL map",
        "DEBUG PROTOCOL double",
        "DEBUG PROTOCOL null",
        "DEBUG PROTOCOL array",
    ],
    // Messages come where Redis puts them: in front of the reply to the PUBLISH that made them.
    &["SUBSCRIBE a", "GET a", "PUBLISH a hello", "MULTI", "GET a", "EXEC", "UNSUBSCRIBE"],
    &["SSUBSCRIBE s1 s2", "SPUBLISH s1 hi", "GET a", "SUNSUBSCRIBE s1 s2", "PUBSUB SHARDCHANNELS"],
    &["SUBSCRIBE a", "SSUBSCRIBE s", "SUNSUBSCRIBE s", "PUBLISH a x", "GET a", "UNSUBSCRIBE", "PUBLISH a x", "GET a"],
    &["CLIENT TRACKING ON", "GET tracked", "SET tracked x", "GET tracked", "CLIENT TRACKING OFF", "DEL tracked"],
    &["SUBSCRIBE a", "PING", "SUBSCRIBE b", "SELECT 3", "UNSUBSCRIBE b", "GET a", "UNSUBSCRIBE", "PING"],
    &[
        "CLIENT TRACKING ON OPTIN",
        "CLIENT TRACKINGINFO",
        "CLIENT GETREDIR",
        "CLIENT TRACKING OFF",
        "CLIENT TRACKINGINFO",
    ],
    &["CLIENT REPLY OFF", "SUBSCRIBE z", "CLIENT REPLY ON", "PING"],
    &["SUBSCRIBE c", "RESET", "GET a", "PING"],
];

/// Where Valkey is another than Redis.
const OF_REDIS: &[&[&str]] = &[
    &["READONLY", "READWRITE"],
    &["GET 'a'b"],
    &["*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nabcXXPING", "GET k", "*2\r?$3\r?GET\r\n$1\r\nk", "DEL k"],
];

/// All that a server says; a connection that it closes ends early.
fn said(socket: &Path, hello: bool, exchange: &[&str]) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut request = Vec::new();
    if hello {
        request.extend(b"HELLO 3\r\n");
    }
    for line in exchange {
        match line.strip_suffix('\\') {
            Some(part) => request.extend(part.as_bytes()),
            None => request.extend([line.as_bytes(), b"\r\n"].concat()),
        }
    }
    request.extend(END);
    // Whoever has closed it already has said why.
    let _ = stream.write_all(&request);
    let resets = 1 + exchange.iter().filter(|line| **line == "RESET").count();
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    while text.windows(ENDED.len()).filter(|part| *part == ENDED).count() < resets {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => text.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error).with_context(|| format!("behind {:?}", String::from_utf8_lossy(&text))),
        }
    }
    // What HELLO says names the connection.
    let hello = if hello { Value::decode(&text)?.1 } else { 0 };
    Ok(text.split_off(hello))
}

fn exchanged_alike(program: &Path, further: &[&[&str]]) -> Result<()> {
    let (behind, direct) = (RedisServer::start_program(program)?, RedisServer::start_program(program)?);
    let sidecar = SidecarOptions::redis(behind.socket()).start()?;
    let resp2 = EXCHANGES.iter().chain(further).map(|exchange| (false, exchange));
    for (hello, exchange) in resp2.chain(OF_RESP3.iter().map(|exchange| (true, exchange))) {
        let ours = said(&sidecar.socket(), hello, exchange).with_context(|| format!("the sidecar, to {exchange:?}"))?;
        let theirs = said(direct.socket(), hello, exchange).with_context(|| format!("Redis, to {exchange:?}"))?;
        ensure!(
            ours == theirs,
            "{exchange:?}, RESP3: {hello}\n  sidecar: {}\n  Redis:   {}",
            ours.escape_ascii(),
            theirs.escape_ascii()
        );
    }
    // Newer servers close the connection for such a frame; here others share it.
    let lost = sidecar.metric("caddy_lost_connections_total")?;
    let odd = said(&sidecar.socket(), false, &["*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nabcXXGET k"])?;
    ensure!(odd == b"+OK\r\n$3\r\nabc\r\n+RESET\r\n", "{}", odd.escape_ascii());
    ensure!(sidecar.metric("caddy_lost_connections_total")? == lost, "a frame of one app closed a connection of all");
    Ok(())
}

#[test]
fn the_edges_of_the_protocol_are_those_of_redis() -> Result<()> {
    exchanged_alike(&redis::program()?, OF_REDIS)
}

#[test]
fn the_edges_of_the_protocol_are_those_of_valkey() -> Result<()> {
    let Some(program) = redis::valkey() else {
        println!("skipped: {}", redis::NO_VALKEY);
        return Ok(());
    };
    exchanged_alike(&program, &[])
}
