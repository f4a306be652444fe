//! The programs that use this host's ports, as `ss -p` shows them. Owns the reading of `/proc`.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most ports of which the owner is looked up.
const MAX_PORTS: usize = 4096;

/// The program that holds a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(Option<(u32, String)>);

impl Owner {
    pub fn named(id: u32, name: &str) -> Owner {
        Owner(Some((id, name.to_owned())))
    }

    /// One of another user, which only root can see.
    pub fn unknown() -> Owner {
        Owner(None)
    }

    pub fn is_unknown(&self) -> bool {
        self.0.is_none()
    }

    /// True for a process of this program: another one, or this one if it takes the calls itself.
    pub fn is_trunkless(&self) -> bool {
        self.0.as_ref().is_some_and(|(_, name)| name == "trunkless")
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((id, name)) => write!(f, "{name} (process {id})"),
            None => f.write_str("a program of another user"),
        }
    }
}

/// A line of `/proc/net/udp`, `udp6`, `tcp` or `tcp6`.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    ip: IpAddr,
    port: u16,
    inode: u64,
}

/// Parses `sl local_address rem_address st … inode`. Addresses are hexadecimal words in the host's
/// byte order.
fn parse(line: &str) -> Option<Entry> {
    let mut fields = line.split_whitespace();
    let (ip, port) = fields.nth(1)?.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0u8; 16];
            for (n, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(n * 8)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Entry { ip, port, inode: fields.nth(7)?.parse().ok()? })
}

fn entries(tables: &[&str]) -> Vec<Entry> {
    let read = |table: &&str| fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let texts: Vec<String> = tables.iter().map(read).collect();
    texts.iter().flat_map(|text| text.lines().skip(1).filter_map(parse)).collect()
}

/// The program at this port, for TCP or UDP.
pub fn owner(port: u16) -> Option<Owner> {
    let entries = entries(&["udp", "udp6", "tcp", "tcp6"]);
    let of_port: Vec<u64> = entries.iter().filter(|e| e.port == port).map(|e| e.inode).collect();
    (!of_port.is_empty()).then(|| {
        let names = owners(&of_port);
        of_port.iter().find_map(|inode| names.get(inode).cloned()).unwrap_or_else(Owner::unknown)
    })
}

/// The UDP ports in use from `first` to `last` that keep us from using them at `ip`.
pub fn udp_ports_of_others(first: u16, last: u16, ip: IpAddr) -> Vec<(u16, Owner)> {
    let any = |ip: IpAddr| ip == Ipv4Addr::UNSPECIFIED || ip == Ipv6Addr::UNSPECIFIED;
    let mut found = entries(&["udp", "udp6"]);
    found.retain(|e| (first..=last).contains(&e.port));
    found.retain(|e| any(ip) || any(e.ip) || e.ip == ip);
    found.truncate(MAX_PORTS);
    let inodes: Vec<u64> = found.iter().map(|e| e.inode).collect();
    let names = owners(&inodes);
    let owner = |e: &Entry| names.get(&e.inode).cloned().unwrap_or_else(Owner::unknown);
    found.iter().map(|e| (e.port, owner(e))).collect()
}

/// Finds the processes that hold these sockets, as far as this user may see them.
fn owners(inodes: &[u64]) -> HashMap<u64, Owner> {
    let mut found = HashMap::new();
    if inodes.is_empty() {
        return found;
    }
    let wanted: std::collections::HashSet<u64> = inodes.iter().copied().collect();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        for link in files.filter_map(|file| fs::read_link(file.path()).ok()) {
            let link = link.to_string_lossy();
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let Some(inode) = inode.and_then(|inode| inode.parse::<u64>().ok()) else { continue };
            if wanted.contains(&inode) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.insert(inode, Owner::named(id, name.trim()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_tables_are_read() {
        let line = "  1: 0100007F:2710 00000000:0000 07 00000000:00000000 00:00000000 00000000  \
                    1000        0 4711 2 0000000000000000 0";
        let ip = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(parse(line), Some(Entry { ip, port: 10_000, inode: 4711 }));
        let six = line.replace("0100007F:", "0000000000000000FFFF00000100007F:");
        assert_eq!(parse(&six), Some(Entry { ip, port: 10_000, inode: 4711 }));
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn the_owner_of_a_port_is_this_process() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let Some(Owner(Some((id, _)))) = owner(port) else { panic!("no owner") };
        assert_eq!(id, std::process::id());
    }
}
