#![no_main]

#[path = "../targets/glob.rs"]
mod glob;

libfuzzer_sys::fuzz_target!(|input: &[u8]| glob::check(input));
