//! What a key is called below the tiers: the bytes that L3 knows it by and that its invalidations carry.
//!
//! One function for reading, writing and invalidating, so that a push can never miss the copy it is about.

use bytes::Bytes;

use crate::hash::KeyHash;

/// A key, or a borrowed form of one, with a name in L3.
///
/// Forms that are equal must have the same name, and different keys different ones.
///
/// ```
/// use caddy_engine::Name;
///
/// #[derive(Clone, PartialEq, Eq)]
/// struct UserId(u64);
///
/// impl Name for UserId {
///     fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T {
///         then(format!("user:{}", self.0).as_bytes())
///     }
/// }
///
/// assert_eq!(UserId(7).key_hash(), "user:7".key_hash());
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no name in L3: `Name` is not implemented for it",
    label = "what bytes does L3 know it by?",
    note = "implement `caddy_engine::Name`: equal keys have one name, different keys different ones"
)]
pub trait Name {
    /// Calls `then` with the name.
    fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T;

    /// The hash that selects the key's stamp.
    fn key_hash(&self) -> KeyHash {
        self.with_name(KeyHash::of)
    }
}

impl<N: Name + ?Sized> Name for &N {
    fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T {
        (**self).with_name(then)
    }
}

macro_rules! named_by_its_bytes {
    ($($type:ty),*) => {$(
        impl Name for $type {
            #[inline]
            fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T {
                then(AsRef::<[u8]>::as_ref(self))
            }
        }
    )*};
}

named_by_its_bytes!(str, String, [u8], Vec<u8>, Box<[u8]>, Bytes);

impl Name for Box<str> {
    #[inline]
    fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T {
        then(self.as_bytes())
    }
}

/// Room for the decimal digits of any integer and a sign.
const DIGITS: usize = 40;

macro_rules! named_by_its_digits {
    ($($type:ty),*) => {$(
        impl Name for $type {
            #[inline]
            fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T {
                use std::io::Write as _;
                let mut digits = [0; DIGITS];
                let mut rest = &mut digits[..];
                // The buffer has room for every integer.
                let _ = write!(rest, "{self}");
                let left = rest.len();
                then(&digits[..DIGITS - left])
            }
        }
    )*};
}

named_by_its_digits!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: &(impl Name + ?Sized)) -> Vec<u8> {
        key.with_name(<[u8]>::to_vec)
    }

    #[test]
    fn borrowed_and_owned_forms_have_one_name() {
        assert_eq!(name("user:1"), b"user:1");
        assert_eq!(name(&"user:1".to_owned()), b"user:1");
        assert_eq!(name(b"user:1".as_slice()), b"user:1");
        assert_eq!(name(&Bytes::from_static(b"user:1")), b"user:1");
    }

    #[test]
    fn integers_are_named_in_decimal() {
        assert_eq!(name(&7_u8), b"7");
        assert_eq!(name(&i128::MIN), i128::MIN.to_string().as_bytes());
        assert_eq!(name(&u128::MAX), u128::MAX.to_string().as_bytes());
    }
}
