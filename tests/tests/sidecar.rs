//! The sidecar as a process: what it does with bad input, with a Redis that is missing or unwilling, and when it ends.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_resp::encode;
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions, program},
    wire::Wire,
    world::{Client, MOMENT, SOON},
};

fn session(sidecar: &Sidecar) -> Result<Client> {
    Ok(Client(sidecar.connect()?))
}

// === replies ===

/// Reads so many bytes; how many reads that took.
fn reads_until(stream: &mut UnixStream, length: usize) -> Result<usize> {
    let mut buffer = vec![0; length + 1];
    let (mut filled, mut reads) = (0, 0);
    while filled < length {
        let read = stream.read(&mut buffer[filled..])?;
        ensure!(read > 0, "closed after {filled} of {length} bytes");
        filled += read;
        reads += 1;
    }
    ensure!(filled == length, "more was sent than was asked for");
    Ok(reads)
}

const ROUNDS: usize = 60;

#[test]
fn a_pipelined_batch_of_hits_is_answered_in_one_write() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    redis.command(&["SET", "k", "v"])?;
    session(&sidecar)?.hold("k", "v")?;
    let mut batch = Vec::new();
    for _ in 0..200 {
        encode::command(&mut batch, ["GET", "k"]);
        encode::command(&mut batch, ["PING"]);
    }
    let length = 200 * (b"$1\r\nv\r\n".len() + b"+PONG\r\n".len());
    let mut stream = UnixStream::connect(sidecar.socket())?;
    for round in 0..ROUNDS {
        // Whatever proof was due has been asked for by now: the batch itself is hits alone.
        stream.write_all(&batch)?;
        let reads = reads_until(&mut stream, length)?;
        ensure!(reads == 1, "round {round}: the replies of one batch came in {reads} parts");
    }
    Ok(())
}

/// What the test above looks at does tell one write from many.
#[test]
fn many_writes_are_seen_as_such() -> Result<()> {
    let (mut server, mut client) = UnixStream::pair()?;
    let writer = thread::spawn(move || (0..ROUNDS * 400).try_for_each(|_| server.write_all(b"+PONG\r\n")));
    let mut parts = 0;
    for _ in 0..ROUNDS {
        parts += reads_until(&mut client, 400 * 7).unwrap_or(1);
    }
    drop(client);
    // It ends by an error when nobody reads any more.
    let _ = writer.join();
    ensure!(parts > ROUNDS, "{parts} parts in {ROUNDS} rounds");
    Ok(())
}

// === what clients do wrong ===

/// All that is answered until the connection closes.
fn said_until_closed(mut stream: UnixStream, bytes: &[u8]) -> Result<String> {
    stream.set_read_timeout(Some(SOON))?;
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            Err(error).context("the connection stays open")
        }
        _ => Ok(String::from_utf8_lossy(&said).into_owned()),
    }
}

#[test]
fn malformed_requests_get_redis_own_error_and_the_connection_closes() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut bystander = session(&sidecar)?;
    let long = vec![b'x'; 70_000];
    let mut bad: Vec<Vec<u8>> = [
        &b"*x\r\n"[..],
        b"*99999999999\r\n",
        b"*2\r\n$3\r\nGET\r\n$-5\r\n",
        b"*2\r\n$3\r\nGET\r\n$1234567890123\r\n",
        b"*1\r\n:4\r\n",
        b"*2\r\n$3\r\nGET\r\nk\r\n",
        b"SET k \"unbalanced\r\n",
        b"GET 'a'b\r\n",
    ]
    .iter()
    .map(|bytes| bytes.to_vec())
    .collect();
    bad.push(long.clone());
    bad.push([b"*1", &long[..]].concat());
    bad.push([b"*1\r\n$1", &long[..]].concat());
    for bytes in bad {
        // What came before it is answered.
        let bytes = [b"*1\r\n$4\r\nPING\r\n", &bytes[..]].concat();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let by_redis = said_until_closed(UnixStream::connect(redis.socket())?, &bytes)?;
        let by_us = said_until_closed(UnixStream::connect(sidecar.socket())?, &bytes)?;
        ensure!(by_redis.starts_with("+PONG\r\n-ERR Protocol error"), "{shown:?}: Redis says {by_redis:?}");
        ensure!(by_us == by_redis, "{shown:?}: {by_us:?}, but Redis says {by_redis:?}");
    }
    ensure!(bystander.ask("PING")? == "PONG", "others are not disturbed");
    ensure!(sidecar.metric("caddy_task_panics_total")? == 0, "nothing panicked");
    Ok(())
}

