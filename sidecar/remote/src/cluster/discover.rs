//! Asking one node for the slot map, over a connection of its own that ends with the answer.

use std::sync::Arc;

use caddy_resp::{Protocol, Value, encode};
use tokio::io::AsyncWriteExt as _;

use super::{SlotMap, SlotMapError};
use crate::{
    ConnectError, Setup, Target,
    handshake::{self, Link},
};

/// Why a node could not tell the slot map.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DiscoverError {
    /// It could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It did not answer in time, or broke off.
    #[error("{endpoint} did not answer CLUSTER SLOTS: {reason}")]
    Ask {
        /// Who was asked.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// Its answer says nothing.
    #[error("{endpoint}: {source}")]
    Map {
        /// Who was asked.
        endpoint: String,
        /// What is wrong with the answer.
        source: SlotMapError,
    },
    /// It has lost the others: what it knows may be past.
    #[error("{endpoint} says that the cluster is down")]
    Down {
        /// Who was asked.
        endpoint: String,
    },
}

/// What `target` knows of the cluster that it is a node of.
pub async fn discover(target: Arc<Target>) -> Result<SlotMap, DiscoverError> {
    let setup = Setup { protocol: Protocol::Resp3, database: 0, tracked: false, timed: true };
    let link = handshake::connect(target.clone(), setup).await?;
    let endpoint = target.endpoint.to_string();
    let asked = tokio::time::timeout(target.response_timeout, ask(link)).await;
    let (info, slots) = asked
        .map_err(|_| format!("nothing came within {} ms", target.response_timeout.as_millis()))
        .and_then(|answer| answer)
        .map_err(|reason| DiscoverError::Ask { endpoint: endpoint.clone(), reason })?;
    let decode = |frame: &[u8]| Value::decode(frame).map(|(value, _)| SlotMap::parse(&value, &target.endpoint));
    let map = match decode(&slots) {
        Ok(parsed) => parsed.map_err(|source| DiscoverError::Map { endpoint: endpoint.clone(), source })?,
        Err(error) => return Err(DiscoverError::Ask { endpoint, reason: error.to_string() }),
    };
    let is_down = info.windows(DOWN.len()).any(|window| window == DOWN);
    if is_down { Err(DiscoverError::Down { endpoint }) } else { Ok(map) }
}

const DOWN: &[u8] = b"cluster_state:fail";

async fn ask(mut link: Link) -> Result<(bytes::Bytes, bytes::Bytes), String> {
    let mut out = Vec::new();
    encode::command(&mut out, ["CLUSTER", "INFO"]);
    encode::command(&mut out, ["CLUSTER", "SLOTS"]);
    link.stream.write_all(&out).await.map_err(|error| error.to_string())?;
    let mut replies = [bytes::Bytes::new(), bytes::Bytes::new()];
    for reply in &mut replies {
        let read = handshake::read_reply(&mut link.stream, &mut link.unread).await;
        *reply = read.map_err(|error| error.to_string())?;
    }
    let [info, slots] = replies;
    Ok((info, slots))
}
