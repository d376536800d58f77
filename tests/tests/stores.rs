//! The stores against a real PostgreSQL and a real HTTP origin.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use caddy_engine::store::{BATCH_BYTES, BackingStore, Loaded, Revalidated, StoreError, Stored};
use caddy_remote::TlsOptions;
use caddy_remote::stores::{HttpConfig, HttpStore, PostgresConfig, PostgresStore, StoreKey, StoreValue};
use caddy_tests::{certificates::Authority, origin::Origin, postgres::PostgresServer};

fn bytes(text: &str) -> StoreKey {
    StoreKey::copy_from_slice(text.as_bytes())
}

fn entries(pairs: &[(&str, &str)]) -> Vec<(StoreKey, StoreValue)> {
    pairs.iter().map(|(key, value)| (bytes(key), bytes(value))).collect()
}

fn values(loaded: Vec<Option<Stored<StoreValue>>>) -> Vec<Option<String>> {
    let text = |loaded: Stored<StoreValue>| String::from_utf8_lossy(&loaded.value).into_owned();
    loaded.into_iter().map(|loaded| loaded.map(text)).collect()
}

// === PostgreSQL ===

const TABLE: &str = "CREATE TABLE users (key text PRIMARY KEY, value bytea, ttl bigint)";

fn users(server: &PostgresServer) -> PostgresConfig {
    PostgresConfig {
        store: Some(
            "INSERT INTO users (key, value) SELECT * FROM unnest($1::text[], $2::bytea[]) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value"
                .into(),
        ),
        delete: Some("DELETE FROM users WHERE key = ANY($1)".into()),
        timeout: Duration::from_secs(5),
        ..PostgresConfig::new(server.url(), "SELECT key, value, ttl FROM users WHERE key = ANY($1)")
    }
}

#[tokio::test]
async fn a_table_is_a_store_of_batches() {
    let server = PostgresServer::start().unwrap();
    server.execute(TABLE).unwrap();
    let store = PostgresStore::new(users(&server)).unwrap();
    // The last write of a key counts; a statement may not touch a row twice.
    store.store_many(&entries(&[("user:1", "old"), ("user:2", "two"), ("user:1", "one")])).await.unwrap();
    server.execute("UPDATE users SET ttl = 1500 WHERE key = 'user:2'").unwrap();
    let keys = [bytes("user:2"), bytes("absent"), bytes("user:1"), StoreKey::from_static(b"\xff"), bytes("user:1")];
    let loaded = store.load_many(&keys).await.unwrap();
    assert_eq!(loaded[0].as_ref().unwrap().fresh_for, Some(Duration::from_millis(1500)));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(values(loaded), [text("two"), None, text("one"), None, text("one")]);
    store.delete_many(&keys[..2]).await.unwrap();
    assert_eq!(server.execute("SELECT key FROM users").unwrap(), "user:1");
    let error = store.store_many(&[(StoreKey::from_static(b"\xff"), bytes("x"))]).await.unwrap_err();
    assert!(error.to_string().contains("bytea[]"), "{error}");
}

#[tokio::test]
async fn json_and_byte_keys_are_understood() {
    let server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE docs (key bytea PRIMARY KEY, value jsonb)").unwrap();
    let store = PostgresStore::new(PostgresConfig {
        store: Some(
            "INSERT INTO docs SELECT * FROM unnest($1::bytea[], $2::jsonb[]) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value"
                .into(),
        ),
        timeout: Duration::from_secs(5),
        ..PostgresConfig::new(server.url(), "SELECT key, value FROM docs WHERE key = ANY($1)")
    })
    .unwrap();
    let key = StoreKey::from_static(b"\xff\x00");
    store.store_many(&[(key.clone(), bytes("{\"a\":1}"))]).await.unwrap();
    assert_eq!(values(store.load_many(std::slice::from_ref(&key)).await.unwrap()), [Some("{\"a\": 1}".to_owned())]);
    // A poison row: no JSON.
    let error = store.store_many(&[(key.clone(), bytes("{"))]).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("json"), "{error}");
    let error = store.delete_many(&[key]).await.unwrap_err();
    assert!(error.to_string().contains("'delete'"), "{error}");
}

