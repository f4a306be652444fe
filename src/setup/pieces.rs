//! The files for the PBX: those of `asterisk/` and `dialplan/` with the answers filled in, each
//! with the place where it goes, and the commands that load and check it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::setup::answers::{ARI_PORT, Answers, Driver, Flavour, Humans, Mode, Secrets};
use crate::setup::{NewFile, READABLE, SECRET};

/// The folder of these files below that of the configuration.
pub const FOLDER: &str = "pbx";
/// The script that puts them into Asterisk's folder.
pub const SCRIPT: &str = "pbx/install.sh";

const PJSIP: &str = include_str!("../../asterisk/pjsip/pjsip.conf");
const CHAN_SIP: &str = include_str!("../../asterisk/sip/sip.conf");
const ARI: &str = include_str!("../../asterisk/ari/ari.conf");
const HTTP: &str = include_str!("../../asterisk/ari/http.conf");
const INSTALL: &str = include_str!("install.sh");

/// Paragraphs of a file's first comment with one of these are about filling it in by hand.
const BY_HAND: &[&str] = &[
    "Put this",
    "put this",
    "Append this",
    "paste this",
    "install this file",
    "EDIT",
    "Then:",
    "Check:",
    "is better to add a phone",
    "If there already is",
    "on another host, nothing",
    "From any phone, dial",
];
/// The example at the end of the dialplan for plain Asterisk.
const EXAMPLE: &str = "\n;[humans]\n";

/// A file for the PBX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its name below [`FOLDER`].
    pub name: &'static str,
    pub text: String,
    /// True if it contains a password.
    pub secret: bool,
    pub place: Place,
    /// The console command that loads it.
    pub reload: Option<&'static str>,
    /// The console command that checks it, and what it must show.
    pub check: (String, String),
}

