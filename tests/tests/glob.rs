//! Glob patterns against `KEYS` of a real Redis.

use caddy_engine::glob::Glob;
use caddy_resp::Value;
use caddy_tests::{random::Random, redis::RedisServer};

#[test]
fn random_patterns_match_the_keys_that_redis_finds() {
    let server = RedisServer::start().unwrap();
    let mut wire = server.connect().unwrap();
    let mut random = Random::new(7);
    // Few letters, so that much matches; and all that patterns are made of.
    let alphabet = b"aab-bc]^[*?\\\0";
    let text = |random: &mut Random, longest: usize| -> Vec<u8> {
        (0..random.below(longest + 1)).map(|_| alphabet[random.below(alphabet.len())]).collect()
    };
    let mut keys: Vec<Vec<u8>> = (0..400).map(|_| text(&mut random, 6)).collect();
    keys.sort();
    keys.dedup();
    for key in &keys {
        wire.request(&[b"SET", &key[..], b""]).unwrap();
    }
    let (mut some, mut none) = (0, 0);
    for _ in 0..20_000 {
        let pattern = text(&mut random, 8);
        let reply = wire.request(&[b"KEYS", &pattern[..]]).unwrap();
        let (value, _) = Value::decode(&reply).unwrap();
        let mut theirs: Vec<&[u8]> = value.as_elements().unwrap().iter().map(|key| key.as_bytes().unwrap()).collect();
        theirs.sort_unstable();
        let glob = Glob::new(&pattern);
        let ours: Vec<&[u8]> = keys.iter().map(Vec::as_slice).filter(|key| glob.matches(key)).collect();
        let shown: Vec<String> = [&ours, &theirs]
            .iter()
            .map(|keys| keys.iter().map(|key| key.escape_ascii().to_string()).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(ours, theirs, "pattern {:?}: {shown:#?}", pattern.escape_ascii().to_string());
        if theirs.is_empty() { none += 1 } else { some += 1 }
    }
    assert!(some > 1000 && none > 1000, "the patterns are no test: {some} matched something, {none} nothing");
}
