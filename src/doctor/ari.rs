//! The checks of a PBX in ARI mode. They use a Stasis application of their own, and remove
//! everything that they create. Owns sockets, and reads files of an Asterisk on this
//! host.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, timeout};

use crate::ari::client::link::{Link, LinkError, Opening, open};
use crate::ari::client::rest::Rest;
use crate::ari::client::rtp_capacity::{self, SAFE_MEDIA};
use crate::ari::client::{AriPbx, rtp_conf};
use crate::ari::request::{Outcome, RestRequest};
use crate::ari::rtp_range::RtpRange;
use crate::dns;
use crate::doctor::finding::Finding;
use crate::doctor::running::PbxState;
use crate::doctor::{ari_media, dialplan, host};

/// Time limit for the connection and the first commands.
const OPEN: Duration = Duration::from_secs(7);
/// Our application. Asterisk may list it until it restarts, and so has only one name to keep.
const APP: &str = "trunkless-doctor";
/// Time limit for DNS.
const LOOKUP: Duration = Duration::from_secs(3);
/// The first version with external media.
const FIRST_VERSION: (u32, u32) = (16, 6);
/// The state of a running trunkless whose application another program took.
const TAKEN: [&str; 2] =
    ["application taken by another program", "application in use by another trunkless"];

/// The parts of the configuration that the checks of all PBXs in ARI mode share.
pub struct Shared {
    /// `[sip] listen`, whose address is that of the RTP sockets.
    pub bound: IpAddr,
    /// `[media] ports`.
    pub media: (u16, u16),
    /// `[calls] max`.
    pub max_calls: usize,
    /// When the run ends.
    pub end: Instant,
}

/// Runs the checks, in the order in which they depend on each other.
pub async fn check(pbx: &AriPbx, shared: &Shared, running: Option<&PbxState>) -> Vec<Finding> {
    let step = |part: &str| format!("pbx.{}.{part}", pbx.name);
    let mut findings = Vec::new();
    match timeout(LOOKUP, dns::lookup(&pbx.target.host, pbx.target.port)).await {
        Ok(Ok(found)) => {
            let found: Vec<String> = found.iter().map(SocketAddr::to_string).collect();
            findings.push(Finding::ok(step("dns"), found.join(", ")));
        }
        failed => {
            let why = failed.map_or("no answer".to_owned(), |r| r.err().unwrap_or_default());
            let what = format!("cannot resolve {}: {why}", pbx.target.host);
            let remedy = "check the host in url, and this host's DNS";
            findings.push(Finding::fault(step("dns"), what, remedy));
            findings.push(Finding::skipped(step("ari"), "needs an address"));
            return findings;
        }
    }
    let token = ari_media::token();
    match link(pbx, &token).await {
        Err(error) => {
            findings.push(judge_link(&step("ari"), pbx, &error));
            for part in ["version", "application", "media"] {
                findings.push(Finding::skipped(step(part), "needs ARI"));
            }
        }
        Ok(mut link) => {
            let at = &pbx.target.base;
            findings.push(Finding::ok(
                step("ari"),
                format!("{at}: user \"{}\" may read and write", pbx.target.username),
            ));
            let info = link.rest.run(&RestRequest::Info).await;
            findings.push(version(&step("version"), &info));
            findings.push(application(pbx, &link.rest, running, &step("application")).await);
            findings.extend(media(pbx, shared, &mut link, &token, &step("media")).await);
            link.close().await;
        }
    }
    findings.push(dialplan::check(&step("dialplan"), &pbx.app, pbx.rtp_conf.as_deref()));
    findings.push(rtp_range(pbx, shared, &step("rtp_range")));
    findings
}

async fn link(pbx: &AriPbx, token: &str) -> Result<Box<Link>, LinkError> {
    let away = |why: String| LinkError::Away(why);
    let opening = Opening {
        target: pbx.target.clone(),
        rest: Rest::new(pbx.target.clone()).map_err(|why| away(why.to_string()))?,
        app: APP.to_owned(),
        probe: Some(format!("trunkless-doctor-b-{token}")),
        lock: None,
    };
    let opened = timeout(OPEN, open(opening)).await;
    opened.unwrap_or_else(|_| Err(away(format!("{}: no answer within 7s", pbx.target.base))))
}

