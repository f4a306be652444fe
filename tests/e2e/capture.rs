//! `trunkless calls capture` of calls through a real Asterisk, read with tshark.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use trunkless::peer::phone::{Keys, PhoneCommand};

use crate::ai::{Ai, Plan};
use crate::asterisk::Asterisk;
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::fixture::Lab;
use crate::{Pbx, ari, block_on};

const SECOND: Duration = Duration::from_secs(1);
const TOKEN: &str = "canary-token-of-the-lab";

/// The tables of a bridge whose calls can be captured, at this address.
fn tables(control: &str) -> String {
    format!(
        "[control]\nlisten = \"{control}\"\n\
         [control.tokens.lab]\ntoken = \"{TOKEN}\"\nscopes = [\"read\", \"capture\"]\n\
         [ai.parameters]\ncrm_token = \"canary-parameter\"\n"
    )
}

/// A running `trunkless calls capture --next`.
struct Capture {
    child: Child,
    file: PathBuf,
    folder: tempfile::TempDir,
}

impl Capture {
    fn start(control: &str, bridge: &Bridge) -> Capture {
        let folder = tempfile::tempdir().expect("a folder");
        let (token, file) = (folder.path().join("token"), folder.path().join("call.pcapng"));
        std::fs::write(&token, TOKEN).expect("written");
        let url = format!("http://{control}");
        let child = Command::new(env!("CARGO_BIN_EXE_trunkless"))
            .args(["calls", "capture", "--next", "main", "--url", &url, "--token-file"])
            .arg(token)
            .arg("--output")
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .expect("trunkless starts");
        bridge.wait_for("packet capture started", 10 * SECOND);
        Capture { child, file, folder }
    }

