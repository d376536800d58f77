//! What a session says of itself, as client libraries do when they connect.

use anyhow::{Result, ensure};
use caddy_tests::{redis::RedisServer, sidecar::Sidecar, world::Client};

use crate::session;

#[test]
fn a_session_tells_who_it_is_and_others_see_it() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let (mut app, mut other) = (session(&sidecar)?, session(&sidecar)?);
    let told = app.pipeline(&[
        "CLIENT SETNAME shop",
        "CLIENT SETINFO lib-name redis-py",
        "CLIENT SETINFO lib-ver 6.2",
        "CLIENT NO-TOUCH on",
        "CLIENT NO-EVICT on",
    ])?;
    ensure!(told.iter().all(|reply| reply == "OK"), "{told:?}");
    for (asked, refused) in [
        ("CLIENT SETINFO colour r\u{e4}d", "(error) ERR Unrecognized option 'colour'"),
        (
            "CLIENT SETINFO Lib-Name r\u{e4}d",
            "(error) ERR Lib-Name cannot contain spaces, newlines or special characters.",
        ),
        ("CLIENT SETNAME r\u{e4}d", "(error) ERR Client names cannot contain spaces, newlines or special characters."),
    ] {
        let reply = app.ask(asked)?;
        ensure!(reply == refused, "{asked}: {reply}");
    }
    let id = app.ask("CLIENT ID")?;
    let info = app.ask("CLIENT INFO")?;
    for part in [&format!("id={id} "), "name=shop", "lib-name=redis-py", "lib-ver=6.2", "db=0"] {
        ensure!(info.contains(part), "{part} is missing in {info}");
    }
    ensure!(other.ask("CLIENT LIST")?.contains("name=shop"), "others see it");
    ensure!(!other.ask("CLIENT INFO")?.contains("shop"), "and are not it");
    let mut direct = Client(redis.connect()?);
    let names = |line: &str| -> Vec<String> {
        line.split_whitespace().filter_map(|field| field.split_once('=')).map(|(name, _)| name.to_owned()).collect()
    };
    let (ours, theirs) = (names(&info), names(&direct.ask("CLIENT INFO")?));
    let missing: Vec<_> = theirs.iter().filter(|name| !ours.contains(name)).collect();
    ensure!(missing.is_empty(), "client libraries read each of them: {missing:?}");
    ensure!(
        info.split_whitespace().all(|field| field.matches('=').count() == 1),
        "and split them at the only =: {info}"
    );
    ensure!(info.contains("cmd=client|info") && info.contains("user=default"), "{info}");
    other.ask("GET a")?;
    let others = format!("id={} ", other.ask("CLIENT ID")?);
    other.ask("GET a")?;
    let list = app.ask("CLIENT LIST")?;
    ensure!(
        list.lines().any(|line| line.contains(&others) && line.contains("cmd=get ")),
        "what others did last: {list}"
    );
    ensure!(app.ask("CLIENT GETREDIR")? == "-1", "it does not track");
    ensure!(app.ask("CLIENT HELP")?.contains("CLIENT"), "and gets help");
    Ok(())
}
