//! `CACHE.SET`, `CACHE.GET`, `CACHE.TOUCH`: values with tags and parents.
//!
//! A value is written as an envelope that carries the generations it depends on, with the values that were in force
//! *before*: of everything, of its keyspace, of its tags, and of its parents and theirs. Whatever of that is not known is
//! read first; the request is held back meanwhile and given again ([`Learning`]). Writing it is one SET on the relay, like
//! any other write; with `TOKEN` or `FENCE` it is a conditional one (`conditional.rs`). Bad input changes nothing; while L3
//! cannot be read coherently the answer is `-NOTREADY`.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::{
    codec::envelope::{Fence, Generation, GenerationList, GenerationName, GenerationValue, Header, SoftExpiry},
    locks::FencingToken,
};
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending},
    invalidate::Request,
    relaying::effect,
    routing::Home,
};
use crate::{
    effect::{Effect, Renewal},
    generations::{
        ALL, FOREIGN, How, Learned, Then, Want, fresh_value, generation_life, of_keyspace, of_parent, of_tag,
        parents_of_bytes, parents_to_bytes, parents_within, value_of,
    },
    shared::{L3, Shared},
};

/// Longest tag, bytes.
pub(super) const MAX_TAG: usize = 512;
/// Tags, parents and parents' parents of one value, at most: a hit looks at each.
const MAX_DEPENDENCIES: usize = 256;
/// How often generations are read for one request without anything new, at most.
const MAX_ROUNDS: usize = 64;
/// Longest life, milliseconds: a hundred years.
const MAX_MILLIS: u64 = 100 * 365 * 86_400_000;

/// What is known for the request that is held back.
#[derive(Debug, Default)]
pub(crate) struct Learning {
    is_waiting: bool,
    rounds: usize,
    /// By the names of their keys.
    known: HashMap<Bytes, Learned>,
    failure: Option<String>,
}

/// `CACHE.SET key value …`
#[derive(Debug, Default)]
pub(super) struct Set<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) life: Option<Duration>,
    pub(super) stale: Option<Duration>,
    pub(super) tags: Vec<&'a [u8]>,
    pub(super) parents: Vec<&'a [u8]>,
    pub(super) condition: Option<&'static [u8]>,
    /// What `CACHE.GET … WITHMETA` gave.
    pub(super) token: Option<&'a [u8]>,
    /// A lock's name, and the token under which it is held.
    pub(super) fence: Option<(&'a [u8], FencingToken)>,
}

impl<'a> Set<'a> {
    fn parse(args: Args<'a>) -> Result<Self, String> {
        let mut set = Self { key: args.get(1), value: args.get(2), ..Self::default() };
        let mut at = 3;
        while at < args.len() {
            let option = args.get(at).to_ascii_uppercase();
            at += 1;
            match option.as_slice() {
                b"PX" => set.life = Some(millis(args, &mut at, "PX")?),
                b"STALE" => set.stale = Some(millis(args, &mut at, "STALE")?),
                b"TAGS" => set.tags.extend(counted(args, &mut at, "TAGS")?),
                b"DEPENDS" => set.parents.extend(counted(args, &mut at, "DEPENDS")?),
                b"TOKEN" if set.token.is_none() && at < args.len() => {
                    set.token = Some(args.get(at));
                    at += 1;
                }
                b"FENCE" if set.fence.is_none() && at + 1 < args.len() => {
                    let text = std::str::from_utf8(args.get(at + 1)).unwrap_or_default();
                    let token =
                        text.parse().map_err(|error| format!("ERR FENCE takes a lock and its token: {error}"))?;
                    set.fence = Some((args.get(at), token));
                    at += 2;
                }
                b"NX" | b"XX" if set.condition.is_none() => {
                    set.condition = Some(if option == b"NX" { b"NX" } else { b"XX" });
                }
                _ => {
                    return Err(format!(
                        "ERR CACHE.SET does not know '{}' here; behind key and value it takes PX ms, STALE ms, TAGS n \
                         tag…, DEPENDS n key…, TOKEN t, FENCE lock token, NX or XX",
                        option[..option.len().min(64)].escape_ascii()
                    ));
                }
            }
        }
        if set.stale.is_some() && set.life.is_none() {
            return Err("ERR STALE is how long the value is kept behind its PX; give PX too".to_owned());
        }
        set.tidied()
    }