    /// Waits for its end, and returns what it printed.
    fn end(self) -> (String, PathBuf, tempfile::TempDir) {
        let output = self.child.wait_with_output().expect("it runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(0), "{text}");
        (text, self.file, self.folder)
    }
}

/// Runs tshark on a file and returns its output.
fn tshark(file: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(arguments);
    let output = command.output().expect("tshark runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// A call with audio both ways and these keys.
async fn talk(asterisk: &Asterisk, extension: &str, ai: &Ai, keys: &str) {
    let mut caller = Caller::dial("127.0.9.1", asterisk.sip_addr(), extension, 1, 100).await;
    caller.answered().await;
    caller.until(6 * SECOND, |c| c.sent.len() == 100 && c.numbers(1000).len() == 100).await;
    for key in keys.chars() {
        caller.command(PhoneCommand::Press(key, Keys::Rtp));
        caller.wait(SECOND / 2).await;
    }
    caller.hang_up().await;
    ai.until("stop and close", 5 * SECOND, |s| s.closed.is_some()).await;
}

/// Asserts that tshark finds the two RTP streams, without a lost packet and with as many packets as
/// the log says that were received and sent.
fn assert_streams(file: &Path, bridge: &Bridge, more: &[&str]) {
    let text = tshark(file, &[more, &["-q", "-z", "rtp,streams"]].concat());
    println!("{text}");
    let rows: Vec<&str> = text.lines().filter(|line| line.contains(" 0x")).collect();
    assert_eq!(rows.len(), 2, "{text}");
    assert!(rows.iter().all(|row| row.contains(" 0 (0.0%)") && row.contains("g711U")), "{text}");
    let count = |filter: &str| {
        let fields = ["-Y", filter, "-T", "fields", "-e", "rtp.seq"];
        let found = tshark(file, &[more, &fields].concat());
        found.lines().count().to_string()
    };
    let fields = ["-Y", "rtp", "-T", "fields", "-e", "udp.dstport"];
    let ports = tshark(file, &[more, &fields].concat());
    let ports: std::collections::BTreeSet<&str> = ports.lines().collect();
    assert_eq!(ports.len(), 2, "{ports:?}");
    let mut counts: Vec<String> =
        ports.iter().map(|port| count(&format!("rtp && udp.dstport == {port}"))).collect();
    let mut logged = vec![bridge.ended("packets_in"), bridge.ended("packets_out")];
    counts.sort();
    logged.sort();
    println!("{counts:?} {logged:?}");
    assert_eq!(counts, logged);
}

fn assert_no_canary(file: &Path, more: &[&str]) {
    for path in [file.to_owned(), file.with_extension("jsonl")] {
        let bytes = std::fs::read(&path).expect("the file");
        for canary in [&[TOKEN, "canary-parameter"], more].concat() {
            let found = bytes.windows(canary.len()).any(|part| part == canary.as_bytes());
            assert!(!found, "{canary} in {}", path.display());
        }
    }
}

/// Asserts that four keys were pressed, and that none of them can be read.
fn assert_hidden_keys(file: &Path) {
    let keys = tshark(file, &["-Y", "rtpevent", "-T", "fields", "-e", "rtpevent.event_id"]);
    assert!(keys.lines().all(|key| key == "255"), "{keys}");
    let lines = std::fs::read_to_string(file.with_extension("jsonl")).expect("the file");
    let digits = lines.lines().filter(|line| line.contains("\"event\":\"dtmf\""));
    assert_eq!(digits.clone().count(), 4, "{lines:.300}");
    assert!(digits.clone().all(|line| line.contains("\"digit\":\"hidden\"")));
}

#[test]
fn tshark_reads_a_call_in_sip_mode() {
    block_on(async {
        for pbx in [Pbx::Sip16, Pbx::Pjsip22] {
            let lab = Lab::start(pbx);
            let ai = Ai::start(Plan { say: 100, ..Plan::default() }).await;
            let control = format!("{}:8072", lab.address(2));
            let mut setup = lab.setup(&ai.url);
            setup.tables = tables(&control);
            let bridge = Bridge::registered(&setup);
            let capture = Capture::start(&control, &bridge);
            talk(&lab.asterisk, pbx.extension(), &ai, "4711").await;
            let (printed, file, _folder) = capture.end();
            println!("{printed}");
            assert!(printed.contains("capture ended: the call has ended; "), "{printed}");
            assert_streams(&file, &bridge, &[]);
            let fields = ["-T", "fields", "-e", "sip.Method", "-e", "sip.Status-Code"];
            let sip = tshark(&file, &[&["-Y", "sip"], &fields[..]].concat());
            let seen: Vec<&str> = sip.lines().map(str::trim).collect();
            println!("{seen:?}");
            for wanted in ["INVITE", "100", "200", "ACK", "BYE"] {
                assert!(seen.contains(&wanted), "{wanted}: {seen:?}");
            }
            // from the SDP, Wireshark knows which packets are RTP, and of which call
            let whole = tshark(&file, &["-Y", "sip || rtp", "-V"]);
            assert!(!whole.contains("bridgesecret"));
            assert!(whole.contains("Setup Method: SDP"), "RTP is not part of the call");
            let is_wrong = "_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0";
            let check = ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"];
            let malformed = tshark(&file, &[&check[..], &["-Y", is_wrong]].concat());
            assert_eq!(malformed, "");
            let json = tshark(&file, &["-Y", "json", "-T", "fields", "-e", "frame.number"]);
            assert!(json.lines().count() > 100, "{json}");
            assert_no_canary(&file, &["bridgesecret"]);
            assert_hidden_keys(&file);
            assert_eq!(bridge.lines("packet capture ended: the call has ended").len(), 1);
        }
    });
}

#[test]
fn tshark_reads_a_call_in_ari_mode() {
    block_on(async {
        let number = crate::fixture::Number::claim();
        let asterisk = ari::start(22, number.n);
        let ai = Ai::start(Plan { say: 100, ..Plan::default() }).await;
        let control = format!("127.0.{}.2:8072", number.n);
        let bridge = ari::bridge(&ari::config(&ai.url, "", &tables(&control)));
        let capture = Capture::start(&control, &bridge);
        // Asterisk takes keys out of the audio, and leaves gaps in the RTP in their place
        talk(&asterisk, "8010", &ai, "").await;
        let (printed, file, _folder) = capture.end();
        println!("{printed}");
        // without SIP, nothing in the file says that it is RTP
        assert_streams(&file, &bridge, &["--enable-heuristic", "rtp_udp"]);
        assert_no_canary(&file, &["CHANGE-ME"]);
        let lines = std::fs::read_to_string(file.with_extension("jsonl")).expect("the file");
        for wanted in [
            "\"what\":\"ari_request\"",
            "\"request\":\"POST /bridges/",
            "\"response\":\"POST /bridges/",
            "\"what\":\"ari_event\"",
            "StasisEnd",
        ] {
            assert!(lines.contains(wanted), "{wanted}:\n{lines:.2000}");
        }
    });
}
