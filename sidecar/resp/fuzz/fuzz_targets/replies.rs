//! Any split of any bytes gives the same frames; the decoder agrees with the scanner on lengths.
#![no_main]

use caddy_resp::{Frame, ReplyError, ReplyScanner, Value};
use libfuzzer_sys::fuzz_target;

fn frames(stream: &[u8], piece: usize) -> (Vec<Frame>, Option<ReplyError>) {
    let mut scanner = ReplyScanner::default();
    let (mut found, mut begin) = (Vec::new(), 0);
    for end in (0..stream.len()).step_by(piece).chain([stream.len()]) {
        loop {
            match scanner.scan(&stream[begin.min(end)..end]) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    found.push(frame);
                    begin += frame.len;
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let (whole, error) = frames(stream, usize::MAX);
    assert_eq!(frames(stream, usize::from(*piece).max(1)), (whole.clone(), error));
    if let Ok((_, len)) = Value::decode(stream) {
        assert_eq!(whole.first().map(|frame| frame.len), Some(len));
    }
});
