//! A seed becomes a list of steps: who sends what, in which order. Knows nothing of replies, so that any part of a plan
//! is a plan again.

use caddy_sidecar::commands::{Class, Pin, Positions, Row, rows};
use caddy_tests::random::Random;

use crate::{Values, templates as words};

/// Sessions that last for the whole plan; the second one begins with RESP3.
pub(crate) const SESSIONS: usize = 3;

pub(crate) type Args = Vec<Vec<u8>>;

/// What happens next.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// One session sends all requests, then reads all replies.
    Pipeline { session: usize, requests: Vec<Args>, style: Style },
    /// As a pipeline; what it leaves expires within `PAUSE` and is then waited for.
    Expiring { session: usize, key: Vec<u8>, requests: Vec<Args> },
    /// A session turns replies off, sends all requests, and turns replies on again; then another, with `SKIP`.
    Unheard { session: usize, requests: Vec<Args> },
    /// A new connection sends all requests, the last of which ends it or not.
    Fresh { resp3: bool, requests: Vec<Args> },
    /// A new connection waits; a session sends what may end that.
    Blocking { resp3: bool, waits: Args, session: usize, feeds: Args },
    /// A new connection subscribes; a session publishes to it.
    Subscription { resp3: bool, subscribe: Args, session: usize, publish: Vec<Args>, unsubscribe: Args },
}

/// How requests are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Whole,
    /// In two writes, parted within a request.
    Parted,
    /// As a person would type it.
    Inline,
}

/// What the server under comparison knows beforehand, for placeholders.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// DUMPs of values of several types.
    pub(crate) dumps: Vec<Vec<u8>>,
    /// The name of the script that [`words::COUNTER`] is.
    pub(crate) sha: Vec<u8>,
}

/// The steps of `seed`.
pub(crate) fn plan(seed: u64, length: usize, values: Values, known: &Known) -> Vec<Step> {
    let mut dice = Dice { random: Random::new(seed), values, known };
    (0..length).flat_map(|_| dice.steps()).collect()
}

struct Dice<'a> {
    random: Random,
    values: Values,
    known: &'a Known,
}

