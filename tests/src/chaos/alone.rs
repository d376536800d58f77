//! One server, and sidecars each behind a proxy of its own that does to connections what networks do.

use std::{path::Path, thread, time::Duration};

use anyhow::Result;

use super::{Ground, SIDECARS, Terrain, workers};
use crate::{
    proxy::{Class, Direction},
    random::Random,
    redis::RedisServer,
    sidecar::Sidecar,
    world::{Subject, World, show},
};

const KEYS: usize = 9;
const BOUND: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_millis(600);

/// See the module.
#[derive(Debug)]
pub struct Alone {
    pub(super) world: World,
    terrain: Terrain,
}

impl Alone {
    /// On a server of this program.
    pub fn start(subject: &Subject, server: &Path, seed: u64) -> Result<Self> {
        let world = World::on(RedisServer::start_program(server)?, subject, SIDECARS, |options| {
            options.workers(workers(seed)).max_staleness(BOUND).timeout(TIMEOUT).consistency("onUncertain: ServeStale")
        })?;
        let keys = (0..KEYS).map(|key| format!("register:{key}")).collect();
        Ok(Self {
            world,
            terrain: Terrain { keys, databases: 2, is_one_server: true, may_split: false, max_staleness: BOUND },
        })
    }
}

impl Ground for Alone {
    fn terrain(&self) -> &Terrain {
        &self.terrain
    }

    fn sidecars(&self) -> Vec<&Sidecar> {
        self.world.pods.iter().map(|pod| &pod.sidecar).collect()
    }

    fn foreign(&self, database: usize, command: &str) -> Result<String> {
        let mut wire = self.world.redis.connect()?;
        if database > 0 {
            wire.request(&["SELECT", &database.to_string()])?;
        }
        Ok(show(&wire.request(&command.split(' ').collect::<Vec<_>>())?))
    }

    fn fault(&self, random: &mut Random) -> Result<()> {
        let pod = &self.world.pods[random.below(SIDECARS)];
        let class = if random.below(3) == 0 { Class::Relay } else { Class::Tracked };
        let direction = if random.below(2) == 0 { Direction::ToServer } else { Direction::ToClient };
        let time = Duration::from_millis(20 + random.below(800) as u64);
        match random.below(10) {
            0 | 1 => pod.proxy.delay(class, direction, Duration::from_millis(1 + random.below(60) as u64)),
            2 | 3 => pod.proxy.stall(class, direction),
            4 => pod.proxy.cut(class),
            9 => {
                // Slow, then not at all.
                pod.proxy.delay(class, Direction::ToClient, Duration::from_millis(100 + random.below(150) as u64));
                thread::sleep(time);
                pod.proxy.stall(class, Direction::ToClient);
            }
            5 => {
                pod.proxy.refuse(class);
                pod.proxy.cut(class);
            }
            6 => {
                self.world.redis.sigstop()?;
                thread::sleep(time);
                return self.world.redis.sigcont();
            }
            7 => {
                pod.sidecar.suspend()?;
                thread::sleep(time);
                return pod.sidecar.resume();
            }
            _ => {
                self.world.foreign("CLIENT KILL TYPE normal SKIPME yes")?;
                return Ok(());
            }
        }
        thread::sleep(time);
        pod.proxy.heal();
        Ok(())
    }
}