    /// Tags and parents checked, each once.
    pub(super) fn tidied(mut self) -> Result<Self, String> {
        if let Some(tag) = self.tags.iter().find(|tag| tag.is_empty() || tag.len() > MAX_TAG) {
            return Err(too_long("tag", tag, MAX_TAG));
        }
        self.tags.sort_unstable();
        self.tags.dedup();
        self.parents.sort_unstable();
        self.parents.dedup();
        Ok(self)
    }

    /// How long L3 keeps it.
    pub(super) fn whole_life(&self) -> Option<Duration> {
        self.life.map(|life| life + self.stale.unwrap_or_default())
    }

    /// It as it is stored, with these generations.
    pub(super) fn sealed(&self, shared: &Shared, generations: &GenerationList) -> Vec<u8> {
        let soft_expiry = self.stale.map(SoftExpiry::at_remaining);
        let fence = self.fence.map(|(_, token)| Fence { epoch: token.epoch(), counter: token.counter() });
        let header = Header { soft_expiry, generations: generations.generations(), fence, ..Header::default() };
        shared.envelopes.seal(self.key, &header, self.value)
    }
}

/// These generations as an envelope carries them.
pub(super) fn listed<'a>(
    generations: impl Iterator<Item = (&'a [u8], GenerationValue)>,
) -> Result<GenerationList, &'static str> {
    let mut list = GenerationList::default();
    for (name, value) in generations {
        list.push(Generation { name: GenerationName::Name(name), value })
            .map_err(|_| "LIMIT the names of tags and parents take more than 64 KiB together; use fewer")?;
    }
    Ok(list)
}

/// What a key that others depend on, and that depends on others itself, has to be renewed to in the step that writes it: its
/// value carries that.
pub(super) fn renewal<'a>(shared: &Shared, set: &Set<'_>, parents: impl Iterator<Item = &'a [u8]>) -> Option<Renewal> {
    let mut direct = parents.filter(|parent| *parent != set.key).peekable();
    if direct.peek().is_none() || !shared.keyspaces().is_parent(set.key) {
        return None;
    }
    let (key, life) = (shared.domain.key(&of_parent(set.key)), generation_life(set.whole_life()));
    Some(Renewal { key, value: fresh_value(&parents_to_bytes(direct)), life })
}

/// That generation, as the value of the key carries it.
pub(super) fn renewed<'a>(
    shared: &'a Shared,
    renewal: Option<&'a Renewal>,
) -> impl Iterator<Item = (&'a [u8], GenerationValue)> {
    renewal.into_iter().filter_map(|own| Some((shared.domain.name(&own.key)?, value_of(&own.value)?)))
}

pub(super) fn too_long(what: &str, name: &[u8], most: usize) -> String {
    match name.len() {
        0 => format!("ERR a {what} must not be empty"),
        length => format!("LIMIT a {what} has {length} bytes; at most {most} are allowed"),
    }
}

fn too_many(count: usize) -> String {
    format!(
        "LIMIT the value would depend on {count} tags and parents; at most {MAX_DEPENDENCIES} are allowed, since every \
         hit looks at each: use fewer, wider tags"
    )
}

pub(super) fn millis(args: Args<'_>, at: &mut usize, option: &str) -> Result<Duration, String> {
    let number = caddy_resp::parse_i64(args.get(*at)).and_then(|number| u64::try_from(number).ok());
    *at += 1;
    match number {
        Some(millis @ 1..=MAX_MILLIS) => Ok(Duration::from_millis(millis)),
        _ => Err(format!("ERR {option} takes milliseconds, 1 to {MAX_MILLIS}")),
    }
}

