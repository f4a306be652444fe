//! This host: clock, files, open files, and the ports of trunkless. Owns the reading of files, of
//! the clock and of `/proc`, and sockets that are closed at once.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};

use crate::config::schema::Settings;
use crate::doctor::finding::Finding;
use crate::doctor::running::Running;
use crate::doctor::sockets::{self, Owner};
use crate::faults;

/// No clock is earlier: the beginning of 2026.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
/// Keys whose values are secrets.
const SECRETS: [&str; 7] = [
    "password",
    "auth_token",
    "secret",
    "secret_access_key",
    "token",
    "otlp_headers",
    "tool_webhook_secret",
];

pub fn clock() -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    judge_clock(now)
}

fn judge_clock(now: Duration) -> Finding {
    match now < EARLIEST {
        true => Finding::fault(
            "clock",
            "this host's clock is years behind: certificates count as not valid yet, and \
             recordings get wrong names",
            "set it, and run chrony or systemd-timesyncd",
        ),
        false => Finding::ok("clock", "plausible"),
    }
}

/// Checks who may read the configuration and the files with secrets that it names.
pub fn secrets(config: &Path, text: &str) -> Finding {
    let table: toml::Table = text.parse().unwrap_or_default();
    let (mut files, mut inline) = (Vec::new(), false);
    collect_secrets(&table, &mut files, &mut inline);
    if inline {
        files.push(config.to_owned());
    }
    let open: Vec<String> = files.iter().filter_map(|file| readable_by_others(file)).collect();
    match open.is_empty() {
        true => Finding::ok("files", "secrets are readable by their owner and group only"),
        false => Finding::warning(
            "files",
            format!("every user of this host can read secrets in {}", open.join(", ")),
            format!("chmod o= {}", open.join(" ")),
        ),
    }
}

/// Adds the files named by keys such as `password_file`. `inline` becomes true if a secret is in
/// the text itself.
fn collect_secrets(table: &toml::Table, files: &mut Vec<PathBuf>, inline: &mut bool) {
    for (key, value) in table {
        let is_secret = |name: &str| SECRETS.contains(&name);
        match value {
            toml::Value::Table(table) => collect_secrets(table, files, inline),
            toml::Value::Array(items) => {
                let tables = items.iter().filter_map(toml::Value::as_table);
                tables.for_each(|table| collect_secrets(table, files, inline));
            }
            toml::Value::String(path) => match key.strip_suffix("_file") {
                Some(name) if is_secret(name) => files.push(PathBuf::from(path)),
                _ => *inline |= is_secret(key) && !path.is_empty(),
            },
            _ => {}
        }
    }
}

fn readable_by_others(file: &Path) -> Option<String> {
    let mode = std::fs::metadata(file).ok()?.permissions().mode();
    (mode & 0o004 != 0).then(|| file.display().to_string())
}

/// Checks the limit that applies to this process, which may differ from that of a service.
pub fn descriptors(calls: usize) -> Finding {
    judge_descriptors(getrlimit(Resource::Nofile).maximum, calls)
}

fn judge_descriptors(limit: Option<u64>, calls: usize) -> Finding {
    let wanted = faults::descriptors_for(calls);
    match limit {
        Some(limit) if limit < wanted => Finding::fault(
            "descriptors",
            format!("{}: {limit} of {wanted} for {calls} calls", faults::DESCRIPTORS),
            "raise LimitNOFILE in the service's unit (ulimit -Hn in a shell), or lower [calls] max",
        ),
        Some(limit) => Finding::ok("descriptors", format!("{limit} allowed, {wanted} needed")),
        None => Finding::ok("descriptors", "unlimited"),
    }
}

/// Checks the ports that trunkless listens on.
pub fn ports(settings: &Settings, sip_is_used: bool, running: &Running) -> Vec<Finding> {
    let mut findings = Vec::new();
    if sip_is_used {
        let listen = settings.sip.listen;
        findings.push(port("ports.sip", "[sip] listen", listen, running, |address| {
            UdpSocket::bind(address).map(drop)?;
            TcpListener::bind(address).map(drop)
        }));
    }
    if let Some(listen) = settings.http.listen {
        let bind = |address| TcpListener::bind(address).map(drop);
        findings.push(port("ports.http", "[http] listen", listen, running, bind));
    }
    findings.push(media(settings, running));
    findings
}

