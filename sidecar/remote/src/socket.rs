//! A connected stream socket on the runtime of its thread.
//!
//! Only what arrives is waited for. Whoever also waits for room to write, as tokio's streams always do, is woken by a Unix
//! socket whenever its peer has read something: once more for every request and every reply. Room is waited for when a
//! write finds none, until one has found enough.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::UnixStream,
};

/// See the module.
#[derive(Debug)]
pub struct Socket {
    readable: AsyncFd<OwnedFd>,
    /// Another descriptor of the socket, while there is too little room.
    room: Option<Box<AsyncFd<OwnedFd>>>,
}

impl Socket {
    /// Registers a connected socket, which does not block, with the runtime of the calling thread.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { readable: watch(socket, Interest::READABLE)?, room: None })
    }

    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        Self::new(stream.into_std()?.into())
    }

    /// Reads what there is, at most what `buffer` has room for; 0: the peer has closed its end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = buffer.len();
        self.poll_filled(cx, room, |socket| rustix::io::read(socket, &mut *buffer))
    }

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
                Some(room) => Some(ready!(room.poll_write_ready(cx))?),
                None => None,
            };
            match send(self.readable.get_ref(), bytes, SendFlags::NOSIGNAL) {
                Ok(written) => {
                    if written == bytes.len() {
                        self.room = None;
                    }
                    return Poll::Ready(Ok(written));
                }
                Err(Errno::AGAIN) => match ready {
                    Some(mut ready) => ready.clear_ready(),
                    None => {
                        self.room = Some(Box::new(watch(self.readable.get_ref().try_clone()?, Interest::WRITABLE)?));
                    }
                },
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
            let (filled, _) = rustix::io::read(socket, &mut *unfilled)?;
            Ok(filled.len())
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
