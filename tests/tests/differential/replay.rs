//! Plays a plan on both sides and stops at the first difference.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_resp::{Value, encode};
use caddy_tests::{
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    wire::Wire,
};

use crate::{
    Values,
    compare::{Measure, measure, same},
    plan::{Args, Known, SESSIONS, Step, Style, is_own},
};

/// After it, what was set to live for 100 ms is gone everywhere.
const PAUSE: Duration = Duration::from_millis(130);
/// Replies that came this quickly came before that.
const QUICK: Duration = Duration::from_millis(60);
const DATABASES: usize = 4;
/// Which strings have tags where they do by rule.
const RULE: &str = "keyspaces: [{name: some, match: \"s:[0-2]*\", tags: [\"s\", \"{1}\"]}]";

/// Two servers, one of them behind a sidecar.
pub(crate) struct World {
    values: Values,
    behind: RedisServer,
    sidecar: Sidecar,
    direct: RedisServer,
    pub(crate) known: Known,
    pub(crate) requests: u64,
    pub(crate) gets: u64,
}

/// Where and how the two sides first differ.
#[derive(Debug, Clone)]
pub(crate) struct Difference {
    pub(crate) step: usize,
    pub(crate) what: String,
}

/// One session on both sides.
struct Pair {
    ours: Wire,
    theirs: Wire,
    /// How what was queued since MULTI is compared.
    queued: Option<Vec<Measure>>,
}

impl World {
    pub(crate) fn start(program: &Path, workers: u32, values: Values) -> Result<Self> {
        let behind = RedisServer::start_program(program)?;
        let direct = RedisServer::start_program(program)?;
        let options = SidecarOptions::redis(behind.socket()).workers(workers);
        let options = if values == Values::Tagged { options.section(RULE) } else { options };
        let sidecar = options.start()?;
        let mut wire = direct.connect()?;
        let mut dumps = Vec::new();
        for line in ["SET k text", "SET k 12", "RPUSH k a b c", "SADD k 1 2 3", "ZADD k 1 a 2 b", "HSET k f v"] {
            wire.request(&line.split(' ').collect::<Vec<_>>())?;
            let dump = wire.request(&["DUMP", "k"])?;
            dumps.push(Value::decode(&dump)?.0.as_bytes().context("DUMP gives bytes")?.to_vec());
            wire.request(&["DEL", "k"])?;
        }
        let sha = wire.request(&["SCRIPT", "LOAD", crate::templates::COUNTER])?;
        let sha = Value::decode(&sha)?.0.as_bytes().context("SCRIPT LOAD gives a name")?.to_vec();
        Ok(Self { values, behind, sidecar, direct, known: Known { dumps, sha }, requests: 0, gets: 0 })
    }

    /// Reads that the sidecar answered from copies.
    pub(crate) fn hits(&self) -> Result<u64> {
        self.sidecar.metric("caddy_hits_total")
    }

    pub(crate) fn log(&self) -> String {
        self.sidecar.log()
    }

    fn pair(&self) -> Result<Pair> {
        Ok(Pair { ours: self.sidecar.connect()?, theirs: self.direct.connect()?, queued: None })
    }

    /// Plays the steps on empty servers; the first difference, if there is one.
    pub(crate) fn replay(&mut self, steps: &[Step]) -> Result<Option<Difference>> {
        let mut cleaner = self.pair()?;
        for line in ["FLUSHALL", "SCRIPT FLUSH", "FUNCTION FLUSH"] {
            let args: Vec<&str> = line.split(' ').collect();
            cleaner.ours.request(&args)?;
            cleaner.theirs.request(&args)?;
        }
        let mut sessions = (0..SESSIONS).map(|number| self.fresh(number == 1)).collect::<Result<Vec<_>>>()?;
        for (number, step) in steps.iter().enumerate() {
            let what = match self.step(&mut sessions, step) {
                Ok(None) => continue,
                Ok(Some(what)) => what,
                Err(error) => format!("{}: {error:#}", show_step(step)),
            };
            return Ok(Some(Difference { step: number, what }));
        }
        let what = self.data()?;
        Ok(what.map(|what| Difference {
            step: steps.len().saturating_sub(1),
            what: format!("the data afterwards: {what}"),
        }))
    }

