//! `trunkless init`, run as a program: for each mode and flavour it writes a configuration that the
//! program accepts, and files for the PBX without a placeholder. It overwrites nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use trunkless::config::{Source, inspect};
use trunkless::sip::message::Message;

use crate::bridge::Net;

/// For a machine on which there is no Asterisk.
const NO_PBX: [&str; 2] = ["--asterisk-directory", "/nonexistent/asterisk"];
const ASTERISK: [&str; 6] =
    ["--pbx", "192.0.2.10", "--humans", "PJSIP/1001&PJSIP/1002", "--phones-context", "from-phones"];

/// Runs init without a terminal and without asking the network.
fn init(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.args(["init", "--offline", "--directory"]).arg(directory).args(NO_PBX);
    command.args(arguments).stdin(Stdio::null()).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The files below a folder: contents and mode.
fn files(folder: &Path) -> BTreeMap<PathBuf, (String, u32)> {
    let (mut found, mut open) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder_path) = open.pop() {
        for entry in fs::read_dir(&folder_path).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let mode = fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
            let text = fs::read_to_string(&path).expect("text");
            found.insert(path.strip_prefix(folder).expect("below").to_owned(), (text, mode));
        }
    }
    found
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// Each mode and flavour: the flags, the files for the PBX, and texts that they must contain.
const CASES: &[(&[&str], &[&str], &[&str])] = &[
    (
        &["--flavour", "asterisk", "--mode", "sip", "--registrar-driver", "pjsip"],
        &["trunkless_pjsip.conf", "trunkless_extensions.conf"],
        &["Dial(PJSIP/ai,10", "Goto(trunkless-humans,s,1)", "Dial(PJSIP/1001&PJSIP/1002,30)"],
    ),
    (
        &["--flavour", "asterisk", "--mode", "sip", "--registrar-driver", "chan_sip"],
        &["trunkless_sip.conf", "trunkless_extensions.conf"],
        &["Dial(SIP/ai,10", "[from-phones]\ninclude => trunkless", "secret = "],
    ),
    (
        &["--flavour", "asterisk", "--mode", "ari", "--app", "bot2", "--username", "bot"],
        &["trunkless_ari.conf", "trunkless_http.conf", "trunkless_extensions.conf"],
        &["Stasis(bot2,", "[bot]\n", "bindaddr = 192.0.2.10", "[general](+)"],
    ),
    (
        &["--flavour", "freepbx", "--mode", "sip", "--extension", "7777", "--username", "bot"],
        &["trunkless_pjsip.conf", "trunkless_extensions.conf"],
        &["Dial(PJSIP/bot,10", "exten => 7777,1,Goto(trunkless,7777,1)", "username = bot"],
    ),
    (
        &["--flavour", "freepbx", "--humans", "600"],
        &["trunkless_ari.conf", "trunkless_http.conf", "trunkless_extensions.conf"],
        &["Stasis(trunkless,", "Goto(from-internal,600,1)", "?8010,none"],
    ),
    (
        &["--flavour", "vicidial", "--mode", "sip"],
        &["custom_dialplan.conf"],
        &["exten => 8011,1,", "Dial(SIP/8001,20", "90009*CLOSERS**"],
    ),
    (
        &["--flavour", "vicidial", "--registrar-driver", "pjsip", "--username", "8009"],
        &["custom_dialplan.conf"],
        &["exten => 8012,1,", "Dial(PJSIP/8009,20", "90009*CLOSERS**"],
    ),
    (
        &["--flavour", "vicidial", "--mode", "ari"],
        &["trunkless_ari.conf", "trunkless_http.conf", "custom_dialplan.conf"],
        &["exten => 8010,n,Stasis(trunkless,", "90009*CLOSERS**", "read_only = no"],
    ),
];

