//! The floor of what goes to Redis: the least that any process between an app and its Redis can do. One thread of tokio, a
//! connection to Redis for each of an app, and bytes that are passed on unread. What a proxy costs beyond it is its own; what
//! the relay itself costs is the machine's price of two more wake-ups and four more system calls.

use std::path::Path;

use anyhow::{Context, Result};
use tokio::net::{UnixListener, UnixStream};

/// Serves until it is killed: what comes on `socket` goes to the server on `data`.
pub(crate) fn run(socket: &Path, data: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
        loop {
            let (mut near, _) = listener.accept().await?;
            let mut far = UnixStream::connect(data).await.with_context(|| format!("connect to {}", data.display()))?;
            tokio::task::spawn_local(async move {
                // An error is the end of the connection, which nobody here waits for.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    })
}