    fn step(&mut self, sessions: &mut [Pair], step: &Step) -> Result<Option<String>> {
        for request in step.requests() {
            self.requests += 1;
            self.gets += u64::from(request[0].eq_ignore_ascii_case(b"GET"));
        }
        match step {
            Step::Pipeline { session, requests, style } => {
                let pair = &mut sessions[*session];
                pair.send(requests, *style)?;
                pair.replies(requests, *style)
            }
            // In a transaction it is refused.
            Step::Unheard { session, .. } if sessions[*session].queued.is_some() => Ok(None),
            Step::Unheard { session, requests } => {
                let pair = &mut sessions[*session];
                let all = [
                    vec![args(&[b"CLIENT", b"REPLY", b"OFF"])],
                    requests.clone(),
                    vec![args(&[b"CLIENT", b"REPLY", b"ON"]), args(&[b"CLIENT", b"REPLY", b"SKIP"])],
                    requests.first().cloned().into_iter().collect(),
                    vec![args(&[b"ECHO", b"heard"])],
                ];
                pair.send(&all.concat(), Style::Whole)?;
                pair.replies(&[args(&[b"CLIENT", b"REPLY", b"ON"]), args(&[b"ECHO", b"heard"])], Style::Whole)
            }
            Step::Expiring { session, key, requests } => {
                let pair = &mut sessions[*session];
                let before = BootClock.now();
                pair.send(requests, Style::Whole)?;
                let difference = pair.replies(requests, Style::Whole)?;
                let quick = BootClock.now().since(before) < QUICK;
                thread::sleep(PAUSE);
                // Counting keys counts those that are over and not yet missed.
                for server in [&self.behind, &self.direct] {
                    let mut wire = server.connect()?;
                    for database in 0..DATABASES {
                        wire.request(&[b"SELECT".as_slice(), database.to_string().as_bytes()])?;
                        wire.request(&[b"EXISTS".as_slice(), key])?;
                    }
                }
                Ok(difference.filter(|_| quick))
            }
            Step::Fresh { resp3, requests } => {
                let mut pair = self.fresh(*resp3)?;
                pair.send(requests, Style::Whole)?;
                if let Some(difference) = pair.replies(requests, Style::Whole)? {
                    return Ok(Some(difference));
                }
                if requests.last().is_some_and(|request| request[0] == b"QUIT") {
                    ensure!(pair.theirs.is_closed()?, "Redis does not close");
                    ensure!(pair.ours.is_closed()?, "the sidecar does not close after QUIT");
                }
                Ok(None)
            }
            Step::Blocking { resp3, waits, session, feeds } => {
                let feeding = &mut sessions[*session];
                let select = vec![vec![b"SELECT".to_vec(), b"0".to_vec()]];
                feeding.send(&select, Style::Whole)?;
                if let Some(difference) = feeding.replies(&select, Style::Whole)? {
                    return Ok(Some(difference));
                }
                let mut waiting = self.fresh(*resp3)?;
                waiting.send(std::slice::from_ref(waits), Style::Whole)?;
                let theirs = settled(&mut waiting.theirs, &self.direct)?;
                let ours = settled(&mut waiting.ours, &self.behind)?;
                feeding.send(std::slice::from_ref(feeds), Style::Whole)?;
                if let Some(difference) = feeding.replies(std::slice::from_ref(feeds), Style::Whole)? {
                    return Ok(Some(difference));
                }
                let theirs = theirs.map_or_else(|| waiting.theirs.reply(), Ok)?;
                let ours = ours.map_or_else(|| waiting.ours.reply(), Ok)?;
                Ok((ours != theirs).then(|| differs(waits, &ours, &theirs)))
            }
            Step::Subscription { resp3, subscribe, session, publish, unsubscribe } => {
                let mut pair = self.fresh(*resp3)?;
                pair.subscribed(subscribe, subscribe.len() - 1)?;
                let publisher = &mut sessions[*session];
                let mut messages = 0;
                for request in publish {
                    publisher.ours.send(request)?;
                    publisher.theirs.send(request)?;
                    let (ours, theirs) = (publisher.ours.reply()?, publisher.theirs.reply()?);
                    if ours != theirs {
                        return Ok(Some(differs(request, &ours, &theirs)));
                    }
                    if let (Value::Integer(receivers), _) = Value::decode(&theirs)? {
                        messages += receivers.unsigned_abs() as usize;
                    } else if let Some(queued) = &mut publisher.queued {
                        queued.push(Measure::Exact);
                    }
                }
                pair.frames("messages", messages)?;
                // Allowed in RESP3 only.
                pair.subscribed(&vec![b"GET".to_vec(), b"s:9".to_vec()], 1)?;
                pair.subscribed(unsubscribe, unsubscribe.len() - 1)?;
                pair.subscribed(&vec![b"PING".to_vec()], 1)?;
                Ok(None)
            }
        }
    }