#[test]
fn requests_over_the_limit_are_refused_before_they_are_sent() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket()).section("limits: {maxFrameBytes: 64Ki}").start()?;
    let said = said_until_closed(UnixStream::connect(sidecar.socket())?, b"*2\r\n$3\r\nGET\r\n$70000\r\n")?;
    ensure!(said == "-ERR Protocol error: invalid bulk length\r\n", "one argument too long: {said:?}");
    let mut many = b"*5\r\n$4\r\nMSET\r\n".to_vec();
    for _ in 0..4 {
        encode::bulk(&mut many, &vec![b'x'; 20_000]);
    }
    let said = said_until_closed(UnixStream::connect(sidecar.socket())?, &many)?;
    ensure!(said.starts_with("-ERR Protocol error: request is larger than 65536 bytes"), "too long in all: {said:?}");
    ensure!(session(&sidecar)?.ask("PING")? == "PONG", "others are not disturbed");
    Ok(())
}

#[test]
fn a_web_browser_is_turned_away() -> Result<()> {
    let sidecar = SidecarOptions::embedded().start()?;
    let request = b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n";
    let said = said_until_closed(UnixStream::connect(sidecar.socket())?, request)?;
    ensure!(said.is_empty(), "it is told {said:?}");
    ensure!(session(&sidecar)?.ask("GET k")? == "(nil)", "and nothing it sent is executed");
    Ok(())
}

