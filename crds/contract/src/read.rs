//! From text to [`Config`], collecting every fault on the way.
//!
//! serde stops at the first field of the wrong type. Here the fault is noted, the field taken out of the tree (so
//! that its default stands in) and the tree read again: the file's faults of type, of meaning and its unknown fields
//! come out together.

use crate::{Config, Faults, RawConfig};
use serde::Deserialize as _;
use serde_path_to_error::Segment;
use serde_yaml::Value;

/// Faults of type that are looked for before giving up on a file that is none of ours.
const MAX_TYPE_FAULTS: usize = 64;

/// A file that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// What it says.
    pub config: Config,
    /// Paths that this version does not know; only ever filled from the operator's files. To be logged and reported.
    pub ignored: Vec<String>,
}

/// Reads a configuration file as a whole.
///
/// A file with a top-level `configGeneration` is the operator's: unknown fields are ignored and returned. Any other
/// was written by hand: an unknown field is a fault.
///
/// # Errors
/// Every fault of the file, or the one place where it is not YAML.
pub fn parse(text: &str) -> Result<Parsed, Faults> {
    let mut faults = Faults::default();
    let tree = match serde_yaml::from_str::<Value>(text) {
        Ok(Value::Null) => Value::Mapping(serde_yaml::Mapping::new()),
        Ok(tree @ Value::Mapping(_)) => tree,
        Ok(_) => {
            faults.add("", "the file must be a YAML mapping such as `l2: {maxBytes: 64Mi}`");
            return Err(faults);
        }
        Err(error) => {
            faults.add("", format!("not YAML: {error}"));
            return Err(faults);
        }
    };
    let by_operator = tree.get("configGeneration").is_some();
    let (raw, unknown) = shape(tree, &mut faults);
    if !by_operator {
        for path in &unknown {
            faults.add(path.clone(), "unknown field; check its spelling and its place, or remove it");
        }
    }
    match raw.parse() {
        Ok(config) => faults.or(Parsed { config, ignored: unknown }),
        Err(more) => {
            faults.extend(more);
            Err(faults)
        }
    }
}

/// The tree as [`RawConfig`], with fields of the wrong type replaced by their defaults, and the unknown paths.
fn shape(mut tree: Value, faults: &mut Faults) -> (RawConfig, Vec<String>) {
    for _ in 0..MAX_TYPE_FAULTS {
        let mut unknown = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(ignored_path(&path));
        let mut track = serde_path_to_error::Track::new();
        let reader = serde_ignored::Deserializer::new(tree.clone(), &mut note);
        match RawConfig::deserialize(serde_path_to_error::Deserializer::new(reader, &mut track)) {
            Ok(raw) => return (raw, unknown),
            Err(error) => {
                let path = track.path();
                let segments: Vec<Segment> = path.iter().cloned().collect();
                faults.add(segments_path(&segments), error.to_string());
                if !remove(&mut tree, &segments) {
                    break;
                }
            }
        }
    }
    (RawConfig::default(), Vec::new())
}

/// Takes the innermost mapping entry on the path out of the tree; false when there is none.
fn remove(tree: &mut Value, path: &[Segment]) -> bool {
    let Some(last) = path.iter().rposition(|segment| matches!(segment, Segment::Map { .. })) else { return false };
    let mut at = tree;
    for segment in &path[..last] {
        let next = match segment {
            Segment::Map { key } => at.get_mut(key.as_str()),
            Segment::Seq { index } => at.get_mut(*index),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        let Some(next) = next else { return false };
        at = next;
    }
    match (&path[last], at) {
        (Segment::Map { key }, Value::Mapping(map)) => map.remove(key.as_str()).is_some(),
        _ => false,
    }
}

fn segments_path(segments: &[Segment]) -> String {
    segments.iter().fold(String::new(), |path, segment| match segment {
        Segment::Map { key } => join(&path, key),
        Segment::Seq { index } => format!("{path}[{index}]"),
        Segment::Enum { .. } | Segment::Unknown => path,
    })
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", ignored_path(parent)),
        Path::Map { parent, key } => join(&ignored_path(parent), key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            ignored_path(parent)
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
