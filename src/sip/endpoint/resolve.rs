//! Resolves a PBX's name (SRV, then A and AAAA: a small part of RFC 3263) and finds our address on
//! the route to it. Owns I/O; nothing here blocks the thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures_util::future::{join, join_all};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;
use tokio::time::timeout;

use crate::dns;
use crate::sip::agent::Route;
use crate::sip::flow::Transport;
use crate::sip::uri::Host;

const DEFAULT_PORT: u16 = 5060;
/// Time limit for resolving one name.
const LIMIT: Duration = Duration::from_secs(5);
/// Time limit for the SRV records of a name. Filtered DNS may never answer for them, although the
/// name has an address.
const SRV_LIMIT: Duration = Duration::from_secs(2);
/// Maximum number of addresses used per name.
const MAX_ADDRESSES: usize = 8;

/// Returns the addresses of a host in the order in which to try them, each with our own address on
/// the route to it.
///
/// # Errors
/// Returns a message for the log.
pub async fn routes(
    host: &Host,
    port: Option<u16>,
    transport: Transport,
    bound: IpAddr,
) -> Result<Vec<Route>, String> {
    let found = match host {
        Host::Ip(ip) => vec![SocketAddr::new(*ip, port.unwrap_or(DEFAULT_PORT))],
        Host::Name(name) => lookup(name, port, transport).await?,
    };
    let mut routes = Vec::new();
    let mut error = None;
    // a socket bound to an IPv4 address cannot reach IPv6
    let usable = found.into_iter().filter(|a| bound.is_ipv6() || a.is_ipv4());
    for remote in usable.take(MAX_ADDRESSES) {
        match local_ip(remote, bound) {
            Ok(local) => routes.push(Route { remote, local }),
            Err(why) => error = Some(format!("no route to {remote}: {why}")),
        }
    }
    match error {
        Some(error) if routes.is_empty() => Err(error),
        _ => Ok(routes),
    }
}

async fn lookup(
    name: &str,
    port: Option<u16>,
    transport: Transport,
) -> Result<Vec<SocketAddr>, String> {
    let own = addresses(name, port.unwrap_or(DEFAULT_PORT));
    if port.is_some() {
        return own.await;
    }
    targets_or(own, srv(name, transport)).await
}

/// Returns the addresses of the SRV targets, or the name's `own` if there are none.
async fn targets_or(
    own: impl Future<Output = Result<Vec<SocketAddr>, String>>,
    records: impl Future<Output = Vec<(String, u16)>>,
) -> Result<Vec<SocketAddr>, String> {
    // at the same time, because either may take until its limit
    let (records, own) = join(timeout(SRV_LIMIT, records), own).await;
    let records = records.unwrap_or_default();
    let targets = join_all(records.iter().map(|(target, port)| addresses(target, *port))).await;
    // a target without an address does not keep us from the others
    let found: Vec<SocketAddr> = targets.into_iter().flatten().flatten().collect();
    if found.is_empty() { own } else { Ok(found) }
}

/// Looks up the A and AAAA records of a name.
async fn addresses(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match timeout(LIMIT, dns::lookup(name, port)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(why)) => Err(format!("cannot resolve {name}: {why}")),
        Err(_) => Err(format!("cannot resolve {name}: no answer within 5 s")),
    }
}

/// Returns the SRV targets by ascending priority, then descending weight. No record, or no DNS
/// server, is not an error, because the name's own addresses are looked up next.
async fn srv(name: &str, transport: Transport) -> Vec<(String, u16)> {
    let service = match transport {
        Transport::Udp => format!("_sip._udp.{name}."),
        Transport::Tcp => format!("_sip._tcp.{name}."),
    };
    let Ok(resolver) = TokioResolver::builder_tokio().and_then(|b| b.build()) else {
        return Vec::new();
    };
    let Ok(answer) = resolver.srv_lookup(service).await else { return Vec::new() };
    let mut records: Vec<(u16, u16, String, u16)> = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) if !srv.target.is_root() => {
                Some((srv.priority, u16::MAX - srv.weight, srv.target.to_utf8(), srv.port))
            }
            _ => None,
        })
        .collect();
    records.sort();
    records.into_iter().map(|(_, _, target, port)| (target, port)).collect()
}

/// Returns our address on the route to `remote`, which is `bound` if the socket is bound to an
/// address.
pub fn local_ip(remote: SocketAddr, bound: IpAddr) -> io::Result<IpAddr> {
    if !bound.is_unspecified() {
        return Ok(bound);
    }
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // connecting a UDP socket sends nothing: the kernel only picks the route
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_ip_address_needs_no_dns() {
        let any = IpAddr::from([0, 0, 0, 0]);
        let host = Host::Ip(IpAddr::from([127, 0, 0, 9]));
        let routes = routes(&host, None, Transport::Udp, any).await.unwrap();
        assert_eq!(routes[0].remote, SocketAddr::from(([127, 0, 0, 9], 5060)));
        assert!(routes[0].local.is_loopback());
    }

    #[tokio::test]
    async fn a_name_with_a_port_is_resolved() {
        let any = IpAddr::from([0, 0, 0, 0]);
        let host = Host::Name("localhost".to_owned());
        let routes = routes(&host, Some(5080), Transport::Udp, any).await.unwrap();
        assert!(routes.iter().all(|r| r.remote.port() == 5080 && r.remote.ip().is_loopback()));
    }
    #[tokio::test(start_paused = true)]
    async fn srv_records_that_are_not_answered_leave_the_names_own_address() {
        let own: SocketAddr = ([192, 0, 2, 1], 5060).into();
        let answered = |records: Vec<(String, u16)>| async move {
            targets_or(async { Ok(vec![own]) }, async { records }).await
        };
        let silent = targets_or(async { Ok(vec![own]) }, std::future::pending());
        assert_eq!(silent.await, Ok(vec![own]));
        assert_eq!(answered(Vec::new()).await, Ok(vec![own]));
        let target = ("127.0.0.9".to_owned(), 5070);
        let bad = ("".to_owned(), 5070);
        assert_eq!(answered(vec![bad.clone()]).await, Ok(vec![own]));
        let found = answered(vec![bad, target]).await;
        assert_eq!(found, Ok(vec![([127, 0, 0, 9], 5070).into()]));
    }
}
