//! A connection that ends where the server begins to send a message that is larger than it may be.
//!
//! The driver reads a message whole before anybody sees a row of it, and a row may have a gigabyte. Each message says first
//! how long it is, so that is looked at as it arrives, beneath the driver and above TLS. What is too large is not read:
//! the connection fails, and remembers why, since the driver tells its callers only that it is closed.
//!
//! The driver has one place for a stream that is not its own: where TLS is. What is to be plain text goes there as it is, as
//! if it were "direct" TLS. It wants a host's name there; a Unix socket, which has none, is given to it ready.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::future::{BoxFuture, Ready, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Config, Socket,
    config::{SslMode, SslNegotiation},
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};

/// A message's type and length.
const HEADER: usize = 5;

/// What a message may be, and what one was that was larger.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    most: usize,
    exceeded: Arc<AtomicUsize>,
}

impl Bound {
    pub(super) fn new(most: usize) -> Self {
        Self { most, exceeded: Arc::default() }
    }

    /// The bytes of the message that ended the connection, if one did.
    pub(super) fn exceeded(&self) -> Option<usize> {
        Some(self.exceeded.load(Ordering::Acquire)).filter(|bytes| *bytes > 0)
    }
}

/// Makes bounded connections without TLS.
pub(super) struct Plain(pub(super) Bound);

impl Plain {
    /// So that the driver hands its socket over.
    pub(super) fn prepare(target: &mut Config) {
        target.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        // Addresses alone have no name, which it asks for and nobody looks at.
        if target.get_hosts().is_empty() {
            for address in target.get_hostaddrs().to_vec() {
                target.host(address.to_string());
            }
        }
    }
}

impl MakeTlsConnect<Socket> for Plain {
    type Stream = Bounded<Socket>;
    type TlsConnect = Self;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _: &str) -> io::Result<Self> {
        Ok(Self(self.0.clone()))
    }
}

impl TlsConnect<Socket> for Plain {
    type Stream = Bounded<Socket>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Stream>>;

    fn connect(self, stream: Socket) -> Self::Future {
        ready(Ok(Bounded::plain(stream, self.0)))
    }
}

/// Makes bounded connections with TLS.
pub(super) struct Secured<M>(pub(super) M, pub(super) Bound);

impl<M> MakeTlsConnect<Socket> for Secured<M>
where
    M: MakeTlsConnect<Socket>,
    M::TlsConnect: Send + 'static,
    <M::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    type Stream = Bounded<M::Stream>;
    type TlsConnect = Secured<M::TlsConnect>;
    type Error = M::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self::TlsConnect, M::Error> {
        Ok(Secured(self.0.make_tls_connect(host)?, self.1.clone()))
    }
}

impl<T> TlsConnect<Socket> for Secured<T>
where
    T: TlsConnect<Socket> + Send + 'static,
    T::Future: Send,
{
    type Stream = Bounded<T::Stream>;
    type Error = T::Error;
    type Future = BoxFuture<'static, Result<Self::Stream, T::Error>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move { Ok(Bounded::new(self.0.connect(stream).await?, T::Stream::channel_binding, self.1)) })
    }
}

/// A stream of messages, each of them bounded.
pub(super) struct Bounded<S> {
    stream: S,
    /// What TLS says about the channel.
    binding: fn(&S) -> ChannelBinding,
    bound: Bound,
    messages: Messages,
}

impl<S> Bounded<S> {
    fn new(stream: S, binding: fn(&S) -> ChannelBinding, bound: Bound) -> Self {
        Self { stream, binding, bound, messages: Messages::default() }
    }

    /// One that has no channel to be bound to.
    pub(super) fn plain(stream: S, bound: Bound) -> Self {
        Self::new(stream, |_| ChannelBinding::none(), bound)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let Some(bytes) = this.messages.larger(&buffer.filled()[before..], this.bound.most) else {
            return Poll::Ready(Ok(()));
        };
        this.bound.exceeded.store(bytes, Ordering::Release);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {bytes} bytes"))))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Bounded<S> {
    fn channel_binding(&self) -> ChannelBinding {
        (self.binding)(&self.stream)
    }
}

/// Where in the stream of messages one is.
#[derive(Debug, Default)]
struct Messages {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Messages {
    /// The length of the first message that is larger than `most`, once its header is there.
    fn larger(&mut self, mut bytes: &[u8], most: usize) -> Option<usize> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(HEADER - self.have));
            self.header[self.have..self.have + now.len()].copy_from_slice(now);
            (self.have, bytes) = (self.have + now.len(), rest);
            if self.have == HEADER {
                let [_, length @ ..] = self.header;
                // It counts itself. One that does not is for the driver to refuse.
                self.left = (u32::from_be_bytes(length) as usize).saturating_sub(length.len());
                self.have = 0;
                if self.left > most {
                    return Some(self.left);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![b'D'];
        bytes.extend((length + 4).to_be_bytes());
        bytes.resize(HEADER + length as usize, b'x');
        bytes
    }

    #[test]
    fn a_message_is_found_too_large_by_its_header_however_it_arrives() {
        let stream = [message(0), message(10), message(3), message(11)].concat();
        let header_ends = stream.len() - 11;
        for step in 1..stream.len() {
            let mut messages = Messages::default();
            let mut seen = 0;
            let found = stream.chunks(step).find_map(|chunk| {
                seen += chunk.len();
                messages.larger(chunk, 10)
            });
            assert_eq!(found, Some(11), "in steps of {step}");
            assert!(seen < header_ends + step, "in steps of {step}");
            assert_eq!(Messages::default().larger(&stream, 11), None);
        }
    }
}
