//! What the server behind us has beyond the built-in command table, asked of it in the background after a connect, together
//! with what else the promises rest on and a server can tell: how it evicts, how many keys it remembers the readers of,
//! and whether our user may swap databases (see [`facts`](crate::facts)).
//!
//! At most one `COMMAND` per [`PAUSE`], over a tracked connection, which is there anyway. A server that does not answer
//! it (its ACL may forbid it) costs nothing but precision: what the table lacks is relayed behind a barrier.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use caddy_remote::Request;
use caddy_resp::{Value, encode};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    commands::{Interner, Learned, Row},
    nodes::Node,
    session::args::Args,
    shared::{L3, Shared},
    upstream::Tag,
};

/// Between two questions, however often connections come and go.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two looks for a connection that is up.
const POLL: Duration = Duration::from_millis(50);
/// Looks; the next connect asks anew.
const LOOKS: usize = 20;
/// The setting that bounds the server's table of who has read what.
const TABLE: &str = "tracking-table-max-keys";
/// Names in the log line; a module may bring hundreds.
const MAX_SHOWN: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ServerCommands {
    learned: ArcSwap<Learned>,
    interner: Mutex<Interner>,
    wanted: Notify,
}

impl ServerCommands {
    /// What the server says of a request that the built-in table does not know.
    pub(crate) fn row(&self, args: Args<'_>) -> Option<&'static Row> {
        let subcommand = (args.len() > 1).then(|| args.get(1));
        self.learned.load().get(args.get(0), subcommand)
    }

    /// How many commands the server has that the table lacks.
    pub(crate) fn len(&self) -> usize {
        self.learned.load().len()
    }

    /// A server is connected: it may be another one, of another version, with other modules.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// A server's reply to `COMMAND`.
    pub(crate) fn take(&self, reply: &[u8]) {
        let value = match Value::decode(reply) {
            Ok((value, _)) if value.as_elements().is_some() => value,
            Ok((value, _)) => {
                let said = value.as_error().map(|error| String::from_utf8_lossy(error).into_owned());
                tracing::info!(said, "the server does not list its commands; those of modules go behind a barrier");
                return;
            }
            Err(error) => return tracing::warn!(%error, "the server's list of commands cannot be read"),
        };
        let learned = Learned::from_reply(&value, &mut self.interner.lock());
        let names = learned.names();
        if names != self.learned.load().names() {
            let shown = names[..names.len().min(MAX_SHOWN)].join(", ");
            tracing::info!(count = names.len(), shown, "the server has commands that the built-in table lacks");
        }
        self.learned.store(Arc::new(learned));
    }
}

/// Asks whenever it is wanted; never ends.
pub(crate) async fn refresh(shared: Arc<Shared>) {
    loop {
        shared.commands.wanted.notified().await;
        for _ in 0..LOOKS {
            if ask(&shared) {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The server has told who we are: it is asked what that user may do.
pub(crate) fn ask_about_user(node: &Node, whoami: &[u8]) {
    let Ok((Value::Bulk(user) | Value::Simple(user), _)) = Value::decode(whoami) else { return };
    let mut bytes = Vec::new();
    encode::command(&mut bytes, [b"ACL" as &[u8], b"DRYRUN", user, b"SWAPDB", b"0", b"1"]);
    encode::command(&mut bytes, [b"ACL" as &[u8], b"DRYRUN", user, b"CONFIG", b"GET", TABLE.as_bytes()]);
    ask_node(node, bytes, 2, Tag::AboutUser);
}

/// Our user may ask how many keys the server remembers the readers of.
pub(crate) fn ask_about_table(node: &Node) {
    let mut bytes = Vec::new();
    encode::command(&mut bytes, ["CONFIG", "GET", TABLE]);
    ask_node(node, bytes, 1, Tag::AboutTable);
}

fn ask_node(node: &Node, bytes: Vec<u8>, replies: u16, tag: Tag) {
    let mut request = Some(Request { bytes: bytes.into(), replies, tag });
    node.for_each_tracked(|lane| {
        if let Some(request) = request.take() {
            // A lane that has ended is asked again when it is back.
            let _ = lane.submit(request);
        }
    });
}

/// Sends the question over one tracked connection; `false`: none is up.
fn ask(shared: &Shared) -> bool {
    let L3::Redis(redis) = &shared.l3 else { return false };
    let mut asked = false;
    for node in redis.nodes() {
        node.for_each_tracked(|lane| {
            if !asked {
                let mut bytes = Vec::new();
                encode::command(&mut bytes, ["COMMAND"]);
                encode::command(&mut bytes, ["INFO", "memory"]);
                let mut replies = 2;
                if shared.status.facts.may_ask() {
                    encode::command(&mut bytes, ["ACL", "WHOAMI"]);
                    replies = 3;
                }
                asked = lane.submit(Request { bytes: bytes.into(), replies, tag: Tag::AboutServer }).is_ok();
            }
        });
    }
    asked
}