/// Adds the flags that have no default.
fn complete<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    let mut all = flags.to_vec();
    all.extend(["--pbx", "192.0.2.10"]);
    if flags.contains(&"vicidial") {
        all.extend(["--in-group", "CLOSERS", "--vicidial-url", "http://192.0.2.10"]);
    } else if !flags.contains(&"--humans") {
        all.extend(["--humans", "PJSIP/1001&PJSIP/1002"]);
    }
    if flags.contains(&"asterisk") {
        all.extend(["--phones-context", "from-phones"]);
    }
    all
}

#[test]
fn every_mode_and_flavour_is_complete() {
    for (flags, wanted, texts) in CASES {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path().join("etc");
        let output = init(&folder, &complete(flags));
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{flags:?}: {err}");

        let files = files(&folder);
        let of_pbx = |path: &&PathBuf| path.starts_with("pbx") && !path.ends_with("install.sh");
        let mut names: Vec<&str> =
            files.keys().filter(of_pbx).map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        let mut wanted = wanted.to_vec();
        names.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(names, wanted, "{flags:?}");
        let all: String = files.values().map(|(text, _)| text.as_str()).collect();
        for text in *texts {
            assert!(all.contains(text), "{flags:?}: {text:?} in {all}");
        }
        assert!(!all.contains("CHANGE-ME") && !out.contains("CHANGE-ME"), "{flags:?}: {all}");
        let edit = |(path, (text, _)): (&PathBuf, &(String, u32))| {
            path.starts_with("pbx") && (text.contains("SALESLINE") || text.contains("EDIT"))
        };
        assert!(!files.iter().any(edit), "{flags:?}: nothing is left to edit: {all}");
        secrets_are_kept(flags, &files, &(out.clone() + &err));
        accepted(flags, &folder);

        let steps = read(&folder, "next-steps.txt");
        assert!(out.contains(&steps), "{flags:?}: the steps are printed: {out}");
        let last = steps.trim_end().lines().rev().nth(1).unwrap();
        assert!(last.contains("trunkless doctor --config "), "{flags:?}: {steps}");
        assert!(steps.contains("est call"), "{flags:?}: {steps}");
    }
}

/// The password is in files that only their owner can read, and is not printed.
fn secrets_are_kept(flags: &[&str], files: &BTreeMap<PathBuf, (String, u32)>, printed: &str) {
    for name in ["pbx.password", "vicidial.password"] {
        let Some((secret, _)) = files.get(Path::new(name)) else {
            assert!(name == "vicidial.password" && !flags.contains(&"vicidial"), "{flags:?}");
            continue;
        };
        let secret = secret.trim_end();
        assert!(secret.len() == 20 && secret.chars().all(|c| c.is_ascii_alphanumeric()));
        assert!(!printed.contains(secret), "{flags:?}: a password was printed");
        for (path, (text, mode)) in files.iter().filter(|(_, (text, _))| text.contains(secret)) {
            assert_eq!(*mode, 0o600, "{flags:?}: {} has a password: {text}", path.display());
        }
        let known = files.values().filter(|(text, _)| text.contains(secret)).count();
        let written_by_vicidial = flags.contains(&"vicidial") && !flags.contains(&"ari");
        let wanted = if name == "pbx.password" && !written_by_vicidial { 2 } else { 1 };
        assert_eq!(known, wanted, "{flags:?}: {name} and the file for the PBX");
    }
}

/// The configuration is valid, with the secrets in their files.
fn accepted(flags: &[&str], folder: &Path) {
    let source = Source::read(&folder.join("trunkless.toml")).unwrap();
    let (plan, report) = inspect(&source, &Default::default());
    assert!(report.findings.errors.is_empty(), "{flags:?}: {:?}", report.findings.errors);
    assert!(report.findings.warnings.is_empty(), "{flags:?}: {:?}", report.findings.warnings);
    let plan = plan.expect("a plan");
    let vicidial = flags.contains(&"vicidial");
    assert_eq!(plan.vicidials.len(), usize::from(vicidial), "{flags:?}");
    assert_eq!(plan.sip.len() + plan.ari.len(), 1, "{flags:?}");
    assert_eq!(plan.settings.calls.max, if vicidial { 10 } else { 200 });
    if let Some(sip) = plan.sip.first() {
        let registration = sip.account.registration.as_ref().expect("a registration");
        let port =
            if flags.contains(&"vicidial") && flags.contains(&"pjsip") { 5061 } else { 5060 };
        assert!(registration.registrar_uri.contains(&format!("192.0.2.10:{port}")), "{flags:?}");
    }
    // the other mode's table is left out, and the sample's comments are kept
    let mode = if plan.sip.is_empty() { "[pbx.main.sip]" } else { "[pbx.main.ari]" };
    assert!(!source.text.contains(mode), "{flags:?}: {}", source.text);
    assert!(source.text.contains("# max_duration = ") && source.text.contains("password_file = "));
}