pub(super) fn counted<'a>(args: Args<'a>, at: &mut usize, option: &str) -> Result<Vec<&'a [u8]>, String> {
    let left = args.len().saturating_sub(*at + 1);
    let count = caddy_resp::parse_i64(args.get(*at)).and_then(|count| usize::try_from(count).ok());
    let Some(count @ 1..) = count.filter(|count| *count <= left) else {
        return Err(format!("ERR {option} takes how many there are, and then as many"));
    };
    if count > MAX_DEPENDENCIES {
        return Err(too_many(count));
    }
    let first = *at + 1;
    *at = first + count;
    Ok(args.from(first).take(count).collect())
}

impl Conversation {
    /// A command of the class `Cache`.
    pub(super) fn cache_request(&mut self, args: Args<'_>) -> Flow {
        let flow = match args.get(0).to_ascii_lowercase().as_slice() {
            b"cache.set" => self.cache_set(args),
            b"cache.get" if args.len() == 2 => {
                Request::new(&[b"GET", args.get(1)]).with(|row, args| self.read(row, args))
            }
            b"cache.get" => self.get_with_meta(args),
            b"cache.warm" => self.warm(args),
            b"cache.touch" => self.relay_as(b"TOUCH", &[args.get(1)], Pending::Relayed),
            _ => self.invalidate(args),
        };
        if flow == Flow::Done {
            self.learning = None;
        }
        flow
    }

    fn learning(&mut self) -> &mut Learning {
        self.learning.get_or_insert_default()
    }

    /// What a request that is held back waits for is there.
    pub(super) fn learned(&mut self, learned: Result<Vec<Learned>, String>) {
        self.learning().is_waiting = false;
        match learned {
            Ok(learned) => {
                let by_name = learned.into_iter().map(|learned| (Bytes::copy_from_slice(learned.cell.name()), learned));
                self.learning().known.extend(by_name);
            }
            Err(reason) => self.learning().failure = Some(reason),
        }
    }

    fn cache_set(&mut self, args: Args<'_>) -> Flow {
        // It is to be bound to what an invalidation in front of it leaves.
        if self.is_behind_invalidation() {
            return Flow::Hold;
        }
        let set = match Set::parse(args) {
            Ok(set) => set,
            Err(message) => return self.answer_error(&message),
        };
        if set.token.is_some() || set.fence.is_some() {
            return self.conditional_set(&set);
        }
        let shared = self.worker.shared.clone();
        let life = set.whole_life();
        let learned = match self.groups(&shared, &set) {
            Ok(learned) => learned,
            Err(flow) => return flow,
        };
        let renewal = renewal(&shared, &set, set.parents.iter().copied());
        let own = renewed(&shared, renewal.as_ref());
        let generations = match listed(own.chain(named(&shared, &learned))) {
            Ok(generations) => generations,
            Err(text) => return self.answer_error(text),
        };
        let sealed = set.sealed(&shared, &generations);
        let life_millis = life.map(|life| life.as_millis().to_string());
        let mut words: SmallVec<[&[u8]; 8]> = SmallVec::from_iter([b"SET" as &[u8], set.key, &sealed]);
        if let Some(millis) = &life_millis {
            words.extend([b"PX" as &[u8], millis.as_bytes()]);
        }
        words.extend(set.condition);
        let flow = Request::new(&words).with(|row, args| {
            let effect = Effect { renews: renewal.clone().map(Box::new), ..effect(row, args) };
            self.relay(row, args, effect, Pending::Relayed)
        });
        if flow == Flow::Done {
            shared.extend(self.client.database, learned.iter().map(|learned| &learned.cell), life);
        }
        flow
    }

    /// The generations that a value will depend on, as they are now: of everything, its keyspace, its tags and parents.
    pub(super) fn groups(&mut self, shared: &Shared, set: &Set<'_>) -> Result<Vec<Learned>, Flow> {
        let ruled = shared.keyspaces().tags_of(set.key);
        let names = std::iter::once(ALL.to_vec())
            .chain([of_keyspace(&self.keyspace_of(set.key))])
            .chain(set.tags.iter().map(|tag| of_tag(tag)))
            .chain(ruled.iter().filter(|tag| !set.tags.contains(&tag.as_slice())).map(|tag| of_tag(tag)));
        let create = How::Create(generation_life(set.whole_life()));
        let mut wants: Vec<Want> =
            names.map(|name| Want { name: shared.domain.key(&name), how: create.clone() }).collect();
        self.with_parents(shared, set, &mut wants, &create)
    }