fn port(
    step: &str,
    key: &str,
    listen: SocketAddr,
    running: &Running,
    bind: impl Fn(SocketAddr) -> std::io::Result<()>,
) -> Finding {
    let error = match bind(listen) {
        Ok(()) => return Finding::ok(step, format!("{listen} is free")),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::AddrInUse => {
            let owner = sockets::owner(listen.port()).unwrap_or_else(Owner::unknown);
            judge_owner(step, key, listen, &owner, running.answers())
        }
        ErrorKind::AddrNotAvailable => Finding::fault(
            step,
            format!("cannot listen on {listen}: this host does not have the address"),
            format!("set {key} to an address of this host, or to 0.0.0.0"),
        ),
        ErrorKind::PermissionDenied => Finding::fault(
            step,
            format!("cannot listen on {listen}: {error}"),
            format!("set {key} to a port from 1024 up, or give the service CAP_NET_BIND_SERVICE"),
        ),
        _ => Finding::fault(
            step,
            format!("cannot listen on {listen}: {error}"),
            format!("change {key}"),
        ),
    }
}

/// Judges the program that uses our port. `runs`: a trunkless with this configuration runs.
fn judge_owner(step: &str, key: &str, listen: SocketAddr, owner: &Owner, runs: bool) -> Finding {
    if runs || owner.is_trunkless() {
        return Finding::ok(step, format!("{listen} is in use by the running trunkless"));
    }
    let what = format!("cannot listen on {listen}: {owner} uses the port");
    match owner.is_unknown() {
        true => Finding::warning(
            step,
            what,
            format!("run doctor as root to see if it is trunkless; otherwise change {key}"),
        ),
        false => Finding::fault(step, what, format!("stop it, or change {key}")),
    }
}

/// Checks that the RTP ports are not in use by another program.
fn media(settings: &Settings, running: &Running) -> Finding {
    let range = settings.media.ports;
    let taken = sockets::udp_ports_of_others(range.first, range.last, settings.sip.listen.ip());
    judge_media((range.first, range.last), &taken, running.answers())
}

fn judge_media((first, last): (u16, u16), taken: &[(u16, Owner)], runs: bool) -> Finding {
    let others: Vec<&(u16, Owner)> = taken
        .iter()
        .filter(|(_, owner)| !(owner.is_trunkless() || runs && owner.is_unknown()))
        .collect();
    let Some((port, owner)) = others.first() else {
        return Finding::ok("ports.media", format!("UDP {first}-{last} is free"));
    };
    let ports = usize::from(last - first) + 1;
    let what = format!(
        "{} of the UDP ports {first}-{last} in [media] ports are in use, such as {port} by {owner}",
        others.len()
    );
    let remedy = "move [media] ports to a range that no other program uses";
    // trunkless skips ports that are in use
    match others.len() * 2 >= ports {
        true => Finding::fault("ports.media", what, remedy),
        false => Finding::warning("ports.media", what, remedy),
    }
}

/// True if an address belongs to this host.
pub fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn a_clock_before_this_program_is_a_fault() {
        assert!(judge_clock(Duration::from_secs(60)).is_fault());
        assert_eq!(judge_clock(EARLIEST + Duration::from_secs(1)).state, State::Ok);
    }

    #[test]
    fn secrets_are_found_in_any_table() {
        let text = "[pbx.main.sip]\npassword_file = \"/a\"\n[ai]\nca_file = \"/b\"\n\
                    [[control.token]]\nsecret_file = \"/c\"\n";
        let (mut files, mut inline) = (Vec::new(), false);
        collect_secrets(&text.parse().unwrap(), &mut files, &mut inline);
        files.sort();
        assert_eq!(files, [PathBuf::from("/a"), PathBuf::from("/c")]);
        assert!(!inline);
        collect_secrets(&"auth_token = \"x\"".parse().unwrap(), &mut files, &mut inline);
        assert!(inline);
    }

    #[test]
    fn descriptors_are_judged_by_the_number_of_calls() {
        assert!(judge_descriptors(Some(1024), 200).is_fault());
        assert_eq!(judge_descriptors(Some(1500), 200).state, State::Ok);
        assert_eq!(judge_descriptors(None, 1000).state, State::Ok);
    }

    #[test]
    fn a_port_is_judged_by_its_owner() {
        let listen = SocketAddr::from(([0, 0, 0, 0], 5060));
        let judge = |owner, runs| judge_owner("p", "[sip] listen", listen, &owner, runs).state;
        assert_eq!(judge(Owner::named(7, "asterisk"), false), State::Fault);
        assert_eq!(judge(Owner::named(7, "trunkless"), false), State::Ok);
        assert_eq!(judge(Owner::unknown(), true), State::Ok);
        assert_eq!(judge(Owner::unknown(), false), State::Warning);
    }

    #[test]
    fn ports_of_others_are_counted() {
        let asterisk = || Owner::named(7, "asterisk");
        let ours = || Owner::named(8, "trunkless");
        let judge = |taken: &[(u16, Owner)]| judge_media((100, 109), taken, true).state;
        assert_eq!(judge(&[(100, ours()), (101, Owner::unknown())]), State::Ok);
        assert_eq!(judge(&[(100, asterisk())]), State::Warning);
        let all: Vec<_> = (100..106).map(|port| (port, asterisk())).collect();
        assert_eq!(judge(&all), State::Fault);
    }
}
