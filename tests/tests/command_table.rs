//! The command table against what a running server says of itself in `COMMAND`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};

use caddy_resp::Value;
use caddy_sidecar::commands::{Class, Effect, Interner, Learned, Positions, Row, categories_of, lookup_request, rows};
use caddy_tests::{
    redis::{self, RedisServer},
    wire::Wire,
};

/// What `COMMAND` says of one command.
#[derive(Debug)]
struct Spec {
    arity: i64,
    /// First key, last key, step.
    range: (i64, i64, i64),
    flags: Vec<String>,
    categories: Vec<String>,
}

/// A Redis, and a Valkey if there is one.
fn servers() -> impl Iterator<Item = RedisServer> {
    if redis::valkey().is_none() {
        println!("without Valkey: {}", redis::NO_VALKEY);
    }
    redis::program().into_iter().chain(redis::valkey()).map(|program| RedisServer::start_program(&program).unwrap())
}

/// All commands of the server; subcommands as `container|name`.
fn server_commands(reply: &[u8]) -> BTreeMap<String, Spec> {
    let (value, _) = Value::decode(reply).unwrap();
    let mut specs = BTreeMap::new();
    for command in value.as_elements().unwrap() {
        collect(command, &mut specs);
    }
    specs
}

fn collect(command: &Value<'_>, specs: &mut BTreeMap<String, Spec>) {
    let fields = command.as_elements().unwrap();
    let text = |value: &Value<'_>| String::from_utf8(value.as_bytes().unwrap().to_vec()).unwrap();
    let integer = |index: usize| fields[index].as_integer().unwrap();
    let [flags, categories] = [2, 6].map(|index| fields[index].as_elements().unwrap().iter().map(text).collect());
    let range = (integer(3), integer(4), integer(5));
    specs.insert(text(&fields[0]), Spec { arity: integer(1), range, flags, categories });
    for subcommand in fields[9].as_elements().unwrap() {
        collect(subcommand, specs);
    }
}

/// All rows of the table, under the names that `COMMAND` uses.
fn table() -> BTreeMap<String, &'static Row> {
    let mut table = BTreeMap::new();
    for row in rows().filter(|row| !row.since.is_empty() && row.since != "caddy") {
        table.insert(row.name.to_owned(), row);
        for subcommand in row.subcommands {
            table.insert(format!("{}|{}", row.name, subcommand.name), subcommand);
        }
    }
    table
}

#[test]
fn the_table_has_every_command_of_the_server() {
    for server in servers() {
        let specs = server_commands(&server.command(&["COMMAND"]).unwrap());
        let table = table();
        let missing: Vec<&String> = specs.keys().filter(|name| !table.contains_key(*name)).collect();
        // What a newer server has more is relayed behind a barrier: right, but worth a row.
        assert!(missing.is_empty(), "without a row: {missing:?}");
        let invented: Vec<&String> = table
            .iter()
            .filter(|(name, row)| row.since == "7.0" && !specs.contains_key(*name))
            .map(|(name, _)| name)
            .collect();
        assert!(invented.is_empty(), "in the table as of 7.0, but not in the server: {invented:?}");
    }
}

