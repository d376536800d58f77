//! What commands do that concern more than one node.

use std::time::Duration;

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis_cluster::RedisCluster,
    world::{SOON, Subject},
};

use super::Shop;

#[test]
fn keys_of_several_slots_are_gathered_where_one_server_would_answer_alike() -> Result<()> {
    let shop = Shop::open()?;
    let mut client = shop.connect()?;
    let [a, b, c] = [0, 1, 2].map(|node| shop.cluster.key_of(node, 0));
    for (key, value) in [(&a, "1"), (&b, "2")] {
        ensure!(client.ask(&format!("SET {key} {value}"))? == "OK", "SET");
    }
    let mut ask = |command: String, expected: &str| -> Result<()> {
        for _ in 0..3 {
            let reply = client.ask(&command)?;
            ensure!(reply == expected, "{command} answers {reply}, not {expected}");
        }
        Ok(())
    };
    ask(format!("MGET {a} {c} {b} {a}"), "[1, (nil), 2, 1]")?;
    ask(format!("EXISTS {a} {b} {c} {a}"), "3")?;
    ask(format!("TOUCH {a} {b} {c}"), "2")?;
    ask("DBSIZE".into(), "2")?;
    ask(format!("MSET {a} 1 {b} 2"), "(error) CROSSSLOT Keys in request don't hash to the same slot")?;
    ask(format!("SINTER {a} {b}"), "(error) CROSSSLOT Keys in request don't hash to the same slot")?;
    ask("SELECT 1".into(), "(error) ERR SELECT is not allowed in cluster mode")?;
    ask("SELECT 0".into(), "OK")?;
    ask("CLUSTER SLOTS".into(), "(error) ERR This instance has cluster support disabled")?;
    let reply = client.ask(&format!("DEL {a} {c} {b}"))?;
    ensure!(reply == "2", "DEL answers {reply}");
    ensure!(client.ask(&format!("MGET {a} {b}"))? == "[(nil), (nil)]", "they are gone");
    Ok(())
}

#[test]
fn all_primaries_are_scanned_and_flushed() -> Result<()> {
    let shop = Shop::open()?;
    let mut client = shop.connect()?;
    let mut keys: Vec<String> = (0..200).map(|n| shop.cluster.key_of(n % 3, n)).collect();
    let sets: Vec<String> = keys.iter().map(|key| format!("SET {key} v")).collect();
    client.pipeline(&sets.iter().map(String::as_str).collect::<Vec<_>>())?;
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let reply = client.ask(&format!("SCAN {cursor} COUNT 20"))?;
        let mut words = reply.split(|c: char| "[], ".contains(c)).filter(|word| !word.is_empty()).map(str::to_owned);
        cursor = words.next().unwrap_or_default();
        found.extend(words);
        if cursor == "0" {
            break;
        }
    }
    keys.sort();
    found.sort();
    found.dedup();
    ensure!(found == keys, "SCAN finds {} of {} keys", found.len(), keys.len());
    ensure!(client.ask("KEYS *")?.split(", ").count() == 200, "KEYS");
    ensure!(client.ask("FLUSHALL")? == "OK", "FLUSHALL");
    ensure!(client.ask("DBSIZE")? == "0", "DBSIZE");
    Ok(())
}