    /// Adds the generations of all parents, level by level, and of the key itself, which says who its parents are; reads
    /// them all.
    fn with_parents(
        &mut self,
        shared: &Shared,
        set: &Set<'_>,
        wants: &mut Vec<Want>,
        create: &How,
    ) -> Result<Vec<Learned>, Flow> {
        let direct: Vec<&[u8]> = set.parents.iter().copied().filter(|parent| *parent != set.key).collect();
        let mut closes_cycle = direct.len() < set.parents.len();
        let mut parents: Vec<Bytes> = direct.iter().map(|parent| Bytes::copy_from_slice(parent)).collect();
        let mut seen: HashSet<Bytes> = parents.iter().cloned().collect();
        let base = wants.len();
        let is_kept = !direct.is_empty() && !shared.keyspaces().is_parent(set.key);
        if is_kept {
            let How::Create(life) = create else { return Err(Flow::Done) };
            let how = How::With(parents_to_bytes(direct.iter().copied()), *life);
            wants.push(Want { name: shared.domain.key(&of_parent(set.key)), how });
        }
        let (mut asked, mut learned) = (0, Vec::new());
        loop {
            for parent in &parents[asked..] {
                wants.push(Want { name: shared.domain.key(&of_parent(parent)), how: create.clone() });
            }
            if wants.len() > MAX_DEPENDENCIES {
                return Err(self.answer_error(&too_many(wants.len())));
            }
            // The key's own parents are known; those of the others stand beside their values.
            let level = base + usize::from(is_kept) + asked;
            asked = parents.len();
            learned.extend(self.generations(&wants[learned.len()..])?);
            for Learned { reading, .. } in &learned[level..] {
                for parent in parents_of_bytes(&reading.detail) {
                    if parent == set.key {
                        closes_cycle = true;
                    } else if !seen.contains(parent) {
                        seen.insert(Bytes::copy_from_slice(parent));
                        parents.push(Bytes::copy_from_slice(parent));
                    }
                }
            }
            if parents.len() == asked {
                if closes_cycle {
                    shared.metrics.cycles.inc();
                }
                return Ok(learned);
            }
        }
    }

    /// Whether generations may be asked for; `Err`: the request is held back while they are read, or they could not be, and it
    /// was answered.
    fn may_learn(&mut self) -> Result<(), Flow> {
        if self.learning().is_waiting {
            return Err(Flow::Hold);
        }
        if let Some(reason) = self.learning().failure.take() {
            let text = if reason.starts_with(FOREIGN) {
                reason
            } else {
                format!("NOTREADY what the value depends on cannot be read, so that nothing was written: {reason}")
            };
            return Err(self.answer_error(&text));
        }
        Ok(())
    }

    /// All these generations, in their order; `Err`: the request is held back until more is known, or answered.
    pub(super) fn generations(&mut self, wants: &[Want]) -> Result<Vec<Learned>, Flow> {
        self.may_learn()?;
        let (shared, database) = (self.worker.shared.clone(), self.client.database);
        if let L3::Redis(redis) = &shared.l3
            && redis.cluster().is_some()
            && let Home::Hold = self.home(redis, wants.first().map(|want| &want.name[..]))
        {
            return Err(Flow::Hold);
        }
        let (mut all, mut missing) = (Vec::with_capacity(wants.len()), Vec::new());
        for want in wants {
            let fits = |learned: &Learned| {
                let Learned { reading, .. } = learned;
                reading.value.is_some()
                    && !matches!(&want.how, How::With(detail, _) if parents_within(&reading.detail) != *detail)
            };
            let known = self.learning().known.get(&want.name).cloned();
            match known.filter(fits).or_else(|| shared.in_force(database, &want.name).filter(fits)) {
                Some(learned) => all.push(learned),
                None => missing.push(want.clone()),
            }
        }
        if missing.is_empty() {
            return Ok(all);
        }
        self.learning().rounds += 1;
        // Each level of parents takes a round, and brings something new.
        if self.learning().rounds > MAX_ROUNDS + self.learning().known.len() {
            let text =
                "STALE what the value depends on is renewed all the time, so that nothing was written; try again";
            return Err(self.answer_error(text));
        }
        self.learning().is_waiting = true;
        shared.learn(database, missing, Then::Session(self.mailbox.clone()));
        Err(Flow::Hold)
    }

