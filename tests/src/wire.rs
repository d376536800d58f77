//! A client without opinions: sends bytes over a Unix socket, returns replies as they came.
//!
//! Blocking, with a deadline on every read. For tests that compare replies byte by byte; it never
//! retries and never hides a push.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use caddy_resp::{Frame, FrameKind, ReplyScanner, encode};

/// How long a reply may take unless [`Wire::set_deadline`] says otherwise.
const DEADLINE: Duration = Duration::from_secs(20);

/// One connection.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    scanner: ReplyScanner,
    input: Vec<u8>,
}

impl Wire {
    /// Connects to the server at `socket`.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("failed to connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self { stream, scanner: ReplyScanner::default(), input: Vec::new() })
    }

    /// Changes how long a reply may take.
    pub fn set_deadline(&mut self, deadline: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(deadline))?)
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("failed to send")
    }

    /// Sends a command and does not wait for its reply.
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<()> {
        let mut bytes = Vec::new();
        encode::command(&mut bytes, args);
        self.send_raw(&bytes)
    }

    /// The next frame of any kind.
    pub fn receive(&mut self) -> Result<(Frame, Vec<u8>)> {
        loop {
            if let Some(frame) = self.scanner.scan(&self.input)? {
                return Ok((frame, self.input.drain(..frame.len).collect()));
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the server closed the connection after {:?}", String::from_utf8_lossy(&self.input)),
                Ok(read) => self.input.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("failed to receive a reply"),
            }
        }
    }

    /// Sends a command; its reply as it came. Attributes stay in front of it; a push here is an error.
    pub fn request<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Vec<u8>> {
        self.send(args)?;
        self.reply()
    }

    /// The next reply, with its attribute if it has one.
    pub fn reply(&mut self) -> Result<Vec<u8>> {
        let mut reply = Vec::new();
        loop {
            let (frame, bytes) = self.receive()?;
            reply.extend(bytes);
            match frame.kind {
                FrameKind::Reply => return Ok(reply),
                FrameKind::Attribute => {}
                FrameKind::Push => bail!("a push where a reply was expected: {:?}", String::from_utf8_lossy(&reply)),
            }
        }
    }

    /// The next reply if it comes within `time`; it can be asked for again.
    pub fn reply_within(&mut self, time: Duration) -> Result<Option<Vec<u8>>> {
        let before = self.stream.read_timeout()?;
        self.stream.set_read_timeout(Some(time))?;
        let reply = self.reply();
        self.stream.set_read_timeout(before)?;
        match reply {
            Ok(reply) => Ok(Some(reply)),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the server closes the connection, as the next thing it does.
    pub fn is_closed(&mut self) -> Result<bool> {
        if !self.input.is_empty() {
            return Ok(false);
        }
        match self.stream.read(&mut [0; 1]) {
            Ok(read) => Ok(read == 0),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error).context("failed to wait for the connection's end"),
        }
    }
}

fn is_timeout(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut))
}