#[test]
fn transactions_scripts_and_subscriptions_find_their_node() -> Result<()> {
    let shop = Shop::open()?;
    for node in 0..3 {
        let mut client = shop.connect()?;
        let key = shop.cluster.key_of(node, 0);
        let other = shop.cluster.key_of((node + 1) % 3, 1);
        ensure!(client.ask("MULTI")? == "OK", "MULTI");
        ensure!(client.ask(&format!("INCR {key}"))? == "QUEUED", "INCR");
        ensure!(client.ask(&format!("GET {key}"))? == "QUEUED", "GET");
        let reply = client.ask("EXEC")?;
        ensure!(reply == "[1, 1]", "EXEC answers {reply}");
        ensure!(client.pipeline(&["MULTI", "EXEC", "MULTI", "DISCARD"])? == ["OK", "[]", "OK", "OK"], "empty ones");
        let replies = client.pipeline(&["MULTI", &format!("GET {key}"), &format!("GET {other}"), "EXEC"])?;
        ensure!(replies[2].starts_with("(error) CROSSSLOT"), "another node's key is answered {}", replies[2]);
        ensure!(replies[3].starts_with("(error) EXECABORT"), "EXEC answers {}", replies[3]);
        ensure!(client.ask(&format!("WATCH {key}"))? == "OK", "WATCH");
        ensure!(client.ask(&format!("SET {other} x"))? == "OK", "another node's key while watching");
        ensure!(shop.cluster.ask(&format!("SET {key} 7"))? == "OK", "a foreign write of a watched key");
        let replies = client.pipeline(&["MULTI", &format!("INCR {key}"), "EXEC"])?;
        ensure!(replies == ["OK", "QUEUED", "(nil)"], "{replies:?}");
        let reply = client.ask(&format!("EVAL 'return redis.call(\"INCR\", KEYS[1])' 1 {key}"))?;
        ensure!(reply == "8", "EVAL answers {reply}");
        let sha = client.ask("SCRIPT LOAD 'return redis.call(\"GET\", KEYS[1])'")?;
        let reply = client.ask(&format!("EVALSHA {sha} 1 {key}"))?;
        ensure!(reply == "8", "EVALSHA answers {reply}");
        ensure!(
            client.ask(&format!("SCRIPT EXISTS {sha} 0123456789012345678901234567890123456789"))? == "[1, 0]",
            "EXISTS"
        );
        ensure!(client.ask(&format!("LPUSH list:{{{key}}} a b"))? == "2", "LPUSH");
        ensure!(client.ask(&format!("BLPOP list:{{{key}}} 1"))? == format!("[list:{{{key}}}, b]"), "BLPOP");
        let mut subscriber = shop.connect()?;
        for (subscribe, publish) in [("SUBSCRIBE", "PUBLISH"), ("SSUBSCRIBE", "SPUBLISH")] {
            let mut subscriber = if subscribe == "SUBSCRIBE" {
                shop.connect()?
            } else {
                std::mem::replace(&mut subscriber, shop.connect()?)
            };
            let reply = subscriber.ask(&format!("{subscribe} {key}"))?;
            ensure!(reply.ends_with("1]"), "{subscribe} answers {reply}");
            let reply = client.ask(&format!("{publish} {key} hello"))?;
            ensure!(!reply.starts_with("(error)"), "{publish} answers {reply}");
            let message = subscriber.reply()?;
            ensure!(message.ends_with(&format!("{key}, hello]")), "{subscribe} gets {message}");
        }
    }
    Ok(())
}

/// Which node runs a script the app cannot know: it sees one Redis.
#[test]
fn a_script_is_ended_at_whichever_node_runs_it() -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    for node in &cluster.nodes {
        node.server.command(&["CONFIG", "SET", "busy-reply-threshold", "10"])?;
    }
    let sidecar = Subject::good().cluster_options(&cluster).timeout(Duration::from_mins(1)).workers(1).start()?;
    let shop = Shop { cluster, sidecar };
    let (mut app, mut other) = (shop.connect()?, shop.connect()?);
    let spin = "FUNCTION LOAD '#!lua name=spin\nredis.register_function(\"spin\", function() while true do end end)'";
    ensure!(app.ask(spin)? == "spin", "FUNCTION LOAD");
    for kill in ["SCRIPT KILL", "FUNCTION KILL"] {
        ensure!(other.ask(kill)?.starts_with("(error) NOTBUSY"), "{kill}: nothing runs");
    }
    ensure!(other.ask("FUNCTION STATS")?.starts_with("[running_script, (nil), "), "nothing runs");
    for key in [0, 1, 2].map(|node| shop.cluster.key_of(node, 0)) {
        for (runs, kill) in [("EVAL 'while true do end'", "SCRIPT KILL"), ("FCALL spin", "FUNCTION KILL")] {
            app.send(&format!("{runs} 1 {key}"))?;
            if kill == "FUNCTION KILL" {
                eventually("it is seen", SOON, || {
                    let stats = other.ask("FUNCTION STATS")?;
                    ensure!(stats.contains("[name, spin,"), "{stats}");
                    Ok(())
                })?;
            }
            eventually("it is ended", SOON, || {
                let reply = other.ask(kill)?;
                ensure!(reply == "OK", "{kill}: {reply}");
                Ok(())
            })?;
            let reply = app.reply()?;
            ensure!(reply.starts_with("(error)") && reply.contains("kill"), "whoever ran it is told: {reply}");
            ensure!(other.pipeline(&[kill, "DBSIZE"])?[1] == "0", "and the session goes on");
        }
    }
    let key = shop.cluster.key_of(1, 0);
    app.send(&format!("EVAL 'redis.call(\"SET\", KEYS[1], 1) while true do end' 1 {key}"))?;
    eventually("what has written is not ended", SOON, || {
        let reply = other.ask("SCRIPT KILL")?;
        ensure!(reply.starts_with("(error) UNKILLABLE"), "{reply}");
        Ok(())
    })?;
    let [first, _, last] = [0, 1, 2].map(|node| shop.cluster.key_of(node, 0));
    app = shop.connect()?;
    app.send(&format!("EVAL 'while true do end' 1 {first}"))?;
    eventually("another is, all the same", SOON, || {
        let reply = other.ask("SCRIPT KILL")?;
        ensure!(reply == "OK", "{reply}");
        Ok(())
    })?;
    ensure!(app.reply()?.starts_with("(error)"), "whoever ran it is told");
    ensure!(other.ask(&format!("SET {last} v"))? == "OK", "the session goes on");
    Ok(())
}

