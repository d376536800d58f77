//! `cargo xtask demo`: act one on this machine as soon as the sidecar is built, act two in pods of a local Kubernetes that
//! is built meanwhile. It prints what it does and what it measures, and fails loudly when something it says should happen
//! does not.

mod act_one;
mod act_two;
pub(crate) mod client;
pub(crate) mod process;
mod story;

use crate::checks::cargo;
use crate::cluster::{self, Binaries, Which};
use crate::failed::Result;
use crate::need;
use crate::place::Place;
use crate::stage::{self, Lane, Outcome, Stage};

/// How much of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acts {
    /// No Kubernetes.
    One,
    /// Everything.
    Both,
}

/// Runs the demo.
pub(crate) fn run(place: &Place, acts: Acts) -> Result {
    let (build, one) = (place.clone(), place.clone());
    let mut plan = vec![
        Stage::new(Lane::Side, "packages", |log| need::programs(log, need::REDIS)),
        Stage::new(Lane::Cargo, "sidecar", move |log| {
            log.run(&mut cargo(&build, &["build", "--profile", "quick", "-p", "caddy-sidecar"])).map(|()| Outcome::Done)
        }),
        Stage::new(Lane::Cargo, "act one", move |log| act_one::play(&one, log))
            .after(&["packages", "sidecar"])
            .speaks(),
    ];
    if acts == Acts::Both {
        plan.extend(in_pods(place));
    }
    stage::run("cargo xtask demo", &place.logs(), plan)
}

fn in_pods(place: &Place) -> Vec<Stage> {
    let player = place.clone();
    let (prepare, image, up, two, down) = (place.clone(), place.clone(), place.clone(), place.clone(), place.clone());
    vec![
        Stage::new(Lane::Side, "kubernetes", move |log| cluster::prepare(&prepare, log, Which::Chosen))
            .after(&["packages"]),
        Stage::new(Lane::Cargo, "image", move |log| {
            cluster::build_image(&image, log, Binaries::Quick, None).map(|_| Outcome::Done)
        })
        .after(&["act one"]),
        Stage::new(Lane::Cargo, "player", move |log| act_two::build(&player, log)).after(&["act one"]),
        Stage::new(Lane::Side, "cluster up", move |log| cluster::up(&up, log, Which::Chosen)).after(&["kubernetes"]),
        Stage::new(Lane::Cargo, "act two", move |_| act_two::play(&two))
            .after(&["image", "cluster up", "player"])
            .speaks(),
        Stage::new(Lane::Side, "cluster down", move |log| cluster::down(&down, log, Which::Chosen))
            .after(&["act two"])
            .always(),
    ]
}
