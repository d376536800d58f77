//! A write on its way: L3 has answered, so the store is to get it.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{
    KeyHash, crash,
    strategy::behind::{JournalError, Room},
};
use caddy_remote::{
    Loss, Request,
    cluster::Redirect,
    writes::{self, StreamNames},
};
use caddy_resp::{Protocol, encode};
use smallvec::SmallVec;

use super::{Behind, ways::Way};
use crate::{
    answers::{error_reply, nil},
    barrier::HeldReply,
    effect::Effect,
    errands::ASKING,
    mailbox::ReplyTo,
    nodes::Node,
    session::{
        routing::effect_of_part,
        store_writes::{Again, Postponed, StoreWrite},
    },
    shared::{L3, Shared},
    shown::RelayedStrings,
    upstream::Tag,
};

/// So many redirections a write may get: while a slot changes hands, two nodes point at each other for a moment.
const MAX_HOPS: u16 = 1_000;

const UNSETTLED: &str =
    "NOTREADY the key's slot is on its way between nodes of the cluster; nothing was written; repeat it";

/// Commands of a keyspace that writes behind, under way to L3: one, or a run of them that came together.
#[derive(Debug)]
pub(crate) struct Storing {
    /// Who waits for the answer to the first; those of the others follow it.
    pub(crate) to: ReplyTo,
    pub(crate) protocol: Protocol,
    pub(crate) effect: Effect,
    pub(crate) form: Form,
    /// To what they were sent as.
    pub(crate) replies: SmallVec<[Option<Bytes>; 2]>,
    /// What each of them writes.
    pub(crate) commands: SmallVec<[Command; 1]>,
    pub(crate) behind: Arc<Behind>,
    pub(crate) room: Room<Bytes, Bytes>,
    /// In a cluster.
    pub(crate) sending: Option<Sending>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) write: StoreWrite,
    /// Of one that is executed only if L3 has what it needs.
    pub(crate) again: Option<Box<Again>>,
}

/// How it was sent.
#[derive(Debug)]
pub(crate) enum Form {
    /// As it is, with what concerns the leases beside it: in a cluster each goes where it has to.
    Plain {
        /// Which of the replies is the first command's own; those of the others follow it.
        own: usize,
    },
    /// As one script.
    Script {
        /// Whether the command's reply is a number.
        is_number: bool,
        /// Where it is recorded.
        names: Arc<StreamNames>,
    },
}

/// What it takes to send it to another node.
#[derive(Debug)]
pub(crate) struct Sending {
    /// What it was sent as.
    pub(crate) parts: Vec<Bytes>,
    /// Which of them are under way.
    pub(crate) open: SmallVec<[usize; 2]>,
    /// Each behind an ASKING.
    pub(crate) is_asking: bool,
    pub(crate) database: u32,
    pub(crate) way: Way,
    pub(crate) hops: u16,
}

/// The connection that a reply came over.
pub(crate) struct Via<'a> {
    pub(crate) node: &'a Arc<Node>,
    /// Which of the node's connections it was, counted.
    pub(crate) connection: u64,
}

impl Storing {
    /// The `index`-th reply.
    pub(crate) fn take(&mut self, index: u16, frame: Bytes) {
        let index = usize::from(index);
        let place = match &self.sending {
            None => Some(index),
            Some(sending) if sending.is_asking => {
                (index % 2 == 1).then(|| sending.open.get(index / 2).copied()).flatten()
            }
            Some(sending) => sending.open.get(index).copied(),
        };
        if let Some(reply) = place.and_then(|place| self.replies.get_mut(place)) {
            *reply = Some(frame);
        }
    }

    /// The error by which a node of a cluster has sent it, or a part of it, away.
    pub(crate) fn redirection(&self) -> Option<&Bytes> {
        let open = &self.sending.as_ref()?.open;
        open.iter().filter_map(|place| self.replies.get(*place)?.as_ref()).find(|reply| is_redirection(reply))
    }

