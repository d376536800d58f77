//! A real Redis Cluster of a test's own: primaries on loopback, with replicas and TLS if asked for.
//!
//! Owns its servers and knows who is where; follows redirections as a cluster's client does, so that tests can read and
//! write beside a sidecar. Slots and roles are changed by the test, with the commands that administrators use.

use std::{net::TcpListener, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use caddy_remote::cluster::{SLOTS, slot_of};
use tempfile::TempDir;

use crate::{
    certificates::Authority,
    e2e::eventually,
    random::Random,
    redis::{self, RedisServer},
    world::{SOON, show},
};

/// How long a node may be silent before the others hold it for failed, where a replica is there to replace it.
const NODE_TIMEOUT: Duration = Duration::from_millis(1500);
/// The same where none is: a node that a busy machine forgets for a while is not missed.
const PATIENT_TIMEOUT: Duration = Duration::from_secs(15);
/// Redirections that one command may follow; while a slot changes hands two nodes may point at each other.
const MAX_HOPS: usize = 200;

/// The cluster.
#[derive(Debug)]
pub struct RedisCluster {
    /// Primaries first, in the order of their slots; then the replicas, in the order of their primaries.
    pub nodes: Vec<Member>,
    primaries: usize,
    secrets: Option<Secrets>,
}

/// What a cluster that speaks TLS only has in files.
#[derive(Debug)]
struct Secrets {
    directory: TempDir,
}

impl Secrets {
    fn create() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("caddy-secrets").tempdir().context("make a directory")?;
        let authority = Authority::create()?;
        authority.write(&directory.path().join("ca.crt"))?;
        // The names that the nodes tell of each other.
        authority.issue(&directory.path().join("node"), &["127.0.0.1"])?;
        Ok(Self { directory })
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

/// How a cluster is made.
#[derive(Debug)]
pub struct Plan {
    /// The servers' program.
    pub program: PathBuf,
    /// So many share the slots evenly.
    pub primaries: usize,
    /// Each primary has one.
    pub replicas: bool,
    /// Clients and nodes speak TLS only.
    pub tls: bool,
}

/// One node.
#[derive(Debug)]
pub struct Member {
    /// The process.
    pub server: RedisServer,
    /// Where other nodes and clients find it on 127.0.0.1.
    pub port: u16,
    /// Where other nodes speak of the cluster.
    bus: u16,
    /// Its name in the cluster.
    pub id: String,
}

impl RedisCluster {
    /// So many primaries that share the slots evenly, without replicas.
    pub fn start(primaries: usize) -> Result<Self> {
        Self::with_plan(&Plan { program: redis::program()?, primaries, replicas: false, tls: false })
    }

    /// The same, each with a replica.
    pub fn with_replicas(primaries: usize) -> Result<Self> {
        Self::with_plan(&Plan { program: redis::program()?, primaries, replicas: true, tls: false })
    }

    /// Starts one.
    pub fn with_plan(plan: &Plan) -> Result<Self> {
        let primaries = plan.primaries;
        let secrets = plan.tls.then(Secrets::create).transpose()?;
        let count = if plan.replicas { 2 * primaries } else { primaries };
        let nodes = (0..count).map(|_| Member::start(plan, secrets.as_ref())).collect::<Result<Vec<_>>>()?;
        let cluster = Self { nodes, primaries, secrets };
        for (index, node) in cluster.nodes.iter().enumerate() {
            node.ok(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1))?;
            if index < primaries {
                let bound = |index: usize| index * usize::from(SLOTS) / primaries;
                node.ok(&format!("CLUSTER ADDSLOTSRANGE {} {}", bound(index), bound(index + 1) - 1))?;
            }
            cluster.nodes[0].ok(&format!("CLUSTER MEET 127.0.0.1 {} {}", node.port, node.bus))?;
        }
        cluster.settle()?;
        for index in 0..count - primaries {
            let (replica, primary) = (&cluster.nodes[primaries + index], &cluster.nodes[index]);
            eventually("a replica takes its role", SOON, || replica.ok(&format!("CLUSTER REPLICATE {}", primary.id)))?;
        }
        for replica in &cluster.nodes[primaries..] {
            eventually("a replica is connected", SOON, || {
                let info = replica.ask("INFO replication")?;
                ensure!(info.contains("master_link_status:up"), "{info}");
                Ok(())
            })?;
        }
        if !plan.replicas {
            cluster.be_patient(PATIENT_TIMEOUT)?;
        }
        Ok(cluster)
    }

    /// Lets a node that does not answer be missed soon, whatever the plan said.
    pub fn be_impatient(&self) -> Result<()> {
        self.be_patient(NODE_TIMEOUT)
    }

    fn be_patient(&self, timeout: Duration) -> Result<()> {
        let command = format!("CONFIG SET cluster-node-timeout {}", timeout.as_millis());
        self.nodes.iter().try_for_each(|node| node.ok(&command))
    }

    /// The fields of `l3.redis` of a sidecar in front of it.
    pub fn l3(&self) -> String {
        let tls = self.secrets.as_ref().map(|secrets| format!(", tls: {{caFile: {}}}", secrets.file("ca.crt")));
        format!("mode: Cluster, endpoints: {:?}{}", self.endpoints(), tls.unwrap_or_default())
    }

    /// Waits until every node that runs knows all others and the same owners.
    pub fn settle(&self) -> Result<()> {
        eventually("the nodes of the cluster agree", SOON, || {
            for node in &self.nodes {
                let info = node.ask("CLUSTER INFO")?;
                ensure!(info.contains("cluster_state:ok"), "{}: {info}", node.port);
                ensure!(info.contains(&format!("cluster_known_nodes:{}", self.nodes.len())), "{}: {info}", node.port);
            }
            let views: Vec<String> = self.nodes.iter().map(Member::owners).collect::<Result<_>>()?;
            ensure!(views.windows(2).all(|pair| pair[0] == pair[1]), "{views:?}");
            Ok(())
        })?;
        Ok(())
    }

    /// The primaries that it began with.
    pub fn primaries(&self) -> &[Member] {
        &self.nodes[..self.primaries]
    }

    /// `host:port` of all nodes.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Member::endpoint).collect()
    }

    /// The index of the node that has a key now.
    pub fn owner(&self, key: &str) -> Result<usize> {
        let slot = slot_of(key.as_bytes());
        for (index, node) in self.nodes.iter().enumerate() {
            let reply = node.ask(&format!("GET {key}")).unwrap_or_default();
            match moved(&reply) {
                Some((_, port)) => return self.at(port),
                None if !reply.is_empty() && !reply.starts_with("(error) CLUSTERDOWN") => return Ok(index),
                None => {}
            }
        }
        bail!("nobody has slot {slot}")
    }

    /// The indexes of the nodes that are primaries now.
    pub fn primaries_now(&self) -> Result<Vec<usize>> {
        let roles = self.nodes.iter().map(|node| node.ask("ROLE")).collect::<Result<Vec<_>>>()?;
        Ok(roles.iter().enumerate().filter(|(_, role)| role.starts_with("[master")).map(|(index, _)| index).collect())
    }

    fn at(&self, port: u16) -> Result<usize> {
        self.nodes.iter().position(|node| node.port == port).with_context(|| format!("no node at {port}"))
    }

    /// A key whose slot one node has; different for each `n`.
    pub fn key_of(&self, node: usize, n: usize) -> String {
        let bound = |index: usize| index * usize::from(SLOTS) / self.primaries;
        let own = bound(node)..bound(node + 1);
        let name = |try_: usize| format!("k{n}:{try_}");
        (0..1_000_000).map(name).find(|key| own.contains(&usize::from(slot_of(key.as_bytes())))).unwrap_or_default()
    }

    /// A command as a cluster's own client sends it: to the node that has its key, following redirections.
    pub fn ask(&self, command: &str) -> Result<String> {
        let args: Vec<&str> = command.split_whitespace().collect();
        self.request(&args)
    }

    /// As [`ask`](Self::ask), with arguments that may contain spaces; the key is the second.
    pub fn request(&self, args: &[&str]) -> Result<String> {
        let mut at = 0;
        let mut asking = false;
        for _ in 0..MAX_HOPS {
            let mut wire = self.nodes[at].server.connect()?;
            if asking {
                wire.request(&["ASKING"])?;
            }
            let reply = show(&wire.request(args)?);
            if let Some((kind, port)) = moved(&reply) {
                (at, asking) = (self.at(port)?, kind == "ASK");
            } else if reply.starts_with("(error) TRYAGAIN") {
                thread::sleep(Duration::from_millis(1));
            } else {
                return Ok(reply);
            }
        }
        bail!("{args:?} is redirected for ever")
    }

    /// Lets a slot begin to move: from now on absent keys of it are asked for at the new owner.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) -> Result<()> {
        self.nodes[to].ok(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.nodes[from].id))?;
        self.nodes[from].ok(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", self.nodes[to].id))
    }

    /// Moves some of a slot's keys that is being moved; tells how many.
    pub fn move_keys(&self, slot: u16, from: usize, to: usize) -> Result<usize> {
        let mut wire = self.nodes[from].server.connect()?;
        let reply = wire.request(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"])?;
        let (keys, _) = caddy_resp::Value::decode(&reply)?;
        let keys: Vec<&[u8]> =
            keys.as_elements().unwrap_or_default().iter().filter_map(caddy_resp::Value::as_bytes).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let port = self.nodes[to].port.to_string();
        let mut migrate: Vec<&[u8]> = vec![b"MIGRATE", b"127.0.0.1", port.as_bytes(), b"", b"0", b"5000", b"KEYS"];
        migrate.extend(&keys);
        let reply = show(&wire.request(&migrate)?);
        ensure!(reply == "OK" || reply == "NOKEY", "MIGRATE is answered {reply}");
        Ok(keys.len())
    }

    /// Gives a slot to its new owner; keys that are left at the old one are deleted by it.
    pub fn end_move(&self, slot: u16, to: usize) -> Result<()> {
        let id = &self.nodes[to].id;
        // The new owner first, as the documentation of SETSLOT has it.
        self.nodes[to].ok(&format!("CLUSTER SETSLOT {slot} NODE {id}"))?;
        // Replicas follow their primaries.
        for index in self.primaries_now()?.into_iter().filter(|index| *index != to) {
            self.nodes[index].ok(&format!("CLUSTER SETSLOT {slot} NODE {id}"))?;
        }
        Ok(())
    }

    /// A node takes a slot from its owner, who learns of it from the others and drops the keys that it has.
    pub fn take_slot(&self, slot: u16, to: usize) -> Result<()> {
        let from = (0..self.primaries).find(|index| *index != to).context("there is only one node")?;
        self.nodes[to].ok(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.nodes[from].id))?;
        self.nodes[to].ok(&format!("CLUSTER SETSLOT {slot} NODE {}", self.nodes[to].id))?;
        self.settle()
    }

    /// Moves a slot with its keys.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) -> Result<()> {
        self.begin_move(slot, from, to)?;
        while self.move_keys(slot, from, to)? > 0 {}
        self.end_move(slot, to)
    }
}

