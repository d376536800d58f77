//! A connected stream socket on the runtime of its thread.
//!
//! Only what arrives is waited for. Whoever also waits for room to write, as tokio's streams always do, is woken by a Unix
//! socket whenever its peer has read something: once more for every request and every reply. Room is waited for when a
//! write finds none, until one has found enough; and where that other wake-up is wanted ([`Socket::set_eager`]).

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::UnixStream,
};

/// See the module.
#[derive(Debug)]
pub struct Socket {
    readable: AsyncFd<OwnedFd>,
    room: Option<Box<Room>>,
}

/// Another descriptor of a socket, on which room is waited for.
#[derive(Debug)]
struct Room {
    writable: AsyncFd<OwnedFd>,
    /// Also while there is enough.
    is_eager: bool,
}

impl Socket {
    /// Registers a connected socket, which does not block, with the runtime of the calling thread.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { readable: watch(socket, Interest::READABLE)?, room: None })
    }

    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        Self::new(stream.into_std()?.into())
    }

    /// Whether the thread is to wake up when the peer has read what it was sent, in advance of what it sends next. To a peer that
    /// sends at once that makes the way to this thread shorter by most of a wake-up; with any other it costs one more. Without
    /// a descriptor to spare nothing changes.
    pub fn set_eager(&mut self, is_eager: bool) {
        match &mut self.room {
            Some(room) => room.is_eager = is_eager,
            None if is_eager => self.room = self.watch_room(true).ok(),
            None => {}
        }
    }

    fn watch_room(&self, is_eager: bool) -> io::Result<Box<Room>> {
        let writable = watch(self.readable.get_ref().try_clone()?, Interest::WRITABLE)?;
        Ok(Box::new(Room { writable, is_eager }))
    }

    /// Reads what there is, at most what `buffer` has room for; 0: the peer has closed its end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = buffer.len();
        self.poll_filled(cx, room, |socket| recv(socket, &mut *buffer, RecvFlags::empty()).map(|(read, _)| read))
    }

    /// By `recv`, which `read` would only get to by way of what files need.
    fn poll_filled(
        &self,
        cx: &mut Context<'_>,
        room: usize,
        mut read: impl FnMut(&OwnedFd) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.readable.poll_read_ready(cx))?;
            match read(self.readable.get_ref()) {
                Ok(read) => {
                    // Less than there was room for is all that had come: what comes from now on is announced again.
                    if 0 < read && read < room {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(read));
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Writes as much of `bytes` as there is room for.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let ready = match &self.room {
                Some(room) if !room.is_eager => Some(ready!(room.writable.poll_write_ready(cx))?),
                _ => None,
            };
            match send(self.readable.get_ref(), bytes, SendFlags::NOSIGNAL) {
                Ok(written) => {
                    if written == bytes.len() {
                        self.room.take_if(|room| !room.is_eager);
                    }
                    return Poll::Ready(Ok(written));
                }
                Err(Errno::AGAIN) => {
                    if let Some(mut ready) = ready {
                        ready.clear_ready();
                    } else if let Some(room) = &mut self.room {
                        // It does not read at once after all.
                        room.is_eager = false;
                    } else {
                        self.room = Some(self.watch_room(false)?);
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.remaining();
        let unfilled = unfilled(buf);
        let read = ready!(self.poll_filled(cx, room, |socket| {
            recv(socket, &mut *unfilled, RecvFlags::empty()).map(|(_, read)| read)
        }))?;
        fill(buf, read);
        Poll::Ready(Ok(()))
    }
}

#[expect(unsafe_code, reason = "the system fills memory that nobody has written to")]
fn unfilled<'a>(buf: &'a mut ReadBuf<'_>) -> &'a mut [MaybeUninit<u8>] {
    // SAFETY: it is only given to `read`, which writes bytes into it and takes none away.
    unsafe { buf.unfilled_mut() }
}

#[expect(unsafe_code, reason = "the system fills memory that nobody has written to")]
fn fill(buf: &mut ReadBuf<'_>, read: usize) {
    // SAFETY: `read` has just written so many bytes there.
    unsafe { buf.assume_init(read) };
    buf.advance(read);
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Self::poll_write(self.get_mut(), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(self.readable.get_ref(), rustix::net::Shutdown::Write).map_err(Into::into))
    }
}

/// Waits for one kind of readiness, on the runtime of the calling thread.
#[expect(unsafe_code, reason = "tokio wants a promise about descriptors that an OwnedFd always keeps")]
fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and one and the same descriptor, for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{Read, Write},
        os::unix::net::UnixStream,
        time::Duration,
    };

    use tokio::runtime::{Builder, Handle};

    use super::*;

    const ROUNDS: u64 = 20;

    /// How often a thread goes to sleep that answers a peer which takes its time.
    fn sleeps(is_eager: bool) -> u64 {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let asking = std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                for part in ["write", "read"] {
                    std::thread::sleep(Duration::from_millis(2));
                    match part {
                        "write" => peer.write_all(b"?").unwrap(),
                        _ => peer.read_exact(&mut [0]).unwrap(),
                    }
                }
            }
        });
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let mut socket = Socket::new(ours.into()).unwrap();
            socket.set_eager(is_eager);
            let mut sleeps = 0;
            loop {
                let read = poll_fn(|cx| socket.poll_read(cx, &mut [0; 16])).await.unwrap();
                sleeps = Handle::current().metrics().worker_park_count(0).max(sleeps);
                if read == 0 {
                    break;
                }
                assert_eq!(poll_fn(|cx| socket.poll_write(cx, b"!")).await.unwrap(), 1);
            }
            asking.join().unwrap();
            sleeps
        })
    }

    #[test]
    fn only_who_is_eager_wakes_up_when_the_peer_reads() {
        let (lazy, eager) = (sleeps(false), sleeps(true));
        assert!(lazy < ROUNDS * 3 / 2 && eager > ROUNDS * 3 / 2, "{lazy} and {eager} times in {ROUNDS} rounds");
    }

    /// Room is waited for where there is none, whoever is eager.
    #[tokio::test]
    async fn what_does_not_fit_is_written_when_the_peer_has_read() {
        for is_eager in [false, true] {
            let (ours, mut peer) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let mut socket = Socket::new(ours.into()).unwrap();
            socket.set_eager(is_eager);
            let (bytes, mut written) = (vec![b'x'; 4 << 20], 0);
            let reading = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                let mut all = Vec::new();
                peer.read_to_end(&mut all).unwrap();
                all.len()
            });
            while written < bytes.len() {
                written += poll_fn(|cx| socket.poll_write(cx, &bytes[written..])).await.unwrap();
            }
            drop(socket);
            assert_eq!(reading.join().unwrap(), bytes.len());
        }
    }
}
