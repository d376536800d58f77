//! Whether two replies to one request say the same. Byte for byte, but where the answer is the server's to choose: the
//! order of hash tables, random members, times and numbers of the moment.

use caddy_resp::Value;

use crate::plan::Args;

/// Two servers asked one after the other may differ by so much: seconds, milliseconds.
const SECONDS: i64 = 15;
const MILLIS: i64 = 15_000;

/// What counts as the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    Exact,
    /// The same elements in any order.
    Unordered,
    /// The same pairs in any order.
    Pairs,
    /// A cursor, and elements or pairs in any order.
    Scan(&'static Self),
    /// Positive numbers may differ by so much.
    Within(i64),
    /// The same types and lengths.
    Shape,
    /// But for the connection's number and the server's modules.
    Hello,
    /// Both errors, or neither.
    Success,
}

/// How the replies to `request` are compared.
pub(crate) fn measure(request: &Args) -> Measure {
    let name = String::from_utf8_lossy(&request[0]).to_lowercase();
    // From the beginning, and all of it.
    let cursor = request.get(if name == "scan" { 1 } else { 2 });
    let complete = cursor.is_some_and(|cursor| cursor == b"0") && request.iter().any(|argument| argument == b"1000");
    match name.as_str() {
        "smembers" | "sdiff" | "sinter" | "sunion" | "keys" | "hkeys" | "hvals" | "spop" | "pubsub" => {
            Measure::Unordered
        }
        // Of equal weights, the one that comes first in a hash table.
        "sort" | "sort_ro" if request.iter().any(|argument| argument == b"BY") => Measure::Unordered,
        "hgetall" => Measure::Pairs,
        // A map of two, which has no order in a script's reply.
        "lcs" if request.iter().any(|argument| argument.eq_ignore_ascii_case(b"IDX")) => Measure::Pairs,
        "hello" => Measure::Hello,
        "scan" | "sscan" if complete => Measure::Scan(&Measure::Unordered),
        "hscan" | "zscan" if complete => Measure::Scan(&Measure::Pairs),
        "ttl" | "expiretime" => Measure::Within(SECONDS),
        "pttl" | "pexpiretime" => Measure::Within(MILLIS),
        // Idle times are within.
        "httl" | "hpttl" | "hexpiretime" | "hpexpiretime" | "xpending" | "xinfo" | "randomkey" | "srandmember"
        | "hrandfield" | "zrandmember" | "time" => Measure::Shape,
        // A part of what there is, numbers of the moment, and what hash tables put in order.
        "scan" | "sscan" | "hscan" | "zscan" | "lastsave" | "memory" | "dump" | "command" | "function" | "dbsize"
        | "role" => Measure::Success,
        "object" if request.get(1).is_some_and(|name| !name.eq_ignore_ascii_case(b"encoding")) => Measure::Success,
        _ => Measure::Exact,
    }
}

/// Whether `ours` and `theirs`, both decoded, say the same.
pub(crate) fn same(measure: Measure, ours: &Value<'_>, theirs: &Value<'_>) -> bool {
    if ours.as_error().is_some() || theirs.as_error().is_some() {
        return ours == theirs
            || (measure == Measure::Success && ours.as_error().is_some() == theirs.as_error().is_some());
    }
    match measure {
        // Not `==`: nan is not nan.
        Measure::Exact => format!("{ours:?}") == format!("{theirs:?}"),
        Measure::Unordered => sorted(ours, 1) == sorted(theirs, 1),
        Measure::Pairs => sorted(ours, 2) == sorted(theirs, 2),
        Measure::Scan(inner) => match (ours.as_elements(), theirs.as_elements()) {
            (Some([cursor, ours]), Some([other, theirs])) => cursor == other && same(*inner, ours, theirs),
            _ => false,
        },
        Measure::Within(most) => match (ours, theirs) {
            (Value::Integer(a), Value::Integer(b)) if *a >= 0 && *b >= 0 => a.abs_diff(*b) <= most.unsigned_abs(),
            _ => ours == theirs,
        },
        Measure::Shape => shape(ours) == shape(theirs),
        Measure::Hello => {
            let said = |value: &Value<'_>, name: &str| format!("{:?}", value.field(name.as_bytes()));
            let names = ["server", "version", "proto", "mode", "role"];
            kind(ours) == kind(theirs) && names.iter().all(|name| said(ours, name) == said(theirs, name))
        }
        Measure::Success => true,
    }
}

/// The kind of an aggregate and its elements, `step` at a time, in a fixed order.
fn sorted(value: &Value<'_>, step: usize) -> (std::mem::Discriminant<Value<'static>>, Vec<String>) {
    let mut parts: Vec<String> = match value {
        Value::Map(pairs) => pairs.iter().map(|pair| format!("{pair:?}")).collect(),
        // Pairs may have come as pairs already.
        Value::Array(elements) | Value::Set(elements) | Value::Push(elements) => {
            elements.chunks(step).map(|chunk| format!("{chunk:?}")).collect()
        }
        other => vec![format!("{other:?}")],
    };
    parts.sort_unstable();
    // The lifetime is no part of the kind.
    (kind(value), parts)
}

fn kind(value: &Value<'_>) -> std::mem::Discriminant<Value<'static>> {
    std::mem::discriminant(&match value {
        Value::Map(_) => Value::Map(Vec::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        Value::Set(_) => Value::Set(Vec::new()),
        Value::Push(_) => Value::Push(Vec::new()),
        Value::Attribute(_) => Value::Attribute(Vec::new()),
        Value::Null => Value::Null,
        Value::Integer(_) => Value::Integer(0),
        Value::Double(_) => Value::Double(b""),
        Value::Boolean(_) => Value::Boolean(false),
        Value::Error(_) | Value::BlobError(_) => Value::Error(b""),
        Value::Simple(_) => Value::Simple(b""),
        Value::Bulk(_) | Value::BigNumber(_) | Value::Verbatim { .. } => Value::Bulk(b""),
    })
}

fn shape(value: &Value<'_>) -> String {
    match value {
        Value::Map(pairs) => {
            let pairs: Vec<String> = pairs.iter().map(|(name, value)| shape(name) + &shape(value)).collect();
            format!("%[{}]", pairs.join(","))
        }
        Value::Array(elements) | Value::Set(elements) | Value::Push(elements) => {
            let elements: Vec<String> = elements.iter().map(shape).collect();
            format!("*[{}]", elements.join(","))
        }
        other => format!("{:?}", kind(other)),
    }
}
