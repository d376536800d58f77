//! What the embedded L3 can do, and COMMAND, which tells it.

use caddy_resp::encode;

use super::{
    Call,
    arguments::{Fault, count, is},
    channels, expiry, keys, lcs, strings,
};

/// One command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// The number of arguments with the name, or if negative the least number.
    pub(super) arity: i8,
    /// First key, last key (negative: from the end), step.
    keys: (i8, i8, i8),
    flag: &'static str,
    pub(super) run: fn(&mut Call<'_>) -> Result<(), Fault>,
}

const fn command(
    name: &'static str,
    arity: i8,
    keys: (i8, i8, i8),
    flag: &'static str,
    run: fn(&mut Call<'_>) -> Result<(), Fault>,
) -> Command {
    Command { name, arity, keys, flag, run }
}

const ONE: (i8, i8, i8) = (1, 1, 1);
const TWO: (i8, i8, i8) = (1, 2, 1);
const ALL: (i8, i8, i8) = (1, -1, 1);
const PAIRS: (i8, i8, i8) = (1, -1, 2);
const NONE: (i8, i8, i8) = (0, 0, 0);

pub(super) static COMMANDS: &[Command] = &[
    command("get", 2, ONE, "readonly", strings::get),
    command("set", -3, ONE, "write", strings::set),
    command("pttl", 2, ONE, "readonly", expiry::pttl),
    command("mget", -2, ALL, "readonly", strings::mget),
    command("del", -2, ALL, "write", keys::del),
    command("append", 3, ONE, "write", strings::append),
    command("copy", -3, TWO, "write", keys::copy),
    command("dbsize", 1, NONE, "readonly", keys::dbsize),
    command("decr", 2, ONE, "write", strings::decr),
    command("decrby", 3, ONE, "write", strings::decrby),
    command("echo", 2, NONE, "fast", echo),
    command("exists", -2, ALL, "readonly", keys::exists),
    command("expire", -3, ONE, "write", expiry::expire),
    command("expireat", -3, ONE, "write", expiry::expireat),
    command("expiretime", 2, ONE, "readonly", expiry::expiretime),
    command("flushall", -1, NONE, "write", keys::flushall),
    command("flushdb", -1, NONE, "write", keys::flushdb),
    command("getdel", 2, ONE, "write", strings::getdel),
    command("getex", -2, ONE, "write", strings::getex),
    command("getrange", 4, ONE, "readonly", strings::getrange),
    command("getset", 3, ONE, "write", strings::getset),
    command("incr", 2, ONE, "write", strings::incr),
    command("incrby", 3, ONE, "write", strings::incrby),
    command("incrbyfloat", 3, ONE, "write", strings::incrbyfloat),
    command("keys", 2, NONE, "readonly", keys::keys),
    command("lcs", -3, TWO, "readonly", lcs::lcs),
    command("move", 3, ONE, "write", keys::move_key),
    command("mset", -3, PAIRS, "write", strings::mset),
    command("msetnx", -3, PAIRS, "write", strings::msetnx),
    command("persist", 2, ONE, "write", expiry::persist),
    command("pexpire", -3, ONE, "write", expiry::pexpire),
    command("pexpireat", -3, ONE, "write", expiry::pexpireat),
    command("pexpiretime", 2, ONE, "readonly", expiry::pexpiretime),
    command("ping", -1, NONE, "fast", ping),
    command("psetex", 4, ONE, "write", strings::psetex),
    command("psubscribe", -2, NONE, "pubsub", channels::subscription),
    command("publish", 3, NONE, "pubsub", channels::publish),
    command("pubsub", -2, NONE, "pubsub", channels::pubsub),
    command("punsubscribe", -1, NONE, "pubsub", channels::subscription),
    command("randomkey", 1, NONE, "readonly", keys::random_key),
    command("rename", 3, TWO, "write", keys::rename),
    command("renamenx", 3, TWO, "write", keys::renamenx),
    command("scan", -2, NONE, "readonly", keys::scan),
    command("select", 2, NONE, "fast", keys::select),
    command("setex", 4, ONE, "write", strings::setex),
    command("setnx", 3, ONE, "write", strings::setnx),
    command("setrange", 4, ONE, "write", strings::setrange),
    command("spublish", 3, NONE, "pubsub", channels::spublish),
    command("ssubscribe", -2, NONE, "pubsub", channels::subscription),
    command("strlen", 2, ONE, "readonly", strings::strlen),
    command("subscribe", -2, NONE, "pubsub", channels::subscription),
    command("substr", 4, ONE, "readonly", strings::getrange),
    command("sunsubscribe", -1, NONE, "pubsub", channels::subscription),
    command("swapdb", 3, NONE, "write", keys::swapdb),
    command("time", 1, NONE, "fast", time),
    command("touch", -2, ALL, "readonly", keys::exists),
    command("ttl", 2, ONE, "readonly", expiry::ttl),
    command("type", 2, ONE, "readonly", keys::kind),
    command("unlink", -2, ALL, "write", keys::del),
    command("unsubscribe", -1, NONE, "pubsub", channels::subscription),
    // Last, since it lists the others.
    command("command", -1, NONE, "random", catalogue),
];

impl Command {
    /// As COMMAND has it; tips, categories and key specifications are left empty.
    fn describe(&self, call: &mut Call<'_>) {
        encode::array_header(call.out, 10);
        encode::bulk(call.out, self.name.as_bytes());
        encode::integer(call.out, self.arity.into());
        encode::set_header(call.out, call.protocol, 1);
        encode::simple(call.out, self.flag);
        for position in [self.keys.0, self.keys.1, self.keys.2] {
            encode::integer(call.out, position.into());
        }
        encode::set_header(call.out, call.protocol, 0);
        for _ in 0..3 {
            encode::array_header(call.out, 0);
        }
    }
}

fn find(name: &[u8]) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| is(name, command.name))
}