#[tokio::test]
async fn wrong_statements_are_named() {
    let server = PostgresServer::start().unwrap();
    server.execute(TABLE).unwrap();
    let complaint = async |load: &str| {
        let config = PostgresConfig { timeout: Duration::from_secs(5), ..PostgresConfig::new(server.url(), load) };
        let error = PostgresStore::new(config).unwrap().load_many(&[bytes("a")]).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
        error.to_string()
    };
    assert!(complaint("SELECT key, value FROM nowhere WHERE key = ANY($1)").await.contains("nowhere"));
    assert!(
        complaint("SELECT key, value FROM users WHERE key = $1").await.contains("text[] or bytea[]; it has (text)")
    );
    assert!(complaint("SELECT value FROM users WHERE key = ANY($1)").await.contains("columns key"));
    let bad = PostgresStore::new(PostgresConfig::new("postgresql://caddy:secret@:x/", "")).unwrap_err().to_string();
    assert!(bad.contains("postgresql://user@host") && !bad.contains("secret"), "{bad}");
}

#[tokio::test]
async fn a_database_that_comes_back_is_used_again() {
    let mut server = PostgresServer::start().unwrap();
    server.execute(TABLE).unwrap();
    let store = PostgresStore::new(users(&server)).unwrap();
    store.store_many(&entries(&[("user:1", "one")])).await.unwrap();
    server.stop().unwrap();
    let error = store.load_many(&[bytes("user:1")]).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    server.restart().unwrap();
    assert_eq!(values(store.load_many(&[bytes("user:1")]).await.unwrap()), [Some("one".to_owned())]);
}

#[tokio::test]
async fn a_value_that_is_too_large_is_refused_and_one_that_is_far_too_large_not_even_read() {
    let mut server = PostgresServer::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (ca, authority) = (folder.path().join("ca.crt"), Authority::create().unwrap());
    authority.write(&ca).unwrap();
    let files = authority.issue(&folder.path().join("server"), &["127.0.0.1"]).unwrap();
    server.execute(TABLE).unwrap();
    server.execute("INSERT INTO users VALUES ('fits', '12345'), ('large', '123456')").unwrap();
    server.execute("INSERT INTO users SELECT 'huge', decode(repeat('ff', 64 << 20), 'hex')").unwrap();
    for is_secure in [false, true] {
        let tls = is_secure.then(|| TlsOptions { ca_file: Some(ca.clone()), ..TlsOptions::default() });
        if is_secure {
            server.execute("CREATE ROLE app LOGIN; GRANT SELECT ON users TO app").unwrap();
            server.require_tls(&files).unwrap();
        }
        let url = if is_secure { server.url_of("app") } else { server.url() };
        let store = PostgresStore::new(PostgresConfig {
            url,
            tls,
            max_value_bytes: 5,
            max_connections: 1,
            store: None,
            delete: None,
            ..users(&server)
        });
        let store = store.unwrap();
        for (key, words) in
            [("large", "the value of large has more than 5 bytes"), ("huge", "the row of huge has 67108")]
        {
            let error = store.load_many(&[bytes(key)]).await.unwrap_err();
            assert!(!error.is_transient() && error.to_string().contains(words), "{error}");
            assert!(error.to_string().contains("maxValueBytes"), "{error}");
            assert_eq!(values(store.load_many(&[bytes("fits")]).await.unwrap()), [Some("12345".to_owned())], "{key}");
        }
    }
}

/// A socket has no name that TLS could be about.
#[tokio::test]
async fn a_unix_socket_is_bounded_too_and_the_server_that_is_wanted_is_found() {
    let server = PostgresServer::start().unwrap();
    server.execute(TABLE).unwrap();
    server.execute("INSERT INTO users VALUES ('fits', '12345')").unwrap();
    server.execute("INSERT INTO users SELECT 'huge', decode(repeat('ff', 64 << 20), 'hex')").unwrap();
    let store = |url: String| {
        PostgresStore::new(PostgresConfig { url, max_value_bytes: 5, max_connections: 1, ..users(&server) })
    };
    // There is no socket in the first directory.
    let nowhere = tempfile::tempdir().unwrap();
    let url = |more: &str| server.socket_url(Some(nowhere.path()), more);
    let bounded = store(url("")).unwrap();
    let fits = async || values(bounded.load_many(&[bytes("fits")]).await.unwrap());
    assert_eq!(fits().await, [Some("12345".to_owned())]);
    let error = bounded.load_many(&[bytes("huge")]).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("the row of huge has 67108"), "{error}");
    assert_eq!(fits().await, [Some("12345".to_owned())]);
    let wants = async |role: &str| store(url(role)).unwrap().load_many(&[bytes("fits")]).await;
    assert!(wants("&target_session_attrs=read-write").await.is_ok());
    let error = wants("&target_session_attrs=read-only").await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("target_session_attrs"), "{error}");
    let gone = store(server.socket_url(None, "").replace("/caddy-postgres", "/gone")).unwrap();
    let error = gone.load_many(&[bytes("fits")]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains(".s.PGSQL."), "{error}");
    let mixed = store(url("&host=127.0.0.1")).unwrap_err().to_string();
    assert!(mixed.contains("one kind"), "{mixed}");
}

