//! A Redis client of a few lines, enough to talk to a sidecar or a Redis as any app does: RESP2, one request at a time,
//! every wait with a deadline. Not for measuring throughput.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::failed::{Failed, Result, Step};

/// How long one answer may take; longer than anything the sidecar itself waits for.
const DEADLINE: Duration = Duration::from_secs(15);
/// Larger replies than the demo ever asks for are a fault.
const MAX_REPLY: usize = 1 << 20;

trait Wire: Read + Write {}
impl Wire for UnixStream {}
impl Wire for TcpStream {}

/// A connection to something that speaks RESP.
pub(crate) struct Client {
    wire: BufReader<Box<dyn Wire>>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A simple or bulk string.
    Text(String),
    /// An error, code first.
    Error(String),
    /// An integer.
    Number(i64),
    /// No such value.
    Nil,
    /// An array.
    List(Vec<Self>),
}

impl Client {
    /// Connects to a Unix socket.
    pub(crate) fn unix(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).step(format!("connect to {}", path.display()))?;
        stream.set_read_timeout(Some(DEADLINE)).step("set a deadline on the socket")?;
        Ok(Self { wire: BufReader::new(Box::new(stream)) })
    }

    /// Connects to a port of this machine.
    pub(crate) fn tcp(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).step(format!("connect to 127.0.0.1:{port}"))?;
        stream.set_read_timeout(Some(DEADLINE)).step("set a deadline on the socket")?;
        stream.set_nodelay(true).step("set TCP_NODELAY")?;
        Ok(Self { wire: BufReader::new(Box::new(stream)) })
    }

    /// Sends one command and waits for its answer.
    pub(crate) fn call(&mut self, command: &[&str]) -> Result<Reply> {
        let words: Vec<String> = command.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        let request = format!("*{}\r\n{}", command.len(), words.concat());
        let shown = command.join(" ");
        self.wire.get_mut().write_all(request.as_bytes()).step(format!("send {shown}"))?;
        self.reply().map_err(|error| Failed::new(format!("{shown}: {error}")))
    }

    fn reply(&mut self) -> Result<Reply> {
        let line = self.line()?;
        let Some((kind, rest)) = line.split_at_checked(1) else { return Err(Failed::new("an empty reply line")) };
        let number = || rest.parse::<i64>().step(format!("read the reply `{line}`"));
        match kind {
            "+" => Ok(Reply::Text(rest.to_owned())),
            "-" => Ok(Reply::Error(rest.to_owned())),
            ":" => number().map(Reply::Number),
            "$" => match usize::try_from(number()?) {
                Ok(length) if length <= MAX_REPLY => self.bulk(length),
                Ok(length) => Err(Failed::new(format!("a reply of {length} bytes"))),
                Err(_) => Ok(Reply::Nil),
            },
            "*" => match usize::try_from(number()?) {
                Ok(length) if length <= MAX_REPLY => {
                    (0..length).map(|_| self.reply()).collect::<Result<_>>().map(Reply::List)
                }
                Ok(length) => Err(Failed::new(format!("a reply of {length} elements"))),
                Err(_) => Ok(Reply::Nil),
            },
            _ => Err(Failed::new(format!("a reply that is not RESP2: `{line}`"))),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.wire.read_line(&mut line).step("wait for the answer")?;
        if read == 0 {
            return Err(Failed::new("the connection was closed before the answer"));
        }
        Ok(line.trim_end().to_owned())
    }

    fn bulk(&mut self, length: usize) -> Result<Reply> {
        let mut bytes = vec![0; length + 2];
        self.wire.read_exact(&mut bytes).step("read a value")?;
        bytes.truncate(length);
        Ok(Reply::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

impl Reply {
    /// The value alone, without what redis-cli puts around it.
    pub(crate) fn bare(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            other => other.to_string(),
        }
    }

    /// The text of a string reply.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

impl fmt::Display for Reply {
    /// As redis-cli prints it, lists over several lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Error(text) => write!(f, "(error) {text}"),
            Self::Number(number) => write!(f, "(integer) {number}"),
            Self::Nil => f.write_str("(nil)"),
            Self::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let newline = if index == 0 { "" } else { "\n" };
                    write!(f, "{newline}{}) {item}", index + 1)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Reply> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        Client { wire: BufReader::new(Box::new(ours)) }.reply()
    }

    #[test]
    fn replies_of_every_kind_are_read() {
        assert_eq!(read(b"+OK\r\n").unwrap(), Reply::Text("OK".into()));
        assert_eq!(read(b"$-1\r\n").unwrap(), Reply::Nil);
        assert_eq!(read(b"-NOTREADY no\r\n").unwrap(), Reply::Error("NOTREADY no".into()));
        let list = read(b"*2\r\n$5\r\nab\r\nc\r\n:7\r\n").unwrap();
        assert_eq!(list, Reply::List(vec![Reply::Text("ab\r\nc".into()), Reply::Number(7)]));
    }

    #[test]
    fn a_connection_that_ends_is_an_error() {
        assert!(read(b"$5\r\nab").unwrap_err().to_string().contains("read a value"));
        assert!(read(b"").unwrap_err().to_string().contains("closed"));
    }
}
