//! `auth`: logins on the socket, and what each user may run and touch, beside a Redis that has the same users.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis::{RedisServer, free_port},
    sidecar::{Sidecar, SidecarOptions, program},
    world::{Client, SOON},
};
use tempfile::TempDir;

use crate::session;

const KEYS: &str = "a:*";
const COMMANDS: &[&str] =
    &["+@read", "+@connection", "+@transaction", "+set", "+config|get", "-hgetall", "+eval", "+sort"];

/// The passwords' files.
struct Passwords(TempDir);

impl Passwords {
    fn new() -> Result<Self> {
        let passwords = Self(tempfile::tempdir()?);
        passwords.write("default", "top")?;
        passwords.write("bob", "pw")?;
        Ok(passwords)
    }

    fn write(&self, user: &str, text: &str) -> Result<()> {
        fs::write(self.0.path().join(user), text).context("write a password")
    }

    /// The file's section, with these rules for bob.
    fn section(&self, commands: &[&str]) -> String {
        let file = |user: &str| self.0.path().join(user).display().to_string();
        let rules: Vec<String> = commands.iter().map(|rule| format!("\"{rule}\"")).collect();
        format!(
            "auth: {{passwordFile: {}, users: [{{name: bob, passwordFile: {}, keys: [\"{KEYS}\"], commands: [{}]}}]}}",
            file("default"),
            file("bob"),
            rules.join(", ")
        )
    }
}

/// A Redis of its own with the users that the sidecar has, to be asked directly.
fn oracle() -> Result<RedisServer> {
    let redis = RedisServer::start()?;
    let mut rules = vec!["ACL", "SETUSER", "bob", "on", ">pw"];
    let pattern = format!("~{KEYS}");
    rules.push(&pattern);
    rules.extend(COMMANDS);
    ensure!(redis.command(&rules)? == b"+OK\r\n", "the oracle has its user");
    redis.command(&["CONFIG", "SET", "requirepass", "top"])?;
    Ok(redis)
}

fn data(client: &mut Client) -> Result<()> {
    for line in ["SET a:1 one", "SET b:1 secret", "HSET a:h f v", "RPUSH a:l 1 2"] {
        client.ask(line)?;
    }
    Ok(())
}

#[test]
fn logins_and_denials_are_worded_as_by_a_redis_with_the_same_users() -> Result<()> {
    let (redis, oracle, passwords) = (RedisServer::start()?, oracle()?, Passwords::new()?);
    let sidecar = SidecarOptions::redis(redis.socket()).section(&passwords.section(COMMANDS)).start()?;
    let (mut here, mut there) = (session(&sidecar)?, Client(oracle.connect()?));
    for admin in [&mut session(&sidecar)?, &mut Client(oracle.connect()?)] {
        ensure!(admin.ask("AUTH top")? == "OK", "the default user");
        data(admin)?;
        // A copy that bob must not be served.
        ensure!(admin.ask("GET b:1")? == "secret" && admin.ask("GET b:1")? == "secret", "GET");
    }
    let lines = [
        "PING",
        "GET a:1",
        "SET a:1 x",
        "MULTI",
        "AUTH",
        "AUTH a b c",
        "AUTH bob wrong",
        "AUTH nobody pw",
        "AUTH wrong",
        "AUTH default wrong",
        "HELLO 3 AUTH bob wrong",
        "GET a:1",
        "AUTH bob pw",
        "GET a:1",
        "GET b:1",
        "MGET a:1 a:2",
        "MGET a:1 b:1",
        "EXISTS b:1",
        "STRLEN b:1",
        "SET a:2 two",
        "SET b:2 two",
        "DEL a:2",
        "LPUSH a:l 0",
        "HGET a:h f",
        "HGETALL a:h",
        "CONFIG GET maxmemory",
        "CONFIG SET maxmemory 0",
        "OBJECT ENCODING b:1",
        "OBJECT ENCODING a:1",
        "GET",
        "SUBSCRIBE news",
        "PUBLISH news x",
        "CLIENT GETNAME",
        "CLIENT SETNAME bob",
        "SELECT 1",
        "GET a:1",
        "SELECT 0",
        "WATCH b:1",
        "WATCH a:1",
        "UNWATCH",
        "SORT a:l",
        "SORT b:l",
        "MULTI",
        "GET a:1",
        "GET b:1",
        "EXEC",
        "MULTI",
        "SET a:1 changed",
        "DEL a:1",
        "EXEC",
        "GET a:1",
        "MULTI",
        "SET a:1 changed",
        "EXEC",
        "GET a:1",
        "AUTH bob wrong",
        "GET a:1",
        "AUTH top",
        "GET b:1",
        "HELLO 2 AUTH bob pw SETNAME bob",
        "GET b:1",
        "RESET",
        "GET a:1",
        "PING",
    ];
    for (number, line) in lines.iter().enumerate() {
        let (mine, theirs) = (here.ask(line)?, there.ask(line)?);
        // HELLO's map tells who answers.
        if !line.starts_with("HELLO") || mine.starts_with("(error)") {
            ensure!(mine == theirs, "{number}: {line}: {mine:?} here, {theirs:?} there");
        }
    }
    ensure!(sidecar.metric("caddy_refused_logins_total")? == 6, "failed logins are counted");
    ensure!(sidecar.metric("caddy_denied_commands_total")? > 15, "denials are counted");
    let log = sidecar.log();
    ensure!(log.contains("refused a login") && log.contains("unix:uid="), "the log names who tried:\n{log}");
    ensure!(!log.contains("wrong\"") && !log.contains("=pw"), "and no password");
    Ok(())
}

