//! The floor: the least that a tokio server on a Unix socket can do to answer GET and SET. One thread, a hash table, one
//! buffer for reading and one for writing, no limits, no errors, no expiry. What a cache needs beyond it is its own cost.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

type Table = Rc<RefCell<HashMap<Vec<u8>, Vec<u8>>>>;

/// As large as the sidecar's.
const READ_BUFFER: usize = 64 << 10;

/// Serves until it is killed.
pub(crate) fn run(socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
        let table = Table::default();
        loop {
            let (stream, _) = listener.accept().await?;
            let session = serve(stream, table.clone());
            tokio::task::spawn_local(async move {
                // An error is the end of the connection, which nobody here waits for.
                let _ = session.await;
            });
        }
    })
}

async fn serve(mut stream: UnixStream, table: Table) -> std::io::Result<()> {
    let (mut input, mut filled) = (vec![0; READ_BUFFER], 0);
    let mut output = Vec::new();
    loop {
        if filled == input.len() {
            input.resize(input.len() * 2, 0);
        }
        match stream.read(&mut input[filled..]).await? {
            0 => return Ok(()),
            read => filled += read,
        }
        let mut taken = 0;
        while let Some((args, length)) = parse(&input[taken..filled]) {
            answer(&args, &mut table.borrow_mut(), &mut output);
            taken += length;
        }
        input.copy_within(taken..filled, 0);
        filled -= taken;
        stream.write_all(&output).await?;
        output.clear();
    }
}

fn answer(args: &[&[u8]], table: &mut HashMap<Vec<u8>, Vec<u8>>, output: &mut Vec<u8>) {
    match args {
        [b"GET", key] => output.extend_from_slice(table.get(*key).map_or(b"$-1\r\n", Vec::as_slice)),
        [b"SET", key, value] => {
            // Ready to be sent, as a cache would keep it.
            table.insert(key.to_vec(), crate::load::bulk(value));
            output.extend_from_slice(b"+OK\r\n");
        }
        [b"PING"] => output.extend_from_slice(b"+PONG\r\n"),
        _ => output.extend_from_slice(b"-ERR unknown command\r\n"),
    }
}

/// The arguments of the first request and its length, if it is whole; a request that is no array is one inline word.
fn parse(input: &[u8]) -> Option<(Vec<&[u8]>, usize)> {
    if *input.first()? != b'*' {
        let end = input.windows(2).position(|two| two == b"\r\n")?;
        return Some((vec![&input[..end]], end + 2));
    }
    let (count, mut at) = number(input, 1)?;
    let mut args = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, start) = number(input, at + 1)?;
        args.push(input.get(start..start + length)?);
        at = start + length + 2;
    }
    (at <= input.len()).then_some((args, at))
}

/// The decimal at `at` and the place behind its line.
fn number(input: &[u8], mut at: usize) -> Option<(usize, usize)> {
    let mut number = 0;
    while input.get(at)?.is_ascii_digit() {
        number = number * 10 + usize::from(input[at] - b'0');
        at += 1;
    }
    Some((number, at + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_when_they_are_whole() {
        let request = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n";
        assert_eq!(parse(request), Some((vec![&b"GET"[..], b"a"], 20)));
        assert_eq!(parse(&request[20..]), Some((vec![&b"PING"[..]], 6)));
        assert!((0..20).all(|cut| parse(&request[..cut]).is_none()));
    }
}