#[tokio::test]
async fn one_call_brings_no_more_than_is_to_be_in_memory_at_once() {
    let server = PostgresServer::start().unwrap();
    server.execute(TABLE).unwrap();
    server
        .execute(
            "INSERT INTO users SELECT 'k' || n, decode(repeat('ff', 1 << 20), 'hex') FROM generate_series(1, 20) n",
        )
        .unwrap();
    let store = PostgresStore::new(PostgresConfig { max_connections: 1, ..users(&server) }).unwrap();
    let mut keys: Vec<_> = (1..=20).map(|n| bytes(&format!("k{n}"))).collect();
    keys.push(bytes("absent"));
    let mut found = 0;
    while !keys.is_empty() {
        let loaded = store.load_some(&keys).await.unwrap();
        assert_eq!(loaded.len(), keys.len());
        let came = loaded.iter().filter(|loaded| matches!(loaded, Loaded::Found(_))).count();
        assert!(came <= BATCH_BYTES >> 20, "{came} values of a MiB");
        assert!(came > 0, "nothing is brought");
        found += came;
        keys = keys.into_iter().zip(loaded).filter(|(_, loaded)| *loaded == Loaded::Left).map(|(key, _)| key).collect();
    }
    assert_eq!(found, 20);
    // Who wants them all at once gets them.
    let all: Vec<_> = (1..=20).map(|n| bytes(&format!("k{n}"))).collect();
    assert!(store.load_many(&all).await.unwrap().iter().all(Option::is_some));
}

#[tokio::test]
async fn an_address_needs_no_name() {
    let server = PostgresServer::start().unwrap();
    server.execute(TABLE).unwrap();
    server.execute("INSERT INTO users VALUES ('fits', '12345'), ('none', NULL)").unwrap();
    let url = server.url().replace("@127.0.0.1:", "@:") + "?hostaddr=127.0.0.1";
    let store = PostgresStore::new(PostgresConfig { url, ..users(&server) }).unwrap();
    // A row without a value is none.
    let loaded = store.load_many(&[bytes("none"), bytes("fits")]).await.unwrap();
    assert_eq!(values(loaded), [None, Some("12345".to_owned())]);
}

#[tokio::test]
async fn a_slow_statement_is_given_up_and_its_answer_is_nobody_elses() {
    let server = PostgresServer::start().unwrap();
    let slow = "SELECT key, key FROM (SELECT unnest($1::text[]) AS key) AS keys, \
                LATERAL (SELECT pg_sleep(CASE WHEN key = 'slow' THEN 30 ELSE 0 END)) AS slept";
    let config = PostgresConfig {
        max_connections: 1,
        timeout: Duration::from_millis(700),
        ..PostgresConfig::new(server.url(), slow)
    };
    let store = PostgresStore::new(config).unwrap();
    let error = store.load_many(&[bytes("slow")]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("700 ms"), "{error}");
    assert_eq!(values(store.load_many(&[bytes("quick")]).await.unwrap()), [Some("quick".to_owned())]);
}

#[tokio::test]
async fn the_password_comes_from_its_file_as_it_is_now() {
    let mut server = PostgresServer::start().unwrap();
    server.execute("CREATE ROLE app LOGIN PASSWORD 'first'").unwrap();
    server.require_passwords().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let store = PostgresStore::new(PostgresConfig {
        password_file: Some(file.clone()),
        timeout: Duration::from_secs(5),
        store: Some("SELECT unnest($1::text[]), unnest($2::text[])".into()),
        ..PostgresConfig::new(server.url_of("app"), "SELECT key, key FROM unnest($1::text[]) AS key")
    })
    .unwrap();
    let key = [bytes("a")];
    store.load_many(&key).await.unwrap();
    server.execute("ALTER ROLE app PASSWORD 'second'").unwrap();
    server.restart().unwrap();
    let error = store.load_many(&key).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("password"), "{error}");
    // It says nothing about what is written, which is not to be put aside.
    let error = store.store_many(&entries(&[("a", "1")])).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("password"), "{error}");
    std::fs::write(&file, "second").unwrap();
    store.store_many(&entries(&[("a", "1")])).await.unwrap();
    store.load_many(&key).await.unwrap();
}

