//! A cluster with replicas: slots move key by key, primaries and replicas change places, nodes hang, connections die.
//!
//! Keys move with their slots, and a replica takes over only when it has everything.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use caddy_remote::cluster::slot_of;

use super::{Ground, SIDECARS, Terrain, workers};
use crate::{
    e2e::eventually,
    random::Random,
    redis_cluster::RedisCluster,
    sidecar::Sidecar,
    world::{SOON, Subject},
};

const PRIMARIES: usize = 3;
/// On all nodes; each has a slot of its own.
const KEYS: usize = 10;
const BOUND: Duration = Duration::from_millis(400);
const TIMEOUT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Sharded {
    cluster: RedisCluster,
    sidecars: Vec<Sidecar>,
    terrain: Terrain,
}

impl Sharded {
    /// In front of this cluster, of three primaries, each with a replica.
    pub fn start(subject: &Subject, cluster: RedisCluster, seed: u64) -> Result<Self> {
        let options = subject.cluster_options(&cluster).workers(workers(seed)).max_staleness(BOUND).timeout(TIMEOUT);
        let sidecars = (0..SIDECARS).map(|_| options.clone().start()).collect::<Result<Vec<_>>>()?;
        let keys = (0..KEYS).map(|n| cluster.key_of(n % PRIMARIES, n)).collect();
        let terrain = Terrain { keys, databases: 1, is_one_server: false, may_split: true, max_staleness: BOUND };
        Ok(Self { cluster, sidecars, terrain })
    }

    /// A key's slot moves to another primary, in the steps and at the pace of somebody who reshards.
    fn move_slot(&self, random: &mut Random) -> Result<()> {
        let key = &self.terrain.keys[random.below(KEYS)];
        let slot = slot_of(key.as_bytes());
        let from = self.cluster.owner(key)?;
        let others: Vec<usize> = self.cluster.primaries_now()?.into_iter().filter(|index| *index != from).collect();
        let to = others[random.below(others.len())];
        let mut pause = || thread::sleep(Duration::from_millis(random.below(60) as u64));
        self.cluster.begin_move(slot, from, to)?;
        pause();
        while self.cluster.move_keys(slot, from, to)? > 0 {
            pause();
        }
        self.cluster.end_move(slot, to)?;
        // The next one begins when all know.
        self.cluster.settle()
    }

    /// A primary and its replica change places, in order.
    fn fail_over(&self, pair: usize) -> Result<()> {
        let pair = [pair, pair + PRIMARIES];
        let primaries = self.cluster.primaries_now()?;
        let Some(replica) = pair.into_iter().find(|index| !primaries.contains(index)) else { return Ok(()) };
        eventually("a replica takes over", SOON, || {
            let reply = self.cluster.nodes[replica].ask("CLUSTER FAILOVER")?;
            thread::sleep(Duration::from_millis(100));
            let done = self.cluster.primaries_now()?.contains(&replica);
            ensure!(done, "CLUSTER FAILOVER was answered {reply}");
            Ok(())
        })?;
        self.cluster.settle()
    }
}

impl Ground for Sharded {
    fn terrain(&self) -> &Terrain {
        &self.terrain
    }

    fn sidecars(&self) -> Vec<&Sidecar> {
        self.sidecars.iter().collect()
    }

    fn foreign(&self, _: usize, command: &str) -> Result<String> {
        self.cluster.ask(command)
    }

    fn fault(&self, random: &mut Random) -> Result<()> {
        let node = random.below(self.cluster.nodes.len());
        let member = &self.cluster.nodes[node];
        let time = Duration::from_millis(20 + random.below(600) as u64);
        match random.below(20) {
            0..13 => self.move_slot(random),
            13 => {
                member.server.sigstop()?;
                thread::sleep(time);
                member.server.sigcont()
            }
            14 => {
                let sidecar = &self.sidecars[random.below(SIDECARS)];
                sidecar.suspend()?;
                thread::sleep(time);
                sidecar.resume()
            }
            15..17 => {
                member.ask("CLIENT KILL TYPE normal SKIPME yes")?;
                Ok(())
            }
            _ => self.fail_over(random.below(PRIMARIES)),
        }
    }

    fn was_used(&self) -> Result<()> {
        let redirections: Result<u64> =
            self.sidecars.iter().map(|sidecar| sidecar.metric("caddy_redirections_total")).sum();
        ensure!(redirections? > 10, "too few slots moved to mean anything");
        Ok(())
    }
}
