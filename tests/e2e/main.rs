//! Real calls through real Asterisk 16 (chan_sip, chan_pjsip) and 22 (chan_pjsip), with the program
//! as a separate process. `tests/run.sh` fetches what this needs.

mod agents;
#[allow(dead_code, reason = "the bench uses the rest")]
mod ai;
mod ari;
mod asterisk;
mod audio;
#[allow(dead_code, reason = "the bench uses the rest")]
mod bridge;
mod bystanders;
#[allow(dead_code, reason = "the bench uses the rest")]
mod caller;
mod capture;
mod clients;
mod dialects;
mod dialout;
mod doctor;
mod dropin;
mod examples;
mod fixture;
mod lifecycle;
mod load;
mod recording;
#[allow(dead_code, reason = "the tests without a PBX use the rest")]
#[path = "../bystanders/rig/mod.rs"]
mod rig;
mod setup;
mod speech;
mod storage;
mod transfers;
mod variants;
mod verbs;
mod vicidial;

use std::time::Duration;

use asterisk::Asterisk;
use bridge::Setup;

/// An Asterisk version and one of its channel drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pbx {
    Sip16,
    Pjsip16,
    Pjsip22,
}

impl Pbx {
    pub const ALL: [Pbx; 3] = [Pbx::Sip16, Pbx::Pjsip16, Pbx::Pjsip22];

    /// Starts a separate instance at `127.0.N.1`.
    pub fn start(self, n: u8) -> Asterisk {
        let version = if self == Pbx::Pjsip22 { 22 } else { 16 };
        Asterisk::start(version, &format!("e2e-{n}"), &format!("127.0.{n}.1"))
    }

    /// The extension that reaches the bridge.
    pub fn extension(self) -> &'static str {
        if self == Pbx::Sip16 { "710" } else { "700" }
    }

    /// The setup of a bridge that registers as the usual extension; SIP listens on `127.0.N.2`.
    pub fn setup(self, asterisk: &Asterisk, n: u8, ai: &str) -> Setup {
        let (registrar, username) = match self {
            Pbx::Sip16 => (asterisk.chansip_addr(), "cc100"),
            _ => (asterisk.sip_addr(), "ai"),
        };
        Setup {
            registrar: registrar.to_string(),
            username,
            password: "bridgesecret",
            ai: ai.to_owned(),
            listen: format!("127.0.{n}.2:5070"),
            tables: String::new(),
            sip_keys: String::new(),
        }
    }
}

/// Runs a test's future.
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test)
}

/// Waits until Asterisk has no channel left.
pub fn assert_no_channels(asterisk: &Asterisk) {
    assert_eventually(
        || asterisk.channels() == 0,
        || format!("{} channels left", asterisk.channels()),
    );
}

/// Waits up to 5 s until something is true that only asking shows. `failure` is the message.
pub fn assert_eventually(is_true: impl Fn() -> bool, failure: impl Fn() -> String) {
    let begin = std::time::Instant::now();
    while !is_true() {
        assert!(begin.elapsed() < Duration::from_secs(5), "{}", failure());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asserts that `numbers` is `0, 1, 2 … n-1`: none missing, none twice.
pub fn assert_all(numbers: &[u32], n: u32, who: &str) {
    let wanted: Vec<u32> = (0..n).collect();
    let missing: Vec<&u32> = wanted.iter().filter(|w| !numbers.contains(w)).collect();
    assert!(numbers == wanted, "{who}: {} of {n}, missing {missing:?}", numbers.len());
}
