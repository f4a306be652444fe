//! `trunkless init` against real Asterisks: the commands of its list are executed as they are
//! printed, and then a call reaches the AI, or humans while trunkless does not run. Nothing that it
//! wrote is edited.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::ai::{Ai, Plan};
use crate::asterisk::Asterisk;
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::dropin::to_the_ai;
use crate::fixture::Number;
use crate::{assert_eventually, block_on};

const SECOND: Duration = Duration::from_secs(1);
/// The humans' number in the lab's dialplan: music.
const HUMANS: &str = "services,605,1";

/// A PBX for which init runs.
struct Pbx {
    asterisk: Asterisk,
    number: Number,
    directory: tempfile::TempDir,
}

impl Pbx {
    /// Starts an Asterisk without anything that belongs to trunkless.
    fn start(version: u8) -> Pbx {
        let number = Number::claim();
        let n = number.n;
        let asterisk = Asterisk::start(version, &format!("e2e-{n}"), &format!("127.0.{n}.1"));
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pbx = Pbx { asterisk, number, directory };
        pbx.replace("pjsip_ai.conf", "; the lab's usual extension is not needed\n");
        pbx.replace("ari.conf", "[general]\nenabled = yes\n");
        pbx
    }

    fn etc(&self) -> PathBuf {
        self.asterisk.config_path("")
    }

    /// Replaces the contents of a file of the PBX, or makes it.
    fn replace(&self, name: &str, text: &str) {
        fs::write(self.etc().join(name), text).expect("written");
    }

    fn append(&self, name: &str, text: &str) {
        let path = self.etc().join(name);
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, before + text).expect("written");
    }

    fn written(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        fs::read_to_string(&path).unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    /// Runs init, and returns the address of the AI, which starts later, and the commands of the
    /// list.
    fn init(&self, flags: &[&str]) -> (String, Vec<String>) {
        let n = self.number.n;
        let place = TcpListener::bind("127.0.0.1:0").expect("a port");
        let ai = place.local_addr().expect("an address").to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
        command.args(["init", "--ai-url", &format!("ws://{ai}"), "--directory"]);
        command.arg(self.directory.path());
        command.arg("--asterisk-directory").arg(self.etc()).args(flags);
        command.args(["--listen", &format!("127.0.{n}.2:5070")]);
        command.args(["--http", &format!("127.0.{n}.2:8071")]);
        command.env_remove("TRUNKLESS_CACHE").env_remove("TRUNKLESS_LAB_RUN");
        let output = command.stdin(Stdio::null()).output().expect("the program runs");
        let found = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{flags:?}: {found}");
        println!("{flags:?}\n{found}");
        let steps = self.written("next-steps.txt");
        let commands = steps.lines().filter_map(|line| line.strip_prefix("       "));
        (ai, commands.map(str::to_owned).collect())
    }

    /// Executes the commands for the PBX, with its console. Returns what they printed.
    fn follow(&self, commands: &[String]) -> String {
        let bin = tempfile::tempdir().expect("a temporary directory");
        let console = bin.path().join("asterisk");
        let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/lab/ast.sh");
        let n = self.number.n;
        let script = format!("#!/bin/sh\n[ \"$1\" = -rx ] && exec {lab:?} cli e2e-{n} \"$2\"\n");
        fs::write(&console, script).expect("written");
        fs::set_permissions(&console, fs::Permissions::from_mode(0o755)).expect("set");
        let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").expect("a PATH"));
        let mut printed = String::new();
        let for_pbx = |line: &&String| line.starts_with("sh ") || line.starts_with("asterisk ");
        for line in commands.iter().filter(for_pbx) {
            let output =
                Command::new("sh").args(["-c", line]).env("PATH", &path).output().expect("sh runs");
            let text =
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{line}: {text}");
            printed += &format!("$ {line}\n{text}");
        }
        println!("{printed}");
        printed
    }

    /// Runs this configuration until the PBX can send it calls.
    fn bridge(&self, config: &str, ready: Ready) -> Bridge {
        let Ready { log, console, shows } = ready;
        let bridge = Bridge::run(config);
        bridge.wait_for(log, 10 * SECOND);
        assert_eventually(
            || self.asterisk.cli(console).contains(shows),
            || format!("{shows:?} in {}", self.asterisk.cli(console)),
        );
        bridge
    }

    /// Calls while trunkless does not run.
    async fn to_humans(&self, extension: &str) {
        let mut caller = Caller::dial("127.0.9.1", self.asterisk.sip_addr(), extension, 1, 0).await;
        let answered = caller.until(2 * SECOND, |caller| caller.answered.is_some()).await;
        assert!(answered, "{extension}: no human: {:?}", caller.ended);
        caller.hang_up().await;
    }

    fn no_complaints(&self, before: &[String]) {
        let mut new = self.asterisk.complaints();
        new.retain(|line| !before.contains(line) && line.contains("config"));
        assert!(new.is_empty(), "{new:#?}");
    }
}

