//! Replies in the order of their requests, whatever order they become known in.
//!
//! While nothing is waited for, replies go straight to the output and this queue stays empty: that is the hit path. Knows how
//! many bytes wait here that are in nobody else's sum, so that whoever owns it can bound and count them.

use std::collections::VecDeque;

use bytes::Bytes;

/// The queue of replies that cannot be written yet.
#[derive(Debug, Default)]
pub(crate) struct Replies<P> {
    /// The sequence number of the first slot.
    first: u64,
    slots: VecDeque<Slot<P>>,
    waiting: usize,
    /// How many there were lately, before all had left: room for as many is made at once.
    usual: usize,
    /// The sum of `own` of all slots.
    bytes: usize,
}

/// Room for more is made when it is needed.
const MOST_AT_ONCE: usize = 64;

#[derive(Debug)]
enum Slot<P> {
    Ready {
        bytes: Bytes,
        /// How many of them count here, and nowhere else.
        own: usize,
    },
    /// What the session has to remember of the request until its reply is there.
    Waiting(P),
    /// The same of a request whose reply the app does not want.
    Unwanted(P),
}

impl<P> Slot<P> {
    const NOTHING: Self = Self::Ready { bytes: Bytes::new(), own: 0 };
}

impl<P> Replies<P> {
    pub(crate) fn new() -> Self {
        Self { first: 0, slots: VecDeque::new(), waiting: 0, usual: 1, bytes: 0 }
    }

