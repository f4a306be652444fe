//! A lock that allows one trunkless per Stasis application and host. Two would take the application
//! from each other, and the second would release the first one's callers as orphans. Owns a socket.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Longest socket name; Linux's limit is 108 bytes.
const MAX_NAME: usize = 100;

/// Held while this process owns the application. The lock is a name in Linux's abstract socket
/// namespace: it is local to the network namespace, leaves no file, and is released when the
/// process dies.
#[derive(Debug)]
pub struct AppLock {
    _listener: UnixListener,
}

impl AppLock {
    /// Returns `None` while another process on this host holds the lock. Where abstract sockets
    /// are unavailable, every process gets the lock.
    pub fn take(base: &str, app: &str) -> Option<Option<AppLock>> {
        let name = format!("trunkless {app} {base}");
        let name = &name.as_bytes()[..name.len().min(MAX_NAME)];
        let bound = SocketAddr::from_abstract_name(name).and_then(|a| UnixListener::bind_addr(&a));
        match bound {
            Ok(listener) => Some(Some(AppLock { _listener: listener })),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => None,
            Err(_) => Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let app = format!("claim{}", std::process::id());
        let first = AppLock::take("http://127.0.0.1:8088", &app);
        assert!(first.is_some());
        assert!(AppLock::take("http://127.0.0.1:8088", &app).is_none());
        assert!(AppLock::take("http://127.0.0.1:8089", &app).is_some());
        drop(first);
        assert!(AppLock::take("http://127.0.0.1:8088", &app).is_some());
    }
}