#[test]
fn arity_and_flags_agree_with_the_server() {
    // The table has what later versions accept.
    const GROWN: [&str; 6] =
        ["zrank", "zrevrank", "command|getkeys", "command|getkeysandflags", "cluster|replicate", "script|debug"];
    for server in servers() {
        let specs = server_commands(&server.command(&["COMMAND"]).unwrap());
        let mut faults = Vec::new();
        for (name, row) in table() {
            let Some(spec) = specs.get(&name) else { continue };
            if i64::from(row.arity) != spec.arity && !GROWN.contains(&name.as_str()) {
                faults.push(format!("{name}: arity {} here, {} there", row.arity, spec.arity));
            }
            let has = |flag: &str| spec.flags.iter().any(|other| other == flag);
            // FUNCTION LOAD and its kin are writes, but not of keys.
            if has("write") && row.effect == Effect::Harmless && !name.starts_with("function|") {
                faults.push(format!("{name}: a write that leaves copies alone"));
            }
            if row.effect == Effect::ReadsKeys && has("write") {
                faults.push(format!("{name}: a write taken for a read"));
            }
            let blocking = has("blocking") && !matches!(row.class, Class::Pinned(_) | Class::PinnedIfBlocking);
            if blocking {
                faults.push(format!("{name}: may block, but is not pinned"));
            }
        }
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

#[test]
fn categories_agree_with_the_server() {
    for server in servers() {
        let specs = server_commands(&server.command(&["COMMAND"]).unwrap());
        let reply = server.command(&["ACL", "CAT"]).unwrap();
        let (known, _) = Value::decode(&reply).unwrap();
        for category in known.as_elements().unwrap() {
            let category = std::str::from_utf8(category.as_bytes().unwrap()).unwrap();
            assert!(caddy_contract::CATEGORIES.contains(&category), "no rule can name {category}");
        }
        let mut faults = Vec::new();
        for (name, row) in table() {
            let Some(spec) = specs.get(&name) else { continue };
            let ours: BTreeSet<&str> = categories_of(&name, row).into_iter().collect();
            let mut theirs: BTreeSet<&str> = spec.categories.iter().filter_map(|name| name.strip_prefix('@')).collect();
            // Later versions call it so, too.
            if name == "wait" {
                theirs.insert("blocking");
            }
            if ours != theirs {
                faults.push(format!("{name}: {ours:?} here, {theirs:?} there"));
            }
        }
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

#[test]
fn key_ranges_agree_with_the_server() {
    for server in servers() {
        let specs = server_commands(&server.command(&["COMMAND"]).unwrap());
        let mut faults = Vec::new();
        for (name, row) in table() {
            let Some(spec) = specs.get(&name) else { continue };
            let here = match row.keys {
                Positions::None => (0, 0, 0),
                Positions::Range { first, last, step } => (small(first), last as i64, small(step)),
                // Of these the server names the fixed part only.
                _ if spec.flags.iter().any(|flag| flag == "movablekeys") => continue,
                other => {
                    faults.push(format!("{name}: {other:?} here, fixed there"));
                    continue;
                }
            };
            if here != spec.range {
                faults.push(format!("{name}: keys {here:?} here, {:?} there", spec.range));
            }
        }
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

fn small(index: usize) -> i64 {
    i64::try_from(index).unwrap()
}

/// Requests of commands whose keys are not at fixed places, and of some others.
const LINES: &[&str] = &[
    "EVAL return 2 a b c",
    "EVALSHA sha 1 a",
    "EVAL_RO return 1 a b",
    "FCALL f 3 a b c d",
    "FCALL_RO f 1 a",
    "ZUNIONSTORE dst 2 a b WEIGHTS 1 2",
    "ZINTERSTORE dst 1 a",
    "ZDIFFSTORE dst 2 a b",
    "ZUNION 2 a b WITHSCORES",
    "ZINTER 1 a",
    "ZDIFF 2 a b",
    "ZINTERCARD 2 a b LIMIT 1",
    "SINTERCARD 3 a b c",
    "LMPOP 2 a b LEFT COUNT 2",
    "BLMPOP 0 2 a b LEFT",
    "ZMPOP 1 a MIN",
    "BZMPOP 1.5 2 a b MAX COUNT 3",
    "SORT a",
    "SORT a BY w_* GET # LIMIT 0 1 ALPHA STORE dst",
    "GEORADIUS a 1 2 3 km",
    "GEORADIUS a 1 2 3 km WITHDIST STORE dst",
    "GEORADIUSBYMEMBER a member 3 km STOREDIST dst",
    "MIGRATE host 6379 a 0 1000",
    "MIGRATE host 6379 a 0 1000 COPY",
    "XREAD STREAMS a b 0 0",
    "XREAD COUNT 2 BLOCK 100 STREAMS a b c 0 0 0",
    "XREADGROUP GROUP STREAMS consumer STREAMS a >",
    "XREADGROUP GROUP g c COUNT 1 NOACK STREAMS a b > >",
    "BITOP AND dst a b",
    "OBJECT ENCODING a",
    "MEMORY USAGE a SAMPLES 5",
    "XGROUP CREATE a g $",
    "XINFO STREAM a FULL",
    "BLPOP a b 0",
    "BZPOPMIN a 1",
    "MSET a 1 b 2",
    "LMOVE a b LEFT RIGHT",
    "PFCOUNT a b",
];

#[test]
fn keys_are_those_that_the_server_finds() {
    for server in servers() {
        let mut wire = server.connect().unwrap();
        for line in LINES {
            let args: Vec<&str> = line.split(' ').collect();
            same_keys(&mut wire, &args);
        }
        let long = ["MIGRATE", "host", "6379", "", "0", "1000", "REPLACE", "KEYS", "a", "b"];
        same_keys(&mut wire, &long);
    }
}

#[test]
fn keys_of_every_command_are_those_that_the_server_finds() {
    for server in servers() {
        let mut wire = server.connect().unwrap();
        for (name, row) in table() {
            if row.since != "7.0" || !matches!(row.keys, Positions::Range { .. }) {
                continue;
            }
            let mut args: Vec<String> = name.split('|').map(str::to_owned).collect();
            let least = usize::from(row.arity.unsigned_abs());
            let more = if row.arity < 0 { 5 } else { 0 };
            for count in least..=least + more {
                args.truncate(name.split('|').count());
                args.extend((args.len()..count).map(|index| format!("arg{index}")));
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                if !wire.request(&[&["COMMAND", "GETKEYS"], &args[..]].concat()).unwrap().starts_with(b"-") {
                    same_keys(&mut wire, &args);
                }
            }
        }
    }
}

#[test]
fn what_the_server_refuses_has_no_keys() {
    for line in [
        "EVAL return x a",
        "EVAL return -1 a",
        "EVAL return 3 a b",
        "ZUNIONSTORE dst 9 a",
        "LMPOP 99999999999999999999 a LEFT",
        "XREAD STREAMS a b 0",
        "XREAD COUNT 1",
        "MIGRATE host",
        "BLPOP a",
        "GET",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let found = keys(&args);
        assert!(found.iter().all(|index| *index < args.len()), "{line}: {found:?}");
        assert!(found.is_empty(), "{line}: {found:?}");
    }
}

/// What a sidecar would make of the server's own description, had its table no row at all: every command under another
/// name.
#[test]
fn keys_by_the_servers_description_are_those_that_it_finds() {
    fn renamed<'a>(commands: &Value<'a>, names: &'a [String]) -> Value<'a> {
        let rename = |(command, name): (&Value<'a>, &'a String)| {
            let mut fields = command.as_elements().unwrap().to_vec();
            fields[0] = Value::Bulk(name.as_bytes());
            fields[9] = Value::Array(Vec::new());
            Value::Array(fields)
        };
        Value::Array(commands.as_elements().unwrap().iter().zip(names).map(rename).collect())
    }
    for server in servers() {
        let mut wire = server.connect().unwrap();
        wire.request(&["HELLO", "3"]).unwrap();
        let reply = wire.request(&["COMMAND"]).unwrap();
        let (commands, _) = Value::decode(&reply).unwrap();
        let name = |command: &Value<'_>| {
            format!("x.{}", String::from_utf8_lossy(command.as_elements().unwrap()[0].as_bytes().unwrap()))
        };
        let names: Vec<String> = commands.as_elements().unwrap().iter().map(name).collect();
        let learned = Learned::from_reply(&renamed(&commands, &names), &mut Interner::default());
        assert_eq!(learned.len(), names.len());
        let mut precise = 0;
        for line in LINES {
            let args: Vec<&str> = line.split(' ').collect();
            let row = learned.get(format!("x.{}", args[0]).as_bytes(), None).unwrap();
            let theirs = server_keys(&mut wire, &args);
            let ours: BTreeSet<&str> =
                row.keys(args.len(), |index| args[index].as_bytes()).into_iter().map(|index| args[index]).collect();
            // Where the server itself leaves keys open the command goes behind a barrier.
            if row.effect == Effect::KeysUnknown {
                continue;
            }
            let theirs: BTreeSet<&str> = theirs.iter().map(|key| std::str::from_utf8(key).unwrap()).collect();
            assert_eq!(ours, theirs, "{line}");
            precise += 1;
        }
        assert!(precise > LINES.len() / 2, "only {precise}");
    }
}

fn keys(args: &[&str]) -> Vec<usize> {
    let row = lookup_request(args.len(), |index| args[index].as_bytes());
    row.keys(args.len(), |index| args[index].as_bytes()).to_vec()
}

fn server_keys(wire: &mut Wire, args: &[&str]) -> Vec<Vec<u8>> {
    let reply = wire.request(&[&["COMMAND", "GETKEYS"], args].concat()).unwrap();
    let (value, _) = Value::decode(&reply).unwrap();
    let keys = value.as_elements().unwrap_or_else(|| panic!("{args:?}: {value:?}"));
    keys.iter().map(|key| key.as_bytes().unwrap().to_vec()).collect()
}

fn same_keys(wire: &mut Wire, args: &[&str]) {
    let mut theirs = server_keys(wire, args);
    let mut ours: Vec<&[u8]> = keys(args).into_iter().map(|index| args[index].as_bytes()).collect();
    theirs.sort_unstable();
    ours.sort_unstable();
    assert_eq!(ours, theirs, "{args:?}");
}