    /// How many requests have no reply yet.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether the next reply may be written to the output directly.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The sequence number of the next request.
    pub(crate) fn next_seq(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The app wants no reply to the requests from `seq` on that are here.
    pub(crate) fn silence_from(&mut self, seq: u64) {
        let from = usize::try_from(seq.saturating_sub(self.first)).unwrap_or(usize::MAX);
        for slot in self.slots.iter_mut().skip(from) {
            *slot = match std::mem::replace(slot, Slot::NOTHING) {
                Slot::Waiting(pending) => Slot::Unwanted(pending),
                Slot::Ready { own, .. } => {
                    self.bytes -= own;
                    Slot::NOTHING
                }
                unwanted @ Slot::Unwanted(_) => unwanted,
            };
        }
    }

    /// A place for a reply that is yet to come.
    pub(crate) fn expect(&mut self, pending: P) -> u64 {
        if self.slots.capacity() == 0 {
            self.slots.reserve(self.usual);
        }
        self.slots.push_back(Slot::Waiting(pending));
        self.waiting += 1;
        self.first + self.slots.len() as u64 - 1
    }

    /// A reply that is known, behind others that are not.
    pub(crate) fn append(&mut self, bytes: Bytes) {
        let own = bytes.len();
        self.bytes += own;
        self.slots.push_back(Slot::Ready { bytes, own });
    }

    /// What came unasked: behind the replies that are known, in front of those still waited for, as the server sent it.
    pub(crate) fn interject(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let known = self.slots.iter().take_while(|slot| matches!(slot, Slot::Ready { .. })).count();
        match known.checked_sub(1).and_then(|last| self.slots.get_mut(last)) {
            Some(Slot::Ready { bytes: before, own }) => {
                *before = [before, bytes].concat().into();
                self.bytes += bytes.len();
                *own += bytes.len();
            }
            _ => out.extend_from_slice(bytes),
        }
    }

    /// The reply for `seq`; gives back what was remembered of the request.
    pub(crate) fn complete(&mut self, seq: u64, bytes: Bytes) -> Option<P> {
        let own = bytes.len();
        self.put(seq, bytes, own)
    }

    /// The same of bytes that are in another sum already, or others have too.
    pub(crate) fn complete_with_counted(&mut self, seq: u64, bytes: Bytes) -> Option<P> {
        self.put(seq, bytes, 0)
    }

    fn put(&mut self, seq: u64, bytes: Bytes, own: usize) -> Option<P> {
        let slot = self.slots.get_mut(usize::try_from(seq.checked_sub(self.first)?).ok()?)?;
        match std::mem::replace(slot, Slot::Ready { bytes, own }) {
            Slot::Waiting(pending) => {
                self.waiting -= 1;
                self.bytes += own;
                Some(pending)
            }
            Slot::Unwanted(pending) => {
                self.waiting -= 1;
                *slot = Slot::NOTHING;
                Some(pending)
            }
            ready @ Slot::Ready { .. } => {
                *slot = ready;
                None
            }
        }
    }

    /// What was remembered of a request that is still waiting.
    pub(crate) fn pending_mut(&mut self, seq: u64) -> Option<&mut P> {
        match self.slots.get_mut(usize::try_from(seq.checked_sub(self.first)?).ok()?)? {
            Slot::Waiting(pending) | Slot::Unwanted(pending) => Some(pending),
            Slot::Ready { .. } => None,
        }
    }

    /// What was remembered of the last request, if it waits.
    pub(crate) fn last_pending(&self) -> Option<&P> {
        match self.slots.back()? {
            Slot::Waiting(pending) | Slot::Unwanted(pending) => Some(pending),
            Slot::Ready { .. } => None,
        }
    }

    /// What was remembered of the requests that wait, in their order.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &P> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Waiting(pending) | Slot::Unwanted(pending) => Some(pending),
            Slot::Ready { .. } => None,
        })
    }

    /// How many replies are held back.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of replies that are held back and count nowhere else.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves replies that are due into `out` while it is shorter than `limit`. Those that stay share the bytes of their
    /// copies, so that many replies of one large value are not as large as they look.
    pub(crate) fn drain_into(&mut self, out: &mut Vec<u8>, limit: usize) {
        let before = self.slots.len();
        while out.len() < limit
            && let Some(Slot::Ready { bytes, own }) = self.slots.front()
        {
            out.extend_from_slice(bytes);
            self.bytes -= own;
            self.slots.pop_front();
            self.first += 1;
        }
        // An idle session keeps none.
        if self.slots.is_empty() && self.slots.capacity() > 0 {
            self.slots = VecDeque::new();
            self.usual = before.min(MOST_AT_ONCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_leave_in_the_order_of_their_requests() {
        let mut replies = Replies::new();
        let mut out = Vec::new();
        let (a, b) = (replies.expect("a"), replies.expect("b"));
        replies.append(Bytes::from_static(b"3"));
        assert_eq!(replies.complete(b, Bytes::from_static(b"2")), Some("b"));
        replies.drain_into(&mut out, usize::MAX);
        assert_eq!((out.as_slice(), replies.waiting()), (&b""[..], 1));
        assert_eq!(replies.complete(a, Bytes::from_static(b"1")), Some("a"));
        replies.drain_into(&mut out, usize::MAX);
        assert_eq!((out.as_slice(), replies.is_empty()), (&b"123"[..], true));
    }

    #[test]
    fn what_does_not_fit_stays_due() {
        let mut replies = Replies::new();
        let mut out = Vec::new();
        replies.expect(());
        (0..3).for_each(|_| replies.append(Bytes::from_static(b"22")));
        replies.complete(0, Bytes::from_static(b"1"));
        replies.drain_into(&mut out, 2);
        assert_eq!((out.as_slice(), replies.is_empty()), (&b"122"[..], false));
        replies.drain_into(&mut out, usize::MAX);
        assert_eq!((out.as_slice(), replies.is_empty()), (&b"1222222"[..], true));
    }

    #[test]
    fn what_comes_unasked_keeps_its_place_in_the_stream() {
        let mut replies = Replies::new();
        let mut out = Vec::new();
        replies.interject(b"a", &mut out);
        let (one, two) = (replies.expect(()), replies.expect(()));
        replies.interject(b"b", &mut out);
        replies.complete(one, Bytes::from_static(b"1"));
        replies.interject(b"c", &mut out);
        assert_eq!(replies.next_seq(), two + 1, "places stay what they are");
        replies.complete(two, Bytes::from_static(b"2"));
        replies.drain_into(&mut out, usize::MAX);
        assert_eq!(out, b"ab1c2");
    }

    #[test]
    fn an_unwanted_reply_is_awaited_and_not_written() {
        let mut replies = Replies::new();
        let wanted = replies.expect("wanted");
        let from = replies.next_seq();
        let unwanted = replies.expect("unwanted");
        replies.append(Bytes::from_static(b"known"));
        replies.silence_from(from);
        let last = replies.expect("last");
        assert_eq!((replies.waiting(), replies.pending_mut(unwanted)), (3, Some(&mut "unwanted")));
        let mut out = Vec::new();
        for (seq, bytes) in [(unwanted, "2"), (last, "3"), (wanted, "1")] {
            replies.complete(seq, Bytes::from_static(bytes.as_bytes()));
        }
        replies.drain_into(&mut out, usize::MAX);
        assert_eq!((out.as_slice(), replies.waiting()), (&b"13"[..], 0));
    }

    #[test]
    fn bytes_that_wait_are_counted_once() {
        let mut replies = Replies::new();
        let mut out = Vec::new();
        let (one, two, three) = (replies.expect(()), replies.expect(()), replies.expect(()));
        replies.append(Bytes::from_static(b"four"));
        replies.complete(two, Bytes::from_static(b"two"));
        replies.complete_with_counted(three, Bytes::from_static(b"three"));
        replies.complete(two, Bytes::from_static(b"again"));
        assert_eq!(replies.bytes(), 7);
        replies.silence_from(three);
        assert_eq!(replies.bytes(), 3);
        replies.complete(one, Bytes::from_static(b"one"));
        replies.interject(b"!", &mut out);
        assert_eq!(replies.bytes(), 7);
        replies.drain_into(&mut out, 1);
        assert_eq!((out.as_slice(), replies.bytes()), (&b"one"[..], 4));
        replies.drain_into(&mut out, usize::MAX);
        assert_eq!((out.as_slice(), replies.bytes()), (&b"onetwo!"[..], 0));
    }

    #[test]
    fn a_second_reply_to_one_request_is_ignored() {
        let mut replies = Replies::new();
        let seq = replies.expect(());
        assert!(replies.complete(seq, Bytes::from_static(b"1")).is_some());
        assert!(replies.complete(seq, Bytes::from_static(b"2")).is_none());
        assert!(replies.complete(seq + 1, Bytes::from_static(b"2")).is_none());
        let mut out = Vec::new();
        replies.drain_into(&mut out, usize::MAX);
        assert_eq!(out, b"1");
    }
}
