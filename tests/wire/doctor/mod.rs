//! `trunkless doctor`: each test plants one fault. Exactly that step is called faulty, in words
//! that name the fault; where the running bridge can see it too, its log has the same words.
//!
//! With the variable DOCTOR_TABLE set to a file, each test adds its row there.

mod ai;
mod ari;
mod asterisk;
mod host;
mod pbx;
mod program;
mod sip;

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use trunkless::config::Source;
use trunkless::doctor::finding::{Finding, Report, State};
use trunkless::doctor::{self, Options};

use crate::bridge::{Bridge, Net};
use crate::lines::Lines;
use crate::overlay::lay_over;

/// One planted fault.
struct Case {
    fault: &'static str,
    net: Net,
    /// The configuration, and what overrides it.
    plain: String,
    more: String,
    options: Options,
}

/// The finding to expect.
struct Wanted {
    step: &'static str,
    state: State,
    /// Parts of the finding and its remedy.
    words: &'static [&'static str],
    /// A part of the bridge's log line about the same fault.
    log: Option<&'static str>,
}

impl Wanted {
    fn fault(step: &'static str, words: &'static [&'static str]) -> Wanted {
        Wanted { step, state: State::Fault, words, log: None }
    }

    fn warning(step: &'static str, words: &'static [&'static str]) -> Wanted {
        Wanted { state: State::Warning, ..Wanted::fault(step, words) }
    }

    /// The log has this too.
    fn logged(self, log: &'static str) -> Wanted {
        Wanted { log: Some(log), ..self }
    }
}

impl Case {
    /// In SIP mode, with a PBX and an AI at these addresses.
    fn sip(fault: &'static str, net: Net, pbx: SocketAddr, ai: SocketAddr) -> Case {
        let plain = format!(
            "[ai]\nurl = \"ws://{ai}/media\"\n[sip]\nlisten = \"{}:5060\"\n\
             [media]\nports = \"20002-20401\"\n[pbx.main]\nmode = \"sip\"\n\
             [pbx.main.sip]\nregistrar = \"{pbx}\"\nusername = \"ai\"\npassword = \"secret\"\n\
             keepalive = \"0s\"\n",
            net.bridge()
        );
        Case::new(fault, net, plain)
    }

    fn ari(fault: &'static str, net: Net, pbx: SocketAddr, ai: SocketAddr) -> Case {
        let plain = format!(
            "[ai]\nurl = \"ws://{ai}/media\"\n[sip]\nlisten = \"{}:0\"\n\
             [media]\nports = \"20002-20401\"\n[pbx.main]\nmode = \"ari\"\n\
             [pbx.main.ari]\nurl = \"http://{pbx}\"\nusername = \"ai\"\npassword = \"secret\"\n\
             app = \"ai\"\nrtp_conf = \"/nonexistent/rtp.conf\"\nmax_media = 200\n",
            net.bridge()
        );
        Case::new(fault, net, plain)
    }

    fn new(fault: &'static str, net: Net, plain: String) -> Case {
        let options = Options { no_ai_call: true, ..Options::default() };
        Case { fault, net, plain, more: String::new(), options }
    }

    fn with(mut self, more: impl Into<String>) -> Case {
        self.more = more.into();
        self
    }

    fn text(&self) -> String {
        let mut tables: toml::Table = toml::from_str(&self.plain).unwrap();
        lay_over(&mut tables, toml::from_str(&self.more).unwrap());
        tables.to_string()
    }

    async fn report(&self) -> Report {
        // a file of that name does not exist, so that nothing is said of its permissions
        let source = Source { name: "/nonexistent/test.toml".to_owned(), text: self.text() };
        doctor::run(&source, &HashMap::new(), &self.options).await.0
    }

    /// Runs doctor, and the bridge if its log is of interest.
    async fn shows(self, wanted: Wanted) {
        let finding = self.finding(&wanted).await;
        let log = match wanted.log {
            Some(log) => self.logs(log).await,
            None => "–".to_owned(),
        };
        row(self.fault, &finding, &log);
    }

    /// Runs doctor, and returns the finding that was expected.
    async fn finding(&self, wanted: &Wanted) -> Finding {
        let report = self.report().await;
        let faults = |finding: &&Finding| finding.state == State::Fault;
        let found: Vec<&Finding> = report.findings.iter().filter(faults).collect();
        let of_step = report
            .findings
            .iter()
            .find(|finding| finding.step == wanted.step && finding.state == wanted.state);
        let all = format!("{}:\n{:#?}", self.fault, report.findings);
        let finding =
            of_step.unwrap_or_else(|| panic!("no {} at {}, {all}", "finding", wanted.step));
        let text = format!("{} {}", finding.what, finding.remedy.clone().unwrap_or_default());
        for words in wanted.words {
            assert!(text.contains(words), "\"{words}\" is not in {text}\n{all}");
        }
        let others = found.iter().filter(|other| other.step != wanted.step).count();
        assert_eq!(others, 0, "another step is called faulty, {all}");
        assert!(!text.contains("secret\""), "{text}");
        finding.clone()
    }

    /// Starts the bridge with the same configuration, and waits for the log line.
    async fn logs(&self, wanted: &str) -> String {
        let lines = Lines::new();
        let _bridge = Bridge::launch(&self.plain, &self.more).await;
        lines.until(wanted).await
    }
}

/// Adds a row to the table.
fn row(fault: &str, finding: &Finding, log: &str) {
    let Some(path) = std::env::var_os("DOCTOR_TABLE") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let Finding { step, state, what, remedy } = finding;
    let remedy = remedy.as_deref().unwrap_or("–");
    let cell = |text: &str| text.replace('|', "\\|");
    let line = format!(
        "| {fault} | `{step}` {state:?}: {} → {} | {} | named |\n",
        cell(what),
        cell(remedy),
        cell(log.trim())
    );
    file.unwrap().write_all(line.as_bytes()).unwrap();
}

/// An AI without a fault: the stand-in.
async fn good_ai(net: Net) -> SocketAddr {
    let listener = TcpListener::bind((net.ai(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(trunkless::peer::ai::serve(listener, None));
    address
}
