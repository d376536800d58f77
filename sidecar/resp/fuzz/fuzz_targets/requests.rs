//! Any split of any bytes gives the same requests; nothing panics or over-allocates.
#![no_main]

use caddy_resp::{Limits, ProtocolError, RequestParser};
use libfuzzer_sys::fuzz_target;

type Found = (Vec<Vec<Vec<u8>>>, Option<ProtocolError>);

fn requests(stream: &[u8], piece: usize) -> Found {
    let mut parser = RequestParser::new(Limits { max_args: 64, max_bulk: 1 << 12, max_inline: 64, max_frame: 1 << 13 });
    let (mut found, mut begin) = (Vec::new(), 0);
    for end in (0..stream.len()).step_by(piece).chain([stream.len()]) {
        loop {
            let input = &stream[begin.min(end)..end];
            match parser.parse(input) {
                Ok(None) => break,
                Ok(Some(consumed)) => {
                    found.push(parser.args(input).map(<[u8]>::to_vec).collect());
                    begin += consumed;
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    assert_eq!(requests(stream, usize::from(*piece).max(1)), requests(stream, usize::MAX));
});