    fn fresh(&self, resp3: bool) -> Result<Pair> {
        let mut pair = self.pair()?;
        if resp3 {
            pair.ours.request(&["HELLO", "3"])?;
            pair.theirs.request(&["HELLO", "3"])?;
        }
        Ok(pair)
    }

    /// Compares what both servers have, and what the sidecar says of it.
    fn data(&self) -> Result<Option<String>> {
        let mut through = self.pair()?;
        let (mut behind, mut direct) = (self.behind.connect()?, self.direct.connect()?);
        for database in 0..DATABASES {
            let database = database.to_string();
            for wire in [&mut through.ours, &mut through.theirs, &mut behind, &mut direct] {
                wire.request(&["SELECT", &database])?;
            }
            let keys = keys(&mut direct)?;
            let ours = self::keys(&mut behind)?;
            if ours != keys {
                return Ok(Some(format!(
                    "database {database}: keys\n    sidecar: {}\n    Redis:   {}",
                    show(&ours),
                    show(&keys)
                )));
            }
            for key in keys {
                for request in self.contents(&mut direct, &key)? {
                    let checked = compare(&mut behind, &mut direct, &request)?.or(compare(
                        &mut through.ours,
                        &mut through.theirs,
                        &args(&[b"GET", &key]),
                    )?);
                    if let Some(what) = checked {
                        return Ok(Some(format!("database {database}: {what}")));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The requests that show all there is to one key.
    fn contents(&self, direct: &mut Wire, key: &[u8]) -> Result<Vec<Args>> {
        let kind = direct.request(&[b"TYPE".as_slice(), key])?;
        let content: &[&[u8]] = match kind.as_slice() {
            // Of envelopes the sidecar alone shows the values.
            b"+string\r\n" if self.values == Values::Tagged => &[b"EXISTS", key],
            b"+string\r\n" => &[b"GET", key],
            b"+hash\r\n" => &[b"HGETALL", key],
            b"+list\r\n" => &[b"LRANGE", key, b"0", b"-1"],
            b"+set\r\n" => &[b"SMEMBERS", key],
            b"+zset\r\n" => &[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"],
            _ => &[b"XRANGE", key, b"-", b"+"],
        };
        let encoding: &[&[u8]] =
            if self.values == Values::Tagged { &[b"TYPE", key] } else { &[b"OBJECT", b"ENCODING", key] };
        let about: [&[&[u8]]; 4] = [&[b"TYPE", key], &[b"PTTL", key], encoding, content];
        Ok(about.map(args).to_vec())
    }
}

/// Waits until a request is answered, or its server has a client that waits.
fn settled(wire: &mut Wire, server: &RedisServer) -> Result<Option<Vec<u8>>> {
    let mut observer = server.connect()?;
    loop {
        if observer.request(&["INFO", "clients"])?.windows(17).any(|text| text == b"blocked_clients:1") {
            return Ok(None);
        }
        if let Some(reply) = wire.reply_within(Duration::from_millis(2))? {
            return Ok(Some(reply));
        }
    }
}

fn args(words: &[&[u8]]) -> Args {
    words.iter().map(|word| word.to_vec()).collect()
}

/// All keys but those that are the cache's, in order.
fn keys(wire: &mut Wire) -> Result<Vec<Vec<u8>>> {
    let reply = wire.request(&["KEYS", "*"])?;
    let keys = Value::decode(&reply)?.0;
    let keys = keys.as_elements().context("KEYS gives keys")?.iter().filter_map(Value::as_bytes);
    let mut keys: Vec<Vec<u8>> = keys.filter(|key| !key.starts_with(b"caddy:")).map(<[u8]>::to_vec).collect();
    keys.sort_unstable();
    Ok(keys)
}

/// What Redis does that is the same as a command of the cache's own, which is refused in a transaction.
fn as_redis(request: &Args) -> Args {
    if !is_own(request) {
        return request.clone();
    }
    let (name, from): (&[u8], usize) = match request[0].to_ascii_uppercase().as_slice() {
        b"CACHE.SET" => (b"SET", 1),
        b"CACHE.GET" => (b"GET", 1),
        _ => (b"DEL", 2),
    };
    let rest = request[from..].iter().take_while(|word| *word != b"TAGS").cloned();
    std::iter::once(name.to_vec()).chain(rest).collect()
}

fn compare(ours: &mut Wire, theirs: &mut Wire, request: &Args) -> Result<Option<String>> {
    let (ours, theirs) = (ours.request(request)?, theirs.request(request)?);
    let alike = same(measure(request), &Value::decode(&ours)?.0, &Value::decode(&theirs)?.0);
    Ok((!alike).then(|| differs(request, &ours, &theirs)))
}

impl Pair {
    fn send(&mut self, requests: &[Args], style: Style) -> Result<()> {
        let is_queued =
            self.queued.is_some() || requests.iter().any(|request| request[0].eq_ignore_ascii_case(b"MULTI"));
        for (wire, is_redis) in [(&mut self.ours, false), (&mut self.theirs, true)] {
            let mut bytes = Vec::new();
            for request in requests {
                let request = if is_redis || is_queued { as_redis(request) } else { request.clone() };
                if style == Style::Inline {
                    bytes.extend(request.join(&b' '));
                    bytes.extend(b"\r\n");
                } else {
                    encode::command(&mut bytes, &request);
                }
            }
            let parting = if style == Style::Parted { bytes.len() / 2 } else { bytes.len() };
            wire.send_raw(&bytes[..parting])?;
            wire.send_raw(&bytes[parting..])?;
        }
        Ok(())
    }

    fn replies(&mut self, requests: &[Args], style: Style) -> Result<Option<String>> {
        for request in requests {
            // Redis says nothing to an empty line.
            if style == Style::Inline && request.iter().all(Vec::is_empty) {
                continue;
            }
            let theirs = self.theirs.reply().with_context(|| format!("Redis, to {}", show(request)))?;
            let ours = self.ours.reply().with_context(|| format!("the sidecar, to {}", show(request)))?;
            let (a, b) = (Value::decode(&ours)?.0, Value::decode(&theirs)?.0);
            if !self.alike(request, &a, &b) {
                return Ok(Some(differs(request, &ours, &theirs)));
            }
        }
        Ok(None)
    }

    /// Compares two replies and follows what transaction they are part of.
    fn alike(&mut self, request: &Args, ours: &Value<'_>, theirs: &Value<'_>) -> bool {
        let name = request[0].to_ascii_lowercase();
        let measure = measure(request);
        match (name.as_slice(), &mut self.queued) {
            (b"exec", Some(queued)) if request.len() == 1 => {
                let queued = std::mem::take(queued);
                self.queued = None;
                match (ours, theirs) {
                    (Value::Array(ours), Value::Array(theirs))
                        if ours.len() == theirs.len() && ours.len() == queued.len() =>
                    {
                        ours.iter().zip(theirs).zip(queued).all(|((ours, theirs), measure)| same(measure, ours, theirs))
                    }
                    _ => ours == theirs,
                }
            }
            // With a wrong number of arguments EXEC ends a transaction too, DISCARD does not.
            (b"exec", Some(_)) => {
                self.queued = None;
                ours == theirs
            }
            (b"discard" | b"reset" | b"quit", Some(_)) if request.len() == 1 => {
                self.queued = None;
                same(measure, ours, theirs)
            }
            (b"multi", None) if theirs.as_error().is_none() => {
                self.queued = Some(Vec::new());
                ours == theirs
            }
            (_, Some(queued)) => {
                if theirs.as_bytes() == Some(b"QUEUED") {
                    queued.push(measure);
                }
                ours == theirs
            }
            _ => same(measure, ours, theirs),
        }
    }

    /// Sends a request of a subscriber, which is answered by so many frames.
    fn subscribed(&mut self, request: &Args, frames: usize) -> Result<()> {
        self.ours.send(request)?;
        self.theirs.send(request)?;
        self.frames(&show(request), frames)
    }

    fn frames(&mut self, what: &str, frames: usize) -> Result<()> {
        for _ in 0..frames {
            let (_, theirs) = self.theirs.receive().with_context(|| format!("Redis, {what}"))?;
            let (_, ours) = self.ours.receive().with_context(|| format!("the sidecar, {what}"))?;
            ensure!(ours == theirs, "{what}: {} instead of {}", ours.escape_ascii(), theirs.escape_ascii());
        }
        Ok(())
    }
}

impl Step {
    /// All requests, in the order of their sending.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &Args> {
        let (one, other, many): (Option<&Args>, Option<&Args>, &[Args]) = match self {
            Self::Pipeline { requests, .. }
            | Self::Unheard { requests, .. }
            | Self::Fresh { requests, .. }
            | Self::Expiring { requests, .. } => (None, None, requests),
            Self::Blocking { waits, feeds, .. } => (Some(waits), Some(feeds), &[]),
            Self::Subscription { subscribe, unsubscribe, publish, .. } => (Some(subscribe), Some(unsubscribe), publish),
        };
        one.into_iter().chain(many).chain(other)
    }
}

fn differs(request: &Args, ours: &[u8], theirs: &[u8]) -> String {
    let cut = |bytes: &[u8]| {
        let text = bytes.escape_ascii().to_string();
        if text.len() > 600 { format!("{}… ({} bytes)", &text[..600], bytes.len()) } else { text }
    };
    format!("{}\n    sidecar: {}\n    Redis:   {}", show(request), cut(ours), cut(theirs))
}

fn show(request: &Args) -> String {
    let words = request.iter().map(|word| {
        let text = word[..word.len().min(60)].escape_ascii().to_string();
        if text.is_empty() || text.contains(' ') { format!("\"{text}\"") } else { text }
    });
    words.collect::<Vec<_>>().join(" ")
}

pub(crate) fn show_step(step: &Step) -> String {
    let requests: Vec<String> = step.requests().map(show).collect();
    let requests = requests.join(" | ");
    match step {
        Step::Pipeline { session, style, .. } => format!("session {session} ({style:?}): {requests}"),
        Step::Unheard { session, .. } => format!("session {session}, between CLIENT REPLY OFF and ON: {requests}"),
        Step::Expiring { session, .. } => format!("session {session}, then a pause: {requests}"),
        Step::Fresh { resp3, .. } => format!("new connection (RESP3: {resp3}): {requests}"),
        Step::Blocking { resp3, session, .. } => {
            format!("new connection (RESP3: {resp3}), fed by session {session}: {requests}")
        }
        Step::Subscription { resp3, session, .. } => {
            format!("new subscriber (RESP3: {resp3}), session {session} publishes: {requests}")
        }
    }
}
