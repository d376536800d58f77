//! What the server behind us has beyond the built-in command table, asked of it in the background after a connect, together
//! with how it evicts (see [`Status`](crate::status::Status::memory_is)).
//!
//! At most one `COMMAND` per [`PAUSE`], over a tracked connection, which is there anyway. A server that does not answer
//! it (its ACL may forbid it) costs nothing but precision: what the table lacks is relayed behind a barrier.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use caddy_remote::Request;
use caddy_resp::Value;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    commands::{Interner, Learned, Row},
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

/// Sends the question over one tracked connection; `false`: none is up.
fn ask(shared: &Shared) -> bool {
    let L3::Redis(redis) = &shared.l3 else { return false };
    let mut asked = false;
    for node in redis.nodes() {
        node.for_each_tracked(|lane| {
            if !asked {
                let bytes = Bytes::from_static(b"*1\r\n$7\r\nCOMMAND\r\n*2\r\n$4\r\nINFO\r\n$6\r\nmemory\r\n");
                asked = lane.submit(Request { bytes, replies: 2, tag: Tag::AboutServer }).is_ok();
            }
        });
    }
    asked
}
