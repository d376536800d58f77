//! Bytes as PostgreSQL's text, json and bytea: the same on the wire, but for jsonb's version byte.

use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

/// What can be a value.
pub(super) const VALUES: [Type; 5] = [Type::BYTEA, Type::TEXT, Type::VARCHAR, Type::JSON, Type::JSONB];

/// The version in front of a jsonb's text.
const JSONB: u8 = 1;

/// Whether `of` is an array of one of `members`.
pub(super) fn array_of(of: &Type, members: &[Type]) -> bool {
    matches!(of.kind(), Kind::Array(member) if members.contains(member))
}

/// One key or value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<'a>(pub(super) &'a [u8]);

type BoxError = Box<dyn std::error::Error + Sync + Send>;

impl<'a> FromSql<'a> for Column<'a> {
    fn from_sql(of: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        if *of != Type::JSONB {
            return Ok(Self(raw));
        }
        match raw.split_first() {
            Some((&JSONB, text)) => Ok(Self(text)),
            _ => Err("a jsonb of an unknown version".into()),
        }
    }

    fn accepts(of: &Type) -> bool {
        VALUES.contains(of)
    }
}

impl ToSql for Column<'_> {
    fn to_sql(&self, of: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        if *of == Type::JSONB {
            out.extend_from_slice(&[JSONB]);
        }
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        VALUES.contains(of)
    }

    to_sql_checked!();
}
