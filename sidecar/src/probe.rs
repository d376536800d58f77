//! The currency proof: what a node is asked, and whether its answers prove that its copies are current.
//!
//! A reply on a tracked connection shows that every push before it has been applied. That its sender may be asked at all
//! is shown by what it replies: replicas, demoted primaries and nodes that have lost their cluster or some of their slots
//! answer as well, and push nothing of what they miss. Whatever is not proved kills the node's copies.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_engine::{Currency, Moment, Sent};
use caddy_remote::{
    LaneHandle, LaneState, Request, Role, ServerInfo,
    cluster::{Standing, gives_slots_away},
};
use caddy_resp::Value;

use crate::{
    absence::Absences,
    guards::{Guard, hold},
    nodes::{Node, NodeId, Tracked},
    proof::Proof,
    shared::{L3, Shared},
    upstream::Tag,
};

/// How often a node is asked whether it may be trusted again.
const AGAIN: Duration = Duration::from_secs(1);

/// A probe that is under way.
#[derive(Debug)]
pub(crate) struct Probe {
    proof: Arc<Proof>,
    pub(crate) replies: Vec<Bytes>,
}

/// Asks a node on a tracked connection of its own whether copies from it are current.
pub(crate) fn probe(shared: &Arc<Shared>, node: &Node, lane: &LaneHandle<Tag>, sent: Sent) {
    submit(node, lane, Proof::ask(shared, node, sent, false));
}

/// The same if a probe is due, in front of a read whose copy is to be served at once.
pub(crate) fn probe_if_due(shared: &Arc<Shared>, node: &Node, tracked: &Tracked, now: Moment) {
    let kernel = shared.kernel();
    if kernel.currency(tracked.source, now) != Currency::Proven
        && let Some(sent) = kernel.claim_probe(tracked.source, now)
    {
        probe(shared, node, &tracked.lane, sent);
    }
}

/// Probes what is not proved, now and then, until it is: where nobody reads nothing else would, and the sidecar would go on
/// to say that its copies are not current. While nothing is wrong it sends nothing. Never ends.
pub(crate) async fn look_again(shared: Arc<Shared>) {
    let L3::Redis(redis) = &shared.l3 else { return std::future::pending().await };
    loop {
        shared.status.troubled().await;
        while !shared.status.get().coherent {
            tokio::time::sleep(AGAIN).await;
            for node in redis.nodes() {
                let ready = |tracked: &Tracked| tracked.lane.state() == LaneState::Ready;
                for tracked in node.all_tracked().iter().filter(|tracked| ready(tracked)) {
                    probe_if_due(&shared, &node, tracked, shared.now());
                }
            }
        }
    }
}

fn submit(node: &Node, lane: &LaneHandle<Tag>, proof: Arc<Proof>) {
    let probing = node.probing();
    let tag = Tag::Probe(Box::new(Probe { proof, replies: Vec::new() }));
    // An ended lane has no copies left to prove.
    let _ = lane.submit(Request { bytes: probing.bytes.clone(), replies: probing.replies, tag });
}

/// What one connection has been told so far.
#[derive(Debug, Default)]
pub(crate) struct Prover {
    /// The node's standing in its cluster when it was last probed.
    standing: Option<Standing>,
    /// The last probe that was answered as it should be, and when.
    previous: Option<(Sent, Moment)>,
}

/// Why a probe proves nothing.
#[derive(Debug, thiserror::Error)]
enum Unproven {
    #[error("the probe was answered by {0}")]
    NoHello(String),
    #[error("Redis became a replica; point the endpoint at the primary")]
    Replica,
    #[error("the node does not answer for its own slots: {0}")]
    NotServing(String),
    #[error("the node is no primary of its cluster any more")]
    Demoted,
    #[error("a slot is on its way to another node, which may have keys of it already")]
    SlotsLeave,
    #[error("the node does not tell its slots: {0}; allow the user +cluster|nodes")]
    NoStanding(String),
}

