//! RESP2 and RESP3 frames, sans-IO.