/// Where a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Beside this file of Asterisk's, which includes it.
    Beside(&'static str),
    /// An admin page of VICIdial.
    Page(&'static str),
}

/// Returns the files for these answers.
pub fn pieces(answers: &Answers, secrets: &Secrets) -> Vec<Piece> {
    let mut all = Vec::new();
    match (answers.mode, answers.flavour, answers.driver) {
        (Mode::Ari, ..) => all.extend([http(answers), ari(answers, secrets)]),
        // VICIdial writes the phone itself
        (Mode::Sip, Flavour::Vicidial, _) => {}
        (Mode::Sip, _, Driver::Pjsip) => all.push(pjsip(answers, secrets)),
        (Mode::Sip, _, Driver::ChanSip) => all.push(chan_sip(answers, secrets)),
    }
    all.push(dialplan(answers));
    all
}

/// Returns the files to write, with the script that installs them if there is anything to install.
pub fn files(answers: &Answers, pieces: &[Piece]) -> Vec<NewFile> {
    let file = |path: String, text: &str, mode| NewFile {
        path,
        text: text.to_owned(),
        mode,
        for_service: false,
    };
    let mut all: Vec<NewFile> = pieces
        .iter()
        .map(|piece| {
            let mode = if piece.secret { SECRET } else { READABLE };
            file(format!("{FOLDER}/{}", piece.name), &piece.text, mode)
        })
        .collect();
    if pieces.iter().any(|piece| matches!(piece.place, Place::Beside(_))) {
        all.push(file(SCRIPT.to_owned(), &script(answers, pieces), 0o755));
    }
    all
}

fn script(answers: &Answers, pieces: &[Piece]) -> String {
    let mut calls = String::new();
    for piece in pieces {
        if let Place::Beside(main) = piece.place {
            calls += &format!("put {} {main}\n", piece.name);
        }
    }
    let folder = answers.asterisk.display().to_string();
    INSTALL.replace("@FOLDER@", &folder.replace('\'', "'\\''")).replace("@CALLS@\n", &calls)
}

/// The file without its first comment's instructions, below a new first comment.
fn headed(source: &str, first: &str) -> String {
    let lines: Vec<&str> = source.lines().collect();
    let end = lines.iter().position(|line| !line.starts_with(';')).unwrap_or(lines.len());
    let paragraphs = lines[..end].split(|line| *line == ";");
    let kept = paragraphs.filter(|p| !BY_HAND.iter().any(|word| p.join(" ").contains(word)));
    let mut text = format!("; Written by trunkless init. {first}\n");
    for paragraph in kept {
        text += &format!(";\n{}\n", paragraph.join("\n"));
    }
    text + &lines[end..].join("\n") + "\n"
}

/// Replaces whole lines.
fn with_lines(text: &str, lines: &[(&str, String)]) -> String {
    let new = text.lines().map(|line| {
        let found = lines.iter().find(|(old, _)| *old == line);
        found.map_or(line.to_owned(), |(_, new)| new.clone())
    });
    new.collect::<Vec<_>>().join("\n") + "\n"
}

fn pjsip(answers: &Answers, secrets: &Secrets) -> Piece {
    let name = &answers.username;
    let first = format!("The extension \"{name}\" of chan_pjsip.");
    let mut lines = vec![
        ("[ai]", format!("[{name}]")),
        ("auth = ai", format!("auth = {name}")),
        ("aors = ai", format!("aors = {name}")),
        ("username = ai", format!("username = {name}")),
        ("password = CHANGE-ME", format!("password = {}", secrets.pbx)),
    ];
    if let Some(address) = answers.same_host {
        // on the PBX's own host it is known which address trunkless reaches
        lines.push((";media_address = 192.0.2.1", format!("media_address = {address}")));
        let bind = "bind_rtp_to_media_address = yes";
        lines.push((";bind_rtp_to_media_address = yes", bind.to_owned()));
    }
    Piece {
        name: "trunkless_pjsip.conf",
        text: with_lines(&headed(PJSIP, &first), &lines),
        secret: true,
        place: Place::Beside(match answers.flavour {
            Flavour::FreePbx => "pjsip_custom_post.conf",
            _ => "pjsip.conf",
        }),
        reload: Some("module reload res_pjsip.so"),
        check: (format!("pjsip show endpoint {name}"), format!("the endpoint {name}")),
    }
}

fn chan_sip(answers: &Answers, secrets: &Secrets) -> Piece {
    let name = &answers.username;
    let first = format!("The peer \"{name}\" of chan_sip.");
    let lines = [
        ("[ai]", format!("[{name}]")),
        ("secret = CHANGE-ME", format!("secret = {}", secrets.pbx)),
    ];
    Piece {
        name: "trunkless_sip.conf",
        text: with_lines(&headed(CHAN_SIP, &first), &lines),
        secret: true,
        place: Place::Beside("sip.conf"),
        reload: Some("sip reload"),
        check: (format!("sip show peer {name}"), format!("the peer {name}")),
    }
}

fn ari(answers: &Answers, secrets: &Secrets) -> Piece {
    let name = &answers.username;
    let first = format!("The ARI user \"{name}\".");
    // the section [general] is that of the PBX's own file
    let text = headed(ARI, &first).replace("[general]\nenabled = yes\n\n", "");
    let lines = [
        ("[trunkless]", format!("[{name}]")),
        ("password = CHANGE-ME", format!("password = {}", secrets.pbx)),
    ];
    Piece {
        name: "trunkless_ari.conf",
        text: with_lines(&text, &lines),
        secret: true,
        place: Place::Beside(match answers.flavour {
            Flavour::FreePbx => "ari_additional_custom.conf",
            _ => "ari.conf",
        }),
        reload: Some("module reload res_ari.so"),
        check: (format!("ari show user {name}"), "Read only?: No".to_owned()),
    }
}

fn http(answers: &Answers) -> Piece {
    let first = "Asterisk's HTTP server, which serves ARI.";
    // FreePBX includes its custom file within [general]
    let general = match answers.flavour {
        Flavour::FreePbx => "",
        _ => "[general](+)",
    };
    let host = answers.same_host.map_or(answers.pbx.host.to_string(), |ip| ip.to_string());
    let lines = [
        ("[general]", general.to_owned()),
        ("bindaddr = 127.0.0.1", format!("bindaddr = {host}")),
        ("bindport = 8088", format!("bindport = {}", answers.pbx.port.unwrap_or(ARI_PORT))),
    ];
    Piece {
        name: "trunkless_http.conf",
        text: with_lines(&headed(HTTP, first), &lines),
        secret: false,
        place: Place::Beside(match answers.flavour {
            Flavour::FreePbx => "http_custom.conf",
            _ => "http.conf",
        }),
        reload: Some("module reload http"),
        check: (
            "http show status".to_owned(),
            "Server Enabled, and /ari/... in the list".to_owned(),
        ),
    }
}

/// The snippet, the extension in it and the phone or user in its `Dial()`.
fn snippet(answers: &Answers) -> (&'static str, &'static str, &'static str) {
    macro_rules! file {
        ($name:literal) => {
            include_str!(concat!("../../dialplan/", $name))
        };
    }
    match (answers.flavour, answers.mode, answers.driver) {
        (Flavour::Asterisk, Mode::Ari, _) => (file!("asterisk/extensions_ari.conf"), "8010", ""),
        (Flavour::Asterisk, Mode::Sip, Driver::Pjsip) => {
            (file!("asterisk/extensions_pjsip.conf"), "8010", "PJSIP/ai")
        }
        (Flavour::Asterisk, Mode::Sip, Driver::ChanSip) => {
            (file!("asterisk/extensions_sip.conf"), "8010", "SIP/ai")
        }
        (Flavour::FreePbx, Mode::Ari, _) => {
            (file!("freepbx/extensions_custom_ari.conf"), "8010", "")
        }
        (Flavour::FreePbx, Mode::Sip, _) => {
            (file!("freepbx/extensions_custom_pjsip.conf"), "8010", "PJSIP/ai")
        }
        (Flavour::Vicidial, Mode::Ari, _) => {
            (file!("vicidial/custom_dialplan_ari.conf"), "8010", "")
        }
        (Flavour::Vicidial, Mode::Sip, Driver::Pjsip) => {
            (file!("vicidial/custom_dialplan_pjsip.conf"), "8012", "PJSIP/8002")
        }
        (Flavour::Vicidial, Mode::Sip, Driver::ChanSip) => {
            (file!("vicidial/custom_dialplan_sip.conf"), "8011", "SIP/8001")
        }
    }
}

/// The number that reaches the AI in the snippet for these answers.
pub fn usual_extension(flavour: Flavour, mode: Mode, driver: Driver) -> &'static str {
    match (flavour, mode, driver) {
        (Flavour::Vicidial, Mode::Sip, Driver::ChanSip) => "8011",
        (Flavour::Vicidial, Mode::Sip, Driver::Pjsip) => "8012",
        _ => "8010",
    }
}

