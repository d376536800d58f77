//! How replies leave.

use std::{
    io::{self, Read, Write as _},
    os::unix::net::UnixStream,
    sync::mpsc::{Sender, channel},
    thread,
};

use anyhow::{Result, anyhow, ensure};
use caddy_resp::encode;
use caddy_tests::{redis::RedisServer, sidecar::Sidecar};

use crate::session;

/// Reads so many bytes; how many reads that took.
fn reads_until(stream: &mut impl Read, length: usize) -> Result<usize> {
    let mut buffer = vec![0; length + 1];
    let (mut filled, mut reads) = (0, 0);
    while filled < length {
        let read = stream.read(&mut buffer[filled..])?;
        ensure!(read > 0, "closed after {filled} of {length} bytes");
        filled += read;
        reads += 1;
    }
    ensure!(filled == length, "more was sent than was asked for");
    Ok(reads)
}

const ROUNDS: usize = 60;

#[test]
fn a_pipelined_batch_of_hits_is_answered_in_one_write() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    redis.command(&["SET", "k", "v"])?;
    session(&sidecar)?.hold("k", "v")?;
    let mut batch = Vec::new();
    for _ in 0..200 {
        encode::command(&mut batch, ["GET", "k"]);
        encode::command(&mut batch, ["PING"]);
    }
    let length = 200 * (b"$1\r\nv\r\n".len() + b"+PONG\r\n".len());
    let mut stream = UnixStream::connect(sidecar.socket())?;
    for round in 0..ROUNDS {
        // Whatever proof was due has been asked for by now: the batch itself is hits alone.
        stream.write_all(&batch)?;
        let reads = reads_until(&mut stream, length)?;
        ensure!(reads == 1, "round {round}: the replies of one batch came in {reads} parts");
    }
    Ok(())
}

/// A stream whose other end is told of each read that is over. (That nothing is unread any more is seen within a read, too.)
struct Told(UnixStream, Sender<()>);

impl Read for Told {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer);
        // Who writes is done behind the last one.
        let _ = self.1.send(());
        read
    }
}

/// What the test above looks at does tell one write from two, where the second waits until the first has been read.
#[test]
fn two_writes_are_seen_as_such() -> Result<()> {
    let (mut server, client) = UnixStream::pair()?;
    let (read, is_read) = channel();
    let writer = thread::spawn(move || -> Result<()> {
        for _ in 0..2 * ROUNDS {
            server.write_all(&b"+PONG\r\n".repeat(200))?;
            is_read.recv()?;
        }
        Ok(())
    });
    let mut client = Told(client, read);
    for _ in 0..ROUNDS {
        ensure!(reads_until(&mut client, 400 * b"+PONG\r\n".len())? == 2, "two writes, two reads");
    }
    writer.join().map_err(|_| anyhow!("the writer panicked"))?
}