fn catalogue(call: &mut Call<'_>) -> Result<(), Fault> {
    let args = call.args;
    match args {
        [_] => describe_all(call),
        [_, name] if is(name, "INFO") => describe_all(call),
        [_, name] if is(name, "COUNT") => encode::integer(call.out, count(COMMANDS.len())),
        [_, name] if is(name, "LIST") => {
            encode::array_header(call.out, COMMANDS.len());
            for command in COMMANDS {
                encode::bulk(call.out, command.name.as_bytes());
            }
        }
        // None is documented here: clients show that as they show an unknown command.
        [_, name, ..] if is(name, "DOCS") => encode::map_header(call.out, call.protocol, 0),

        [_, name, names @ ..] if is(name, "INFO") => {
            encode::array_header(call.out, names.len());
            for name in names {
                match find(name) {
                    Some(command) => command.describe(call),
                    None => encode::null_array(call.out, call.protocol),
                }
            }
        }
        [_, name, request @ ..] if is(name, "GETKEYS") && !request.is_empty() => get_keys(call, request)?,
        [_, name, ..] => {
            return Err(Fault::UnknownSubcommand("COMMAND", String::from_utf8_lossy(name).into_owned()));
        }
        [] => return Err(Fault::Arity(call.name)),
    }
    Ok(())
}

fn describe_all(call: &mut Call<'_>) {
    encode::array_header(call.out, COMMANDS.len());
    for command in COMMANDS {
        command.describe(call);
    }
}

fn get_keys(call: &mut Call<'_>, request: &[&[u8]]) -> Result<(), Fault> {
    let command = find(request[0]).ok_or(Fault::InvalidCommand)?;
    let arity = usize::from(command.arity.unsigned_abs());
    if request.len() < arity || (command.arity > 0 && request.len() != arity) {
        return Err(Fault::InvalidArguments);
    }
    let (Ok(first), Ok(step)) = (usize::try_from(command.keys.0), usize::try_from(command.keys.2)) else {
        return Err(Fault::NoKeyArguments);
    };
    if first == 0 {
        return Err(Fault::NoKeyArguments);
    }
    let end = usize::try_from(command.keys.1).map_or(request.len(), |last| last + 1);
    let keys: Vec<&&[u8]> = request[first..end].iter().step_by(step).collect();
    encode::array_header(call.out, keys.len());
    for key in keys {
        encode::bulk(call.out, key);
    }
    Ok(())
}

fn ping(call: &mut Call<'_>) -> Result<(), Fault> {
    match call.args {
        [_] => encode::simple(call.out, "PONG"),
        [_, message] => encode::bulk(call.out, message),
        _ => return Err(Fault::Arity(call.name)),
    }
    Ok(())
}

fn echo(call: &mut Call<'_>) -> Result<(), Fault> {
    encode::bulk(call.out, call.args[1]);
    Ok(())
}

fn time(call: &mut Call<'_>) -> Result<(), Fault> {
    encode::array_header(call.out, 2);
    encode::bulk(call.out, (call.now / 1000).to_string().as_bytes());
    encode::bulk(call.out, (call.now % 1000 * 1000).to_string().as_bytes());
    Ok(())
}