fn dialplan(answers: &Answers) -> Piece {
    let (source, number, device) = snippet(answers);
    let extension = &answers.extension;
    let vicidial = answers.flavour == Flavour::Vicidial;
    let first = format!("Extension {extension} is the AI.");
    let mut text = headed(source, &first).replace(number, extension);
    if let Some((tech, _)) = device.split_once('/') {
        let (old, new) = (format!("Dial({device},"), format!("Dial({tech}/{},", answers.username));
        text = text.replace(&old, &new);
    }
    text = text.replace("Stasis(trunkless,", &format!("Stasis({},", answers.app));
    text = with_humans(&text, &answers.humans);
    if let Some(phones) = &answers.phones {
        text +=
            &format!("\n; phones of this context may dial it\n[{phones}]\ninclude => trunkless\n");
    }
    let context = match answers.flavour {
        Flavour::Asterisk => answers.phones.as_deref().unwrap_or("trunkless"),
        Flavour::FreePbx => "from-internal",
        Flavour::Vicidial => "default",
    };
    Piece {
        name: if vicidial { "custom_dialplan.conf" } else { "trunkless_extensions.conf" },
        text,
        secret: false,
        place: match answers.flavour {
            Flavour::Asterisk => Place::Beside("extensions.conf"),
            Flavour::FreePbx => Place::Beside("extensions_custom.conf"),
            Flavour::Vicidial => {
                Place::Page("Admin > Servers > your server > Custom Dialplan Entry")
            }
        },
        reload: (!vicidial).then_some("dialplan reload"),
        check: (
            format!("dialplan show {extension}@{context}"),
            match (answers.flavour, answers.mode) {
                (Flavour::FreePbx, _) => format!("Goto(trunkless,{extension},1)"),
                (_, Mode::Ari) => format!("a line with Stasis({}", answers.app),
                (_, Mode::Sip) => "a line with Dial(".to_owned(),
            },
        ),
    }
}

/// Fills in where callers go when there is no AI for them.
fn with_humans(text: &str, humans: &Humans) -> String {
    let text = text.split_once(EXAMPLE).map_or(text, |(text, _)| text);
    let place = match humans {
        Humans::InGroup(group) => return text.replace("*SALESLINE*", &format!("*{group}*")),
        Humans::Place(place) => place.clone(),
        Humans::Phones(_) => "trunkless-humans,s,1".to_owned(),
    };
    let lines = text.lines().map(|line| {
        let goto = ["Goto(humans,s,1)", "Goto(ext-queues,600,1)"];
        let found = goto.iter().find_map(|goto| line.split_once(goto));
        found.map_or(line.to_owned(), |(before, _)| format!("{before}Goto({place})"))
    });
    let mut new = lines.collect::<Vec<_>>().join("\n") + "\n";
    if let Humans::Phones(phones) = humans {
        new +=
            &format!("\n[trunkless-humans]\nexten => s,1,Dial({phones},30)\n same => n,Hangup()\n");
    }
    new
}