#[test]
fn a_reader_that_does_not_read_is_closed() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .section("limits: {outputBufferBytes: 128Ki, slowReaderTimeout: 400ms}")
        .start()?;
    redis.command(&[b"SET", &b"k"[..], &vec![b'x'; 60_000]])?;
    let mut slow = UnixStream::connect(sidecar.socket())?;
    slow.set_write_timeout(Some(Duration::from_millis(200)))?;
    let mut batch = Vec::new();
    (0..200).for_each(|_| encode::command(&mut batch, ["GET", "k"]));
    // More than all buffers hold; the sidecar stops reading, and so the write may get stuck.
    let _ = slow.write_all(&batch);
    let mut other = session(&sidecar)?;
    eventually("the slow reader is closed", SOON, || {
        ensure!(other.ask("PING")? == "PONG", "others are not disturbed");
        ensure!(sidecar.metric("caddy_slow_readers_total")? == 1, "caddy_slow_readers_total");
        Ok(())
    })?;
    slow.set_read_timeout(Some(SOON))?;
    let mut rest = Vec::new();
    let read = slow.read_to_end(&mut rest);
    ensure!(read.is_ok() || read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset), "it is open");
    ensure!(rest.len() < 200 * 60_000, "it was sent everything all the same");
    eventually("its session is gone", SOON, || {
        ensure!(sidecar.metric("caddy_sessions")? == 1, "caddy_sessions");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_subscriber_that_does_not_read_is_closed_before_it_costs_much() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .section("limits: {outputBufferBytes: 128Ki, slowReaderTimeout: 10m}")
        .start()?;
    let mut subscriber = session(&sidecar)?;
    ensure!(subscriber.ask("SUBSCRIBE news")? == "[subscribe, news, 1]", "SUBSCRIBE");
    let message = vec![b'x'; 20_000];
    eventually("it is closed", SOON, || {
        for _ in 0..20 {
            redis.command(&[b"PUBLISH", &b"news"[..], &message])?;
        }
        ensure!(sidecar.metric("caddy_slow_readers_total")? == 1, "caddy_slow_readers_total");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_slow_but_steady_reader_gets_everything() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .section("limits: {outputBufferBytes: 128Ki, slowReaderTimeout: 5s}")
        .start()?;
    redis.command(&[b"SET", &b"k"[..], &vec![b'x'; 60_000]])?;
    let mut client = sidecar.connect()?;
    let mut batch = Vec::new();
    (0..100).for_each(|_| encode::command(&mut batch, ["GET", "k"]));
    client.send_raw(&batch)?;
    for reply in 0..100 {
        thread::sleep(Duration::from_millis(5));
        ensure!(client.reply()?.len() > 60_000, "reply {reply} is whole");
    }
    Ok(())
}

#[test]
fn beyond_the_limit_of_connections_a_client_is_told_so() -> Result<()> {
    let sidecar = SidecarOptions::embedded().section("limits: {maxConnections: 2}").start()?;
    // The connections that asked whether it had started must have gone.
    eventually("nobody is connected", SOON, || {
        ensure!(sidecar.metric("caddy_sessions")? == 0, "caddy_sessions");
        Ok(())
    })?;
    let (mut first, second) = (session(&sidecar)?, session(&sidecar)?);
    ensure!(first.ask("PING")? == "PONG", "the first is served");
    let said = said_until_closed(UnixStream::connect(sidecar.socket())?, b"")?;
    ensure!(said.starts_with("-ERR max number of clients reached"), "the third is told {said:?}");
    ensure!(sidecar.metric("caddy_refused_connections_total")? == 1, "caddy_refused_connections_total");
    drop(second);
    eventually("there is room again", SOON, || {
        ensure!(session(&sidecar)?.ask("PING")? == "PONG", "PING");
        Ok(())
    })?;
    ensure!(first.ask("PING")? == "PONG", "the first was never disturbed");
    Ok(())
}

#[test]
fn half_a_request_holds_up_nobody() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut half = UnixStream::connect(sidecar.socket())?;
    half.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nhal")?;
    ensure!(session(&sidecar)?.ask("PING")? == "PONG", "others go on");
    // Its end closed with requests unanswered: they are answered first.
    let mut closing = UnixStream::connect(sidecar.socket())?;
    closing.write_all(b"SET a 1\r\nGET a\r\nPING\r\n")?;
    closing.shutdown(Shutdown::Write)?;
    let said = said_until_closed(closing, b"")?;
    ensure!(said == "+OK\r\n$1\r\n1\r\n+PONG\r\n", "a client that closed its end is told {said:?}");
    drop(half);
    eventually("the half request is gone with its client", SOON, || {
        ensure!(sidecar.metric("caddy_sessions")? == 0, "caddy_sessions");
        Ok(())
    })?;
    ensure!(session(&sidecar)?.ask("GET k")? == "(nil)", "and was not executed");
    Ok(())
}

// === what Redis does ===

#[test]
fn a_missing_redis_is_said_to_be_missing_until_it_is_there() -> Result<()> {
    let place = tempfile::tempdir()?;
    let socket = place.path().join("redis.sock");
    let sidecar = SidecarOptions::redis(&socket).start()?;
    let mut client = session(&sidecar)?;
    ensure!(client.pipeline(&["PING", "ECHO hello"])? == ["PONG", "hello"], "the socket works at once");
    for command in ["GET k", "SET k v", "INCR k", "EVAL 'return 1' 0"] {
        let told = client.ask(command)?;
        let helps =
            told.contains("is it running, and is the address right?") && told.contains(&*socket.to_string_lossy());
        ensure!(told.starts_with("(error) NOTREADY") && helps, "{command} answers {told}");
    }
    ensure!(client.why("k", "coherence")?.contains("cannot reach Redis"), "CACHE.WHY says why");
    ensure!(sidecar.metric("caddy_l3_reachable")? == 0 && sidecar.metric("caddy_coherent")? == 0, "so do the metrics");
    for path in ["/healthz", "/readyz"] {
        sidecar.http(path).context("an outage of Redis is none of the sidecar")?;
    }
    let warnings = sidecar.log().lines().filter(|line| line.contains("WARN")).count();
    ensure!(warnings <= 2, "it is logged once, not at each try:\n{}", sidecar.log());
    let _redis = RedisServer::start_on(&socket)?;
    eventually("it serves as soon as Redis is there", SOON, || {
        ensure!(client.ask("SET k v")? == "OK", "SET");
        Ok(())
    })?;
    client.hold("k", "v")?;
    ensure!(sidecar.metric("caddy_l3_reachable")? == 1 && sidecar.metric("caddy_coherent")? == 1, "the metrics follow");
    Ok(())
}

#[test]
fn a_wrong_password_is_said_to_be_wrong() -> Result<()> {
    let redis = RedisServer::start()?;
    redis.command(&["CONFIG", "SET", "requirepass", "right"])?;
    for (login, expected) in [(Some("wrong"), "WRONGPASS"), (None, "NOAUTH")] {
        let options = SidecarOptions::redis(redis.socket());
        let sidecar = match login {
            Some(password) => options.login("default", password).start()?,
            None => options.start()?,
        };
        let mut client = session(&sidecar)?;
        ensure!(client.ask("PING")? == "PONG", "the socket works");
        for protocol in ["HELLO 2", "HELLO 3"] {
            client.ask(protocol)?;
            let told = client.ask("GET k")?;
            let helps = told.contains("check username and password") || told.contains("NOAUTH");
            ensure!(told.starts_with("(error) ") && told.contains(expected) && helps, "GET k answers {told}");
        }
        ensure!(sidecar.metric("caddy_coherent")? == 0, "nothing is cached");
        ensure!(!sidecar.log().contains("\"wrong\""), "no password is logged");
    }
    let sidecar = SidecarOptions::redis(redis.socket()).login("default", "right").start()?;
    let mut client = session(&sidecar)?;
    eventually("the right one opens", SOON, || {
        ensure!(client.ask("SET k v")? == "OK", "SET");
        Ok(())
    })?;
    client.hold("k", "v")
}

#[test]
fn without_the_right_to_track_nothing_is_cached_and_everything_says_so() -> Result<()> {
    let redis = RedisServer::start()?;
    redis.command(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-client"])?;
    let sidecar = SidecarOptions::redis(redis.socket()).login("app", "pw").start()?;
    let mut client = session(&sidecar)?;
    ensure!(client.pipeline(&["SET k v0", "GET k", "GET k"])? == ["OK", "v0", "v0"], "reads and writes work");
    redis.command(&["SET", "k", "v1"])?;
    ensure!(client.ask("GET k")? == "v1", "each read asks Redis");
    ensure!(sidecar.metric("caddy_hits_total")? == 0 && sidecar.metric("caddy_fills_total")? == 0, "nothing is cached");
    let why = client.why("k", "coherence")?;
    ensure!(why.contains("refused CLIENT TRACKING") && why.contains("+client"), "CACHE.WHY says {why}");
    let info = client.ask("INFO server")?;
    ensure!(info.contains("caddy_coherent:0") && info.contains("refused CLIENT TRACKING"), "INFO says {info}");
    ensure!(sidecar.metric("caddy_coherent")? == 0 && sidecar.metric("caddy_l3_reachable")? == 1, "so do the metrics");
    ensure!(sidecar.log().contains("refused CLIENT TRACKING"), "so does the log: {}", sidecar.log());
    // Granted later, it is used without a restart.
    redis.command(&["ACL", "SETUSER", "app", "+client"])?;
    client.hold("k", "v1")
}

#[test]
fn from_a_replica_nothing_is_cached() -> Result<()> {
    let redis = RedisServer::start_with(&["--replicaof", "127.0.0.1", "1"])?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.pipeline(&["GET k", "GET k"])? == ["(nil)", "(nil)"], "reads work");
    eventually("it is said why nothing is cached", SOON, || {
        let why = client.why("k", "coherence")?;
        ensure!(why.contains("is a replica") && why.contains("Point the endpoint at the primary"), "CACHE.WHY: {why}");
        Ok(())
    })?;
    let told = client.ask("SET k v")?;
    ensure!(told.starts_with("(error) READONLY"), "a write is answered as Redis does: {told}");
    ensure!(sidecar.metric("caddy_fills_total")? == 0, "nothing is cached");
    Ok(())
}

#[test]
fn values_above_the_limit_and_keys_of_an_off_rule_are_never_cached() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket())
        .section("limits: {maxValueBytes: 1Ki}")
        .section("keyspaces: [{name: private, match: \"private:*\", cache: \"Off\"}]")
        .start()?;
    let mut client = session(&sidecar)?;
    redis.command(&["MSET", "small", &"x".repeat(1000), "large", &"x".repeat(1100), "private:k", "v"])?;
    client.hold("small", &"x".repeat(1000))?;
    for _ in 0..3 {
        ensure!(client.ask("GET large")?.len() == 1100 && client.ask("GET private:k")? == "v", "they are read");
    }
    ensure!(client.why("large", "served")? == "no", "large values are not kept");
    let why = client.why("private:k", "reason")?;
    ensure!(why.contains("cache: Off"), "CACHE.WHY says {why}");
    Ok(())
}

