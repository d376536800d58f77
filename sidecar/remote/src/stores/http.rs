//! A store behind HTTP: what each answer means, and which request is sent again. [`HttpStore`] says it.
//!
//! Keeps nothing but connections, and knows no cache. Fails with [`StoreError`].

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use caddy_engine::store::{BackingStore, Revalidated, StoreError, StoreFuture, Stored};
use futures::{StreamExt, TryStreamExt, stream};
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, RETRY_AFTER,
};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};

use super::{
    StoreKey, StoreValue,
    transport::{Settings, Transport, TransportError},
};
use crate::tls::{TlsError, TlsOptions};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The place of the key in [`HttpConfig::url`].
const PLACEHOLDER: &str = "{key}";
/// All but RFC 3986's unreserved characters: a key with a slash is still one segment.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Where the values are and how to ask for them.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `http://` or `https://`, with `{key}` where the percent-encoded key goes.
    pub url: String,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    /// The same, with values from files that are read for each request.
    pub header_files: Vec<(String, PathBuf)>,
    /// How long one request may take, its body included.
    pub timeout: Duration,
    /// How often a request is sent again after a transient failure.
    pub retries: u32,
    /// The pause before the first repetition; it doubles each time.
    pub backoff: Duration,
    /// Requests at a time.
    pub concurrency: usize,
    /// The largest body that is taken.
    pub max_value_bytes: usize,
    /// Whom to trust and what to show, for `https://`; the files may rotate.
    pub tls: TlsOptions,
}

impl HttpConfig {
    /// A store at `url`, with a timeout of 1 s, two repetitions after 50 ms and 100 ms, and 16 requests at a time.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            header_files: Vec::new(),
            timeout: Duration::from_secs(1),
            retries: 2,
            backoff: Duration::from_millis(50),
            concurrency: 16,
            max_value_bytes: 1 << 20,
            tls: TlsOptions::default(),
        }
    }
}

