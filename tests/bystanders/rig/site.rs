//! Where bystanders call: the bridge's configuration, and how calls reach it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::callers::Dial;
use super::overlay::lay_over;

static NEXT: AtomicU8 = AtomicU8::new(1);

/// Writes a configuration, given the URLs of the bystanders' AI and of the fault's AI.
pub type Config = Box<dyn Fn(&str, &str) -> String>;

/// Reads the objects that a PBX holds for its calls: channels and bridges.
pub type Objects = Box<dyn Fn() -> Vec<String>>;

pub struct Site {
    pub config: Config,
    /// Log text that means the bridge is ready for calls.
    pub ready: &'static str,
    pub dial: Dial,
    /// Where the two AIs listen.
    pub ai: Ipv4Addr,
    /// Address of the PBX `fault`, from which a fault places its calls.
    pub offender: Ipv4Addr,
    /// The bridge's SIP address.
    pub bridge: SocketAddr,
    /// Bound of the usual delay, in each direction.
    pub usual: Duration,
    /// The PBX's objects; the same number is expected before and after.
    pub objects: Option<Objects>,
    /// A server to which the bridge keeps connections for later requests. It may keep more of them
    /// after a fault.
    pub pool: Option<SocketAddr>,
    /// The process id of the PBX.
    pub pbx: Option<u32>,
    /// The log is a file, and its disk is full after this many bytes.
    pub log_limit: Option<u64>,
}

impl Site {
    /// No PBX between callers and bridge. The TOML in `config` is laid over the plain
    /// configuration. The addresses belong to this site alone.
    pub fn direct(config: &str) -> Site {
        // keeps concurrent runs of the tests apart
        let process = 16 + (std::process::id() % 200) as u8;
        let site = NEXT.fetch_add(1, Ordering::Relaxed);
        let host = |n: u8| Ipv4Addr::new(127, process, site, n);
        let bridge = SocketAddr::new(host(1).into(), 5070);
        let (callers, ai, offender) = (host(2), host(3), host(4));
        let over: toml::Table = toml::from_str(config).expect("TOML");
        let config = move |ai: &str, fault_ai: &str| {
            let plain = format!(
                "[ai]\nurl = \"{ai}\"\n[sip]\nlisten = \"{bridge}\"\n\
                 [pbx.main]\nmode = \"sip\"\n\
                 [pbx.main.sip]\nregister = false\npeers = [\"{callers}\"]\n{}",
                fault_pbx(offender, fault_ai)
            );
            let mut tables: toml::Table = toml::from_str(&plain).expect("TOML");
            lay_over(&mut tables, over.clone());
            tables.to_string()
        };
        Site {
            config: Box::new(config),
            ready: "trunkless is up",
            dial: Dial { from: callers.into(), target: bridge, extension: "ai".to_owned() },
            ai,
            offender,
            bridge,
            // the AI sends 6 ms ahead of a slot, and the host may have cost a slot at the beginning
            usual: Duration::from_millis(30),
            objects: None,
            pool: None,
            pbx: None,
            log_limit: None,
        }
    }
}

/// The tables of the PBX `fault`, from which a fault places its calls.
pub fn fault_pbx(offender: Ipv4Addr, ai: &str) -> String {
    format!(
        "[pbx.fault]\nmode = \"sip\"\n[pbx.fault.ai]\nurl = \"{ai}\"\n\
         [pbx.fault.sip]\nregister = false\npeers = [\"{offender}\"]\n"
    )
}