/// The signs that the PBX can send calls: a line of the log, and the output of a console command.
#[derive(Clone, Copy)]
struct Ready {
    log: &'static str,
    console: &'static str,
    shows: &'static str,
}

const REGISTERED: &str = "registered pbx=\"main\"";
const EVENTS: &str = "ARI events are open: calls are taken";
const CHAN_SIP: Ready = Ready { log: REGISTERED, console: "sip show peer ai", shows: ": OK" };
const PJSIP: Ready = Ready { log: REGISTERED, console: "pjsip show endpoint ai", shows: " Avail" };
const ARI: Ready = Ready { log: EVENTS, console: "ari show apps", shows: "trunkless" };

/// One path from nothing to a call. `checks` must be in what the commands print.
async fn whole(pbx: &Pbx, extension: &str, flags: &[&str], checks: &[&str], ready: Ready) {
    let before = pbx.asterisk.complaints();
    let (address, commands) = pbx.init(flags);
    let printed = pbx.follow(&commands);
    for check in checks {
        assert!(printed.contains(check), "{check:?} in {printed}");
    }
    // a second time, nothing is added twice
    let again = pbx.follow(&commands[..]);
    assert!(checks.iter().all(|check| again.contains(check)), "{again}");
    for file in ["pjsip.conf", "extensions.conf", "sip.conf", "ari.conf"] {
        let text = fs::read_to_string(pbx.etc().join(file)).unwrap_or_default();
        assert!(text.matches("#include trunkless_").count() <= 1, "{file}: {text}");
    }
    pbx.no_complaints(&before);
    pbx.to_humans(extension).await;
    let ai = Ai::start_at(&address, Plan { say: 100, ..Plan::default() }).await;
    let bridge = pbx.bridge(&pbx.written("trunkless.toml"), ready);
    to_the_ai(&pbx.asterisk, extension, &ai, &bridge).await;
}

fn address(pbx: &Pbx, port: u16) -> String {
    format!("127.0.{}.1:{port}", pbx.number.n)
}

/// Plain Asterisk in SIP mode; the driver is found.
async fn sip(version: u8, port: u16, ready: Ready, dial: &str) {
    let pbx = Pbx::start(version);
    let at = address(&pbx, port);
    let flags = ["--pbx", &at, "--humans", HUMANS, "--phones-context", "from-carrier"];
    let check = if port == 5060 { "rtp_timeout" } else { "Qualify Freq : 2000 ms" };
    whole(&pbx, "8010", &flags, &[check, dial], ready).await;
    // and away with it
    let script = pbx.directory.path().join("pbx/install.sh");
    pbx.follow(&[
        format!("sh {} --undo", script.display()),
        "asterisk -rx 'dialplan reload'".to_owned(),
    ]);
    let shown = pbx.asterisk.cli("dialplan show 8010@from-carrier");
    assert!(shown.contains("no existence of 8010@from-carrier"), "{shown}");
}

#[test]
fn sip_mode_with_chan_sip_16() {
    block_on(sip(16, 5160, CHAN_SIP, "Dial(SIP/ai,10)"));
}

#[test]
fn sip_mode_with_pjsip_16() {
    block_on(sip(16, 5060, PJSIP, "Dial(PJSIP/ai,10"));
}

#[test]
fn sip_mode_with_pjsip_22() {
    block_on(sip(22, 5060, PJSIP, "Dial(PJSIP/ai,10"));
}

#[test]
fn ari_mode() {
    block_on(async {
        for version in [16, 22] {
            let pbx = Pbx::start(version);
            let at = address(&pbx, 8088);
            let flags = [
                &["--mode", "ari", "--username", "bot", "--app", "bot", "--pbx", &at][..],
                &["--humans", HUMANS, "--phones-context", "from-carrier", "--extension", "8500"],
            ];
            let checks = ["Server Enabled", "/ari/", "Read only?: No", "Stasis(bot,"];
            let ready = Ready { shows: "bot", ..ARI };
            whole(&pbx, "8500", &flags.concat(), &checks, ready).await;
        }
    });
}

/// The files around Asterisk's own that FreePBX generates, as far as the new ones go into them.
fn as_freepbx(pbx: &Pbx) {
    for file in ["extensions_custom", "pjsip_custom_post", "ari_additional_custom", "http_custom"] {
        pbx.replace(&format!("{file}.conf"), "");
    }
    let n = pbx.number.n;
    pbx.replace(
        "http.conf",
        &format!(
            "[general]\nenabled = yes\nbindaddr = 127.0.{n}.1\nbindport = 8088\n\
             #include http_custom.conf\n"
        ),
    );
    pbx.append("ari.conf", "#include ari_additional_custom.conf\n");
    pbx.append("pjsip.conf", "\n#include pjsip_custom_post.conf\n");
    pbx.append(
        "extensions.conf",
        "\n[from-internal]\ninclude => from-internal-custom\nexten => 600,1,Goto(services,605,1)\n\
         [from-carrier](+)\ninclude => from-internal\n#include extensions_custom.conf\n",
    );
}