/// Judges why ARI cannot be used, in the words of the log.
fn judge_link(step: &str, pbx: &AriPbx, error: &LinkError) -> Finding {
    if let LinkError::Held(_) = error {
        return Finding::skipped(
            step,
            "another trunkless doctor is checking this PBX; run it again",
        );
    }
    let text = error.to_string();
    let secure = pbx.target.tls.is_some();
    let (what, cure) = match error {
        LinkError::Away(why) if why.contains("certificate") => {
            (text.as_str(), "set [pbx.NAME.ari] ca_file, and the host of the certificate in url")
        }
        LinkError::Away(why) if why.contains("HTTP server is off") => {
            text.split_once("; ").unwrap_or((&text, "set enabled = yes in http.conf"))
        }
        LinkError::Away(why) if why.contains("503") => {
            (text.as_str(), "Asterisk is starting: wait, or look at its log")
        }
        LinkError::Away(_) if secure => {
            (text.as_str(), "check url: does Asterisk expect http:// there? And the firewall")
        }
        LinkError::Away(_) => {
            (text.as_str(), "check url: does Asterisk expect https:// there? And the firewall")
        }
        _ => text.rsplit_once(": ").unwrap_or((&text, "compare [pbx.NAME.ari] with ari.conf")),
    };
    Finding::fault(step, what, cure)
}

fn version(step: &str, info: &Outcome) -> Finding {
    #[derive(Deserialize)]
    struct System {
        version: String,
    }
    #[derive(Deserialize)]
    struct Info {
        system: System,
    }
    let Outcome::Answered { status: 200, body } = info else {
        return Finding::skipped(step, format!("unknown: {}", info.text()));
    };
    match serde_json::from_str::<Info>(body) {
        Ok(info) => judge_version(step, &info.system.version),
        Err(_) => Finding::skipped(step, "unknown"),
    }
}

fn judge_version(step: &str, text: &str) -> Finding {
    let plain = text.trim_start_matches("certified/");
    let mut numbers = plain.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    let (Some(Some(major)), minor) = (numbers.next(), numbers.next().flatten().unwrap_or(0)) else {
        return Finding::skipped(step, format!("Asterisk {text}: unknown numbering"));
    };
    if (major, minor) < FIRST_VERSION {
        return Finding::fault(
            step,
            format!("Asterisk {text} has no external media over ARI; it came with 16.6"),
            "update Asterisk, or use SIP mode",
        );
    }
    match major {
        ..18 => Finding::ok(
            step,
            format!("Asterisk {text}; call set-up takes 0.2 s longer than with 18 and newer"),
        ),
        _ => Finding::ok(step, format!("Asterisk {text}")),
    }
}

/// Checks that the running trunkless serves the application, or that no other program does.
async fn application(pbx: &AriPbx, rest: &Rest, running: Option<&PbxState>, step: &str) -> Finding {
    #[derive(Deserialize)]
    struct Application {
        name: String,
    }
    let outcome = rest.run(&RestRequest::Applications).await;
    let Outcome::Answered { status: 200, body } = &outcome else {
        return Finding::skipped(step, format!("not listed: {}", outcome.text()));
    };
    let names = serde_json::from_str::<Vec<Application>>(body).unwrap_or_default();
    let names: Vec<String> = names.into_iter().map(|app| app.name).collect();
    judge_application(step, &pbx.app, &names, running)
}

fn judge_application(
    step: &str,
    app: &str,
    names: &[String],
    running: Option<&PbxState>,
) -> Finding {
    let served = names.iter().any(|name| name == app);
    let own_remedy = "give each program its own [pbx.NAME.ari] app";
    match (running, served) {
        (Some(pbx), _) if TAKEN.contains(&pbx.state.as_str()) => {
            Finding::fault(step, format!("application \"{app}\": {}", pbx.state), own_remedy)
        }
        (Some(pbx), true) if pbx.ready => {
            Finding::ok(step, format!("the running trunkless serves \"{app}\""))
        }
        (Some(pbx), _) => Finding::warning(
            step,
            format!("the running trunkless does not serve \"{app}\" yet: {}", pbx.state),
            "look at its log",
        ),
        // Asterisk also lists those whose program has ended
        (None, true) => Finding::ok(step, format!("the PBX knows \"{app}\"")),
        (None, false) => Finding::ok(step, format!("\"{app}\" is free; trunkless does not run")),
    }
}