/// Why there is no such store.
#[derive(Debug, Error)]
pub enum HttpConfigError {
    /// The key has no place in the URL, or more than one.
    #[error("the URL '{0}' must contain {PLACEHOLDER} once, where the key goes")]
    Placeholder(String),
    /// The URL is none.
    #[error("the URL '{url}' is not valid: {reason}; it looks like http://127.0.0.1:8080/cache/{PLACEHOLDER}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A header is none.
    #[error("the header '{0}' is not valid")]
    Header(String),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A store behind HTTP: `GET`, `PUT` and `DELETE` of one URL per key.
///
/// | answer | means |
/// |---|---|
/// | 200 | the value is the body; `Cache-Control` says for how long, `ETag` names its state; not with a `Content-Encoding` |
/// | 404, 410 | there is no such value |
/// | 304 | unchanged (only where an `ETag` was sent) |
/// | 408, 425, 429, 5xx, no answer in time | transient: asked again with growing pauses, or after `Retry-After` if that is soon, then [`StoreError::Unavailable`] |
/// | anything else, redirects too | [`StoreError::Refused`]; 3xx, 401, 405 and 407 to a write, like certificates that do not fit, are none of its value: `Unavailable` |
///
/// Many keys are that many requests, at most [`HttpConfig::concurrency`] at a time. `PUT` and `DELETE` are sent again
/// after an unclear answer: they are idempotent, as HTTP defines them.
#[derive(Debug)]
pub struct HttpStore {
    transport: Transport,
    config: HttpConfig,
    headers: HeaderMap,
    header_files: Vec<(HeaderName, PathBuf)>,
}

impl HttpStore {
    /// Connects when it is first asked.
    pub fn new(config: HttpConfig) -> Result<Self, HttpConfigError> {
        if config.url.matches(PLACEHOLDER).count() != 1 {
            return Err(HttpConfigError::Placeholder(config.url));
        }
        let invalid = |reason: String| HttpConfigError::Url { url: config.url.clone(), reason };
        let example: Uri = config.url.replace(PLACEHOLDER, "k").parse().map_err(|error| invalid(format!("{error}")))?;
        if !matches!(example.scheme_str(), Some("http" | "https")) {
            return Err(invalid("it begins with neither http:// nor https://".into()));
        }
        let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        for (name, value) in &config.headers {
            let parsed = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value).ok());
            let (name, value) = parsed.ok_or_else(|| HttpConfigError::Header(name.clone()))?;
            headers.append(name, value);
        }
        let mut header_files = Vec::new();
        for (name, path) in &config.header_files {
            let parsed = HeaderName::try_from(name).map_err(|_| HttpConfigError::Header(name.clone()))?;
            header_files.push((parsed, path.clone()));
        }
        let settings = Settings { connect_timeout: config.timeout, kept: config.concurrency };
        let transport = match example.scheme_str() {
            Some("https") => Transport::tls(config.tls.clone(), settings)?,
            _ => Transport::plain(settings),
        };
        Ok(Self { transport, config, headers, header_files })
    }

    fn request(&self, method: Method, key: &[u8], body: Bytes) -> Result<Request<Full<Bytes>>, StoreError> {
        let uri = self.config.url.replace(PLACEHOLDER, &percent_encode(key, ESCAPED).to_string());
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::new(body))
            .map_err(|error| StoreError::Refused { reason: format!("the key makes no URL: {error}").into() })?;
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }

    /// Adds what lies in files: tokens that rotate.
    async fn add_secrets(&self, headers: &mut HeaderMap) -> Result<(), StoreError> {
        for (name, path) in &self.header_files {
            let refused = |reason: String| StoreError::Refused {
                reason: format!("cannot send the header '{name}' from {}: {reason}", path.display()).into(),
            };
            let text = tokio::fs::read(path).await.map_err(|error| refused(error.to_string()))?;
            let value = HeaderValue::from_bytes(text.trim_ascii()).map_err(|error| refused(error.to_string()))?;
            headers.append(name, value);
        }
        Ok(())
    }

    /// Sends it until there is an answer that will not change, or no attempts are left.
    async fn ask(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, StoreError> {
        self.add_secrets(request.headers_mut()).await?;
        let mut pause = self.config.backoff;
        for attempt in 0.. {
            let (reason, retry_after) = match timeout(self.config.timeout, self.ask_once(request.clone())).await {
                Ok(Ok(answer)) if !is_transient(answer.status) => return Ok(answer),
                Ok(Ok(answer)) => (format!("it answered {}", answer.status), retry_after(&answer.headers)),
                Ok(Err(Failed::TooLarge)) => {
                    let max = self.config.max_value_bytes;
                    return Err(StoreError::Refused {
                        reason: format!("the value has more than {max} bytes (maxValueBytes)").into(),
                    });
                }
                Ok(Err(Failed::Tls(error))) => return Err(StoreError::Refused { reason: error.to_string().into() }),
                Ok(Err(Failed::Transport(reason))) => (reason, None),
                Err(_) => (format!("no answer within {} ms", self.config.timeout.as_millis()), None),
            };
            if let Some(pause) = retry_after.filter(|pause| *pause > MAX_PAUSE) {
                let reason = format!("{reason}, and wants to be left alone for {} s", pause.as_secs());
                return Err(StoreError::Unavailable { reason: reason.into() });
            }
            if attempt >= self.config.retries {
                return Err(StoreError::Unavailable { reason: reason.into() });
            }
            sleep(retry_after.unwrap_or(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        unreachable!("the attempts are bounded by the number of retries")
    }

    async fn ask_once(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failed> {
        let transport = |error: &dyn std::error::Error| Failed::Transport(with_causes(error));
        let is_load = request.method() == Method::GET;
        let response = self.transport.send(request).await.map_err(|error| match error {
            TransportError::Tls(error) => Failed::Tls(error),
            TransportError::Http(error) => transport(&error),
        })?;
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, self.config.max_value_bytes).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                if is_load {
                    return Err(Failed::TooLarge);
                }
                // Of a write only the status is looked at.
                Bytes::new()
            }
            Err(error) => return Err(transport(&*error)),
        };
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn load(&self, key: &[u8]) -> Result<Option<Stored<StoreValue>>, StoreError> {
        let asked = Instant::now();
        let answer = self.ask(self.request(Method::GET, key, Bytes::new())?).await?;
        answer.into_stored(asked)
    }

    /// `name`: what the write is called, also if it is repeated.
    async fn change(&self, method: Method, key: &[u8], body: Bytes, name: Option<&String>) -> Result<(), StoreError> {
        let deletes = method == Method::DELETE;
        let length = HeaderValue::from(body.len());
        let mut request = self.request(method, key, body)?;
        if !deletes {
            // Also of none: who asks for it refuses a request without (RFC 9110, §8.6).
            request.headers_mut().insert(CONTENT_LENGTH, length);
        }
        if let Some(name) = name.and_then(|name| HeaderValue::from_str(name).ok()) {
            request.headers_mut().insert(IDEMPOTENCY_KEY, name);
        }
        // Without an answer nothing is said about what is written.
        let answer = self.ask(request).await.map_err(StoreError::as_passing)?;
        let gone = deletes && matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::GONE);
        if answer.status.is_success() || gone {
            return Ok(());
        }
        // No other value would fare better: a token may be about to rotate, the URL may be another's, or lack its writes.
        let is_about_all = answer.status.is_redirection()
            || matches!(
                answer.status,
                StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::METHOD_NOT_ALLOWED
            );
        Err(if is_about_all { answer.refusal().as_passing() } else { answer.refusal() })
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

enum Failed {
    Transport(String),
    Tls(TlsError),
    TooLarge,
}

impl Answer {
    fn into_stored(self, asked: Instant) -> Result<Option<Stored<StoreValue>>, StoreError> {
        match self.status {
            StatusCode::OK if let Some(encoding) = self.encoding() => Err(StoreError::Refused {
                reason: format!("its answer has Content-Encoding {encoding}, and 'identity' was asked for").into(),
            }),
            StatusCode::OK => Ok(Some(Stored {
                fresh_for: fresh_for(&self.headers, asked.elapsed()),
                version: self.headers.get(ETAG).map(|etag| Bytes::copy_from_slice(etag.as_bytes())),
                value: self.body,
            })),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            _ => Err(self.refusal()),
        }
    }

    /// How the body is packed, if it is: readers would get what they cannot read.
    fn encoding(&self) -> Option<&str> {
        let encoding = self.headers.get(CONTENT_ENCODING)?.to_str().unwrap_or("?").trim();
        (!encoding.eq_ignore_ascii_case("identity")).then_some(encoding)
    }

    fn refusal(&self) -> StoreError {
        let hint = match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; see the store's headers",
            StatusCode::NOT_MODIFIED => " to a request that asked for no version",
            status if status.is_redirection() => "; give the URL that it redirects to",
            _ => "",
        };
        StoreError::Refused { reason: format!("it answered {}{hint}", self.status).into() }
    }
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// What `Cache-Control` allows a shared cache (RFC 9111, §5.2.2), less what passed since the question was sent.
fn fresh_for(headers: &HeaderMap, since: Duration) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
    let directives: Vec<String> =
        directives.flat_map(|value| value.split(',')).map(|directive| directive.trim().to_ascii_lowercase()).collect();
    if directives.iter().any(|one| matches!(one.as_str(), "no-store" | "no-cache" | "private")) {
        return Some(Duration::ZERO);
    }
    let seconds = |name: &str| {
        let value = directives.iter().find_map(|one| one.strip_prefix(name)?.strip_prefix('='))?.trim_matches('"');
        let is_number = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
        // What is too large for a number is as long as can be, what is none says that it is old (§1.2.2, §4.2.1).
        Some(if is_number { Duration::from_secs(value.parse().unwrap_or(u64::MAX)) } else { Duration::ZERO })
    };
    seconds("s-maxage").or_else(|| seconds("max-age")).map(|age: Duration| age.saturating_sub(since))
}

/// The error and what caused it: hyper's own text is only "client error (Connect)".
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl BackingStore<StoreKey, StoreValue> for HttpStore {
    fn load_many<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<Option<Stored<StoreValue>>>> {
        let loads = stream::iter(keys).map(|key| self.load(key));
        Box::pin(loads.buffered(self.config.concurrency.max(1)).try_collect())
    }

    /// In order for each key: writes of one key never overtake each other, those of others may.
    fn store_many<'a>(&'a self, entries: &'a [(StoreKey, StoreValue)]) -> StoreFuture<'a, ()> {
        self.store_named(entries, &[])
    }

    fn delete_many<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, ()> {
        self.delete_named(keys, &[])
    }

    fn takes_names(&self) -> bool {
        true
    }

    /// Each request has its write's name in the header `Idempotency-Key`.
    fn store_named<'a>(&'a self, entries: &'a [(StoreKey, StoreValue)], names: &'a [String]) -> StoreFuture<'a, ()> {
        let writes = stream::iter(last_of_each(entries)).map(move |at| {
            let (key, value) = &entries[at];
            self.change(Method::PUT, key, value.clone(), names.get(at))
        });
        Box::pin(writes.buffer_unordered(self.config.concurrency.max(1)).try_collect())
    }

    fn delete_named<'a>(&'a self, keys: &'a [StoreKey], names: &'a [String]) -> StoreFuture<'a, ()> {
        let deletes = stream::iter(keys.iter().enumerate())
            .map(move |(at, key)| self.change(Method::DELETE, key, Bytes::new(), names.get(at)));
        Box::pin(deletes.buffer_unordered(self.config.concurrency.max(1)).try_collect())
    }

    fn revalidate<'a>(&'a self, key: &'a StoreKey, version: &'a Bytes) -> StoreFuture<'a, Revalidated<StoreValue>>
    where
        StoreValue: 'a,
    {
        Box::pin(async move {
            let asked = Instant::now();
            let mut request = self.request(Method::GET, key, Bytes::new())?;
            // What came in a header goes into one.
            if let Ok(version) = HeaderValue::from_maybe_shared(version.clone()) {
                request.headers_mut().insert(IF_NONE_MATCH, version);
            }
            let answer = self.ask(request).await?;
            if answer.status == StatusCode::NOT_MODIFIED {
                return Ok(Revalidated::Unchanged { fresh_for: fresh_for(&answer.headers, asked.elapsed()) });
            }
            answer.into_stored(asked).map(Revalidated::Changed)
        })
    }
}