#[tokio::test]
async fn a_write_is_refused_for_what_it_writes_and_for_nothing_else() {
    let server = PostgresServer::start().unwrap();
    server.execute(TABLE).unwrap();
    server.execute("ALTER TABLE users ADD CHECK (value <> 'poison')").unwrap();
    let store = PostgresStore::new(users(&server)).unwrap();
    let write = async |value: &str| store.store_many(&entries(&[("a", value)])).await;
    write("1").await.unwrap();
    let error = write("poison").await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("check constraint"), "{error}");
    // A table that is not there just now.
    server.execute("ALTER TABLE users RENAME TO others").unwrap();
    let error = write("4").await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("does not exist"), "{error}");
    server.execute("ALTER TABLE others RENAME TO users").unwrap();
    write("5").await.unwrap();
}

/// A statement is prepared once, and what it was prepared for changes: a column's type, or that the server (a pooler between)
/// knows it at all.
#[tokio::test]
async fn a_statement_that_the_server_has_lost_is_prepared_anew() {
    let server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE users (key text PRIMARY KEY, value text)").unwrap();
    let store = PostgresStore::new(PostgresConfig {
        store: Some(
            "WITH forgotten AS (SELECT forget() WHERE 'forget' = ANY($1)), \
             written AS (INSERT INTO users SELECT * FROM unnest($1::text[], $2::text[]) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value) SELECT count(*) FROM forgotten"
                .into(),
        ),
        delete: None,
        max_connections: 2,
        load: "SELECT key, value FROM users WHERE key = ANY($1)".into(),
        ..users(&server)
    });
    server.execute("CREATE FUNCTION forget() RETURNS void AS 'BEGIN DEALLOCATE ALL; END' LANGUAGE plpgsql").unwrap();
    let store = store.unwrap();
    let one = [bytes("a")];
    let text = |text: &str| [Some(text.to_owned())];
    store.store_many(&entries(&[("a", "{}")])).await.unwrap();
    let two = futures::future::join(store.load_many(&one), store.load_many(&one)).await;
    assert_eq!([two.0, two.1].map(|loaded| values(loaded.unwrap())), [text("{}"), text("{}")]);
    server.execute("ALTER TABLE users ALTER value TYPE varchar(200)").unwrap();
    assert_eq!(values(store.load_many(&one).await.unwrap()), text("{}"));
    server.execute("ALTER TABLE users ALTER value TYPE text").unwrap();
    assert_eq!(values(store.load_many(&one).await.unwrap()), text("{}"));
    store.store_many(&entries(&[("forget", "1")])).await.unwrap();
    assert_eq!(values(store.load_many(&one).await.unwrap()), text("{}"));
    store.store_many(&entries(&[("forget", "1")])).await.unwrap();
    // A write is not repeated here, and it is not what was refused.
    let error = store.store_many(&entries(&[("a", "2")])).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("prepared statement"), "{error}");
    store.store_many(&entries(&[("a", "2")])).await.unwrap();
    assert_eq!(values(store.load_many(&one).await.unwrap()), text("2"));
}

#[tokio::test]
async fn a_server_that_is_a_replica_is_not_written_to_by_the_same_connection_again() {
    let server = PostgresServer::start().unwrap();
    server.execute(TABLE).unwrap();
    // Sessions that begin now say what those of a replica do.
    server.execute("ALTER DATABASE postgres SET default_transaction_read_only = on").unwrap();
    let store = PostgresStore::new(PostgresConfig { max_connections: 1, ..users(&server) }).unwrap();
    let error = store.store_many(&entries(&[("a", "1")])).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("read-only transaction"), "{error}");
    server.execute("BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT").unwrap();
    store.store_many(&entries(&[("a", "1")])).await.unwrap();
}

