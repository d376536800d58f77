//! What a Lease says, and its JSON. Times in it are for people: nothing is decided by them.

use serde_json::{Value, json};
use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The spec of a Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; nobody after a release.
    pub holder: Option<String>,
    /// How long others wait after they saw it change.
    pub duration: Duration,
    /// Since when it is held, RFC 3339.
    pub acquired: Option<String>,
    /// When it was last renewed, RFC 3339.
    pub renewed: Option<String>,
    /// How often it went from one holder to another.
    pub transitions: u32,
}

/// A Lease as the server told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its `uid`: another one is another Lease, made after a deletion.
    pub uid: String,
    /// Its `resourceVersion`.
    pub version: String,
    /// When it was made, in seconds since 1970; 0 if the server does not say.
    pub created: u64,
    /// Its spec.
    pub record: Record,
    /// Its annotations, for whoever keeps something there.
    pub annotations: Vec<(String, String)>,
}

/// Reads a Lease object.
///
/// # Errors
/// What is missing, if it is none.
///
/// ```
/// let lease = serde_json::json!({
///     "metadata": {"uid": "u", "resourceVersion": "7"},
///     "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15},
/// });
/// let found = caddy_lease::snapshot(&lease).unwrap();
/// assert_eq!((found.version.as_str(), found.record.holder.as_deref()), ("7", Some("a")));
/// ```
pub fn snapshot(object: &Value) -> Result<Snapshot, &'static str> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    Ok(Snapshot {
        uid: text(&metadata["uid"]).ok_or("a Lease without uid")?,
        version: text(&metadata["resourceVersion"]).ok_or("a Lease without resourceVersion")?,
        created: metadata["creationTimestamp"].as_str().and_then(seconds).unwrap_or(0),
        record: Record {
            holder: text(&spec["holderIdentity"]),
            duration: Duration::from_secs(number(&spec["leaseDurationSeconds"]).into()),
            acquired: text(&spec["acquireTime"]),
            renewed: text(&spec["renewTime"]),
            transitions: number(&spec["leaseTransitions"]),
        },
        annotations: annotations.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect(),
    })
}

/// The merge patch (`application/merge-patch+json`) that replaces a Lease's spec if its version is still `version`, and
/// leaves labels, annotations and owners alone. A release leaves the holder empty.
pub fn patch(version: &str, record: &Record) -> Value {
    json!({
        "metadata": {"resourceVersion": version},
        "spec": {
            "holderIdentity": record.holder.as_deref().unwrap_or_default(),
            "leaseDurationSeconds": record.duration.as_secs().max(1),
            "acquireTime": record.acquired,
            "renewTime": record.renewed,
            "leaseTransitions": record.transitions,
        },
    })
}

/// A wall-clock time as Kubernetes writes it into Leases (`MicroTime`).
///
/// ```
/// let time = std::time::UNIX_EPOCH + std::time::Duration::from_micros(951_782_400_000_001);
/// assert_eq!(caddy_lease::timestamp(time), "2000-02-29T00:00:00.000001Z");
/// ```
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a date of the Gregorian calendar: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// The whole seconds since 1970 of a time as the API server writes it: RFC 3339, in UTC.
///
/// ```
/// assert_eq!(caddy_lease::seconds("2000-02-29T00:00:00Z"), Some(951_782_400));
/// ```
pub fn seconds(time: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| time.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year < 1970 || !(1..=12).contains(&month) || !time.ends_with('Z') {
        return None;
    }
    // The way back of `timestamp`, by the same source.
    let (year, month) = (year - u64::from(month <= 2), if month > 2 { month - 3 } else { month + 9 });
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// An identity that no other process has, also not the next one of the same name.
pub fn unique(name: &str) -> String {
    format!("{name}_{:016x}", RandomState::new().hash_one(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let record = Record {
            holder: Some("a_1".into()),
            duration: Duration::from_secs(15),
            acquired: Some("2026-01-01T00:00:00.000000Z".into()),
            renewed: Some("2026-01-01T00:00:05.000000Z".into()),
            transitions: 3,
        };
        let mut object = patch("7", &record);
        object["metadata"]["uid"] = json!("u");
        object["metadata"]["annotations"] = json!({"n": "1"});
        let found = snapshot(&object).unwrap();
        assert_eq!((found.record, found.version.as_str()), (record, "7"));
        assert_eq!(found.annotations, [("n".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn a_lease_that_was_never_held_is_one_without_a_holder() {
        let object = json!({"metadata": {"uid": "u", "resourceVersion": "1"}});
        assert_eq!(snapshot(&object).unwrap().record, Record::default());
        assert!(snapshot(&json!({"metadata": {}})).is_err());
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_868_799), "2000-02-29T23:59:59.000000Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00.000000Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59.000000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn times_are_read_back() {
        for at in [0, 68_169_599, 951_868_799, 951_868_800, 1_798_761_599, 4_107_542_400] {
            assert_eq!(seconds(&timestamp(UNIX_EPOCH + Duration::from_secs(at))), Some(at));
        }
        for text in ["", "2026", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00+01:00", "x026-01-01T00:00:00Z"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn identities_differ_under_one_name() {
        assert_ne!(unique("pod"), unique("pod"));
    }
}