/// The places of the last value of each key: what the writes in this order leave.
pub(super) fn last_of_each(entries: &[(StoreKey, StoreValue)]) -> Vec<usize> {
    let mut seen = HashSet::with_capacity_and_hasher(entries.len(), foldhash::fast::RandomState::default());
    let mut last: Vec<_> = (0..entries.len()).rev().filter(|at| seen.insert(&entries[*at].0)).collect();
    last.reverse();
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(cache_control: &str) -> HeaderMap {
        HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_str(cache_control).unwrap())])
    }

    #[test]
    fn cache_control_says_how_long_a_shared_cache_may_keep_it() {
        let fresh = |text| fresh_for(&headers(text), Duration::from_secs(10));
        assert_eq!(fresh("max-age=60"), Some(Duration::from_secs(50)));
        assert_eq!(fresh("public, Max-Age=60, s-maxage=\"100\""), Some(Duration::from_secs(90)));
        assert_eq!(fresh("max-age=5"), Some(Duration::ZERO));
        assert_eq!(fresh("max-age=60, no-store"), Some(Duration::ZERO));
        assert_eq!([fresh("max-age=soon"), fresh("max-age=-5"), fresh("max-age=")], [Some(Duration::ZERO); 3]);
        assert!(fresh("max-age=99999999999999999999").is_some_and(|age| age > Duration::from_hours(1_000_000)));
        assert_eq!(fresh("immutable"), None);
        assert_eq!(fresh_for(&HeaderMap::new(), Duration::ZERO), None);
    }

    #[test]
    fn a_url_needs_the_place_of_the_key_once() {
        let error = |url: &str| HttpStore::new(HttpConfig::new(url)).unwrap_err().to_string();
        assert!(error("http://localhost/cache").contains("{key}"));
        assert!(error("http://localhost/{key}/{key}").contains("once"));
        assert!(error("ftp://localhost/{key}").contains("http://"));
        assert!(error("http://local host/{key}").contains("not valid"));
    }

    #[test]
    fn of_several_writes_of_a_key_the_last_is_sent() {
        let entry = |key: &'static str, value: &'static str| (Bytes::from(key), Bytes::from(value));
        let entries = [entry("a", "1"), entry("b", "1"), entry("a", "2")];
        assert_eq!(last_of_each(&entries), [1, 2]);
    }
}
