//! What a node of a cluster believes of itself: the line `myself` of `CLUSTER NODES`.

/// A node's own view of its role, its configuration epoch and its slots. While it stays the same, the node has not lost
/// (nor lost and regained) a slot: whoever takes a slot over does so under a new epoch of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whether it says that it is a primary that nobody holds for failed.
    pub is_primary: bool,
    epoch: u64,
    /// As the node prints them; without slots that are only on their way.
    slots: String,
}

impl Standing {
    /// Reads a reply to `CLUSTER NODES`: `<id> <address> <flags> <primary> <ping> <pong> <epoch> <link> <slot>…` in lines.
    pub fn parse(nodes: &[u8]) -> Option<Self> {
        let words = myself(nodes)?;
        let has = |name: &str| words.get(2).is_some_and(|flags| flags.split(',').any(|flag| flag == name));
        let slots: Vec<&str> = words.iter().skip(8).copied().filter(|slot| !slot.starts_with('[')).collect();
        Some(Self {
            is_primary: has("master") && !has("fail"),
            epoch: words.get(6)?.parse().ok()?,
            slots: slots.join(" "),
        })
    }
}

/// Whether a node that answers `CLUSTER NODES` so has a slot on its way to another one, which may have keys of it already.
pub fn gives_slots_away(nodes: &[u8]) -> bool {
    myself(nodes).is_some_and(|words| words.iter().skip(8).any(|slot| slot.starts_with('[') && slot.contains("->-")))
}

/// The words of the line about the node itself.
fn myself(nodes: &[u8]) -> Option<Vec<&str>> {
    let text = std::str::from_utf8(nodes).ok()?;
    let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find(|words| words.get(2).is_some_and(|flags| flags.split(',').any(|flag| flag == "myself")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_role_epoch_and_slots() {
        let standing = |line: &str| {
            let others = "e 127.0.0.1:7001@17001,host master - 0 1 2 connected 5461-10922\n";
            Standing::parse(format!("{others}{line}\n").as_bytes())
        };
        let line = "a 127.0.0.1:7000@17000,,shard-id=5 myself,master - 0 0 1 connected 0-5460 5470";
        let before = standing(line).unwrap();
        assert!(before.is_primary);
        let migrating = format!("{line} [93-<-67ed] [77->-e7d1]");
        assert_eq!(standing(&migrating).as_ref(), Some(&before), "a slot on its way is still here");
        assert!(gives_slots_away(migrating.as_bytes()) && !gives_slots_away(line.as_bytes()));
        assert!(!gives_slots_away(format!("{line} [93-<-67ed]").as_bytes()), "it gets one");
        assert_ne!(standing(&line.replace("0-5460", "1-5460")).as_ref(), Some(&before));
        assert_ne!(standing(&line.replace(" 1 connected", " 4 connected")).as_ref(), Some(&before));
        assert!(!standing(&line.replace("master", "slave")).unwrap().is_primary);
        assert_eq!(standing(""), None);
        assert_eq!(Standing::parse(b"-ERR This instance has cluster support disabled"), None);
    }
}
