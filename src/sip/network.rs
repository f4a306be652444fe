//! IP addresses and address ranges in the configuration: `192.0.2.7` or `192.0.2.0/24`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    prefix: u8,
}

impl Network {
    pub fn contains(&self, ip: IpAddr) -> bool {
        let shifted =
            |bits: u128, width: u8| bits.checked_shr(u32::from(width - self.prefix)).unwrap_or(0);
        match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                shifted(u128::from(a.to_bits()), 32) == shifted(u128::from(b.to_bits()), 32)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                shifted(a.to_bits(), 128) == shifted(b.to_bits(), 128)
            }
            _ => false,
        }
    }
}

impl Network {
    pub fn overlaps(&self, other: &Network) -> bool {
        self.contains(other.ip) || other.contains(self.ip)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let error = || format!("\"{text}\" is neither an IP address nor a range like 192.0.2.0/24");
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| error())?;
        let width = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(width), str::parse).map_err(|_| error())?;
        if prefix > width { Err(error()) } else { Ok(Network { ip, prefix }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains() {
        let inside =
            |range: &str, ip: &str| range.parse::<Network>().unwrap().contains(ip.parse().unwrap());
        assert!(inside("10.1.0.0/16", "10.1.255.3") && !inside("10.1.0.0/16", "10.2.0.0"));
        assert!(inside("0.0.0.0/0", "8.8.8.8") && !inside("0.0.0.0/0", "::1"));
        assert!(inside("2001:db8::/32", "2001:db8::5") && inside("::1", "::1"));
        for bad in ["x", "10.0.0.0/33", "10.0.0.0/", ""] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
