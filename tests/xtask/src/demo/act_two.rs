//! Act two: the same story in pods. The player is `tests/src/bin/demo_pods.rs`, which shares its tools with the end-to-end
//! test; here it is built and given a cluster and an image.

use crate::checks::cargo;
use crate::cluster;
use crate::failed::{Failed, Result, Step};
use crate::log::{Log, shown};
use crate::place::Place;
use crate::stage::Outcome;

/// Builds the player.
pub(crate) fn build(place: &Place, log: &mut Log) -> Result<Outcome> {
    let player = ["--profile", "quick", "-p", "caddy-tests", "--bin", "demo-pods"];
    log.run(cargo(place, &["build"]).args(player)).map(|()| Outcome::Done)
}

/// Plays act two; its words go straight to the terminal.
pub(crate) fn play(place: &Place) -> Result<Outcome> {
    println!("\n  Act two: the same in pods");
    let mut player = cluster::player(place, place.binary("quick", "demo-pods"), cluster::Which::Chosen)?;
    let status = player.status().step(format!("start `{}`", shown(&player)))?;
    println!();
    if status.success() { Ok(Outcome::Done) } else { Err(Failed::new(format!("act two ended with {status}"))) }
}