// === configuration ===

fn run(arguments: &[&str], file: &Path) -> Result<Output> {
    Command::new(program()?).args(arguments).arg(file).output().context("run caddy-sidecar")
}

const FAULTY: &str = "listen: {soket: /x}\nworkers: many\nl2: {maxBytes: 64Mx}\nconsistency: {maxStaleness: 0s}\n\
                      keyspaces: [{name: a, match: \"a*\", cache: Sometimes}]\n";

#[test]
fn every_fault_of_a_configuration_is_named_at_once() -> Result<()> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("config.yaml");
    fs::write(&file, FAULTY)?;
    for arguments in [&["check-config"][..], &["--config"]] {
        let output = run(arguments, &file)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{arguments:?} accepts it");
        for fault in ["listen.soket", "workers", "l2.maxBytes", "consistency.maxStaleness", "keyspaces"] {
            ensure!(said.contains(fault), "{arguments:?} does not name {fault}: {said}");
        }
        ensure!(said.contains("write e.g. 64Mi") && !said.contains("panicked"), "{arguments:?} says {said}");
    }
    fs::write(&file, "l2: {maxBytes: 64Mi}\n")?;
    let output = run(&["check-config"], &file)?;
    ensure!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("valid"),
        "a good file is valid"
    );
    let output = run(&["check-config"], &place.path().join("none.yaml"))?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("cannot read"), "a missing file is said to be missing");
    Ok(())
}