impl Prover {
    /// Takes the replies to a probe as what they prove.
    pub(crate) fn judge(&mut self, shared: &Arc<Shared>, id: NodeId, node: Option<&Node>, probe: &Probe) {
        let proved = match probe.replies.as_slice() {
            [hello] => role(hello).map(|info| (info, None)),
            // Of absent keys, which is what filters are about, nobody announces that they are written over there.
            [.., nodes] if id == NodeId::ANNOUNCING && hold(Guard::FilterKeepsToSlots) && gives_slots(nodes) => {
                Err(Unproven::SlotsLeave)
            }
            [hello, own, nodes] => in_cluster(hello, own, nodes),
            _ => return,
        };
        let (kernel, source) = (shared.kernel(), probe.proof.sent().source());
        match (proved, node) {
            // A node that has left the cluster proves nothing to anybody.
            (Ok(_), None) => {}
            (Ok((info, standing)), Some(node)) => {
                if let Some(standing) = standing
                    && self.standing.as_ref() != Some(&standing)
                {
                    // It had other slots when those copies were read, or may have had.
                    kernel.lapse(source);
                    self.previous = None;
                    if self.standing.replace(standing).is_some() {
                        shared.doubt_slots();
                    }
                }
                let tracking = &node.target.tracking;
                probe.proof.server_answered(shared, tracking, &mut self.previous, &info);
                if probe.proof.needs_second(shared, tracking)
                    && let Some(lane) = node.lane_of(source)
                {
                    let sent = kernel.sending(source, shared.now());
                    submit(node, &lane, Proof::ask(shared, node, sent, true));
                }
            }
            (Err(unproven), node) => {
                kernel.lapse(source);
                if id == NodeId::ANNOUNCING {
                    Absences::trouble(shared, &unproven.to_string());
                }
                // That a node which has left has no copies to prove is nobody's trouble.
                if node.is_some() {
                    shared.status.tracked_down(id, &unproven.to_string());
                }
                shared.doubt_slots();
            }
        }
    }
}

fn in_cluster(hello: &[u8], own: &[u8], nodes: &[u8]) -> Result<(ServerInfo, Option<Standing>), Unproven> {
    let info = match role(hello) {
        Err(Unproven::Replica) => return Err(Unproven::Demoted),
        info => info?,
    };
    serves(own)?;
    Ok((info, standing(nodes)?))
}

fn role(hello: &[u8]) -> Result<ServerInfo, Unproven> {
    let info = Value::decode(hello).ok().and_then(|(value, _)| ServerInfo::from_hello(&value));
    match info {
        Some(info) if info.role != Role::Replica || !hold(Guard::ProbeRole) => Ok(info),
        Some(_) => Err(Unproven::Replica),
        None => Err(Unproven::NoHello(text(hello))),
    }
}

/// The key is absent; where its slot is on its way the node says who else might know.
fn serves(own: &[u8]) -> Result<(), Unproven> {
    let fails = own.first() == Some(&b'-') && !own.starts_with(b"-ASK ");
    if fails && hold(Guard::ProbeOwnKey) { Err(Unproven::NotServing(text(own))) } else { Ok(()) }
}

fn standing(nodes: &[u8]) -> Result<Option<Standing>, Unproven> {
    if !hold(Guard::ProbeSlots) {
        return Ok(None);
    }
    let value = Value::decode(nodes).ok().map(|(value, _)| value);
    match value.as_ref().and_then(Value::as_bytes).and_then(Standing::parse) {
        Some(standing) if standing.is_primary => Ok(Some(standing)),
        Some(_) => Err(Unproven::Demoted),
        None => Err(Unproven::NoStanding(text(nodes))),
    }
}

fn gives_slots(nodes: &[u8]) -> bool {
    let value = Value::decode(nodes).ok().map(|(value, _)| value);
    value.as_ref().and_then(Value::as_bytes).is_some_and(gives_slots_away)
}

fn text(reply: &[u8]) -> String {
    String::from_utf8_lossy(&reply[..reply.len().min(200)]).trim_end().to_owned()
}
