//! Deadlines: the EXPIRE family, the TTL family, PERSIST.

use caddy_resp::encode;

use super::{
    Call,
    arguments::{Fault, integer, is},
};

/// When EXPIRE may change the deadline.
#[derive(Debug, Default, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "four options, each given or not")]
struct Conditions {
    if_none: bool,
    if_some: bool,
    if_greater: bool,
    if_less: bool,
}

impl Conditions {
    fn parse(options: &[&[u8]]) -> Result<Self, Fault> {
        let mut conditions = Self::default();
        for option in options {
            let named = [
                ("NX", &mut conditions.if_none),
                ("XX", &mut conditions.if_some),
                ("GT", &mut conditions.if_greater),
                ("LT", &mut conditions.if_less),
            ];
            let (_, condition) = named
                .into_iter()
                .find(|(name, _)| is(option, name))
                .ok_or_else(|| Fault::UnsupportedOption(String::from_utf8_lossy(option).into_owned()))?;
            *condition = true;
        }
        if conditions.if_none && (conditions.if_some || conditions.if_greater || conditions.if_less) {
            return Err(Fault::NxWithOthers);
        }
        if conditions.if_greater && conditions.if_less {
            return Err(Fault::GtWithLt);
        }
        Ok(conditions)
    }

    /// Whether a key with this deadline may get the new one; no deadline counts as infinitely late.
    fn allow(self, current: Option<i64>, new: i64) -> bool {
        !(self.if_none && current.is_some()
            || self.if_some && current.is_none()
            || self.if_greater && current.is_none_or(|current| new <= current)
            || self.if_less && current.is_some_and(|current| new >= current))
    }
}

pub(super) fn expire(call: &mut Call<'_>) -> Result<(), Fault> {
    change(call, 1000, call.now)
}

pub(super) fn pexpire(call: &mut Call<'_>) -> Result<(), Fault> {
    change(call, 1, call.now)
}

pub(super) fn expireat(call: &mut Call<'_>) -> Result<(), Fault> {
    change(call, 1000, 0)
}

pub(super) fn pexpireat(call: &mut Call<'_>) -> Result<(), Fault> {
    change(call, 1, 0)
}

/// Times may be in the past: then the key goes at once.
fn change(call: &mut Call<'_>, unit: i64, from: i64) -> Result<(), Fault> {
    let key = call.args[1];
    let conditions = Conditions::parse(&call.args[3..])?;
    let deadline = integer(call.args[2])?
        .checked_mul(unit)
        .and_then(|time| time.checked_add(from))
        .ok_or(Fault::InvalidExpireTime(call.name))?;
    let now = call.now;
    let db = call.db();
    let changed = db.entry(key).is_some_and(|entry| conditions.allow(entry.deadline, deadline));
    if changed && deadline <= now {
        db.remove(key);
    } else if changed {
        db.set_deadline(key, Some(deadline));
    }
    encode::integer(call.out, i64::from(changed));
    Ok(())
}

pub(super) fn ttl(call: &mut Call<'_>) -> Result<(), Fault> {
    let now = call.now;
    reply_deadline(call, |deadline| ((deadline - now).max(0) + 500) / 1000)
}

pub(super) fn pttl(call: &mut Call<'_>) -> Result<(), Fault> {
    let now = call.now;
    reply_deadline(call, |deadline| (deadline - now).max(0))
}

pub(super) fn expiretime(call: &mut Call<'_>) -> Result<(), Fault> {
    reply_deadline(call, |deadline| deadline.saturating_add(500) / 1000)
}

pub(super) fn pexpiretime(call: &mut Call<'_>) -> Result<(), Fault> {
    reply_deadline(call, |deadline| deadline)
}

fn reply_deadline(call: &mut Call<'_>, show: impl Fn(i64) -> i64) -> Result<(), Fault> {
    let key = call.args[1];
    let shown = match call.db().entry(key) {
        None => -2,
        Some(entry) => entry.deadline.map_or(-1, show),
    };
    encode::integer(call.out, shown);
    Ok(())
}

pub(super) fn persist(call: &mut Call<'_>) -> Result<(), Fault> {
    let key = call.args[1];
    let had = call.db().entry(key).is_some_and(|entry| entry.deadline.is_some());
    if had {
        call.db().set_deadline(key, None);
    }
    encode::integer(call.out, i64::from(had));
    Ok(())
}