impl Dice<'_> {
    fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit)
    }

    fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len())]
    }

    /// One step, or the few of a transaction.
    fn steps(&mut self) -> Vec<Step> {
        let session = self.below(SESSIONS);
        let resp3 = self.below(2) == 0;
        // Of commands that handle stored bytes, or show all keys, other things are promised where values have tags.
        let all = match self.values {
            Values::Plain => 1000,
            Values::Tagged => 870,
        };
        match self.below(all) {
            0..442 => vec![self.reads(session)],
            442..450 => self.expiring(session),
            450..780 => {
                let requests = self.requests(10);
                let style = if self.below(10) == 0 { Style::Parted } else { Style::Whole };
                vec![Step::Pipeline { session, requests, style }]
            }
            780..870 => self.transaction(session),
            870..910 => {
                let requests = (0..=self.below(3)).map(|_| self.wild()).collect();
                vec![Step::Pipeline { session, requests, style: Style::Whole }]
            }
            910..930 => {
                let line =
                    *self.pick(&["GET s:0", "get  s:1 ", "SET s:2 inline", "PING", "MGET s:0 s:1", "NOPE x", ""]);
                let requests = vec![line.split(' ').map(|word| word.as_bytes().to_vec()).collect()];
                vec![Step::Pipeline { session, requests, style: Style::Inline }]
            }
            930..950 => {
                let line = *self.pick(words::SWEEPING);
                vec![Step::Pipeline { session, requests: vec![self.fill_in(line)], style: Style::Whole }]
            }
            950..965 => {
                let mut requests = self.requests(4);
                let line = *self.pick(words::IMPATIENT);
                requests.insert(0, self.fill_in(line));
                requests.extend(self.requests(2));
                vec![Step::Pipeline { session, requests, style: Style::Whole }]
            }
            965..975 => {
                let (waits, feeds) = *self.pick(words::BLOCKING);
                vec![Step::Blocking { resp3, waits: self.fill_in(waits), session, feeds: self.fill_in(feeds) }]
            }
            975..981 => vec![self.subscription(resp3, session)],
            981..985 => {
                let mut requests = self.requests(6);
                // These turn replies on again.
                requests.retain(|request| !request[0].eq_ignore_ascii_case(b"RESET"));
                vec![Step::Unheard { session, requests }]
            }
            _ => {
                let mut requests = self.requests(3);
                if self.below(2) == 0 {
                    requests.push(args("QUIT"));
                }
                vec![Step::Fresh { resp3, requests }]
            }
        }
    }

    fn expiring(&mut self, session: usize) -> Vec<Step> {
        let key = self.key('s');
        let [set, get] = [b"SET", b"GET"].map(|name| name.to_vec());
        let (value, ttl) = (self.value(), b"100".to_vec());
        let write = vec![set, key.clone(), value, b"PX".to_vec(), ttl];
        let read = vec![get, key.clone()];
        vec![Step::Expiring { session, key, requests: vec![write, read.clone(), read] }]
    }

    /// Whether it is another thing in one transaction with tagged values: what is written behind it has the tags that it ends,
    /// or what is computed of them is written in the protocol of before.
    fn is_another_thing(&self, request: &Args) -> bool {
        let is = |name: &[u8]| request[0].eq_ignore_ascii_case(name);
        self.values == Values::Tagged && (is(b"FLUSHDB") || is(b"SELECT") || is(b"HELLO"))
    }

    /// What a cache is for: the same few keys, read again and again.
    fn reads(&mut self, session: usize) -> Step {
        let lines = [
            "GET {s}",
            "GET {s}",
            "GET {s}",
            "GET {s}",
            "MGET {s} {s}",
            "EXISTS {s}",
            "STRLEN {s}",
            "TTL {s}",
            "PTTL {s}",
        ];
        let requests = (0..=self.below(8))
            .map(|_| {
                let line = *self.pick(&lines);
                self.fill_in(line)
            })
            .collect();
        Step::Pipeline { session, requests, style: Style::Whole }
    }

    fn requests(&mut self, most: usize) -> Vec<Args> {
        (0..=self.below(most)).map(|_| self.request()).collect()
    }

    /// A request from a template, one in thirty damaged.
    fn request(&mut self) -> Args {
        let templates = match self.values {
            Values::Plain => words::TEMPLATES,
            Values::Tagged => words::TAGGED,
        };
        let total = templates.iter().map(|(weight, _)| weight).sum();
        let mut left = self.below(total);
        let mut group = templates[0].1;
        for (weight, lines) in templates {
            group = lines;
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => break,
            }
        }
        let line = *self.pick(group);
        let mut request = self.fill_in(line);
        // What SPOP takes is the server's choice, unless it takes everything; what Redis is sent in place of the cache's own
        // commands is not damaged in the same way.
        let is_whole = request[0].eq_ignore_ascii_case(b"SPOP") || request[0].starts_with(b"CACHE.");
        if self.below(30) == 0 && !is_whole {
            match self.below(3) {
                0 if request.len() > 1 => drop(request.pop()),
                1 => request.push(b"x".to_vec()),
                _ => {
                    let at = self.below(request.len() - 1 + usize::from(request.len() == 1));
                    if at > 0 {
                        request[at] = self.word();
                    }
                }
            }
            tame(&mut request);
        }
        if self.below(4) == 0 {
            request[0].make_ascii_lowercase();
        }
        request
    }

    /// WATCH, what may break it, and what follows; nothing of it is left afterwards.
    fn transaction(&mut self, session: usize) -> Vec<Step> {
        let pipeline = |session, requests| Step::Pipeline { session, requests, style: Style::Whole };
        let mut steps = Vec::new();
        if self.below(2) == 0 {
            let watch = self.fill_in("WATCH {s} {k}");
            let read = self.fill_in("GET {s}");
            steps.push(pipeline(session, vec![watch, read]));
            if self.below(2) == 0 {
                steps.push(pipeline((session + 1) % SESSIONS, vec![self.fill_in("SET {s} {v}")]));
            }
        }
        let mut requests = vec![args("MULTI")];
        for _ in 0..self.below(6) {
            let request = self.request();
            // RESET ends it, and HELLO's options are refused in one.
            let is = |name: &[u8]| request[0].eq_ignore_ascii_case(name);
            if !(is(b"RESET")
                || is(b"HELLO") && request.len() > 2
                || is_own(&request)
                || self.is_another_thing(&request))
            {
                requests.push(request);
            }
        }
        let end = if self.below(5) == 0 { "DISCARD" } else { "EXEC" };
        requests.push(args(end));
        // DISCARD and EXEC end WATCH, unless an EXEC among the requests came first.
        requests.push(args("UNWATCH"));
        if self.below(3) == 0 {
            requests.extend(self.requests(3));
        }
        if self.below(3) == 0 {
            let rest = requests.split_off(1 + self.below(requests.len() - 1));
            if self.below(3) == 0 {
                requests.push(args(self.pick::<&str>(&["EXEC x", "DISCARD x", "UNWATCH x"])));
            }
            steps.push(pipeline(session, requests));
            if self.below(2) == 0 {
                // In between, another session has its own transaction.
                let own = ["MULTI", "GET s:0", "EXEC"].map(args).to_vec();
                steps.push(pipeline((session + 1) % SESSIONS, own));
            }
            if self.below(2) == 0 {
                // If that was the end already: a write now, which others read.
                steps.push(pipeline(session, vec![self.fill_in("SET s:0 {v}")]));
                steps.push(pipeline((session + 1) % SESSIONS, vec![args("GET s:0")]));
            }
            steps.push(pipeline(session, rest));
        } else {
            steps.push(pipeline(session, requests));
        }
        steps
    }

    fn subscription(&mut self, resp3: bool, session: usize) -> Step {
        let (subscribe, unsubscribe) = *self.pick(&[
            ("SUBSCRIBE a b", "UNSUBSCRIBE b a"),
            ("PSUBSCRIBE a*", "PUNSUBSCRIBE a*"),
            ("SSUBSCRIBE a", "SUNSUBSCRIBE a"),
        ]);
        let publish = (0..=self.below(3))
            .map(|_| {
                let line = *self.pick(&["PUBLISH a {v}", "PUBLISH ab {v}", "SPUBLISH a {v}", "PUBLISH c {v}"]);
                self.fill_in(line)
            })
            .collect();
        Step::Subscription { resp3, subscribe: args(subscribe), session, publish, unsubscribe: args(unsubscribe) }
    }

    /// Any command with keys, and arguments that may make sense.
    fn wild(&mut self) -> Args {
        let rows: Vec<(Option<&str>, &Row)> = wild_rows().collect();
        let (container, row) = *self.pick(&rows);
        let mut request: Args = container.iter().chain([&row.name]).map(|name| name.as_bytes().to_vec()).collect();
        let least = usize::from(row.arity.unsigned_abs());
        let more = if row.arity < 0 { self.below(4) } else { 0 };
        while request.len() < least + more {
            let argument = if self.below(2) == 0 { self.key('k') } else { self.word() };
            request.push(argument);
        }
        tame(&mut request);
        request
    }

    /// An argument: a number, an option, a value.
    fn word(&mut self) -> Vec<u8> {
        match self.below(4) {
            0 => self.value(),
            1 => self.member(),
            2 => {
                self.pick(&["0", "-1", "70000", "abc", "1.5", "2147483648", "99999999999999999999"]).as_bytes().to_vec()
            }
            _ => self
                .pick(&[
                    "WITHSCORES",
                    "LIMIT",
                    "COUNT",
                    "NX",
                    "XX",
                    "GT",
                    "STORE",
                    "GET",
                    "REV",
                    "LEFT",
                    "MIN",
                    "AND",
                    "KEEPTTL",
                    "REPLACE",
                    "BYSCORE",
                    "STREAMS",
                    "-",
                    "+",
                    "$",
                    "*",
                    "",
                ])
                .as_bytes()
                .to_vec(),
        }
    }

    // === placeholders ===

    fn fill_in(&mut self, template: &str) -> Args {
        template.split(' ').map(|word| self.argument(word)).collect()
    }

    fn argument(&mut self, word: &str) -> Vec<u8> {
        let Some((before, rest)) = word.split_once('{') else { return word.as_bytes().to_vec() };
        let Some((name, after)) = rest.split_once('}') else { return word.as_bytes().to_vec() };
        let text = |text: &str| text.as_bytes().to_vec();
        let filled = match name {
            "" => Vec::new(),
            "k" => self.key('k'),
            "s" | "h" | "l" | "t" | "z" | "g" | "x" | "p" => self.key(name.as_bytes()[0].into()),
            "v" => self.value(),
            "m" => self.member(),
            "n" => self.below(6).to_string().into(),
            "i" => self.pick(&["0", "1", "2", "3", "5", "-1", "-2", "-4", "abc"]).as_bytes().to_vec(),
            "f" => self.pick(&["1.5", "-2", "1e3", "0.1", "inf", "nan", "x"]).as_bytes().to_vec(),
            "sc" => self
                .pick(&["0", "1", "2.5", "3.14", "1e22", "1e-7", "-3", "-inf", "+inf", "(1", "(2.5", "x"])
                .as_bytes()
                .to_vec(),
            "lex" => self.pick(&["-", "+", "[a", "(c", "[d", "[1", "x"]).as_bytes().to_vec(),
            "ttl" => (100 + self.below(900)).to_string().into(),
            "pttl" => (100_000 + self.below(900_000)).to_string().into(),
            "off" => self.below(100).to_string().into(),
            "bit" => self.below(2).to_string().into(),
            "d" => self.below(4).to_string().into(),
            "dump" => self.pick(&self.known.dumps).clone(),
            "sha" => self.known.sha.clone(),
            "copier" => text(words::COPIER),
            "hidden" => text(words::HIDDEN),
            "counter" => text(words::COUNTER),
            "reader" => text(words::READER),
            "typed" => text(words::TYPED),
            "broken" => text(words::BROKEN),
            "library" => text(words::LIBRARY),
            other => unreachable!("no placeholder {other}"),
        };
        // `{n}-{n}` is an ID of a stream.
        let after = self.argument(after);
        [before.as_bytes(), &filled, &after].concat()
    }

    /// A key of a kind, the first ones more often; one in twenty is of any kind.
    fn key(&mut self, kind: char) -> Vec<u8> {
        const KINDS: &[char] = &['s', 's', 'h', 'l', 't', 'z', 'g', 'x', 'p'];
        let kind = if kind == 'k' || self.below(20) == 0 { *self.pick(KINDS) } else { kind };
        let many = if kind == 's' { 8 } else { 3 };
        let number = self.below(many).min(self.below(many));
        match (kind, number) {
            ('s', 6) => b"s:\r\n\0\xff$3\r\n".to_vec(),
            ('s', 7) => Vec::new(),
            ('h', 2) => b"h \"quoted\"\n".to_vec(),
            _ => format!("{kind}:{number}").into(),
        }
    }

    /// None begins with the byte 0: `SORT … ALPHA` compares up to the first one, and equals stand as in a hash table.
    fn value(&mut self) -> Vec<u8> {
        if self.values == Values::Tagged && self.below(3) == 0 {
            // As nothing is, and as an envelope begins.
            return self.pick::<&[u8]>(&[b"", b"", b"\xc1\xca", b"\xc1\xca\x01 and so on"]).to_vec();
        }
        match self.below(10) {
            0 => Vec::new(),
            1 => b"\r\n\0$-1\r\n\xfe\xff".to_vec(),
            2 => b"3.0e1".to_vec(),
            3 => std::iter::once(b'r').chain((0..=self.below(2000)).map(|_| self.random.next_u64() as u8)).collect(),
            4 => vec![b'z'; self.below(2000)],
            5 => b"hello world".to_vec(),
            _ => self.below(2000).to_string().into(),
        }
    }

    fn member(&mut self) -> Vec<u8> {
        match self.below(12) {
            0 => b"\xff\0\r\n".to_vec(),
            1 => vec![b'm'; 80],
            2 => Vec::new(),
            3..6 => self.below(20).to_string().into(),
            _ => vec![b'a' + self.below(5) as u8],
        }
    }
}