#[test]
fn everything_that_is_missing_is_named() {
    let lab = tempfile::tempdir().unwrap();
    for (flags, missing) in [
        (&["--flavour", "asterisk"][..], &["--pbx", "--humans", "--phones-context"][..]),
        (&["--flavour", "freepbx", "--pbx", "192.0.2.10"], &["--humans"]),
        (&["--flavour", "vicidial"], &["--pbx", "--in-group", "--vicidial-url"]),
    ] {
        let output = init(lab.path(), flags);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {error}");
        for flag in missing {
            assert!(error.contains(&format!("{flag} is missing: ")), "{flags:?}: {flag}: {error}");
        }
    }
    for (flag, value) in [
        ("--pbx", "192.0.2.10:0"),
        ("--humans", "somewhere"),
        ("--ai-url", "http://127.0.0.1"),
        ("--extension", "_8X."),
        ("--username", "general"),
        ("--ports", "1-2"),
        ("--calls", "0"),
        ("--app", "a b"),
        ("--password-env", "NOT_SET_ANYWHERE"),
    ] {
        let mut flags: Vec<&str> = Vec::new();
        ASTERISK.chunks(2).filter(|pair| pair[0] != flag).for_each(|pair| flags.extend(pair));
        let output = init(lab.path(), &[&flags[..], &[flag, value]].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag}: {error}");
        assert!(error.contains(&format!("{flag}: ")), "{flag} {value}: {error}");
    }
    let output = init(
        lab.path(),
        &[
            &ASTERISK[..],
            &["--flavour", "freepbx"],
            &["--mode", "sip", "--registrar-driver", "chan_sip"],
        ]
        .concat(),
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(files(lab.path()).is_empty(), "nothing was written");
}

#[test]
fn nothing_is_overwritten() {
    let lab = tempfile::tempdir().unwrap();
    assert_eq!(init(lab.path(), &ASTERISK).status.code(), Some(0));
    let before = files(lab.path());
    // the same again, and with other answers
    for more in [&[][..], &["--extension", "9000"]] {
        let output = init(lab.path(), &[&ASTERISK[..], more].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        for hint in
            ["trunkless.toml exists already", "--force", "--directory", "--print", "--check"]
        {
            assert!(error.contains(hint), "{hint}: {error}");
        }
        assert_eq!(files(lab.path()), before);
    }
    // a file that is not the configuration counts as well
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("next-steps.txt"), "mine\n").unwrap();
    let output = init(other.path(), &ASTERISK);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert_eq!(files(other.path()).len(), 1, "nothing was written");

    let output = init(lab.path(), &[&ASTERISK[..], &["--extension", "9000", "--force"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let after = files(lab.path());
    let of = |all: &BTreeMap<PathBuf, (String, u32)>, name: &str| all[Path::new(name)].0.clone();
    assert_eq!(of(&after, "pbx.password"), of(&before, "pbx.password"), "passwords are kept");
    let pjsip = "pbx/trunkless_pjsip.conf";
    assert_eq!(of(&after, pjsip), of(&before, pjsip));
    assert!(of(&after, "pbx/trunkless_extensions.conf").contains("9000"));
    let flags = ["--force", "--new-passwords", "--calls", "7"];
    assert_eq!(init(lab.path(), &[&ASTERISK[..], &flags].concat()).status.code(), Some(0));
    let last = files(lab.path());
    assert_ne!(of(&last, "pbx.password"), of(&before, "pbx.password"));
    assert_eq!(of(&last, "trunkless.toml.old"), of(&after, "trunkless.toml"));
    assert!(last.keys().all(|path| !path.to_string_lossy().contains(".new")), "{last:?}");
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let lab = tempfile::tempdir().unwrap();
    let output = init(&lab.path().join("missing/folder"), &ASTERISK);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(files(lab.path()).is_empty());
    // the folder for the PBX's files is a file
    fs::write(lab.path().join("pbx"), "mine").unwrap();
    let output = init(lab.path(), &ASTERISK);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("nothing was changed"), "{error}");
    assert_eq!(files(lab.path()).len(), 1);
}

#[test]
fn everything_can_be_printed_instead() {
    let lab = tempfile::tempdir().unwrap();
    let output = init(lab.path(), &[&ASTERISK[..], &["--print"]].concat());
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for name in ["trunkless.toml", "pbx.password", "pbx/install.sh", "next-steps.txt"] {
        assert!(out.contains(&format!("==> {}/{name} (mode ", lab.path().display())), "{out}");
    }
    assert!(!out.contains("CHANGE-ME"), "{out}");
    assert!(files(lab.path()).is_empty(), "nothing was written");
}

/// A password that exists already, as of an extension that was made in FreePBX's pages.
#[test]
fn a_password_may_be_given() {
    let lab = tempfile::tempdir().unwrap();
    let run = |folder: &str, password: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
        command.args(["init", "--offline", "--password-env", "PHONE", "--directory"]);
        command.arg(lab.path().join(folder)).args(NO_PBX).args(ASTERISK).env("PHONE", password);
        command.stdin(Stdio::null()).output().expect("the program runs")
    };
    assert_eq!(run("a", "Given-by_FreePBX.1").status.code(), Some(0));
    assert_eq!(read(&lab.path().join("a"), "pbx.password"), "Given-by_FreePBX.1\n");
    for bad in ["CHANGE-ME", "with;semicolon", "s7rt", ""] {
        let output = run("b", bad);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{bad}: {error}");
        assert!(error.contains("--password-env: the password "), "{error}");
        assert!(bad.is_empty() || !error.contains(bad), "the password is not printed");
    }
}

/// The text for VICIdial's admin page, which drops backslashes and apostrophes, and in old versions
/// semicolons.
#[test]
fn the_dialplan_survives_vicidials_page() {
    for (flags, ..) in CASES.iter().filter(|(flags, ..)| flags.contains(&"vicidial")) {
        let lab = tempfile::tempdir().unwrap();
        assert_eq!(init(lab.path(), &complete(flags)).status.code(), Some(0));
        let dialplan = read(lab.path(), "pbx/custom_dialplan.conf");
        assert!(dialplan.is_ascii() && !dialplan.contains(['\\', '\'', '\r', '\t']), "{dialplan}");
        for line in dialplan.lines() {
            assert!(line.rfind(';').is_none_or(|at| at == 0), "{line}");
            let comment = line.strip_prefix(';').map(str::trim_start).unwrap_or("");
            assert!(!comment.contains('=') && !comment.starts_with(['[', '#']), "{line}");
        }
    }
}

/// Asks on a terminal: `script` provides one. Empty lines are defaults; a wrong answer is asked for
/// again.
#[test]
fn a_terminal_is_asked() {
    let lab = tempfile::tempdir().unwrap();
    let folder = lab.path().join("new");
    let run = |answers: &str| {
        let program = env!("CARGO_BIN_EXE_trunkless");
        let (directory, no_pbx) = (folder.display(), NO_PBX.join(" "));
        let line = format!("{program} init --offline --directory {directory} {no_pbx}");
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        let child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("script runs: it is part of Debian's bsdutils");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(answers.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        drop(stdin);
        (output.status.code(), text(&output.stdout))
    };
    // flavour, mode, address (wrong, right), driver, extension's name, number, humans, context, AI
    // and calls
    let answers = "\n\n192.0.2.10:x\n192.0.2.10:5080\nchan_sip\n\n8500\nqueues,600,1\nphones\n\n\n";
    let (code, shown) = run(answers);
    assert_eq!(code, Some(0), "{shown}");
    for question in ["[asterisk]", "[sip]", "[pjsip]", "[8010]", "[ws://127.0.0.1:8080]", "[200]"] {
        assert!(shown.contains(question), "{question} in {shown}");
    }
    assert!(shown.contains("is not a host"), "{shown}");
    let config = read(&folder, "trunkless.toml");
    assert!(config.contains("registrar = \"192.0.2.10:5080\""), "{config}");
    let dialplan = read(&folder, "pbx/trunkless_extensions.conf");
    for text in ["exten => 8500,1,SIPAddHeader", "Goto(queues,600,1)", "[phones]"] {
        assert!(dialplan.contains(text), "{text} in {dialplan}");
    }
    // a second run asks first; no is the default
    let before = files(&folder);
    let (code, shown) = run("\n");
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("exists already. Replace it? [no]"), "{shown}");
    assert_eq!(files(&folder), before);
    let (code, shown) = run(&format!("yes\n{}", answers.replace("8500", "8600")));
    assert_eq!(code, Some(0), "{shown}");
    assert!(read(&folder, "pbx/trunkless_extensions.conf").contains("8600"));
}

/// A PBX whose SIP and HTTP answers show what it is, and that we are behind NAT.
#[tokio::test]
async fn the_pbx_is_looked_at() {
    let pbx = Net::new().pbx();
    let at = SocketAddr::new(pbx, 5060);
    let sip = UdpSocket::bind(at).await.unwrap();
    let serve = async move {
        let mut data = vec![0; 4096];
        loop {
            let (length, from) = sip.recv_from(&mut data).await.unwrap();
            let (mut request, _) = Message::parse(&data[..length]).unwrap();
            assert_eq!(request.method(), Some("OPTIONS"));
            request.complete_via("203.0.113.7:5070".parse().unwrap());
            let response = Message::response(&request, 404, "Not Found", "tag")
                .with("Server", "Asterisk PBX 18.10.0")
                .with("Supported", "replaces, timer");
            sip.send_to(&response.to_bytes(), from).await.unwrap();
        }
    };
    tokio::spawn(serve);
    let http = TcpListener::bind((pbx, 8088)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = http.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let answer = "HTTP/1.1 401 Unauthorized\r\nServer: Asterisk/18.10.0\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let lab = tempfile::tempdir().unwrap();
    let run = |folder: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
        command.args(["init", "--humans", "PJSIP/1", "--phones-context", "phones", "--directory"]);
        command.arg(lab.path().join(folder)).args(NO_PBX).args(arguments).stdin(Stdio::null());
        command.args(["--pbx", &pbx.to_string(), "--ai-url", "ws://127.0.0.1:9"]);
        tokio::task::spawn_blocking(move || command.output().expect("the program runs"))
    };
    let output = run("sip", &["--mode", "sip"]).await.unwrap();
    let found = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{found}");
    assert!(
        found.contains(&format!("found: chan_sip at {at}, UDP: Asterisk PBX 18.10.0")),
        "{found}"
    );
    assert!(found.contains("nothing listens at 127.0.0.1:9 yet"), "{found}");
    let config = read(&lab.path().join("sip"), "trunkless.toml");
    assert!(config.contains(&format!("registrar = \"{at}\"")), "{config}");
    let dialplan = read(&lab.path().join("sip"), "pbx/trunkless_extensions.conf");
    assert!(dialplan.contains("Dial(SIP/ai,"), "the driver that answers: {dialplan}");

    let output = run("ari", &["--mode", "ari"]).await.unwrap();
    let found = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{found}");
    assert!(found.contains("ARI is enabled"), "{found}");
}
