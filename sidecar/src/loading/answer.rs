//! Who waits for a load, and how they are answered.

use std::sync::Arc;

use bytes::Bytes;
use caddy_resp::{Protocol, encode};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    cache::{Cached, Waiter},
    shared::Shared,
};

/// What comes of a load.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A value that is fresh, or that there is none.
    Fresh(Cached),
    /// What was there before, since the store gives nothing now.
    Stale(Cached),
    /// Neither.
    Failed(Arc<str>),
}

impl Answer {
    /// The same, which counts as in flight until all have it.
    pub(super) fn held(&self, shared: &Shared) -> Self {
        let held = |value: &Cached| value.held(shared.cache.hold(value.reply_len()));
        match self {
            Self::Fresh(value) => Self::Fresh(held(value)),
            Self::Stale(value) => Self::Stale(held(value)),
            Self::Failed(reason) => Self::Failed(reason.clone()),
        }
    }
}

/// Who asks for a key.
#[derive(Debug)]
pub(crate) enum Asker {
    /// A request for this key alone.
    One(Waiter),
    /// A request for several, of which this is one.
    Of(Arc<Several>, usize),
    /// Who needs it for something else.
    Told(oneshot::Sender<Answer>),
}

/// A request for several keys, answered when all are there.
#[derive(Debug)]
pub(crate) struct Several {
    waiter: Waiter,
    state: Mutex<Gathered>,
}

#[derive(Debug)]
struct Gathered {
    values: Vec<Option<Cached>>,
    missing: usize,
    is_stale: bool,
    failure: Option<Arc<str>>,
}

impl Several {
    /// `values` that are known; the others have to be [given](Asker::answer), at least one.
    pub(crate) fn new(waiter: Waiter, values: Vec<Option<Cached>>) -> Arc<Self> {
        let missing = values.iter().filter(|value| value.is_none()).count();
        let state = Gathered { values, missing, is_stale: false, failure: None };
        Arc::new(Self { waiter, state: Mutex::new(state) })
    }

    fn give(&self, place: usize, answer: Answer) {
        let mut state = self.state.lock();
        let value = match answer {
            Answer::Fresh(value) => value,
            Answer::Stale(value) => {
                state.is_stale = true;
                value
            }
            Answer::Failed(reason) => {
                state.failure.get_or_insert(reason);
                Cached::Nil
            }
        };
        if state.values[place].replace(value).is_some() {
            return;
        }
        state.missing -= 1;
        if state.missing > 0 {
            return;
        }
        let mut out = Vec::new();
        if let Some(reason) = &state.failure {
            error(&mut out, reason);
        } else {
            mark(&mut out, state.is_stale, self.waiter.protocol);
            encode::array_header(&mut out, state.values.len());
            state.values.iter().flatten().for_each(|value| value.encode(self.waiter.protocol, &mut out));
        }
        drop(state);
        self.waiter.to.reply(out);
    }
}

impl Asker {
    pub(crate) fn answer(self, answer: Answer) {
        match self {
            Self::Of(several, place) => several.give(place, answer),
            Self::Told(told) => {
                // Who does not wait any more is not told.
                let _ = told.send(answer);
            }
            Self::One(waiter) => match answer {
                Answer::Fresh(value) => waiter.answer(&value),
                Answer::Stale(value) => {
                    let mut out = Vec::new();
                    mark(&mut out, true, waiter.protocol);
                    value.encode(waiter.protocol, &mut out);
                    waiter.to.reply(out);
                }
                Answer::Failed(reason) => {
                    let mut out = Vec::new();
                    error(&mut out, &reason);
                    waiter.to.reply(Bytes::from(out));
                }
            },
        }
    }
}

/// RESP3 can say it; RESP2 cannot, and the keyspace that sets `staleIfError` allows it.
fn mark(out: &mut Vec<u8>, is_stale: bool, protocol: Protocol) {
    if is_stale && protocol == Protocol::Resp3 {
        encode::attribute_header(out, 1);
        encode::simple(out, "stale");
        encode::boolean(out, Protocol::Resp3, true);
    }
}

fn error(out: &mut Vec<u8>, reason: &str) {
    encode::error(out, format!("STOREERR {reason}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::{Delivery, Mailbox, Place, ReplyTo};

    fn several(protocol: Protocol) -> (Arc<Several>, Arc<Mailbox>) {
        let mailbox = Arc::new(Mailbox::default());
        let to = ReplyTo { mailbox: mailbox.clone(), place: Place { seq: 1, part: 0 } };
        (Several::new(Waiter { to, protocol }, vec![Some(Cached::Nil), None, None]), mailbox)
    }

    fn replies(mailbox: &Mailbox) -> Vec<String> {
        let text = |delivery| match delivery {
            Delivery::Reply { bytes, .. } => String::from_utf8_lossy(&bytes).into_owned(),
            other => panic!("{other:?}"),
        };
        mailbox.take().into_iter().map(text).collect()
    }

    fn value(text: &str) -> Cached {
        Cached::from_value(&caddy_resp::Value::Bulk(text.as_bytes()))
    }

    #[test]
    fn several_keys_are_answered_when_all_are_there() {
        let (several, mailbox) = several(Protocol::Resp3);
        Asker::Of(several.clone(), 2).answer(Answer::Stale(value("old")));
        assert!(replies(&mailbox).is_empty());
        Asker::Of(several, 1).answer(Answer::Fresh(value("new")));
        assert_eq!(replies(&mailbox), ["|1\r\n+stale\r\n#t\r\n*3\r\n_\r\n$3\r\nnew\r\n$3\r\nold\r\n"]);
    }

    #[test]
    fn one_that_failed_fails_them_all_and_says_why() {
        let (several, mailbox) = several(Protocol::Resp2);
        Asker::Of(several.clone(), 1).answer(Answer::Failed("it is down".into()));
        Asker::Of(several, 2).answer(Answer::Fresh(value("new")));
        assert_eq!(replies(&mailbox), ["-STOREERR it is down\r\n"]);
    }
}