impl Member {
    fn start(plan: &Plan, secrets: Option<&Secrets>) -> Result<Self> {
        let seed = thread::current().id();
        let mut random = Random::new(std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), seed));
        let mut last = None;
        for _ in 0..20 {
            let ports = [(); 2].map(|()| 12_000 + u16::try_from(random.next_u64() % 20_000).unwrap_or(0));
            if ports[0] == ports[1] || ports.iter().any(|port| TcpListener::bind(("127.0.0.1", *port)).is_err()) {
                continue;
            }
            let arguments = arguments(ports, secrets);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            match RedisServer::start_program_with(&plan.program, &arguments) {
                Ok(server) => {
                    let mut member = Self { server, port: ports[0], bus: ports[1], id: String::new() };
                    member.id = member.ask("CLUSTER MYID")?;
                    return Ok(member);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no free ports"))).context("start a node of a cluster")
    }

    /// `host:port`.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A command to this node, whoever has the key.
    pub fn ask(&self, command: &str) -> Result<String> {
        let args: Vec<&str> = command.split_whitespace().collect();
        Ok(show(&self.server.command(&args)?))
    }

    fn ok(&self, command: &str) -> Result<()> {
        let reply = self.ask(command)?;
        ensure!(reply == "OK", "{command} is answered {reply}");
        Ok(())
    }

    /// Who has which slots, as this node sees it.
    fn owners(&self) -> Result<String> {
        let nodes = self.ask("CLUSTER NODES")?;
        let mut owners: Vec<String> = nodes
            .lines()
            .filter_map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                (words.len() > 8).then(|| format!("{} {}", words[0], words[8..].join(" ")))
            })
            .collect();
        owners.sort();
        Ok(owners.join("; "))
    }
}

