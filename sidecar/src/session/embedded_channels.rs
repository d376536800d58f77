//! Subscriptions of a session to channels of the embedded L3. Before the first one the session owns nothing of it.

use caddy_remote::embedded::Embedded;
use caddy_resp::{Protocol, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow},
};
use crate::{
    commands::{Class, Pin, Row},
    mailbox::Delivery,
};

impl Conversation {
    /// SUBSCRIBE and its kin.
    pub(super) fn subscribe_embedded(&mut self, store: &Embedded, args: Args<'_>) -> Flow {
        let listener = self.listener.take().unwrap_or_else(|| {
            let mailbox = self.mailbox.clone();
            store.listener(self.client.protocol, move |message| mailbox.deliver(Delivery::Push(message)))
        });
        let args: Vec<&[u8]> = args.iter().collect();
        self.reply(|out| listener.execute(&args, out));
        self.listener = Some(listener);
        Flow::Done
    }

    /// What a subscriber may not send in RESP2; `None`: it may.
    pub(super) fn is_only_subscribed(&mut self, row: &'static Row, args: Args<'_>) -> Option<Flow> {
        self.listener.as_ref().filter(|listener| listener.is_subscribed())?;
        if self.client.protocol == Protocol::Resp3 {
            return None;
        }
        match row.name {
            "ping" if args.len() > 2 => return None,
            "ping" => self.reply(|out| {
                encode::array_header(out, 2);
                encode::bulk(out, b"pong");
                encode::bulk(out, args.get(1));
            }),
            "quit" | "reset" => return None,
            _ if row.class == Class::Pinned(Pin::PubSub) => return None,
            _ => self.reply_only_pubsub(row, args),
        }
        Some(Flow::Done)
    }

    /// Messages are written in the session's protocol.
    pub(super) fn tell_listener_protocol(&self) {
        if let Some(listener) = &self.listener {
            listener.set_protocol(self.client.protocol);
        }
    }
}
