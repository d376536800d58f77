//! A GET that hits L1 allocates nothing and wakes no other thread. One test, alone in its process: it counts every
//! allocation of the process and every switch of its threads.
#![expect(clippy::unwrap_used, reason = "a failed step of a test has nobody to report to")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use caddy_contract::{Config, Listen};
use caddy_sidecar::{Start, serve};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted.
struct Counted;

#[expect(unsafe_code, reason = "passes every call on to the system's allocator unchanged")]
// SAFETY: the contract of each method is the contract of the method of `System` that it calls with the same arguments.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

const REQUEST: &[u8] = b"*2\r\n$3\r\nGET\r\n$8\r\ngreeting\r\n";
const REPLY: &[u8] = b"$5\r\nhello\r\n";
const ROUNDS: u64 = 2_000;
/// Between two of them: what asks again at once is noticed, which allocates, once.
const PAUSE: Duration = Duration::from_micros(100);

#[test]
fn a_hit_in_l1_allocates_nothing_and_stays_on_its_thread() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cache.sock");
    let mut config = Config { listen: Listen { socket: socket.clone(), tcp_port: None }, ..Config::default() };
    config.workers = 2;
    config.admin.port = 0;
    let start =
        Start { config, config_path: None, password: None, by_hand: true, any_admin_port: true, grace: Duration::ZERO };
    // The process ends with the test; nothing of the sidecar outlives it.
    std::thread::spawn(move || serve(start).unwrap());
    caddy_sidecar::ping(Some(socket.clone()), Duration::from_secs(20), None).unwrap();

    let mut app = UnixStream::connect(&socket).unwrap();
    app.write_all(b"*3\r\n$3\r\nSET\r\n$8\r\ngreeting\r\n$5\r\nhello\r\n").unwrap();
    let mut reply = [0; 4096];
    assert_eq!(app.read(&mut reply).unwrap(), 5);
    // Beyond `promoteAfterHits`, so that L1 answers; and as many as a batch will have, so that buffers have their size.
    for batch in [1; 20].into_iter().chain([50, 50]) {
        round(&mut app, batch, &mut reply);
    }

    for batch in [1, 50] {
        // Looking at the threads allocates: before and after the counted part.
        let others = switches_of_other_workers();
        let allocations = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..ROUNDS {
            std::thread::sleep(PAUSE);
            round(&mut app, batch, &mut reply);
        }
        let allocated = ALLOCATIONS.load(Ordering::Relaxed) - allocations;
        assert_eq!(allocated, 0, "allocations in {ROUNDS} batches of {batch} hits");
        let switched = switches_of_other_workers() - others;
        assert!(switched < ROUNDS / 20, "other threads woke up {switched} times in {ROUNDS} batches of {batch} hits");
    }

    app.write_all(b"CACHE.WHY greeting\r\n").unwrap();
    let length = app.read(&mut reply).unwrap();
    let why = String::from_utf8_lossy(&reply[..length]);
    assert!(why.contains("\r\nL1\r\n"), "the reads were to be answered from L1: {why}");
}

/// One write of `batch` requests, answered as a whole.
fn round(app: &mut UnixStream, batch: usize, reply: &mut [u8; 4096]) {
    let mut requests = [0; 50 * REQUEST.len()];
    for chunk in requests.chunks_exact_mut(REQUEST.len()) {
        chunk.copy_from_slice(REQUEST);
    }
    app.write_all(&requests[..batch * REQUEST.len()]).unwrap();
    let mut read = 0;
    while read < batch * REPLY.len() {
        read += app.read(&mut reply[read..]).unwrap();
    }
    assert!(reply[..read].chunks(REPLY.len()).all(|one| one == REPLY));
}

/// How often the threads that do not serve this connection have been woken: all but the test's own and the worker that
/// was woken most.
fn switches_of_other_workers() -> u64 {
    let mut switches: Vec<u64> = fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok())
        .filter(|status| status.starts_with("Name:\tworker-") || status.starts_with("Name:\tcontrol"))
        .filter_map(|status| {
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
            line.split_whitespace().last()?.parse().ok()
        })
        .collect();
    switches.sort_unstable();
    switches.pop();
    switches.into_iter().sum()
}