#[test]
fn a_user_with_limits_runs_no_scripts() -> Result<()> {
    let (redis, passwords) = (RedisServer::start()?, Passwords::new()?);
    let sidecar = SidecarOptions::redis(redis.socket()).section(&passwords.section(COMMANDS)).start()?;
    let mut bob = session(&sidecar)?;
    bob.ask("AUTH bob pw")?;
    for script in ["EVAL 'return 1' 0", "EVAL 'return 1' 1 a:1"] {
        let told = bob.ask(script)?;
        ensure!(told.starts_with("(error) NOPERM") && told.contains("what a script does is not checked"), "{told}");
    }
    let told = bob.ask("SORT a:l BY b:*")?;
    ensure!(told.contains("SORT denied"), "{told}");
    // Redis behind us knows it; the table here does not.
    let told = bob.ask("PFSELFTEST2")?;
    ensure!(told.starts_with("(error) NOPERM"), "{told}");
    Ok(())
}

#[test]
fn a_rotated_password_counts_at_once_and_two_may_hold_meanwhile() -> Result<()> {
    let (redis, passwords) = (RedisServer::start()?, Passwords::new()?);
    let sidecar = SidecarOptions::redis(redis.socket()).section(&passwords.section(COMMANDS)).start()?;
    let mut early = session(&sidecar)?;
    ensure!(early.ask("AUTH bob pw")? == "OK", "the old password");
    passwords.write("bob", "new\npw\n")?;
    for password in ["pw", "new"] {
        ensure!(session(&sidecar)?.ask(&format!("AUTH bob {password}"))? == "OK", "{password} while both hold");
    }
    passwords.write("bob", "new")?;
    ensure!(session(&sidecar)?.ask("AUTH bob pw")?.contains("WRONGPASS"), "the old one is over");
    ensure!(session(&sidecar)?.ask("AUTH bob new")? == "OK", "the new one holds");
    ensure!(early.ask("GET a:1")? == "(nil)", "who is in stays in");
    fs::remove_file(passwords.0.path().join("bob"))?;
    ensure!(session(&sidecar)?.ask("AUTH bob new")?.contains("WRONGPASS"), "without its file nobody gets in");
    ensure!(sidecar.log().contains("cannot read a password"), "which is said");
    Ok(())
}