#[test]
fn freepbx() {
    block_on(async {
        for (version, mode) in [(16, "sip"), (22, "ari")] {
            let pbx = Pbx::start(version);
            as_freepbx(&pbx);
            let port = if mode == "sip" { 5060 } else { 8088 };
            let at = address(&pbx, port);
            let flags = ["--flavour", "freepbx", "--mode", mode, "--pbx", &at, "--humans", "605"];
            let sip = ["rtp_timeout", "Goto(trunkless,8010,1)"];
            let ari = ["Read only?: No", "Goto(trunkless,8010,1)"];
            // 605 is a number that the lab's phones may dial
            pbx.append("extensions.conf", "[from-internal](+)\ninclude => services\n");
            let (checks, ready) = if mode == "sip" { (sip, PJSIP) } else { (ari, ARI) };
            whole(&pbx, "8010", &flags, &checks, ready).await;
        }
    });
}

/// The contexts that VICIdial generates, with a stand-in for the page of the dialplan. It ships no
/// ari.conf.
fn as_vicidial(pbx: &Pbx) {
    fs::remove_file(pbx.etc().join("ari.conf")).expect("removed");
    pbx.replace("page.conf", "");
    pbx.append(
        "extensions.conf",
        "\n[default]\ninclude => vicidial-auto-server-custom\n\
         exten => _90009.,1,Goto(services,605,1)\n\
         [from-carrier](+)\nexten => _vd-X.,1,Answer()\n \
         same => n,Set(CALLERID(name)=V1231456150000402027)\n \
         same => n,Goto(default,${EXTEN:3},1)\n\
         [vicidial-auto-server-custom]\n#include page.conf\n",
    );
}

/// Does what the admin does in VICIdial's pages, and what VICIdial then does.
fn fill_in_pages(pbx: &Pbx, driver: &str) {
    pbx.replace("page.conf", &pbx.written("pbx/custom_dialplan.conf"));
    let password = pbx.written("pbx.password");
    let password = password.trim_end();
    let chan_sip =
        format!("\n[8001]\nsecret={password}\ncontext=default\ntype=friend\nhost=dynamic\n");
    let pjsip = format!(
        "\n[8002](ext)\nauth = 8002\naors = 8002\n[8002](pass)\nusername = 8002\n\
         password = {password}\n[8002](reg)\n"
    );
    match driver {
        "chan_sip" => pbx.append("sip.conf", &chan_sip),
        _ => pbx.append("pjsip.conf", &pjsip),
    }
    for command in ["dialplan reload", "sip reload", "module reload res_pjsip.so"] {
        pbx.asterisk.cli(command);
    }
}

/// VICIdial: its phone has the password that was made, and the dialplan is pasted into its context.
async fn vicidial_path(mode: &str, driver: &str, port: u16, extension: &str) {
    let pbx = Pbx::start(16);
    as_vicidial(&pbx);
    let at = address(&pbx, port);
    let flags = [
        &["--flavour", "vicidial", "--mode", mode, "--registrar-driver", driver][..],
        &["--pbx", &at, "--in-group", "CLOSERS", "--vicidial-url", "http://127.0.0.1:9"],
    ];
    let (ai_address, commands) = pbx.init(&flags.concat());
    fill_in_pages(&pbx, driver);
    let printed = pbx.follow(&commands);
    assert!(printed.contains(if mode == "ari" { "Stasis(" } else { "Dial(" }), "{printed}");
    let extension = format!("vd-{extension}");
    pbx.to_humans(&extension).await;
    // without VICIdial's API, which this lab does not have
    let config = pbx.written("trunkless.toml");
    let begin = config.find("[pbx.main.vicidial]").expect("the table");
    let end = config[begin..].find("\n\n").map_or(config.len(), |end| begin + end);
    let config = format!("{}{}", &config[..begin], &config[end..]);
    let ready = match (mode, driver) {
        ("ari", _) => ARI,
        (_, "chan_sip") => Ready { console: "sip show peer 8001", shows: ": 127.", ..CHAN_SIP },
        _ => Ready { console: "pjsip show endpoint 8002", shows: "sip:8002@", ..PJSIP },
    };
    let ai = Ai::start_at(&ai_address, Plan { say: 100, ..Plan::default() }).await;
    let bridge = pbx.bridge(&config, ready);
    let heard = to_the_ai(&pbx.asterisk, &extension, &ai, &bridge).await.parameters;
    assert_eq!(heard["vici_call_id"], "V1231456150000402027", "{mode} {driver}");
}

#[test]
fn vicidial_with_chan_sip() {
    block_on(vicidial_path("sip", "chan_sip", 5160, "8011"));
}

#[test]
fn vicidial_with_pjsip() {
    block_on(vicidial_path("sip", "pjsip", 5060, "8012"));
}

#[test]
fn vicidial_with_ari() {
    block_on(vicidial_path("ari", "pjsip", 8088, "8010"));
}