    /// Goes where a node has sent it. What is behind it on the node that it comes from, is sent on behind it.
    pub(crate) fn follow(mut self: Box<Self>, shared: &Arc<Shared>, redirect: &Redirect) {
        let L3::Redis(redis) = &shared.l3 else { return };
        let node = redis.cluster().and_then(|cluster| cluster.node_at(redirect.to()));
        let (Some(node), Some(sending)) = (node, self.sending.take_if(|sending| sending.hops < MAX_HOPS)) else {
            return self.to.reply(error_text(UNSETTLED));
        };
        let Sending { parts, mut open, database, way, hops, .. } = sending;
        let is_asking = matches!(redirect, Redirect::Ask { .. });
        let mut bytes = Vec::new();
        open.retain(|place| {
            let reply = self.replies.get_mut(*place);
            let is_sent_away = reply.is_some_and(|reply| reply.take_if(|reply| is_redirection(reply)).is_some());
            if is_sent_away {
                bytes.extend_from_slice(if is_asking { ASKING } else { b"" });
                bytes.extend_from_slice(&parts[*place]);
            }
            is_sent_away
        });
        let replies = open.len() as u16 * (1 + u16::from(is_asking));
        let way = way.redirected(&node);
        let from = self.to.clone();
        self.sending = Some(Sending { parts, open, is_asking, database, way, hops: hops + 1 });
        let request = Request { bytes: bytes.into(), replies, tag: Tag::Store(self) };
        if redis.writer(shared, &node, database).is_none_or(|lane| lane.submit(request).is_err()) {
            from.reply(&b"-NOTREADY the sidecar is shutting down\r\n"[..]);
        }
    }