#[test]
fn unknown_fields_in_the_operators_file_are_told_and_ignored() -> Result<()> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("config.yaml");
    fs::write(&file, "configGeneration: 7\nfuture: {field: 1}\n")?;
    let output = run(&["check-config"], &file)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && said.contains("future") && said.contains("ignored"), "check-config says {said}");
    let sidecar = SidecarOptions::embedded().section("configGeneration: 7\nfuture: {field: 1}").start()?;
    ensure!(sidecar.log().contains("future"), "the log names it: {}", sidecar.log());
    ensure!(sidecar.metric("caddy_config_generation")? == 7, "the generation in force is shown");
    Ok(())
}

#[test]
fn a_new_configuration_is_taken_over_if_it_is_valid_as_a_whole() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    redis.command(&["SET", "private:k", "v"])?;
    client.hold("private:k", "v")?;
    let old = fs::read_to_string(sidecar.config())?;

    sidecar.write_config(&format!("{old}keyspaces: [{{name: private, match: \"private:*\", cache: Never}}]\n"))?;
    eventually("the invalid file is noticed", SOON, || {
        ensure!(sidecar.metric("caddy_config_errors_total")? == 1, "caddy_config_errors_total");
        Ok(())
    })?;
    ensure!(sidecar.log().contains("the old one stays in force"), "the log says so: {}", sidecar.log());
    ensure!(client.why("private:k", "served")? == "yes" || client.ask("GET private:k")? == "v", "nothing has changed");

    sidecar.write_config(&format!("{old}keyspaces: [{{name: private, match: \"private:*\", cache: \"Off\"}}]\n"))?;
    eventually("the valid one is in force", SOON, || {
        ensure!(client.ask("GET private:k")? == "v", "GET");
        let reason = client.why("private:k", "reason")?;
        ensure!(reason.contains("cache: Off"), "CACHE.WHY says {reason}");
        Ok(())
    })?;
    Ok(())
}

// === beginning and end ===

#[test]
fn a_terminated_sidecar_serves_until_its_apps_are_gone() -> Result<()> {
    let redis = RedisServer::start()?;
    let mut sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    sidecar.terminate()?;
    thread::sleep(Duration::from_millis(1500));
    ensure!(client.ask("SET k v")? == "OK", "an app that stays is served");
    ensure!(session(&sidecar)?.ask("GET k")? == "v", "one that comes late, too");
    ensure!(sidecar.exited()?.is_none(), "it has not ended");
    drop(client);
    let (status, _) = eventually("it ends when the last app has gone", SOON, || sidecar.exited()?.context("it runs"))?;
    ensure!(status.success(), "it ended with {status}");
    ensure!(!sidecar.socket().exists(), "its socket is gone");
    Ok(())
}

