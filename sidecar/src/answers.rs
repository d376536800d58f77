//! Short answers that several modules read or give.

use bytes::Bytes;
use caddy_remote::{ConnectError, Loss};
use caddy_resp::{Protocol, Value, encode};

/// The number that a reply is, if it is one.
pub(crate) fn integer(frame: &[u8]) -> Option<i64> {
    match Value::decode(frame).ok()?.0 {
        Value::Integer(value) => Some(value),
        _ => None,
    }
}

/// What an app is told about a command that Redis did not answer.
pub(crate) fn error_reply(loss: &Loss) -> Bytes {
    let mut out = Vec::new();
    match loss {
        Loss::NotSent(error) => match &**error {
            ConnectError::Select { message } => encode::error(&mut out, message),
            error => encode::error(&mut out, format!("NOTREADY {error}")),
        },
        lost @ Loss::Lost(_) => {
            encode::error(
                &mut out,
                format!(
                    "NOTREADY {lost}; the command may or may not have been executed: see whether Redis answers, and what a write did before repeating it"
                ),
            );
        }
    }
    out.into()
}

/// A null, as `protocol` writes it.
pub(crate) const fn nil(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Resp2 => b"$-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    }
}
