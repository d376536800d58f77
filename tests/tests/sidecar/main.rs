//! The sidecar as a process: what it does with bad input, with a Redis that is missing or unwilling, and when it ends.

mod auth;
mod catalogue;
mod channels;
mod clients;
mod compression;
mod conditional;
mod conditional_model;
mod conditional_runs;
mod configuration;
mod coordination;
mod envelopes;
mod exchanges;
mod groups;
mod identity;
mod in_flight;
mod invalidation;
mod invalidation_examples;
mod invalidation_limits;
mod invalidation_objects;
mod keyspace_tags;
mod keyspaces;
mod lifecycle;
mod limits;
mod logins;
mod memory;
mod modes;
mod modules;
mod patterns;
mod pooled;
mod redis;
mod replies;
mod tls;
mod waiting;
mod warm;

use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result};
use caddy_tests::{
    sidecar::{Sidecar, program},
    world::Client,
};

fn session(sidecar: &Sidecar) -> Result<Client> {
    Ok(Client(sidecar.connect()?))
}

/// Runs the program to its end.
fn run(arguments: &[&str], file: &Path) -> Result<Output> {
    Command::new(program()?).args(arguments).arg(file).output().context("run caddy-sidecar")
}
