//! A type that changes over time, while old values are still in L3.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::CodecConfig;
use super::dictionary::Dictionaries;
use super::encoded::EncodedData;
use super::envelope::Header;
use super::keyspace::KeyspaceCodec;
use super::typed::{Codec, CodecError, deserialize, open, serialize};

type Upgrade<T> = Box<dyn Fn(&[u8]) -> Result<T, CodecError> + Send + Sync>;

/// Writes the current schema version of `T`, reads every version it has an upgrade for.
///
/// The version stands in the envelope, so the choice is automatic. A version without an upgrade, such as a newer one
/// after a rollback, is an error, hence a miss: never a value read in the wrong shape.
///
/// ```
/// use caddy_engine::codec::{Codec, CodecConfig, VersionedCodec};
/// # use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct UserV1 { name: String }
/// #[derive(Serialize, Deserialize, Debug, PartialEq)]
/// struct User { first: String, last: String }
///
/// let old = VersionedCodec::<UserV1>::new(1, CodecConfig::default());
/// let stored = old.encode(b"user:1", &UserV1 { name: "Ada Lovelace".into() })?;
///
/// let new = VersionedCodec::<User>::new(2, CodecConfig::default()).upgrade(1, |user: UserV1| {
///     let (first, last) = user.name.split_once(' ').unwrap_or((&user.name, ""));
///     User { first: first.into(), last: last.into() }
/// })?;
/// assert_eq!(new.decode(b"user:1", stored.as_bytes())?, User { first: "Ada".into(), last: "Lovelace".into() });
///
/// // The old build, next to the new one during a rollout, takes the new one's values for a miss.
/// let stored = new.encode(b"user:1", &User { first: "Ada".into(), last: "King".into() })?;
/// assert!(old.decode(b"user:1", stored.as_bytes()).is_err());
/// # Ok::<(), caddy_engine::codec::CodecError>(())
/// ```
pub struct VersionedCodec<T> {
    values: Arc<KeyspaceCodec>,
    current: u32,
    upgrades: BTreeMap<Option<u32>, Upgrade<T>>,
    of: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> VersionedCodec<T> {
    /// Writes `T` as schema version `current`; reads that one only, until upgrades are declared.
    pub fn new(current: u32, config: CodecConfig) -> Self {
        Self::within(current, Arc::new(KeyspaceCodec::new(config, Arc::new(Dictionaries::default()))))
    }

    /// The same for the values of a keyspace: its rules, its dictionaries, its counters.
    pub fn within(current: u32, values: Arc<KeyspaceCodec>) -> Self {
        Self { values, current, upgrades: BTreeMap::new(), of: PhantomData }
    }

    /// Reads version `schema`, whose shape is `Old`. Versions may also be newer than the current one: to be able to
    /// roll back.
    ///
    /// # Errors
    ///
    /// The version is the current one or was declared before.
    pub fn upgrade<Old: DeserializeOwned + 'static>(
        self,
        schema: u32,
        upgrade: impl Fn(Old) -> T + Send + Sync + 'static,
    ) -> Result<Self, CodecError> {
        self.declare(Some(schema), move |old| Ok::<_, Infallible>(upgrade(old)))
    }

    /// The same with an upgrade that may refuse: the value is a miss then.
    ///
    /// # Errors
    ///
    /// The version is the current one or was declared before.
    pub fn try_upgrade<Old: DeserializeOwned + 'static, E: Display>(
        self,
        schema: u32,
        upgrade: impl Fn(Old) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, CodecError> {
        self.declare(Some(schema), upgrade)
    }

    /// Reads what a [`BinaryCodec`](super::BinaryCodec) wrote, which bears no version, as `Old`.
    ///
    /// # Errors
    ///
    /// That was declared before.
    pub fn upgrade_unversioned<Old: DeserializeOwned + 'static>(
        self,
        upgrade: impl Fn(Old) -> T + Send + Sync + 'static,
    ) -> Result<Self, CodecError> {
        self.declare(None, move |old| Ok::<_, Infallible>(upgrade(old)))
    }

    /// The version that is written.
    pub fn current(&self) -> u32 {
        self.current
    }

    fn declare<Old: DeserializeOwned + 'static, E: Display>(
        mut self,
        schema: Option<u32>,
        upgrade: impl Fn(Old) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, CodecError> {
        if schema == Some(self.current) || self.upgrades.contains_key(&schema) {
            return Err(CodecError::DuplicateSchema { schema });
        }
        let upgrade: Upgrade<T> = Box::new(move |bytes| {
            upgrade(deserialize(bytes)?).map_err(|reason| CodecError::Upgrade { schema, reason: reason.to_string() })
        });
        self.upgrades.insert(schema, upgrade);
        Ok(self)
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> for VersionedCodec<T> {
    /// The header's own schema version is replaced by the codec's.
    fn encode_with(&self, key: &[u8], header: &Header<'_>, value: &T) -> Result<EncodedData, CodecError> {
        let bytes = serialize(value)?;
        Ok(self.values.seal(key, &Header { schema: Some(self.current), ..*header }, &bytes))
    }

    fn decode_with<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<(T, Header<'a>), CodecError> {
        let (header, bytes) = open(&self.values, key, stored)?;
        let value = if header.schema == Some(self.current) {
            deserialize(&bytes)?
        } else {
            let unknown = || CodecError::UnknownSchema { schema: header.schema, current: self.current };
            self.upgrades.get(&header.schema).ok_or_else(unknown)?(&bytes)?
        };
        Ok((value, header))
    }
}