    /// What these generations are in L3 at this moment, absent ones included.
    pub(super) fn generations_afresh(&mut self, wants: Vec<Want>) -> Result<Vec<Learned>, Flow> {
        self.may_learn()?;
        if !self.learning().known.is_empty() || wants.is_empty() {
            let mut known = std::mem::take(&mut self.learning().known);
            return Ok(wants.iter().filter_map(|want| known.remove(&want.name)).collect());
        }
        self.learning().is_waiting = true;
        self.worker.shared.learn(self.client.database, wants, Then::Session(self.mailbox.clone()));
        Err(Flow::Hold)
    }

    /// Whether the request was held back to learn of generations.
    pub(super) fn has_learned(&self) -> bool {
        self.learning.as_ref().is_some_and(|learning| learning.rounds > 0)
    }

    /// The name of the keyspace that a key is in.
    pub(super) fn keyspace_of(&self, key: &[u8]) -> String {
        let shared = &self.worker.shared;
        shared.names.name(shared.keyspaces().rule(key).id)
    }
}

/// Generations that are in force by their names within the domain.
pub(super) fn named<'a>(
    shared: &'a Shared,
    learned: &'a [Learned],
) -> impl Iterator<Item = (&'a [u8], GenerationValue)> {
    learned.iter().filter_map(|Learned { cell, reading }| Some((shared.domain.name(cell.name())?, reading.value?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<String, String> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        Request::new(&words).with(|_, args| {
            let set = Set::parse(args)?;
            let text =
                |words: &[&[u8]]| words.iter().map(|word| String::from_utf8_lossy(word)).collect::<Vec<_>>().join(",");
            let condition = set.condition.map_or("", |word| std::str::from_utf8(word).unwrap());
            Ok(format!("{:?} {:?} [{}] [{}] {condition}", set.life, set.stale, text(&set.tags), text(&set.parents)))
        })
    }

    #[test]
    fn options_come_in_any_order() {
        assert_eq!(parse("CACHE.SET k v").unwrap(), "None None [] [] ");
        assert_eq!(
            parse("CACHE.SET k v nx tags 3 b a b DEPENDS 1 p px 500 STALE 100").unwrap(),
            "Some(500ms) Some(100ms) [a,b] [p] NX"
        );
        // Tags may be called like options.
        assert_eq!(parse("CACHE.SET k v TAGS 2 NX PX").unwrap(), "None None [NX,PX] [] ");
    }

    #[test]
    fn bad_input_is_told_what_to_send() {
        let tags = format!("CACHE.SET k v TAGS 10000 {}", "t ".repeat(10_000).trim_end());
        for (line, said) in [
            ("CACHE.SET k v PX 0", "PX takes milliseconds"),
            ("CACHE.SET k v PX", "PX takes milliseconds"),
            ("CACHE.SET k v STALE 5", "give PX too"),
            ("CACHE.SET k v TAGS 2 a", "TAGS takes how many there are"),
            ("CACHE.SET k v TAGS x a", "TAGS takes how many there are"),
            ("CACHE.SET k v EX 5", "does not know 'EX'"),
            ("CACHE.SET k v NX XX", "does not know 'XX'"),
            ("CACHE.SET k v TOKEN", "does not know 'TOKEN'"),
            ("CACHE.SET k v FENCE lock", "does not know 'FENCE'"),
            ("CACHE.SET k v FENCE lock 7-42", "FENCE takes a lock and its token: not a fencing token"),
            (&tags, "LIMIT the value would depend on 10000"),
            (&format!("CACHE.SET k v TAGS 1 {}", "t".repeat(65_536)), "LIMIT a tag has 65536 bytes"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(said), "{}: {error}", &line[..line.len().min(60)]);
        }
    }
}
