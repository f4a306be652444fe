//! The trunkless that runs with this configuration, if there is one: its state as `/readyz` has it.
//! Owns a socket.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time limit for the answer.
const LIMIT: Duration = Duration::from_secs(2);
/// More than any answer has.
const MAX_BYTES: u64 = 64 * 1024;

/// The state of one PBX in the running program.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PbxState {
    pub ready: bool,
    pub state: String,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Answer {
    pbxs: BTreeMap<String, PbxState>,
    version: String,
}

/// The state of a running program, if one answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running(Option<Answer>);

impl Running {
    /// Asks the program that listens at `[http] listen`. One with other PBXs is not ours.
    pub async fn find(listen: Option<SocketAddr>, pbxs: &[&str]) -> Running {
        let Some(listen) = listen else { return Running(None) };
        let text = timeout(LIMIT, ask(reachable(listen), "/readyz")).await;
        let Ok(Ok(text)) = text else { return Running(None) };
        Running::parse(&text).known(pbxs)
    }

    fn parse(text: &str) -> Running {
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
        Running(body.and_then(|body| serde_json::from_str(body).ok()))
    }

    fn known(self, pbxs: &[&str]) -> Running {
        let all = |answer: &Answer| pbxs.iter().all(|name| answer.pbxs.contains_key(*name));
        Running(self.0.filter(all))
    }

    pub fn answers(&self) -> bool {
        self.0.is_some()
    }

    pub fn version(&self) -> Option<&str> {
        self.0.as_ref().map(|answer| answer.version.as_str())
    }

    pub fn pbx(&self, name: &str) -> Option<&PbxState> {
        self.0.as_ref()?.pbxs.get(name)
    }
}

/// The address to connect to: loopback if the program listens on all addresses.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Sends a GET and returns the response. HTTP/1.0, so that the response ends with the connection.
///
/// # Errors
/// Returns any I/O error.
pub async fn ask(to: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_with_the_same_pbxs_is_ours() {
        let text = "HTTP/1.0 503\r\n\r\n{\"version\":\"1\",\"pbxs\":{\"main\":{\"mode\":\"sip\",\
                    \"ready\":false,\"state\":\"registrar lost\"}}}";
        let running = Running::parse(text);
        assert_eq!(running.pbx("main").map(|pbx| pbx.state.as_str()), Some("registrar lost"));
        assert!(running.clone().known(&["main"]).answers());
        assert!(!running.known(&["other"]).answers());
        assert!(!Running::parse("nonsense").answers());
    }
}
