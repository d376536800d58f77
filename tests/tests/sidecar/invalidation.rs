//! `CACHE.INVALIDATE` of keys, and what it does with bad input.

use anyhow::{Result, ensure};
use caddy_tests::{redis::RedisServer, sidecar::Sidecar, world::Client};

use crate::session;

#[test]
fn an_invalidated_key_is_gone_for_everybody_at_once() -> Result<()> {
    let redis = RedisServer::start()?;
    let (mine, theirs) = (Sidecar::start(&redis)?, Sidecar::start(&redis)?);
    let (mut mine, mut theirs) = (session(&mine)?, session(&theirs)?);
    ensure!(mine.ask("MSET a 1 b 2 MODE 3")? == "OK", "a write");
    for client in [&mut mine, &mut theirs] {
        ensure!(client.pipeline(&["GET a", "GET b"])? == ["1", "2"], "filled");
    }
    let answers =
        mine.pipeline(&["CACHE.INVALIDATE KEY a b none REASON 'new prices' MODE REMOVE", "GET a", "GET b"])?;
    ensure!(answers == ["2", "(nil)", "(nil)"], "read back: {answers:?}");
    // What pushed it away has been applied when something written later is seen.
    ensure!(Client(redis.connect()?).ask("SET later 1")? == "OK", "a foreign write");
    ensure!(theirs.pipeline(&["EVAL 'return 1' 0", "GET a", "GET b"])? == ["1", "(nil)", "(nil)"], "seen by the other");
    ensure!(mine.ask("CACHE.INVALIDATE KEY MODE")? == "1", "a key may be called like an option");
    Ok(())
}

#[test]
fn what_cannot_be_understood_changes_nothing_and_is_told_so() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("SET k v")? == "OK", "a write");
    for (command, said) in [
        ("CACHE.INVALIDATE", "CACHE.INVALIDATE"),
        ("CACHE.INVALIDATE KEY", "CACHE.INVALIDATE"),
        ("CACHE.INVALIDATE GROUP k", "knows no 'GROUP'"),
        ("CACHE.INVALIDATE KEY k MODE GONE", "not 'GONE'"),
    ] {
        let reply = client.ask(command)?;
        ensure!(reply.starts_with("(error)") && reply.contains(said), "{command}: {reply}");
    }
    let answers = client.pipeline(&["MULTI", "CACHE.INVALIDATE KEY k", "EXEC", "GET k"])?;
    ensure!(answers[1].contains("send it outside of MULTI") && answers[2].contains("EXECABORT"), "{answers:?}");
    ensure!(answers[3] == "v", "{answers:?}");
    Ok(())
}
