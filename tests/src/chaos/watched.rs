//! Servers behind Sentinels, which fail over: asked to, and because the primary sleeps.
//!
//! A replica takes over only when it has everything: the primary refuses writes until then, and from then on until it has
//! become a replica itself. So nothing that was acknowledged is lost. (CLIENT PAUSE would hold up the Sentinels, too.)

use std::{thread, time::Duration};

use anyhow::{Result, ensure};

use super::{Ground, SIDECARS, Terrain, workers};
use crate::{
    e2e::eventually,
    random::Random,
    sentinel::{self, FAILOVER},
    sidecar::Sidecar,
    world::{SOON, Subject, show},
};

const KEYS: usize = 9;
const BOUND: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Watched {
    servers: sentinel::Watched,
    sidecars: Vec<Sidecar>,
    terrain: Terrain,
}

impl Watched {
    /// Starts everything, and waits until the sidecars know the primary.
    pub fn start(subject: &Subject, seed: u64) -> Result<Self> {
        let servers = sentinel::Watched::start()?;
        let options = subject.set(servers.options("")).workers(workers(seed)).max_staleness(BOUND).timeout(TIMEOUT);
        let sidecars = (0..SIDECARS).map(|_| options.clone().start()).collect::<Result<Vec<_>>>()?;
        for sidecar in &sidecars {
            eventually("a sidecar knows the primary", SOON, || {
                ensure!(sidecar.metric("caddy_coherent")? == 1, "caddy_coherent is 0: {}", sidecar.log());
                Ok(())
            })?;
        }
        let keys = (0..KEYS).map(|key| format!("register:{key}")).collect();
        let terrain = Terrain { keys, databases: 1, is_one_server: true, may_split: true, max_staleness: BOUND };
        Ok(Self { servers, sidecars, terrain })
    }

    fn ask(&self, port: u16, command: &str) -> Result<String> {
        Ok(show(&self.servers.servers[&port].command(&command.split(' ').collect::<Vec<_>>())?))
    }

    /// Lets a primary refuse writes, or take them again: it wants more replicas than there are, or none.
    fn want_replicas(&self, port: u16, count: usize) -> Result<()> {
        let reply = self.ask(port, &format!("CONFIG SET min-replicas-to-write {count}"))?;
        ensure!(reply == "OK", "CONFIG SET is answered {reply}");
        Ok(())
    }

    /// Ends the writes at the primary, and waits until its replicas have all that came before.
    fn end_writes(&self, primary: u16) -> Result<()> {
        self.want_replicas(primary, self.servers.servers.len())?;
        eventually("the replicas have everything", SOON, || {
            let offsets: Vec<String> =
                self.servers.servers.keys().map(|port| self.offset(*port)).collect::<Result<_>>()?;
            ensure!(offsets.windows(2).all(|pair| pair[0] == pair[1]), "{offsets:?}");
            Ok(())
        })?;
        Ok(())
    }

    fn offset(&self, port: u16) -> Result<String> {
        let info = self.ask(port, "INFO replication")?;
        let offset = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
        Ok(offset.unwrap_or_default().trim().to_owned())
    }

    /// Waits until the old primary is a replica of the new one, as the other replica is.
    fn settle(&self, old: u16) -> Result<()> {
        let new = self.servers.wait_for_another(old)?;
        eventually("the others follow the new primary", FAILOVER, || {
            let info = self.ask(new, "INFO replication")?;
            ensure!(info.matches("state=online").count() == self.servers.servers.len() - 1, "{info}");
            Ok(())
        })?;
        self.want_replicas(old, 0)
    }

    /// Another becomes the primary because it is asked for.
    fn fail_over(&self) -> Result<()> {
        let old = self.servers.primary()?;
        self.end_writes(old)?;
        self.servers.fail_over()?;
        self.settle(old)
    }

    /// The primary is replaced while it sleeps, and one of the sidecars with it. When they wake, it says that it is one.
    fn sleep_through(&self, sidecar: &Sidecar) -> Result<()> {
        let old = self.servers.primary()?;
        self.end_writes(old)?;
        self.servers.servers[&old].sigstop()?;
        sidecar.suspend()?;
        let replaced = self.servers.wait_for_another(old);
        // Others write there meanwhile.
        thread::sleep(BOUND * 2);
        self.servers.servers[&old].sigcont()?;
        sidecar.resume()?;
        replaced?;
        self.settle(old)
    }
}

impl Ground for Watched {
    fn terrain(&self) -> &Terrain {
        &self.terrain
    }

    fn sidecars(&self) -> Vec<&Sidecar> {
        self.sidecars.iter().collect()
    }

    fn foreign(&self, _: usize, command: &str) -> Result<String> {
        self.ask(self.servers.primary()?, command)
    }

    fn fault(&self, random: &mut Random) -> Result<()> {
        let sidecar = &self.sidecars[random.below(SIDECARS)];
        let time = Duration::from_millis(20 + random.below(600) as u64);
        match random.below(8) {
            0..2 => self.fail_over(),
            2 => self.sleep_through(sidecar),
            3 => {
                sidecar.suspend()?;
                thread::sleep(time);
                sidecar.resume()
            }
            4 => {
                // Two of three: nothing can be proved.
                self.servers.sentinels[1..].iter().try_for_each(sentinel::Sentinel::sigstop)?;
                thread::sleep(time);
                self.servers.sentinels[1..].iter().try_for_each(sentinel::Sentinel::sigcont)
            }
            5 => {
                let primary = self.servers.primary()?;
                self.servers.servers[&primary].sigstop()?;
                thread::sleep(time);
                self.servers.servers[&primary].sigcont()
            }
            _ => {
                self.ask(self.servers.primary()?, "CLIENT KILL TYPE normal SKIPME yes")?;
                Ok(())
            }
        }
    }

    fn was_used(&self) -> Result<()> {
        let switches: Result<u64> = self.sidecars.iter().map(|sidecar| sidecar.metric("caddy_sentinel_switches")).sum();
        ensure!(switches? > 0, "no failover was followed");
        Ok(())
    }
}
