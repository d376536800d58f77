//! The webhook's certificates: an own authority in a Secret, rotated with overlap, hot-swapped.
//!
//! [`authority`] is pure (time comes in), [`keeper`] keeps Secret, caBundle and serving certificate in step,
//! [`resolver`] hands the present certificate to each TLS handshake. Private keys leave this process only into the
//! operator's own Secret.

pub mod authority;
pub mod keeper;
pub mod resolver;
