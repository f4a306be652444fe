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
    pbx: String,
    /// `None` where abstract sockets are unavailable.
    _listener: Option<UnixListener>,
}

impl AppLock {
    /// Returns `None` while another process on this host holds the lock. Where abstract sockets
    /// are unavailable, every process gets the lock. `pbx` identifies the PBX, whatever address
    /// it was reached at.
    pub fn take(pbx: &str, app: &str) -> Option<AppLock> {
        let name = format!("trunkless {app} {pbx}");
        let name = &name.as_bytes()[..name.len().min(MAX_NAME)];
        let bound = SocketAddr::from_abstract_name(name).and_then(|a| UnixListener::bind_addr(&a));
        match bound {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => None,
            bound => Some(AppLock { pbx: pbx.to_owned(), _listener: bound.ok() }),
        }
    }

    pub fn is_for(&self, pbx: &str) -> bool {
        self.pbx == pbx
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