/// A node's command line: its port, that of its bus, and its secrets if it speaks TLS.
fn arguments([port, bus]: [u16; 2], secrets: Option<&Secrets>) -> Vec<String> {
    let clients = match secrets {
        None => format!("--port {port}"),
        Some(secrets) => {
            let [certificate, key, ca] = ["node.crt", "node.key", "ca.crt"].map(|name| secrets.file(name));
            format!(
                "--tls-port {port} --tls-cluster yes --tls-replication yes --tls-auth-clients no \
                 --tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {ca}"
            )
        }
    };
    let arguments = format!(
        "{clients} --bind 127.0.0.1 --cluster-enabled yes --cluster-port {bus} --cluster-node-timeout {} \
         --cluster-replica-validity-factor 0 --repl-diskless-sync-delay 0",
        NODE_TIMEOUT.as_millis()
    );
    arguments.split_whitespace().map(str::to_owned).collect()
}

/// Where a redirection leads: its kind and the port.
fn moved(reply: &str) -> Option<(&str, u16)> {
    let mut words = reply.strip_prefix("(error) ")?.split(' ');
    let kind = words.next().filter(|kind| matches!(*kind, "MOVED" | "ASK"))?;
    let port = words.nth(1)?.rsplit_once(':')?.1.parse().ok()?;
    Some((kind, port))
}