#[test]
fn wait_counts_the_replicas_of_every_node_that_the_session_wrote_to() -> Result<()> {
    let shop = Shop::with(RedisCluster::with_replicas(3)?, Duration::from_secs(1))?;
    let keys = [0, 1, 2].map(|node| shop.cluster.key_of(node, 0));
    let set = |key: &String| format!("SET {key} v");
    let mut client = shop.connect()?;
    ensure!(client.ask("WAIT 1 20000")? == "1", "who wrote nothing is told of one node's replicas");
    for key in &keys {
        ensure!(client.ask(&set(key))? == "OK", "SET {key}");
    }
    ensure!(client.ask("WAIT 1 20000")? == "1", "each has one");
    for node in 0..3 {
        let replica = &shop.cluster.nodes[3 + node].server;
        replica.command(&["READONLY"])?;
        let info = String::from_utf8(replica.command(&["INFO", "keyspace"])?)?;
        ensure!(info.contains("keys=1"), "it is at the replica of {node}: {info}");
    }
    ensure!(client.ask("DBSIZE")? == "3", "nothing is left of what WAIT writes");

    let hung = &shop.cluster.nodes[4].server;
    hung.sigstop()?;
    let mut elsewhere = shop.connect()?;
    let wrote = elsewhere.pipeline(&[&set(&keys[0]), &set(&keys[2]), "WAIT 1 20000"])?;
    let replies = [
        client.pipeline(&[&set(&keys[1]), "WAIT 1 50", &format!("GET {}", keys[0])])?,
        elsewhere.pipeline(&["MULTI", &format!("INCR {{{}}}:n", keys[1]), "EXEC", "WAIT 1 50"])?,
    ];
    let mut gathered = shop.connect()?;
    let split = gathered.pipeline(&[&format!("DEL {} {}", keys[0], keys[1]), "WAIT 1 50", "WAIT x 50"])?;
    hung.sigcont()?;
    ensure!(wrote == ["OK", "OK", "1"], "who did not write to the one whose replica hangs: {wrote:?}");
    ensure!(replies[0] == ["OK", "0", "v"], "who did: {replies:?}");
    ensure!(replies[1] == ["OK", "QUEUED", "[1]", "0"], "who did so in a transaction: {replies:?}");
    ensure!(split[..2] == ["2", "0"] && split[2].starts_with("(error) ERR"), "who did so at two nodes: {split:?}");
    eventually("it has everything", SOON, || {
        let reply = client.ask("WAIT 1 1000")?;
        ensure!(reply == "1", "WAIT answers {reply}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn clients_do_not_find_a_cluster() -> Result<()> {
    let shop = Shop::open()?;
    let mut client = shop.connect()?;
    let info = client.ask("INFO")?;
    ensure!(info.contains("cluster_enabled:0") && info.contains("redis_mode:standalone"), "INFO says {info}");
    ensure!(info.contains("caddy_l3:redis cluster") && info.contains("caddy_l3_nodes:3"), "INFO says {info}");
    let hello = client.ask("HELLO 3")?;
    ensure!(!hello.contains("cluster"), "HELLO says {hello}");
    let refusal = client.ask("CLIENT TRACKING ON")?;
    ensure!(refusal.contains("not available through the cache"), "CLIENT TRACKING answers {refusal}");
    Ok(())
}