#[tokio::test]
async fn with_tls_the_server_has_to_be_who_it_is_to_be() {
    let mut server = PostgresServer::start().unwrap();
    server.execute("CREATE ROLE app LOGIN").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (ca, stem) = (folder.path().join("ca.crt"), folder.path().join("server"));
    let renew = || {
        let authority = Authority::create().unwrap();
        authority.write(&ca).unwrap();
        authority.issue(&stem, &["db.shop"]).unwrap()
    };
    server.require_tls(&renew()).unwrap();
    let url = server.url_of("app");
    let store = |tls: Option<TlsOptions>| {
        let config = PostgresConfig::new(url.clone(), "SELECT key, key FROM unnest($1::text[]) AS key");
        PostgresStore::new(PostgresConfig { tls, timeout: Duration::from_secs(5), ..config }).unwrap()
    };
    let tls = |name: Option<&str>| {
        let server_name = name.map(str::to_owned);
        store(Some(TlsOptions { ca_file: Some(ca.clone()), server_name, ..TlsOptions::default() }))
    };
    let key = [bytes("a")];
    let (named, plain) = (tls(Some("db.shop")), store(None));
    named.load_many(&key).await.unwrap();
    // Without `serverName` it is to be the URL's host.
    let error = tls(None).load_many(&key).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let error = plain.load_many(&key).await.unwrap_err().to_string();
    assert!(error.contains("no encryption"), "{error}");
    server.require_tls(&renew()).unwrap();
    named.load_many(&key).await.unwrap();
}

// === HTTP ===

fn http(origin: &Origin) -> HttpStore {
    let url = format!("{}/cache/{{key}}", origin.url());
    HttpStore::new(HttpConfig { backoff: Duration::from_millis(1), ..HttpConfig::new(url) })
        .expect("the configuration is right")
}

#[tokio::test]
async fn an_origin_is_a_store() {
    let origin = Origin::start().await.unwrap();
    let store = http(&origin);
    let slashed = bytes("a/b c%");
    store.store_many(&[(slashed.clone(), bytes("one")), (bytes("k"), bytes(""))]).await.unwrap();
    assert_eq!(origin.value("/cache/k"), Some(Vec::new()));
    store.store_many(&[(bytes("k"), bytes("two"))]).await.unwrap();
    assert_eq!(origin.value("/cache/a%2Fb%20c%25"), Some(b"one".to_vec()));
    let loaded = store.load_many(&[slashed.clone(), bytes("absent"), bytes("k")]).await.unwrap();
    assert_eq!(
        loaded[0].as_ref().unwrap().fresh_for.map(|age| age.as_secs()),
        Some(59),
        "max-age=60, less the round trip"
    );
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(values(loaded), [text("one"), None, text("two")]);
    store.delete_many(&[slashed.clone(), bytes("absent")]).await.unwrap();
    assert_eq!(origin.value("/cache/a%2Fb%20c%25"), None);
}

#[tokio::test]
async fn an_origin_with_tls_has_to_be_who_it_is_to_be() {
    let (origin, folder) = (Origin::start().await.unwrap(), tempfile::tempdir().unwrap());
    let (ca, stem) = (folder.path().join("ca.crt"), folder.path().join("server"));
    let renew = || {
        let authority = Authority::create().unwrap();
        authority.write(&ca).unwrap();
        origin.secure(&authority.issue(&stem, &["users.shop"]).unwrap()).unwrap();
    };
    renew();
    origin.set("/k", "one");
    let url = format!("{}/{{key}}", origin.url().replace("http:", "https:"));
    let store = |name: Option<&str>| {
        let tls =
            TlsOptions { ca_file: Some(ca.clone()), server_name: name.map(str::to_owned), ..TlsOptions::default() };
        HttpStore::new(HttpConfig { retries: 0, timeout: Duration::from_secs(5), tls, ..HttpConfig::new(url.clone()) })
    };
    let (key, one) = ([bytes("k")], [Some("one".to_owned())]);
    let named = store(Some("users.shop")).unwrap();
    assert_eq!(values(named.load_many(&key).await.unwrap()), one);
    let error = store(None).unwrap().load_many(&key).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    // Another authority, and another certificate: the next request is made with what the files say by then.
    renew();
    assert_eq!(values(named.load_many(&key).await.unwrap()), one);
    std::fs::remove_file(&ca).unwrap();
    let error = named.load_many(&key).await.unwrap_err().to_string();
    assert!(error.contains("ca.crt"), "{error}");
}

