//! One trunkless an application: two on one host would take it from each other, and the second
//! would send the first one's callers away as orphans. Owns a socket.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Linux's limit for a name, and some air.
const MAX_NAME: usize = 100;

/// Held for as long as the application is ours. The name is in Linux's abstract namespace: it is
/// the network namespace's, leaves no file, and is free at once when the process dies.
#[derive(Debug)]
pub struct Claim {
    _listener: UnixListener,
}

impl Claim {
    /// None while another process on this host has it. A system that knows no such names (or
    /// forbids them) gives the claim to everybody.
    pub fn take(base: &str, app: &str) -> Option<Option<Claim>> {
        let name = format!("trunkless {app} {base}");
        let name = &name.as_bytes()[..name.len().min(MAX_NAME)];
        let bound = SocketAddr::from_abstract_name(name).and_then(|a| UnixListener::bind_addr(&a));
        match bound {
            Ok(listener) => Some(Some(Claim { _listener: listener })),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => None,
            Err(_) => Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let app = format!("claim{}", std::process::id());
        let first = Claim::take("http://127.0.0.1:8088", &app);
        assert!(first.is_some());
        assert!(Claim::take("http://127.0.0.1:8088", &app).is_none());
        assert!(Claim::take("http://127.0.0.1:8089", &app).is_some());
        drop(first);
        assert!(Claim::take("http://127.0.0.1:8088", &app).is_some());
    }
}
