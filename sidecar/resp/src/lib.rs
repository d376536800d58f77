//! RESP2 and RESP3, the protocol of Redis, without I/O.
//!
//! The crate owns the shape of bytes on the wire, on both sides of a connection: [`RequestParser`]
//! reads what clients send, [`ReplyScanner`] finds the frames that servers answer, [`Value`] decodes
//! the few of them that are looked into, [`encode`] writes all of them. It never reads a socket, never
//! knows what a command means and never copies what it only has to measure.
//!
//! Both parsers resume: they are called again with the same bytes and more behind them, look at no
//! byte twice, and allocate in proportion to what has arrived, never to what a header announces.
//! They fail by an error that ends the connection, as in Redis; they do not resynchronise.

pub mod encode;
mod inline;
mod number;
mod reply;
mod request;
mod value;

pub use encode::Protocol;
pub use number::parse_i64;
pub use reply::{Frame, FrameKind, ReplyError, ReplyLimits, ReplyScanner};
pub use request::{Limits, ProtocolError, RequestParser, Stage};
pub use value::{DecodeError, Value};