/// Makes no argument a short time to live: whether the key is still there when it is asked for would be the clock's to
/// say; nor a far offset: the limits of what the sidecar buffers for a slow reader are no subject here.
fn tame(request: &mut Args) {
    const EXPIRING: &[&str] = &[
        "set",
        "setex",
        "psetex",
        "getex",
        "expire",
        "pexpire",
        "restore",
        "restore-asking",
        "hexpire",
        "hpexpire",
        "hsetex",
        "hgetex",
    ];
    const FAR: &[&str] = &["setbit", "bitfield"];
    let is_any = |names: &[&str]| names.iter().any(|name| request[0].eq_ignore_ascii_case(name.as_bytes()));
    let unwanted = match (is_any(EXPIRING), is_any(FAR)) {
        (true, _) => 1..60_000,
        (_, true) => 1_000_000..u64::MAX,
        _ => return,
    };
    for argument in request.iter_mut().skip(2) {
        let number: Option<u64> = std::str::from_utf8(argument).ok().and_then(|text| text.parse().ok());
        if number.is_some_and(|number| unwanted.contains(&number)) {
            *argument = b"70000".to_vec();
        }
    }
}

/// Whether it is one of the cache's own commands.
pub(crate) fn is_own(request: &Args) -> bool {
    request[0].to_ascii_uppercase().starts_with(b"CACHE.")
}

fn args(line: &str) -> Args {
    line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

/// Commands with keys whose outcome their arguments decide; subcommands with their container's name.
fn wild_rows() -> impl Iterator<Item = (Option<&'static str>, &'static Row)> {
    // SPOP's choice is the server's, LCS takes long, MIGRATE and RESTORE-ASKING are for servers.
    const WITHOUT: &[&str] = &["spop", "lcs", "migrate", "pfdebug", "watch"];
    let all = rows().flat_map(|row| {
        let subcommands = row.subcommands.iter().map(|subcommand| (Some(row.name), subcommand));
        std::iter::once((None, row)).chain(subcommands)
    });
    all.filter(|(_, row)| {
        let pinned = matches!(row.class, Class::Pinned(Pin::Blocking | Pin::PubSub));
        row.since == "7.0" && row.keys != Positions::None && !pinned && !WITHOUT.contains(&row.name)
    })
}
