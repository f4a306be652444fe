//! The numbered list of what remains to be done after `trunkless init`, from the files for the PBX
//! to a test call and `trunkless doctor`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;
use std::path::Path;

use crate::setup::answers::{
    Answers, Driver, Flavour, Humans, Mode, PBX_PASSWORD, VICIDIAL_PASSWORD,
};
use crate::setup::pieces::{FOLDER, Piece, Place, SCRIPT};
use crate::setup::settings::NAME;

/// The file with this list.
pub const FILE: &str = "next-steps.txt";
/// The folder from which the installed service reads its configuration.
const SERVICE_FOLDER: &str = "/etc/trunkless";

/// One step. Commands are lines for a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub title: String,
    pub lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Text(String),
    Command(String),
}

fn text(line: impl Into<String>) -> Line {
    Line::Text(line.into())
}

fn command(line: impl Into<String>) -> Line {
    Line::Command(line.into())
}

fn console(line: &str) -> Line {
    command(format!("asterisk -rx '{line}'"))
}

fn step(title: impl Into<String>, lines: Vec<Line>) -> Step {
    Step { title: title.into(), lines }
}

/// A path as an argument in a shell.
fn shell(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    match path.chars().all(plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}

/// Returns the steps. `service` is true if systemd knows trunkless.
pub fn steps(answers: &Answers, pieces: &[Piece], service: bool) -> Vec<Step> {
    let mut all = Vec::new();
    if answers.flavour == Flavour::Vicidial {
        all.push(pages(answers));
    }
    let beside: Vec<&Piece> =
        pieces.iter().filter(|piece| matches!(piece.place, Place::Beside(_))).collect();
    if !beside.is_empty() {
        all.push(install(answers, &beside));
    }
    for piece in pieces {
        all.push(match piece.place {
            Place::Beside(_) => load(answers, piece),
            Place::Page(page) => paste(answers, piece, page),
        });
    }
    all.push(check(answers));
    let is_service = service && answers.directory == Path::new(SERVICE_FOLDER);
    if is_service && answers.mode == Mode::Ari && answers.same_host.is_some() {
        all.push(rtp_range(answers));
    }
    all.push(start(answers, is_service));
    all.extend(calls(answers));
    all
}

fn install(answers: &Answers, pieces: &[&Piece]) -> Step {
    let folder = answers.asterisk.display();
    let mut lines = Vec::new();
    if answers.same_host.is_some() {
        lines.push(command(format!("sh {}", shell(&answers.path(SCRIPT)))));
    } else {
        let (host, folder) = (&answers.pbx.host, shell(&answers.path("")));
        lines.push(command(format!(
            "tar -C {folder} -c {FOLDER} | ssh root@{host} 'tar -x && sh {SCRIPT}'"
        )));
    }
    for piece in pieces {
        if let Place::Beside(main) = piece.place {
            lines.push(text(format!("{} goes beside {main}, which includes it", piece.name)));
        }
    }
    lines.push(text("By hand instead: paste each at the end of the file that would include it."));
    lines.push(text("Undo: the same command with --undo."));
    step(format!("Put the files into {folder} on the PBX:"), lines)
}

fn load(answers: &Answers, piece: &Piece) -> Step {
    let mut lines: Vec<Line> = piece.reload.into_iter().map(console).collect();
    lines.push(console(&piece.check.0));
    lines.push(text(format!("must show {}", piece.check.1)));
    if piece.name == "trunkless_ari.conf" {
        lines.push(text(
            "If Asterisk 16 had no ari.conf when it was started, restart it once, with no call up.",
        ));
    }
    if piece.name == "trunkless_http.conf" && answers.flavour == Flavour::FreePbx {
        lines.push(text(
            "Bind address: Settings > Advanced Settings. Its default, ::, is open to the network.",
        ));
    }
    if piece.name == "trunkless_extensions.conf" {
        let extension = &answers.extension;
        lines.push(text(format!(
            "Dial {extension} now, before trunkless runs: it must reach {}.",
            humans(&answers.humans)
        )));
        lines.push(text(match answers.flavour {
            Flavour::FreePbx => format!(
                "Inbound routes, IVRs: Admin > Custom Destinations, target trunkless,{extension},1"
            ),
            _ => format!(
                "A number of your trunk, in its context: exten => NUMBER,1,Goto(trunkless,\
                 {extension},1)"
            ),
        }));
    }
    step(format!("Load {} and check it:", piece.name), lines)
}

fn humans(humans: &Humans) -> String {
    match humans {
        Humans::Place(place) => place.clone(),
        Humans::Phones(phones) => phones.clone(),
        Humans::InGroup(group) => format!("the in-group {group}"),
    }
}

/// VICIdial's admin pages.
fn pages(answers: &Answers) -> Step {
    let config = shell(&answers.path(NAME));
    let mut lines = vec![command(format!("trunkless vicidial plan --config {config}"))];
    lines.push(text(format!(
        "External Extension of the remote agent: {}, with the dialplan below.",
        answers.extension
    )));
    if answers.mode == Mode::Sip {
        let protocol = if answers.driver == Driver::Pjsip { "PJSIP" } else { "SIP" };
        lines.push(text(format!(
            "Phone {}, Client Protocol {protocol}. Its Registration Password:",
            answers.username
        )));
        lines.push(command(format!("cat {}", shell(&answers.path(PBX_PASSWORD)))));
    }
    if let Some(vicidial) = &answers.vicidial {
        lines.push(text(format!("The password of the API user {}:", vicidial.user)));
        lines.push(command(format!("cat {}", shell(&answers.path(VICIDIAL_PASSWORD)))));
    }
    step("Fill in VICIdial's admin pages with these values:", lines)
}

fn paste(answers: &Answers, piece: &Piece, page: &str) -> Step {
    let path = shell(&answers.path(&format!("{FOLDER}/{}", piece.name)));
    let lines = vec![
        text(format!("{page}.")),
        command(format!("cat {path}")),
        text("Your user needs Modify Custom Dialplans 1. Within a minute it is live:"),
        console(&piece.check.0),
        text(format!("must show {}", piece.check.1)),
    ];
    step("Paste the dialplan into VICIdial, as the last text of this field:", lines)
}

fn check(answers: &Answers) -> Step {
    let config = shell(&answers.path(NAME));
    step(
        "Check the configuration:",
        vec![command(format!("trunkless run --config {config} --check"))],
    )
}

/// Host and port of an AI on this host, without TLS.
fn local_ai(url: &str) -> Option<&str> {
    let host = url.strip_prefix("ws://")?.split(['/', '?']).next()?;
    let is_local = host.starts_with("127.") || host.starts_with("[::1]:");
    (is_local && host.contains(':')).then_some(host)
}

/// Debian's rtp.conf can be read only by Asterisk's group.
fn rtp_range(answers: &Answers) -> Step {
    let file = answers.asterisk.join("rtp.conf");
    let lines = vec![
        command(format!("ls -l {}", shell(&file.display().to_string()))),
        text("If others may not read it (-rw-r-----), the service needs Asterisk's group:"),
        command("install -d /etc/systemd/system/trunkless.service.d"),
        command(
            "printf '[Service]\\nSupplementaryGroups=asterisk\\n' \
             >/etc/systemd/system/trunkless.service.d/asterisk.conf",
        ),
        command("systemctl daemon-reload"),
    ];
    step("Let the service read Asterisk's RTP range:", lines)
}

fn start(answers: &Answers, service: bool) -> Step {
    let mut lines = Vec::new();
    if let Some(host) = local_ai(&answers.ai_url) {
        lines.push(text("Until your own AI listens there, in a terminal of its own:"));
        lines.push(command(format!("trunkless echo-agent --listen {host}")));
        lines.push(text("trunkless itself:"));
    }
    if service {
        lines.push(command("systemctl enable trunkless"));
        lines.push(command("systemctl restart trunkless"));
        lines.push(command("sleep 3; journalctl -u trunkless -n 20"));
    } else {
        lines.push(command(format!("trunkless run --config {}", shell(&answers.path(NAME)))));
    }
    lines.push(text(match answers.mode {
        Mode::Sip => "must log: registered",
        Mode::Ari => "must log: ARI events are open: calls are taken",
    }));
    step("Start it:", lines)
}

/// The test call and the doctor.
fn calls(answers: &Answers) -> Vec<Step> {
    let config = shell(&answers.path(NAME));
    let mut lines = Vec::new();
    if answers.flavour == Flavour::Vicidial {
        let call = if answers.mode == Mode::Sip { " --call" } else { "" };
        lines.push(command(format!("trunkless vicidial check --config {config}{call}")));
        lines.push(text("and then one test lead: the AI must answer it."));
    } else {
        let extension = &answers.extension;
        let host = match answers.mode {
            Mode::Sip => answers.pbx.to_string(),
            Mode::Ari => answers.pbx.host.to_string(),
        };
        lines.push(text(format!("Dial {extension} from a phone, or here as one of your phones:")));
        lines.push(command("export PHONE_PASSWORD=its-password"));
        lines.push(command(format!(
            "trunkless call sip:{extension}@{host} --user 1001 --password-env PHONE_PASSWORD"
        )));
        lines.push(text("The log must have: call offered, call answered, call ended."));
    }
    let test = step("Make a test call:", lines);
    let doctor = vec![
        command(format!("trunkless doctor --config {config}")),
        text("It names what does not work, and the remedy."),
    ];
    vec![test, step("Examine the whole path:", doctor)]
}

/// Writes the steps as text.
pub fn print(steps: &[Step]) -> String {
    let mut all = String::new();
    for (n, step) in steps.iter().enumerate() {
        let _ = writeln!(all, "{}. {}", n + 1, step.title);
        for line in &step.lines {
            let _ = match line {
                Line::Text(text) => writeln!(all, "   {text}"),
                Line::Command(command) => writeln!(all, "       {command}"),
            };
        }
    }
    all
}