    /// L3 has answered, or never will. Called in the order in which L3 executed the writes: that is the order of the queue.
    pub(crate) fn finish(self: Box<Self>, shared: &Arc<Shared>, via: &Via<'_>, outcome: Result<(), Loss>) {
        let Self { to, protocol, mut effect, form, mut replies, commands, behind, room, sending } = *self;
        crash::point("redis-has-it");
        if let Err(loss) = outcome {
            // It may have been executed.
            effect.apply(shared);
            return to.reply_each((0..commands.len()).map(|_| error_reply(&loss)));
        }
        let own = if let Form::Plain { own } = form { own } else { 0 };
        let (mut writes, mut answers) = (Vec::with_capacity(commands.len()), Answers::with_capacity(commands.len()));
        let (mut recorded, mut missing, mut executed) = (None, Vec::new(), SmallVec::new());
        let is_alone = commands.len() == 1;
        let may_miss = commands.iter().any(|command| command.again.is_some());
        for (at, Command { write: command, again }) in commands.into_iter().enumerate() {
            let reply = match replies.get_mut(own + at).and_then(Option::take) {
                Some(reply) => reply,
                None => Bytes::from_static(b"-ERR the connection ended without a reply\r\n"),
            };
            if let Some(again) = again.filter(|_| writes::is_missing(&reply)) {
                missing.push((to.behind(at), command, *again));
                continue;
            }
            if may_miss {
                executed.extend(command.keys().into_iter().map(KeyHash::of));
            }
            let reply = match &form {
                // What concerns several keys waits for the end of a slot's move, as it does in any cluster.
                _ if reply.starts_with(b"-TRYAGAIN") => error_text(UNSETTLED),
                Form::Script { is_number, names } if !reply.starts_with(b"-") => match writes::stepped(&reply) {
                    Some(stepped) => {
                        recorded = Some((names.clone(), stepped.ids));
                        let own = reply.slice_ref(stepped.reply);
                        writes.extend(command.applied(&own));
                        answers.push((at, true, translated(if *is_number { as_number(&own) } else { own }, protocol)));
                        continue;
                    }
                    None => Bytes::from_static(b"-ERR the reply of Redis to the write cannot be read\r\n"),
                },
                _ => reply,
            };
            let before = writes.len();
            writes.extend(command.applied(&reply));
            answers.push((at, writes.len() > before, translated(reply, protocol)));
        }
        if !missing.is_empty() {
            let home = via.node.clone();
            let commands = missing.into_iter().map(|(to, write, again): (_, StoreWrite, _)| {
                let its = if is_alone { effect.clone() } else { effect_of_part(&effect, &write.keys()) };
                (to, its, write, again)
            });
            let commands: Vec<_> = commands.collect();
            // What was not executed leaves copies as good as they were, and who loads may be joined.
            effect.keys = executed;
            Postponed { shared: shared.clone(), home, protocol, behind: behind.clone(), commands }.send();
        }
        // Whatever the answer is.
        effect.apply(shared);
        // Of what Redis had, the app is shown what a GET would have shown. Keys that have a store are in database 0.
        let shows = effect.shows;
        let answer = move |shared: &Arc<Shared>, to: ReplyTo, answers: Answers| {
            if shows.is_empty() {
                return tell(&to, answers.into_iter().map(|(at, _, bytes)| (at, bytes)));
            }
            for (_, _, bytes) in answers {
                let held = HeldReply { to: to.clone(), bytes };
                RelayedStrings::of_a_write(held, shows.clone(), 0, protocol, None).hand_on(shared, Ok(Vec::new()));
            }
        };
        if writes.is_empty() {
            return answer(shared, to, answers);
        }
        let (keyspace, its) = (behind.clone(), shared.clone());
        let done = Box::new(move |kept: Result<(), JournalError>| match kept {
            Ok(()) => {
                crash::point("before-answer");
                answer(&its, to, answers);
            }
            Err(error) => {
                let text = format!(
                    "STOREERR Redis has it, but store '{}' may never: {error}; see whether the store is up, and write it again",
                    keyspace.store
                );
                let told = |(at, is_written, bytes)| (at, if is_written { error_text(&text) } else { bytes });
                tell(&to, answers.into_iter().map(told));
            }
        });
        match (&behind.streams, recorded) {
            (Some(streams), Some((names, ids))) => behind.writer.write_kept(
                room,
                writes,
                |records, done| streams.recorded(shared, via, &names, ids, &records, done),
                done,
            ),
            _ => behind.writer.write(room, writes, done),
        }
        crash::point("queued");
        // Only now the next write of the slot may go another way.
        drop(sending);
    }
}

/// What the app is told of each command: where it stands, whether it has written something, the reply.
type Answers = SmallVec<[(usize, bool, Bytes); 1]>;

/// Answers commands by their places behind the first one's; in one go, if they are all.
fn tell(to: &ReplyTo, answers: impl ExactSizeIterator<Item = (usize, Bytes)> + Clone) {
    if answers.clone().enumerate().all(|(count, (at, _))| count == at) {
        return to.reply_each(answers.map(|(_, bytes)| bytes));
    }
    answers.for_each(|(at, bytes)| to.behind(at).reply(bytes));
}

fn is_redirection(reply: &[u8]) -> bool {
    reply.starts_with(b"-MOVED ") || reply.starts_with(b"-ASK ")
}

/// A number that came as text.
fn as_number(reply: &Bytes) -> Bytes {
    let Ok((value, _)) = caddy_resp::Value::decode(reply) else { return reply.clone() };
    match value.as_bytes() {
        Some(digits) => [b":", digits, b"\r\n"].concat().into(),
        None => reply.clone(),
    }
}

/// A RESP2 reply to a write, as `protocol` writes it: only nulls differ.
pub(crate) fn translated(reply: Bytes, protocol: Protocol) -> Bytes {
    if protocol == Protocol::Resp3 && &reply[..] == nil(Protocol::Resp2) {
        return Bytes::from_static(nil(Protocol::Resp3));
    }
    reply
}

pub(crate) fn error_text(text: &str) -> Bytes {
    let mut out = Vec::new();
    encode::error(&mut out, text);
    out.into()
}