#[test]
fn a_terminated_sidecar_ends_when_its_grace_is_over() -> Result<()> {
    let mut sidecar = SidecarOptions::embedded().argument("--grace").argument("1500ms").start()?;
    let mut client = session(&sidecar)?;
    let asked = BootClock.now();
    sidecar.terminate()?;
    let (status, _) = eventually("it ends although an app stays", SOON, || sidecar.exited()?.context("it runs"))?;
    let after = BootClock.now().since(asked);
    ensure!(status.success() && after >= Duration::from_millis(1500), "it ended with {status} after {after:?}");
    ensure!(client.0.is_closed()?, "the app is told by the end of its connection");
    ensure!(client.ask("PING").is_err(), "nobody answers");
    Ok(())
}

#[test]
fn a_socket_left_by_a_crash_is_replaced_and_anything_else_is_not() -> Result<()> {
    let mut sidecar = SidecarOptions::embedded().start()?;
    sidecar.kill()?;
    ensure!(sidecar.socket().exists(), "a killed sidecar leaves its socket");
    sidecar.restart()?;
    ensure!(session(&sidecar)?.ask("PING")? == "PONG", "the next one replaces it");

    let serve = |socket: &Path| -> Result<String> {
        let file = socket.with_extension("yaml");
        fs::write(&file, format!("listen: {{socket: {}}}\nadmin: {{port: 0}}\n", socket.display()))?;
        let output = run(&["--config"], &file)?;
        ensure!(!output.status.success(), "it serves {}", socket.display());
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let place = tempfile::tempdir()?;
    let used = place.path().join("used.sock");
    let _listener = UnixListener::bind(&used)?;
    let said = serve(&used)?;
    ensure!(said.contains("in use by another process") && said.contains("--socket"), "it says {said}");
    let file = place.path().join("file.sock");
    fs::write(&file, "precious")?;
    let said = serve(&file)?;
    ensure!(said.contains("is not a socket") && fs::read_to_string(&file)? == "precious", "it says {said}");
    let nowhere = place.path().join("none").join("x.sock");
    fs::create_dir(place.path().join("none"))?;
    let config = place.path().join("nowhere.yaml");
    fs::write(&config, format!("listen: {{socket: {}/more/x.sock}}\nadmin: {{port: 0}}\n", nowhere.display()))?;
    let output = run(&["--config"], &config)?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("cannot listen on"), "a missing directory is named");
    Ok(())
}

#[test]
fn ping_tells_a_living_sidecar_from_a_dead_one() -> Result<()> {
    let mut sidecar = SidecarOptions::embedded().start()?;
    let ping = |socket: &Path| run(&["ping", "--socket"], socket);
    ensure!(ping(&sidecar.socket())?.status.success(), "it answers");
    sidecar.suspend()?;
    ensure!(!ping(&sidecar.socket())?.status.success(), "a hanging one does not");
    sidecar.resume()?;
    sidecar.kill()?;
    let output = ping(&sidecar.socket())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("no sidecar answers"), "a dead one does not: {said}");
    Ok(())
}

#[test]
fn a_client_that_goes_away_while_blocked_frees_its_connection_to_redis() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let clients = || -> Result<usize> {
        let list = String::from_utf8_lossy(&redis.command(&["CLIENT", "LIST"])?).into_owned();
        Ok(list.matches("cmd=blpop").count())
    };
    let mut blocked = session(&sidecar)?;
    blocked.send("BLPOP list 0")?;
    eventually("Redis sees it blocked", SOON, || {
        ensure!(clients()? == 1, "one client is blocked");
        Ok(())
    })?;
    ensure!(blocked.reply_within(MOMENT)?.is_none(), "BLPOP waits");
    drop(blocked);
    eventually("Redis sees it gone", SOON, || {
        ensure!(clients()? == 0, "no client is blocked");
        Ok(())
    })?;
    let mut other: Wire = sidecar.connect()?;
    ensure!(other.request(&["RPUSH", "list", "x"])? == b":1\r\n", "nothing popped what was pushed later");
    Ok(())
}
