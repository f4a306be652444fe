//! Finds out about the PBX, this host and the AI without asking. Prints it, so that the person who
//! answers sees why a default is the default.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::setup::answers::{ARI_PORT, Address, Driver, Mode, ai_target};
use crate::setup::found::{RtpRange, SipAnswer, missing_modules, modules, version};
use crate::setup::{probe, sip_probe};

/// The PBX as it was found.
#[derive(Default)]
pub struct Pbx {
    pub ip: Option<IpAddr>,
    /// True if `ip` is an address of this host.
    pub is_here: bool,
    pub sip: Vec<SipAnswer>,
    pub version: Option<u32>,
    /// Asterisk's RTP range, if it is on this host and can be read.
    pub rtp: Option<RtpRange>,
}

impl Pbx {
    /// The port at which a driver answers.
    pub fn at(&self, driver: Driver) -> Option<&SipAnswer> {
        self.sip.iter().find(|answer| answer.driver == Some(driver))
    }

    /// Our address as the PBX sees it, if it differs from the one of our route to it.
    pub fn nat(&self) -> Option<IpAddr> {
        let ip = self.ip.filter(|_| !self.is_here)?;
        let ours = probe::route(SocketAddr::new(ip, 9))?;
        self.sip.iter().find_map(|answer| answer.seen_as).filter(|seen| *seen != ours)
    }
}

fn found(line: &str) {
    errln!("  found: {line}");
}

fn note(line: &str) {
    errln!("  note: {line}");
}

/// Looks at the PBX. `local` is the address to look from.
pub async fn pbx(address: &Address, mode: Mode, local: Option<IpAddr>, asterisk: &Path) -> Pbx {
    let mut pbx = Pbx::default();
    match probe::address(&address.host).await {
        Ok(ip) => pbx.ip = Some(ip),
        Err(why) => {
            note(&format!("{} cannot be resolved: {why}", address.host));
            return pbx;
        }
    }
    let Some(ip) = pbx.ip else { return pbx };
    pbx.is_here = probe::is_own(ip);
    if pbx.is_here {
        rtp(&mut pbx, asterisk);
    }
    let from = local.or_else(|| probe::route(SocketAddr::new(ip, 9)));
    let given = address.port.filter(|_| mode == Mode::Sip).map(|port| vec![port]);
    let ports = given.unwrap_or(sip_probe::PORTS.to_vec());
    if let Some(from) = from {
        pbx.sip = sip_probe::ask(from, ip, &ports).await;
    }
    for answer in &pbx.sip {
        let transport = if answer.tcp { "TCP" } else { "UDP" };
        let driver = answer.driver.map_or("SIP", Driver::word);
        let at = SocketAddr::new(ip, answer.port);
        found(&format!("{driver} at {at}, {transport}: {}", answer.server));
        pbx.version = pbx.version.or(version(&answer.server));
    }
    if pbx.sip.is_empty() && mode == Mode::Sip {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        note(&format!(
            "nothing answers SIP at {ip}, port {}: check the address, and that no firewall is \
             between us",
            ports.join(", ")
        ));
    }
    if let Some(seen) = pbx.nat() {
        note(&format!(
            "the PBX sees us as {seen}: we are behind NAT, and it is entered as advertised. The \
             ports for audio must be forwarded to this host unchanged"
        ));
    }
    pbx
}

fn rtp(pbx: &mut Pbx, asterisk: &Path) {
    match probe::rtp_range(asterisk) {
        Some(Ok(range)) => {
            found(&format!("Asterisk's RTP range {}-{}", range.first, range.last));
            pbx.rtp = Some(range);
        }
        Some(Err(why)) => note(&format!("Asterisk's RTP range is not known: {why}")),
        None => {}
    }
}

/// Asks Asterisk's HTTP server for its version and, if a user and password are known, its modules.
pub async fn ari(
    pbx: &mut Pbx,
    port: Option<u16>,
    mode: Mode,
    driver: Driver,
    login: Option<(&str, &str)>,
) {
    let Some(ip) = pbx.ip else { return };
    let to = SocketAddr::new(ip, port.unwrap_or(ARI_PORT));
    let answer = match probe::http(to, "/ari/asterisk/info", login).await {
        Ok(answer) => answer,
        Err(why) if mode == Mode::Ari => {
            note(&format!("Asterisk's HTTP server does not answer at {to} yet: {why}"));
            return;
        }
        Err(_) => return,
    };
    found(&format!("{} at {to}: {}", answer.meaning(login.is_some()), answer.server));
    pbx.version = pbx.version.or(version(&answer.server));
    if answer.status != 200 {
        return;
    }
    let info: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    if let Some(text) = info["system"]["version"].as_str() {
        pbx.version = version(&format!("Asterisk/{text}")).or(pbx.version);
        found(&format!("Asterisk {text}"));
    }
    if let Ok(answer) = probe::http(to, "/ari/asterisk/modules", login).await
        && answer.status == 200
    {
        let missing = missing_modules(&modules(&answer.body), mode, driver);
        if !missing.is_empty() {
            note(&format!("Asterisk does not run {}: load them", missing.join(", ")));
        }
    }
}

/// A hint about the AI, which may be started later.
pub async fn ai(url: &str) {
    let Some((host, port)) = ai_target(url) else { return };
    match probe::is_open(&host, port).await {
        true => found(&format!("something listens at {host}:{port}, for the AI")),
        false => note(&format!("nothing listens at {host}:{port} yet; start the AI later")),
    }
}