#[test]
fn changed_rules_hold_for_sessions_that_are_there() -> Result<()> {
    let (redis, passwords) = (RedisServer::start()?, Passwords::new()?);
    let sidecar = SidecarOptions::redis(redis.socket()).section(&passwords.section(COMMANDS)).start()?;
    let mut bob = session(&sidecar)?;
    bob.ask("AUTH bob pw")?;
    ensure!(bob.ask("SET a:1 x")? == "OK", "SET is allowed");
    let text = fs::read_to_string(sidecar.config())?;
    let (before, _) = text.split_once("auth:").context("the section")?;
    sidecar.write_config(&format!("{before}{}\n", passwords.section(&["+@read"])))?;
    eventually("the new rules hold", Duration::from_secs(20), || {
        ensure!(bob.ask("SET a:1 x")?.contains("NOPERM"), "SET is still allowed");
        Ok(())
    })?;
    ensure!(bob.ask("GET a:1")? == "x", "reads are still allowed");
    // Nobody else may come in by a file without users, but whoever is in may do what everybody may.
    sidecar.write_config(before)?;
    eventually("the users are gone", Duration::from_secs(20), || {
        ensure!(bob.ask("SET a:1 y")? == "OK", "there are no rules any more");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_sidecar_that_needs_a_login_is_alive_for_its_probe_and_on_tcp_the_same() -> Result<()> {
    let (redis, passwords) = (RedisServer::start()?, Passwords::new()?);
    let place = tempfile::tempdir()?;
    let socket = place.path().join("cache.sock");
    let port = free_port()?;
    let file = place.path().join("config.yaml");
    let text = format!(
        "listen: {{socket: {}, tcpPort: {port}}}\nadmin: {{port: 0}}\nl3: {{redis: {{endpoints: [\"unix:{}\"]}}}}\n{}\n",
        socket.display(),
        redis.socket().display(),
        passwords.section(COMMANDS)
    );
    fs::write(&file, text)?;
    let mut child = Command::new(program()?).arg("--config").arg(&file).env("CADDY_LOG", "error").spawn()?;
    let played = play_over_tcp(&socket, port);
    child.kill()?;
    child.wait()?;
    played
}

fn play_over_tcp(socket: &Path, port: u16) -> Result<()> {
    eventually("the probe is content", SOON, || {
        let probe = Command::new(program()?).args(["ping", "--socket"]).arg(socket).output()?;
        ensure!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
        Ok(())
    })?;
    let said = |lines: &str| -> Result<String> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(lines.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    };
    ensure!(said("PING\r\n")?.starts_with("-NOAUTH"), "PING needs a login");
    let replies = said("AUTH bob pw\r\nGET b:1\r\nGET a:1\r\n")?;
    ensure!(replies.starts_with("+OK\r\n-NOPERM") && replies.ends_with("$-1\r\n"), "{replies}");
    // As Redis does before a login: no large requests.
    let large = said(&format!("*2\r\n$3\r\nGET\r\n$20000\r\n{}\r\n", "x".repeat(20000)))?;
    ensure!(large.contains("Protocol error: unauthenticated bulk length"), "{large}");
    Ok(())
}

#[test]
fn users_without_a_default_password_shut_the_door_to_everybody_else() -> Result<()> {
    let (redis, passwords) = (RedisServer::start()?, Passwords::new()?);
    let file = passwords.0.path().join("bob").display().to_string();
    let section = format!("auth: {{users: [{{name: bob, passwordFile: {file}}}]}}");
    let sidecar = SidecarOptions::redis(redis.socket()).section(&section).start();
    let sidecar: Sidecar = sidecar?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("GET k")?.contains("NOAUTH"), "there is no default user");
    ensure!(client.ask("AUTH pw")?.contains("WRONGPASS"), "and no password for it");
    ensure!(client.ask("AUTH bob pw")? == "OK" && client.ask("EVAL 'return 7' 0")? == "7", "bob may everything");
    Ok(())
}