#[tokio::test]
async fn an_unchanged_value_is_not_sent_again() {
    let origin = Origin::start().await.unwrap();
    let store = http(&origin);
    let key = bytes("k");
    store.store_many(&[(key.clone(), bytes("one"))]).await.unwrap();
    let version = store.load_many(std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap().version.unwrap();
    assert!(matches!(store.revalidate(&key, &version).await.unwrap(), Revalidated::Unchanged { fresh_for: Some(_) }));
    store.store_many(&[(key.clone(), bytes("two"))]).await.unwrap();
    match store.revalidate(&key, &version).await.unwrap() {
        Revalidated::Changed(Some(loaded)) => assert_eq!(loaded.value, bytes("two")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_packed_value_is_refused() {
    let origin = Origin::start().await.unwrap();
    let store = http(&origin);
    let key = bytes("k");
    store.store_many(&[(key.clone(), bytes("one"))]).await.unwrap();
    let load = async || store.load_many(std::slice::from_ref(&key)).await;
    for identity in [None, Some("identity"), Some("Identity")] {
        origin.content_encoding(identity);
        assert_eq!(load().await.unwrap().remove(0).unwrap().value, bytes("one"));
    }
    origin.content_encoding(Some("gzip"));
    let refused = load().await.unwrap_err().to_string();
    assert!(refused.contains("Content-Encoding gzip") && refused.contains("'identity'"), "{refused}");
}

#[tokio::test]
async fn passing_failures_are_asked_again_and_lasting_ones_are_not() {
    let origin = Origin::start().await.unwrap();
    let store = http(&origin);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    origin.fail_with(move |path| {
        count.fetch_add(1, Ordering::Relaxed);
        match path {
            "/cache/twice" if count.load(Ordering::Relaxed) < 3 => Some(503),
            "/cache/always" => Some(500),
            "/cache/forbidden" => Some(403),
            "/cache/unknown" => Some(401),
            "/cache/unknown-proxy" => Some(407),
            "/cache/moved" => Some(302),
            "/cache/read-only" => Some(405),
            "/cache/unasked" => Some(304),
            "/cache/empty" => Some(204),
            _ => None,
        }
    });
    let load = async |key: &str| {
        asked.store(0, Ordering::Relaxed);
        (store.load_many(&[bytes(key)]).await, asked.load(Ordering::Relaxed))
    };
    let (loaded, times) = load("twice").await;
    assert_eq!((values(loaded.unwrap()), times), (vec![None], 3));
    let (failed, times) = load("always").await;
    assert!(failed.as_ref().unwrap_err().is_transient() && times == 3, "{failed:?}, asked {times} times");
    // Who says when, is asked then, or not at all.
    origin.retry_after(Some("0"));
    let (failed, times) = load("always").await;
    assert!(failed.as_ref().unwrap_err().is_transient() && times == 3, "{failed:?}, asked {times} times");
    origin.retry_after(Some("60"));
    let (failed, times) = load("always").await;
    let error = failed.unwrap_err();
    assert!(
        error.is_transient() && times == 1 && error.to_string().contains("for 60 s"),
        "{error}, asked {times} times"
    );
    origin.retry_after(None);
    for (key, hint) in
        [("forbidden", "headers"), ("moved", "redirects"), ("unasked", "asked for no version"), ("empty", "204")]
    {
        let (failed, times) = load(key).await;
        let error = failed.unwrap_err();
        assert!(!error.is_transient() && times == 1 && error.to_string().contains(hint), "{error}");
    }
    // A token that is about to rotate, or a wrong URL, says nothing about what is written.
    for (key, is_transient, words) in [
        ("forbidden", false, "headers"),
        ("unknown", true, "headers"),
        ("unknown-proxy", true, "407"),
        ("moved", true, "redirects"),
        ("read-only", true, "405"),
    ] {
        let error = store.store_many(&entries(&[(key, "v")])).await.unwrap_err();
        assert!(error.is_transient() == is_transient && error.to_string().contains(words), "{error}");
        let error = store.delete_many(&[bytes(key)]).await.unwrap_err();
        assert!(error.is_transient() == is_transient && error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn an_origin_that_hangs_or_sends_too_much_is_given_up() {
    let origin = Origin::start().await.unwrap();
    let url = format!("{}/cache/{{key}}", origin.url());
    let config =
        HttpConfig { timeout: Duration::from_millis(200), retries: 0, max_value_bytes: 10, ..HttpConfig::new(url) };
    let store = HttpStore::new(config).unwrap();
    origin.hang_on("/cache/hangs");
    let error = store.load_many(&[bytes("hangs")]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("200 ms"), "{error}");
    store.store_many(&entries(&[("large", "eleven byte")])).await.unwrap();
    let error = store.load_many(&[bytes("large")]).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("10 bytes"), "{error}");
    let nobody = HttpStore::new(HttpConfig { retries: 0, ..HttpConfig::new("http://127.0.0.1:1/{key}") }).unwrap();
    let error = nobody.load_many(&[bytes("k")]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("refused"), "{error}");
}
