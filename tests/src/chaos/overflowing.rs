//! One server that keeps little for clients which do not read, and sidecars that stop reading: it closes their connections
//! with what it had to tell them.

use std::{path::Path, thread, time::Duration};

use anyhow::{Result, ensure};

use super::{Alone, Ground, SIDECARS, Terrain};
use crate::{
    overflow_scenarios::{limit_buffers, overflow_relay, overflow_tracked},
    random::Random,
    sidecar::Sidecar,
    world::Subject,
};

/// See the module.
#[derive(Debug)]
pub struct Overflowing(Alone);

impl Overflowing {
    /// On a server of this program.
    pub fn start(subject: &Subject, server: &Path, seed: u64) -> Result<Self> {
        let alone = Alone::start(subject, server, seed)?;
        limit_buffers(&alone.world.redis)?;
        Ok(Self(alone))
    }
}

impl Ground for Overflowing {
    fn terrain(&self) -> &Terrain {
        self.0.terrain()
    }

    fn sidecars(&self) -> Vec<&Sidecar> {
        self.0.sidecars()
    }

    fn foreign(&self, database: usize, command: &str) -> Result<String> {
        self.0.foreign(database, command)
    }

    fn fault(&self, random: &mut Random) -> Result<()> {
        let world = &self.0.world;
        let pod = &world.pods[random.below(SIDECARS)];
        if random.below(3) == 0 {
            overflow_relay(&world.redis, pod)?;
        } else {
            overflow_tracked(&world.redis, pod)?;
        }
        // Longer than the bound, or not: nobody but Redis knows yet that the connection is gone.
        thread::sleep(Duration::from_millis(20 + random.below(600) as u64));
        pod.proxy.heal();
        Ok(())
    }

    fn was_used(&self) -> Result<()> {
        ensure!(self.0.world.redis.overflows() > 0, "no buffer was full");
        Ok(())
    }
}