/// Tests RTP, unless that could use up the PBX's RTP ports.
async fn media(
    pbx: &AriPbx,
    shared: &Shared,
    link: &mut Link,
    token: &str,
    step: &str,
) -> Vec<Finding> {
    if Instant::now() + ari_media::LONGEST > shared.end {
        return vec![Finding::skipped(step, "not tested: the PBX answers too slowly")];
    }
    let channels = link.rest.run(&RestRequest::Channels).await.channels();
    let Some(channels) = channels else {
        return vec![Finding::skipped(step, "the channels cannot be listed")];
    };
    let (range, _) = read_range(pbx);
    let free = match range {
        Some(range) if host::is_local(link.pbx) => {
            rtp_capacity::count(range, link.pbx).map(|used| range.pairs().saturating_sub(used))
        }
        _ => Some(pbx.max_media.unwrap_or(SAFE_MEDIA).saturating_sub(channels.len())),
    };
    let reserve = range.map_or(2, |range| range.reserve() + 2);
    if free.is_none_or(|free| free <= reserve) {
        let what = "too few RTP ports are free on the PBX for a test, which could crash Asterisk";
        return vec![Finding::warning(step, what, "widen rtpstart and rtpend in rtp.conf")];
    }
    let test = ari_media::Test {
        app: APP,
        token,
        bound: shared.bound,
        advertised: pbx.advertised,
        ports: shared.media,
        law: pbx.law,
    };
    let outcome = ari_media::run(&test, link).await;
    vec![ari_media::judge(step, &outcome)]
}

fn read_range(pbx: &AriPbx) -> (Option<RtpRange>, String) {
    let file = pbx.rtp_conf.as_deref().unwrap_or(Path::new(rtp_capacity::RTP_CONF));
    let name = file.display().to_string();
    match rtp_conf::read(file) {
        Ok(text) => (RtpRange::parse(&text), name),
        Err(why) => (None, why),
    }
}

/// Compares the PBX's RTP range with the calls that are allowed.
fn rtp_range(pbx: &AriPbx, shared: &Shared, step: &str) -> Finding {
    let (range, name) = read_range(pbx);
    let pairs = range.map(|range| range.pairs());
    judge_range(step, &name, pairs, pbx.max_media, shared.max_calls)
}

fn judge_range(
    step: &str,
    name: &str,
    pairs: Option<usize>,
    max_media: Option<usize>,
    max_calls: usize,
) -> Finding {
    let crash = "Asterisk crashes when its RTP ports run out";
    let Some(pairs) = pairs else {
        let what = format!("the PBX's RTP range is unknown ({name}), and {crash}");
        return match max_media {
            Some(most) => Finding::ok(step, format!("{what}; max_media allows {most} calls")),
            None => Finding::warning(
                step,
                what,
                "set max_media to at most half of its streams, or make the file readable",
            ),
        };
    };
    let fits = (pairs / 2).max(1);
    let wide = "widen rtpstart and rtpend";
    match max_media {
        Some(most) if most > fits => Finding::fault(
            step,
            format!(
                "max_media is {most}, but {name} allows {pairs} RTP streams, two per call: {crash}"
            ),
            format!("lower max_media to {fits}, or {wide}"),
        ),
        _ if fits < max_calls => Finding::warning(
            step,
            format!("{name} has RTP ports for {fits} calls, and [calls] max is {max_calls}"),
            format!("lower [calls] max, or {wide}"),
        ),
        _ => Finding::ok(step, format!("{name} has RTP ports for {fits} calls")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn versions() {
        assert!(judge_version("v", "13.38.3").is_fault());
        assert!(judge_version("v", "16.5.1").is_fault());
        for good in ["16.28.0~dfsg-0+deb11u4", "22.10.1", "certified/18.9-cert1", "GIT-master"] {
            assert!(!judge_version("v", good).is_fault(), "{good}");
        }
    }

    #[test]
    fn applications() {
        let names = ["trunkless".to_owned()];
        let state = |ready, state: &str| PbxState { ready, state: state.to_owned() };
        let judge = |names: &[String], running: Option<&PbxState>| {
            judge_application("a", "trunkless", names, running).state
        };
        assert_eq!(judge(&names, Some(&state(true, "connected"))), State::Ok);
        assert_eq!(judge(&[], Some(&state(false, "ARI unreachable"))), State::Warning);
        assert_eq!(judge(&names, Some(&state(false, TAKEN[0]))), State::Fault);
        assert_eq!(judge(&names, None), State::Ok);
        assert_eq!(judge(&[], None), State::Ok);
    }

    #[test]
    fn ranges() {
        let judge = |pairs, media, calls| judge_range("r", "rtp.conf", pairs, media, calls).state;
        assert_eq!(judge(Some(5000), None, 200), State::Ok);
        assert_eq!(judge(Some(50), None, 200), State::Warning);
        assert_eq!(judge(Some(50), Some(100), 20), State::Fault);
        assert_eq!(judge(None, None, 200), State::Warning);
        assert_eq!(judge(None, Some(50), 200), State::Ok);
    }
}
