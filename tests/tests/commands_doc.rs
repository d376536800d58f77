//! `docs/commands.md` is written from the command table and from what the tests send, and a sidecar behaves as it says of
//! what it refuses. A command that means something to the sidecar is sent by some test, or there is a reason.
//!
//! Refreshed by `UPDATE_GOLDEN=1 cargo test -p caddy-tests --test commands_doc`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    sync::Arc,
};

use caddy_remote::embedded::Embedded;
use caddy_resp::{Protocol, Value};
use caddy_sidecar::commands::{Class, Effect, Merge, Pin, Row, Spread, rows};
use caddy_tests::{redis::RedisServer, sidecar::Sidecar};

const REFRESH: &str = "UPDATE_GOLDEN=1 cargo test -p caddy-tests --test commands_doc";

const HEAD: &str = "\
# Commands

What each command of Redis and Valkey is to the sidecar. The lists below are written from its command table, which dispatch uses
and tests compare with `COMMAND` of a running server; `tests/tests/differential` plays random streams of them to a sidecar and to
Redis and finds the same replies. Refresh: `UPDATE_GOLDEN=1 cargo test -p caddy-tests --test commands_doc`.

A command that is not listed is what the server says of it in `COMMAND`, which the sidecar asks for after a connect: its keys,
whether it writes, whether it may wait (then it gets a connection of the session's own). One of a module always goes behind a
barrier, too, since modules need not name all keys they touch. What the server does not list either (a renamed command, or one
loaded later) is relayed behind a barrier, which is right for every command that runs on one connection and answers once.

";

const AFTER_CLASSES: &str = "
## The sidecar's own commands

They are answered also while Redis is away, as maps (in RESP2 arrays of names and values).

* `CACHE.WHY key`: whether the next `GET` is answered from a copy, from which tier, and why or why not; the key's keyspace.
* `CACHE.STATS`: what the tiers hold, and every counter of the [metrics](metrics.md).
* `CACHE.STATS keyspace`: of one keyspace (`*`: keys that no rule matches) the reads that looked for a copy and what became of them
  (`hits_l1`, `hits_l2`, `misses`; `would_hit`, `would_miss` under `mode: Observe`; `off` under `cache: \"Off\"`; `filtered`: answered by the [negative filter](configuration.md#negative-filters), of which `filter` says whether
  it answers or why not, `filter_keys` how many keys it knows, `filter_bytes` what it takes), the copies kept (`fills`), and
  what they take now (`l2_entries`, `l2_bytes`); and of [compression](configuration.md#compression) how many copies were compressed
  and how many are not worth it (`compressed`, `not_compressed`), their bytes before and after, the ratio, the bytes saved, the time
  in nanoseconds, and how many copies could not be read back (`undecodable`); the share of reads that L2 would answer with half, all, twice and four
  times its memory (`hit_ratio_0.5x` to `hit_ratio_4x`, estimated from `sampled_reads`). See [keyspaces](configuration.md#keyspaces).
* `CACHE.HOT [n]`: the reads that are made most in this sidecar, the hottest first (20, of 1,024 that are kept): an array of maps with the
  `key`, the whole `read`, its `keyspace` and `database`, `reads_per_second` (estimated, over some minutes), `at_least` (that part of it
  which cannot be another read's) and the `bytes` of the copy, 0 if there is none. Each read is counted while there are few, and a random
  sample of a thousand per second when there are more. A user with limits is shown what that user may read. Reads whose key and
  arguments take more than 256 bytes are left out.

And they are about what is in Redis:

* `CACHE.WARM key…`: reads these keys into the tiers, as `GET` would, from the store too where the keyspace has one, and answers how many
  of them the next `GET` finds there. At most 1,000 keys; it takes what `GET` of them takes in permissions.
* `CACHE.SET key value [PX ms] [STALE ms] [TAGS n tag…] [DEPENDS n key…] [TOKEN t] [FENCE lock token] [NX|XX]`: writes a value with what it
  depends on; answers as `SET` does. With `TOKEN` only if nothing has changed since `CACHE.GET` gave it, else `-STALE`; with `FENCE` only
  if the key has seen no greater token of the lock, else `-FENCED`. See [invalidation](invalidation.md), [locks](locks.md#a-value-in-the-cache).
* `CACHE.GET key`: reads it, as `GET` does. `CACHE.GET key WITHMETA [LEASE ms] [TAGS n tag…] [DEPENDS n key…]`: a map of what is known of it, and
  if it is missing, a token to [fill it](invalidation.md#filling-under-a-token). `CACHE.TOUCH key`: as `TOUCH`.
* `CACHE.INVALIDATE KEY key… | TAG tag… | CASCADE key… | KEYSPACE name | ALL [MODE REMOVE|EXPIRE] [REASON text]`: one `UNLINK`, or one
  script; answers how many keys in Redis it removed, or made stale. Options stand at the end.
* `CACHE.INVALIDATE PATTERN glob [MODE REMOVE] [REASON text]`, `CACHE.INVALIDATE REGEX expression …`: the same for all keys of the
  database that match, of which Redis may hold millions. Answers with an id as soon as it is in force: from then on nobody behind this
  sidecar is answered with what such a key was before. A glob is as in `KEYS`; an expression matches anywhere in a key, in linear
  time. At most 1 KiB each, and 64 at a time. Keys that begin with `caddy:` never match. See [invalidation](invalidation.md).
* `CACHE.INVALIDATIONS`: the patterns that Redis is still swept for, each as a map: its id, what it is and who wants it, how many
  keys were looked at and removed.

Whoever answers, a session sees its own commands in order: while one is unanswered on one connection to Redis, nothing of that
session is sent on another. A request with a wrong number of arguments goes to Redis, which says what is wrong.

## What a command means for local copies

Applied before the reply is handed on, whether the command succeeded or not, and whatever became of its connection.

| Effect | Meaning |
|---|---|
| none | it neither reads nor writes keys |
| reads its keys | answered from a copy, nothing; answered by Redis, copies of its keys are dropped, so that no later read is older than this one |
| writes its keys | copies of its keys are dropped |
| barrier | it has to do with keys that its arguments do not name: what they name is dropped, and the reply waits until Redis has told of all the others |
| all | all copies are dropped |

Other sidecars learn of writes from Redis itself, as they do of writes by clients that know of no sidecar.

## Different from Redis on purpose

* `AUTH`, also within `HELLO`, is about the socket's own users (`auth` in the [configuration](configuration.md)); without any it is
  accepted and changes nothing. Towards Redis the sidecar's user is what the app gets.
* `CLIENT ID`, `LIST`, `INFO`, `GETNAME`, `SETNAME` and `SETINFO` are about sessions on the socket (`LIST` by `ID`, or by `TYPE`, of which all
  are `normal`; each line has every field of Redis 7.2, and what a server says there of its buffers and of subscriptions is 0,
  and the socket's path is percent-encoded where it would not be one word);
  `NO-TOUCH` and `NO-EVICT` change nothing; `INFO` has a `# Caddy` section at its end, unless other sections are asked for, and `INFO caddy` has it alone, also where Redis is
  away or refuses `INFO`; `HELLO` lists no modules.
* `CLIENT TRACKING ON REDIRECT id` fails, since `CLIENT ID` is the session's and not one of Redis's: let the app track with RESP3, or
  leave caching to the sidecar.
* `COMMAND` lists the sidecar's own commands, too, in front of any Redis, but not within `MULTI`; `COMMAND DOCS` describes them in the group `caddy`.
* A request of more than `limits.maxFrameBytes` (64 MiB), a session behind `limits.maxPipeline`, and what else the
  [limits](configuration.md) bound, is refused, held back or ended here, where Redis has bounds of its own (512 MiB per argument).
* `HELLO` with the other protocol is an error while the session watches keys or subscribes, and after it tracked; `RESET` ends all of that.
* While a script or function runs, other commands that share its connection wait for its end, where Redis answers `BUSY`; it and they are
  waited for no longer than `l3.redis.timeout`. `PING` is answered, and `SCRIPT KILL`, `FUNCTION KILL` and `FUNCTION STATS` reach the server.
* What Redis notes of clients (`SLOWLOG`, `ACL LOG`, `LATENCY`, `INFO commandstats`, `MONITOR`) is of the sidecar's connections: under its
  name and user, its own commands included, and without what was answered from copies.
* What a session's own script publishes to it, or tells it to forget, may come in front of the script's reply in RESP3, where newer servers
  send it behind.
* Within `MULTI`, `HELLO` takes the protocol only, subscriptions take one channel each and RESP2 (Redis's own reply to `EXEC` cannot
  be read otherwise), and `CLIENT REPLY` is refused; `EXEC` then aborts. A RESP3 subscriber that publishes to its own channel within `MULTI` is
  disconnected where Redis puts the message into the reply to `EXEC` (7.0 does); what it queued was executed.
* `WAIT` and `WAITAOF` are about all that the session wrote, over whichever connection: in front of them the sidecar writes the key
  `caddy:wait` and deletes it, which its user has to be allowed. If a connection to Redis was lost since the session last wrote, they
  are an error: what was written may be lost, too. Within `MULTI` they do not wait, and count the replicas of that connection.
* Commands that ask about, or change, the very connection to Redis are refused, because connections are shared; a session that has
  one of its own just then (within `MULTI`, subscribed, …) may send them. They are marked \"refused when shared\".
* With the embedded L3 only commands marked *yes* in the last column work; the others answer
  `-ERR '…' needs a Redis L3: start with --redis URL, or set spec.l3.redis`.
";

const CLUSTER: &str = "
## In front of a Redis Cluster

An app sees one Redis, and its client must not be told of a cluster. A request goes to the node of its first key; redirections
are followed, and the app sees none of them. What concerns several nodes:

| In a cluster | Commands |
|---|---|
";

const AFTER_CLUSTER: &str = "
* Other commands on keys of several slots get Redis's own `-CROSSSLOT`: `MSET`, `RENAME`, `SUNION`, … cannot be split without
  becoming another command. So does a transaction, also within one node; hash tags (`{user:7}:cart`) put keys into one slot.
* What is gathered from several nodes is not of one moment; an error of one node is the reply, whatever the others did.
* `MULTI` is for the node of the first key behind it, `WATCH` and blocking commands for that of their first key, `SSUBSCRIBE`
  for that of its first channel. A slot that moves within a transaction ends that with an error; repeating it helps.
* A command on several keys of one slot that is on its way gets Redis's own `-TRYAGAIN`.
* `WAIT` and `WAITAOF` ask every primary that the session wrote to; without any, the one that the session's commands without
  keys go to. The key that is written in front of them is `caddy:wait:{…}` there, with a hash tag for a slot of the node.
* Commands without keys (`PUBLISH`, `SUBSCRIBE`, `INFO`, `TIME`, `CONFIG GET`, …) go to one node, for a session always the same.
* `SELECT` knows database 0 only. `CLUSTER` answers as a server without a cluster does, `INFO` says `cluster_enabled:0`, and
  `CLIENT TRACKING` is refused.
";

/// What a cluster's nodes do together.
fn spread(spread: Spread) -> Option<&'static str> {
    Some(match spread {
        Spread::One => return None,
        Spread::Keys(Merge::InOrder) => "split by slots; the values in the order of the keys",
        Spread::Keys(_) => "split by slots; the sum",
        Spread::All(Merge::Sum) => "all primaries; the sum",
        Spread::All(Merge::Join) => "all primaries; all replies in one",
        Spread::All(Merge::Every) => "all primaries; what is so on all of them",
        Spread::All(Merge::Ended) => "all primaries; `OK` of one that ended what it ran, else why none did",
        Spread::All(Merge::Running) => "all primaries; the reply of one that runs a script, if there is one",
        Spread::All(_) => "all primaries; the reply that they agree in",
        Spread::Cursor => "one primary after the other; the cursor says which",
        Spread::Written(_) => "all primaries that the session wrote to; the least",
    })
}

/// Who answers: in a row of the list, and at length.
fn answered(class: Class) -> (&'static str, &'static str) {
    match class {
        Class::Local => ("sidecar", "the sidecar itself, also while Redis is away"),
        Class::Fill => (
            "cache",
            "the cache; a miss is read from Redis once for all who wait, and leaves a copy of what this very request gets",
        ),
        Class::FillFields => (
            "cache or Redis (fields)",
            "as \"cache\", unless the server lets single fields of a hash expire (since 7.4); then Redis",
        ),
        Class::Derived => (
            "cache or Redis",
            "the cache, if a copy that `GET` left says it (also that there is no such key); else Redis",
        ),
        Class::Relayed => ("Redis", "Redis, over connections that sessions share, byte for byte"),
        Class::PinnedIfBlocking => {
            ("Redis, own with BLOCK", "as \"Redis, own connection\" with the option `BLOCK`, else as \"Redis\"")
        }
        Class::Pinned(Pin::Connection) => {
            ("refused when shared", "Redis, if the session has a connection of its own; else refused")
        }
        Class::Pinned(_) => (
            "Redis, own connection",
            "Redis, over a connection of the session's own, for as long as that has state: a transaction, a watch, a wait; \
             subscriptions and tracking until the session ends",
        ),
        Class::Lock => ("sidecar (lock)", "the sidecar's locks, which live in Redis; see [locks](locks.md)"),
        Class::Cache => ("sidecar (L3)", "the sidecar, by a command of its own to Redis"),
        Class::Session => (
            "session",
            "the session, or Redis on its behalf: it is about the app's own connection, or about what there is here",
        ),
        Class::Refused(_) => ("refused", "nobody: an error says what to do instead"),
        Class::CrossProtocol => ("closed", "nobody: it is HTTP, and the connection is closed"),
    }
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Harmless => "none",
        Effect::ReadsKeys => "reads its keys",
        Effect::WritesKeys => "writes its keys",
        Effect::KeysUnknown => "barrier",
        Effect::Flush => "all",
    }
}

/// Every row that is a command, subcommands in place of their containers, under the name that a client sends.
fn commands() -> Vec<(String, &'static Row)> {
    let mut commands: Vec<(String, &Row)> = rows()
        .filter(|row| row.class != Class::CrossProtocol)
        .flat_map(|row| {
            let own = row.subcommands.is_empty().then(|| (row.name.to_uppercase(), row));
            let subcommands =
                row.subcommands.iter().map(|sub| (format!("{} {}", row.name, sub.name).to_uppercase(), sub));
            own.into_iter().chain(subcommands)
        })
        .collect();
    commands.sort_by(|(a, _), (b, _)| a.cmp(b));
    commands
}

/// The commands that the embedded L3 lists in COMMAND.
fn embedded() -> BTreeSet<String> {
    let mut reply = Vec::new();
    Embedded::new(Arc::new(|| 0)).execute(0, Protocol::Resp2, &[b"COMMAND"], &mut reply);
    let (value, _) = Value::decode(&reply).unwrap();
    let name =
        |row: &Value<'_>| String::from_utf8_lossy(row.as_elements().unwrap()[0].as_bytes().unwrap()).to_uppercase();
    value.as_elements().unwrap().iter().map(name).collect()
}

fn document() -> String {
    let (commands, embedded, sources) = (commands(), embedded(), sources());
    let mut text = HEAD.to_owned();
    text.push_str("## Who answers\n\n| Answered by | Meaning | Commands |\n|---|---|---|\n");
    let mut classes: Vec<(&str, &str)> = Vec::new();
    for (_, row) in &commands {
        if !classes.contains(&answered(row.class)) {
            classes.push(answered(row.class));
        }
    }
    classes.sort_unstable();
    for (short, long) in classes {
        let count = commands.iter().filter(|(_, row)| answered(row.class).0 == short).count();
        writeln!(text, "| {short} | {long} | {count} |").unwrap();
    }
    text.push_str(AFTER_CLASSES);
    text.push_str(CLUSTER);
    let mut spreads: Vec<&str> = commands.iter().filter_map(|(_, row)| spread(row.spread)).collect();
    spreads.sort_unstable();
    spreads.dedup();
    for what in spreads {
        let names = commands.iter().filter(|(_, row)| spread(row.spread) == Some(what));
        let names: Vec<String> = names.map(|(name, _)| format!("`{name}`")).collect();
        writeln!(text, "| {what} | {} |", names.join(", ")).unwrap();
    }
    text.push_str(AFTER_CLUSTER);
    text.push_str("\n## Refused\n\n");
    for (name, row) in &commands {
        if let Class::Refused(hint) = row.class {
            writeln!(text, "* `{name}`: {hint}").unwrap();
        }
    }
    text.push_str(
        "\n## All commands\n\nTested: one of `tests/tests` that sends it, or why none does.\n\n\
         | Command | Answered by | Local copies | Since | Embedded | Tested |\n|---|---|---|---|---|---|\n",
    );
    for (name, row) in &commands {
        let since = match row.since {
            "7.0" => "",
            "caddy" => "this product",
            since => since,
        };
        let here = matches!(row.class, Class::Local | Class::Lock | Class::Cache | Class::Session);
        let word = name.split(' ').next().unwrap();
        let embedded = if here || embedded.contains(word) { "yes" } else { "" };
        let (class, effect) = (answered(row.class).0, effect(row.effect));
        let tested = match (senders(name, row, &sources).as_slice(), untried(name)) {
            ([], Some(place)) if means_something(row) => format!("no: {}", UNTRIED[place].1),
            (tests, _) => shown(tests),
        };
        writeln!(text, "| `{name}` | {class} | {effect} | {since} | {embedded} | {tested} |").unwrap();
    }
    text
}

// === what is tested ===

/// Commands that mean something to the sidecar, and that no test sends.
const UNTRIED: &[(&str, &str)] = &[
    ("CLIENT CACHING", "of the app's own tracking with OPTIN"),
    ("CLUSTER", "for those who run the cluster: an app sees none"),
    ("CLUSTERSCAN", "for those who run the cluster: an app sees none"),
    ("DELEX", "no server of the tests has it"),
    ("DIGEST", "no server of the tests has it"),
    ("FAILOVER", "between servers"),
    ("MIGRATE", "between servers"),
    ("MODULE", "needs a module in a file"),
    ("PFDEBUG", "internal"),
    ("SFLUSH", "no server of the tests has it"),
    ("SLAVEOF", "the old name of REPLICAOF"),
    ("VADD", "no server of the tests has vector sets"),
    ("VCARD", "no server of the tests has vector sets"),
    ("VDIM", "no server of the tests has vector sets"),
    ("VEMB", "no server of the tests has vector sets"),
    ("VGETATTR", "no server of the tests has vector sets"),
    ("VINFO", "no server of the tests has vector sets"),
    ("VISMEMBER", "no server of the tests has vector sets"),
    ("VLINKS", "no server of the tests has vector sets"),
    ("VRANDMEMBER", "no server of the tests has vector sets"),
    ("VRANGE", "no server of the tests has vector sets"),
    ("VREM", "no server of the tests has vector sets"),
    ("VSETATTR", "no server of the tests has vector sets"),
    ("VSIM", "no server of the tests has vector sets"),
    ("XACKDEL", "no server of the tests has it"),
    ("XDELEX", "no server of the tests has it"),
];

/// Where the reason stands, for a command or its container.
fn untried(name: &str) -> Option<usize> {
    let word = name.split(' ').next().unwrap();
    UNTRIED.iter().position(|(untried, _)| *untried == name || *untried == word)
}

/// Whether the sidecar does more than to hand it on.
fn means_something(row: &Row) -> bool {
    row.class != Class::Relayed || row.effect != Effect::Harmless
}

/// The tests by name, each with the beginnings of what it sends; stories that several share count as tests, too.
fn sources() -> BTreeMap<String, BTreeSet<String>> {
    fn read(path: &Path, name: &str, sources: &mut BTreeMap<String, BTreeSet<String>>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                read(&entry.unwrap().path(), name, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.entry(name.to_owned()).or_default().extend(beginnings(&fs::read_to_string(path).unwrap()));
        }
    }
    let mut sources = BTreeMap::new();
    for folder in ["tests", "src"] {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let is_test = match folder {
                // Those name commands without sending them to a sidecar.
                "tests" => !["commands_doc", "command_table", "server_facts"].contains(&name.as_str()),
                _ => name.ends_with("scenarios") || name == "chaos",
            };
            if is_test {
                read(&path, &name, &mut sources);
            }
        }
    }
    sources
}

/// The tests that send a command: its name stands at the beginning of a text in their source.
fn senders<'a>(name: &str, row: &Row, sources: &'a BTreeMap<String, BTreeSet<String>>) -> Vec<&'a str> {
    if matches!(row.class, Class::Refused(_) | Class::Pinned(Pin::Connection)) {
        return vec!["commands_doc"];
    }
    sources.iter().filter(|(_, sent)| sent.contains(name)).map(|(test, _)| test.as_str()).collect()
}

/// What stands at the beginning of texts, one word and two: `"GET k"`, `["CLIENT", "KILL"]`, `b"GET"`, `"MULTI\r\nGET k\r\n"`.
fn beginnings(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let texts: Vec<&str> = source.split('"').collect();
    for (at, text) in texts.iter().enumerate() {
        for line in text.split("\\n") {
            let mut words = line.split([' ', '\\']);
            let (first, second) = (words.next().unwrap_or_default(), words.next());
            let is_name = first.starts_with(|letter: char| letter.is_ascii_uppercase());
            if is_name {
                found.insert(first.to_owned());
                found.extend(second.map(|second| format!("{first} {second}")));
            }
        }
        let between = texts.get(at + 1).map(|between| between.trim_end_matches('b').trim());
        if between == Some(",")
            && let Some(next) = texts.get(at + 2)
        {
            found.insert(format!("{text} {next}"));
        }
    }
    found
}

/// One of them, the comparison with a server if it is there: all of them would make every new test a change of the document.
fn shown(tests: &[&str]) -> String {
    let one = tests.iter().find(|test| **test == "differential").or_else(|| tests.first());
    one.map_or_else(String::new, |test| (*test).to_owned())
}

#[test]
fn what_means_something_to_the_sidecar_is_sent_by_a_test_or_there_is_a_reason() {
    let sources = sources();
    let (mut missing, mut used) = (Vec::new(), BTreeSet::new());
    for (name, row) in commands() {
        if !means_something(row) || !senders(&name, row, &sources).is_empty() {
            continue;
        }
        match untried(&name) {
            Some(place) => drop(used.insert(place)),
            None => missing.push(name),
        }
    }
    assert!(missing.is_empty(), "sent by no test, without a reason: {missing:?}");
    let stale: Vec<_> =
        (0..UNTRIED.len()).filter(|place| !used.contains(place)).map(|place| UNTRIED[place].0).collect();
    assert!(stale.is_empty(), "sent by a test after all, or no such command: {stale:?}");
}

#[test]
fn the_document_says_what_the_table_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/commands.md");
    let text = document();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    let differs = text.lines().zip(there.lines()).find(|(new, old)| new != old);
    assert!(text == there, "docs/commands.md is stale, first at {differs:?}; refresh with {REFRESH}");
}

#[test]
fn what_the_document_calls_refused_is_refused_with_a_hint() {
    let redis = RedisServer::start().unwrap();
    let sidecar = Sidecar::start(&redis).unwrap();
    let mut wire = sidecar.connect().unwrap();
    let mut refused = 0;
    for (name, row) in commands() {
        let mut args: Vec<&str> = name.split(' ').collect();
        args.resize(usize::from(row.arity.unsigned_abs()), "1");
        if answered(row.class).0.starts_with("refused") {
            let reply = String::from_utf8(wire.request(&args).unwrap()).unwrap();
            // As any one server answers those.
            let is_of_clusters = ["ASKING", "READONLY", "READWRITE"].contains(&name.as_str());
            let hint = if is_of_clusters {
                "cluster support disabled".to_owned()
            } else {
                format!("'{}' is not available through the cache: ", name.to_lowercase().replace(' ', "|"))
            };
            assert!(reply.contains(&hint), "{name}: {reply}");
            refused += 1;
        }
    }
    assert!(refused > 5);
}
