//! Looks at this host and at the PBX's HTTP server. Owns sockets, and reads Asterisk's files.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ari::client::rtp_conf;
use crate::ari::rtp_range::RtpRange;
use crate::dns;
use crate::setup::answers::Flavour;
use crate::setup::found::HttpAnswer;
use crate::sip::endpoint::resolve::local_ip;
use crate::sip::uri::Host;

/// Time limit for a name, a connection, and a request.
const LIMIT: Duration = Duration::from_secs(2);
/// The most that is read of an HTTP response; the list of modules has some 80 kB.
const MAX_BODY: u64 = 1 << 20;
/// Ports that are tried when one is in use.
const TRIES: u16 = 20;
/// A documentation address: no packet is sent there, only the route is looked up.
const ANYWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const UNITS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// The kind of PBX on this host, if there is one.
pub fn flavour_here(asterisk: &Path) -> Option<Flavour> {
    if !asterisk.join("extensions.conf").exists() {
        return None;
    }
    let exists = |path: &str| Path::new(path).exists();
    Some(match (exists("/etc/astguiclient.conf"), exists("/etc/freepbx.conf")) {
        (true, _) => Flavour::Vicidial,
        (false, true) => Flavour::FreePbx,
        (false, false) => Flavour::Asterisk,
    })
}

/// True if systemd knows the service.
pub fn service_known() -> bool {
    UNITS.iter().any(|folder| Path::new(folder).join("trunkless.service").exists())
}

/// The address of this host in its network.
pub fn own_address() -> Option<IpAddr> {
    route((ANYWHERE, 9).into()).filter(|ip| !ip.is_unspecified())
}

/// Our address on the route to another.
pub fn route(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    local_ip(to, any).ok()
}

/// True if this host has the address.
pub fn is_own(ip: IpAddr) -> bool {
    !ip.is_unspecified() && UdpSocket::bind((ip, 0)).is_ok()
}

/// The first address of a host.
///
/// # Errors
/// Returns the reason if it has none.
pub async fn address(host: &Host) -> Result<IpAddr, String> {
    let name = match host {
        Host::Ip(ip) => return Ok(*ip),
        Host::Name(name) => name,
    };
    match timeout(LIMIT, dns::lookup(name, 0)).await {
        Ok(Ok(found)) => found.first().map(SocketAddr::ip).ok_or("it has no address".to_owned()),
        Ok(Err(why)) => Err(why),
        Err(_) => Err("the DNS server does not answer".to_owned()),
    }
}

/// Returns the first address from `wanted` upwards whose port is free for TCP and, with `udp`, for
/// UDP as well.
pub fn free(wanted: SocketAddr, udp: bool) -> Option<SocketAddr> {
    let step = if udp { 2 } else { 1 };
    let ports = (0..TRIES).filter_map(|n| wanted.port().checked_add(n * step));
    let is_free =
        |to: &SocketAddr| TcpListener::bind(to).is_ok() && (!udp || UdpSocket::bind(to).is_ok());
    ports.map(|port| SocketAddr::new(wanted.ip(), port)).find(is_free)
}

/// Asterisk's RTP range on this host. `None` if there is no Asterisk.
pub fn rtp_range(asterisk: &Path) -> Option<Result<RtpRange, String>> {
    let file = asterisk.join("rtp.conf");
    if !asterisk.join("extensions.conf").exists() {
        return None;
    }
    if !file.exists() {
        // Asterisk's own default
        return RtpRange::parse("").map(Ok);
    }
    let parsed = rtp_conf::read(&file).and_then(|text| {
        RtpRange::parse(&text).ok_or_else(|| format!("{}: no valid range", file.display()))
    });
    Some(parsed)
}

/// True if a TCP connection can be opened.
pub async fn is_open(host: &Host, port: u16) -> bool {
    let Ok(ip) = address(host).await else { return false };
    matches!(timeout(LIMIT, TcpStream::connect((ip, port))).await, Ok(Ok(_)))
}

/// Sends a GET to Asterisk's HTTP server, with a user and password if given.
///
/// # Errors
/// Returns the reason if there is no answer.
pub async fn http(
    to: SocketAddr,
    path: &str,
    login: Option<(&str, &str)>,
) -> Result<HttpAnswer, String> {
    let authorization = login.map_or(String::new(), |(user, password)| {
        let both = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        format!("Authorization: Basic {both}\r\n")
    });
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {to}\r\n{authorization}Connection: close\r\n\r\n");
    let ask = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_BODY).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    match timeout(LIMIT, ask).await {
        Ok(Ok(answer)) => HttpAnswer::parse(&answer).ok_or("it does not speak HTTP".to_owned()),
        Ok(Err(why)) => Err(why.to_string()),
        Err(_) => Err("no answer within 2 s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_passed_over() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let hold = UdpSocket::bind(taken).unwrap();
        let found = free(taken, true).unwrap();
        assert!(found.port() > taken.port() && found.ip() == taken.ip());
        drop(hold);
    }

    #[test]
    fn an_asterisk_without_rtp_conf_has_its_own_default() {
        let lab = tempfile::tempdir().unwrap();
        assert_eq!(rtp_range(lab.path()), None);
        assert_eq!(flavour_here(lab.path()), None);
        std::fs::write(lab.path().join("extensions.conf"), "").unwrap();
        assert_eq!(rtp_range(lab.path()), Some(Ok(RtpRange { first: 5000, last: 31_000 })));
        std::fs::write(lab.path().join("rtp.conf"), "#include none.conf\n").unwrap();
        assert!(matches!(rtp_range(lab.path()), Some(Err(_))));
    }
}
