//! MGET: from copies if every key has one; else all are read together, so that the answer is of one moment.

use std::sync::Arc;

use caddy_engine::KeyHash;
use caddy_resp::encode;
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    gather::{Gathering, Group, groups},
    lookup::{Found, Wanted},
    reads::FillPath,
    relaying::effect,
    routing::effect_of_part,
};
use crate::{
    cache::{Cached, TierKey},
    commands::{Merge, Row},
    fills::{FillMany, fill_many_request},
    nodes::{Node, Tracked},
    probe::probe_if_due,
    shared::L3,
    upstream::Tag,
};

/// MGETs of more keys are relayed: their fills would crowd out what single reads keep warm.
const MAX_FILL_KEYS: usize = 256;

/// Where misses of several keys are read.
enum FillPaths<'a> {
    /// Each group on its node's tracked connection.
    Lanes(Vec<(Group<'a>, Arc<Node>, Tracked)>),
    /// There, once what is under way elsewhere is answered.
    Hold,
    /// Over the relay, leaving no copy.
    None,
}

impl Conversation {
    /// See the module.
    pub(super) fn mget(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let keys: SmallVec<[&[u8]; 16]> = args.from(1).collect();
        if keys.iter().any(|key| self.own_read_of(KeyHash::of(key), args).is_some()) {
            return Flow::Hold;
        }
        let (mut values, mut observed) = (Vec::new(), false);
        let all_hit = keys.iter().all(|key| {
            let render = |value: &Cached, _, protocol| value.encode(protocol, &mut values);
            let found = self.look_up(self.name_of_get(key), KeyHash::of(key), Wanted::Value, render);
            observed |= matches!(found, Found::Observed);
            matches!(found, Found::Answered(()) | Found::Observed)
        });
        if all_hit && !observed {
            self.reply(|out| {
                encode::array_header(out, keys.len());
                out.extend_from_slice(&values);
            });
            return Flow::Done;
        }
        let path = if keys.len() <= MAX_FILL_KEYS { self.fill_paths(&keys) } else { FillPaths::None };
        match path {
            FillPaths::Hold => Flow::Hold,
            FillPaths::Lanes(lanes) => self.fill_many(&lanes, row, args, !all_hit),
            FillPaths::None if self.is_loading_read(row, args) => self.load_unfilled(row, args),
            FillPaths::None => self.relay(row, args, effect(row, args), Pending::Relayed),
        }
    }

    /// How misses of these keys may be filled now, together: for each slot of a cluster apart.
    fn fill_paths<'a>(&mut self, keys: &[&'a [u8]]) -> FillPaths<'a> {
        let is_cluster = matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.cluster().is_some());
        let groups = if is_cluster { groups(keys.iter().copied()) } else { vec![Group::all(keys)] };
        let mut lanes = Vec::with_capacity(groups.len());
        for group in groups {
            match self.fill_path(&group.keys) {
                FillPath::Hold => return FillPaths::Hold,
                FillPath::Embedded | FillPath::None => return FillPaths::None,
                FillPath::Lane(node, tracked) => lanes.push((group, node, tracked)),
            }
        }
        FillPaths::Lanes(lanes)
    }

    fn fill_many(
        &mut self,
        lanes: &[(Group<'_>, Arc<Node>, Tracked)],
        row: &'static Row,
        args: Args<'_>,
        keep: bool,
    ) -> Flow {
        let whole = effect(row, args);
        self.stream = Stream::Tracked(self.client.database);
        self.under_way.add_many(&whole.keys);
        let pending = if lanes.len() == 1 {
            Pending::FillingMany { request: args.to_bytes(), effect: Box::new(whole) }
        } else {
            let fallback = |group: &Group<'_>| (group.request(args.get(0)), effect_of_part(&whole, &group.keys));
            let fallbacks = lanes.iter().map(|(group, ..)| fallback(group)).collect();
            let places = lanes.iter().map(|(group, ..)| group.places.clone()).collect();
            let gathering = Gathering::new(Merge::InOrder, self.client.protocol, places);
            Pending::Gathering(Box::new(gathering.filling(&whole.keys, fallbacks)))
        };
        let waiter = self.waiter(pending);
        for (part, (group, node, tracked)) in (0..).zip(lanes) {
            let mut waiter = waiter.clone();
            waiter.to.place.part = part;
            let fill = FillMany {
                database: self.client.database,
                keys: Vec::new(),
                keep,
                waiter,
                reply: None,
                pttls: Vec::with_capacity(group.keys.len()),
            };
            self.fill_group(group, node, tracked, fill);
        }
        Flow::Done
    }

    fn fill_group(&self, group: &Group<'_>, node: &Node, tracked: &Tracked, mut many: FillMany) {
        probe_if_due(&self.worker.shared, node, tracked, self.now);
        let kernel = self.worker.shared.kernel();
        let token = |key: &&[u8]| {
            let token = kernel.begin_fill(tracked.source, KeyHash::of(key), self.now);
            (TierKey::get(self.client.database, key), token)
        };
        many.keys = group.keys.iter().map(token).collect();
        let request = fill_many_request(group.keys.iter().copied(), Tag::FillMany(Box::new(many)));
        if let Err(request) = tracked.lane.submit(request)
            && let Tag::FillMany(many) = request.tag
        {
            many.waiter.to.bypass();
        }
    }
}
