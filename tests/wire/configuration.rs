//! Configurations that cannot work, through the real program.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use toml::Table;

use crate::overlay::lay_over;

/// A valid configuration with a recordings' directory below `directory`.
fn good(directory: &Path) -> String {
    format!(
        "[ai]\nurl = \"ws://127.0.0.1:9\"\n[media]\nports = \"40000-40999\"\n\
         [recording]\ndirectory = {:?}\n\
         [pbx.main]\nmode = \"sip\"\n[pbx.main.sip]\nregistrar = \"127.0.0.1:9\"\n\
         username = \"8001\"\npassword = \"x\"\n",
        directory.join("recordings"),
    )
}

/// The same with these lines, which are laid over it.
fn with(directory: &Path, lines: &str) -> String {
    let mut all: Table = toml::from_str(&good(directory)).unwrap();
    lay_over(&mut all, toml::from_str(lines).expect(lines));
    all.to_string()
}

fn run(directory: &Path, text: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let file = directory.join("trunkless.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.arg("run").arg("--config").arg(&file).args(arguments);
    command.env_clear().envs(variables.iter().copied());
    command.output().expect("trunkless runs")
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(both).unwrap()
}

/// Lines, and words of the message.
const REFUSED: &[(&str, &str)] = &[
    ("ai.sample_rate = 16000", "ai.sample_rate: cannot be set in this dialect"),
    ("ai.dialect = 'l16'\nai.sample_rate = 44100", "44100 is not one of: 8000, 16000, 24000"),
    ("ai.dialect = 'l16'\nai.auth_token = 'x'", "ai.auth_token: has no effect in this dialect"),
    (
        "ai.dialect = 'jambonz'\nai.subprotocol = 'a, b'",
        "is not the name of a WebSocket subprotocol",
    ),
    ("pbx.main.sip.username = ''", "pbx.main.sip.username: is empty"),
    ("pbx.main.sip.username = '8001@pbx'", "only the part before the @"),
    ("pbx.main.sip.username = 'sip:8001'", "only the part before the @"),
    ("pbx.main.sip.auth_username = ' '", "pbx.main.sip.auth_username: is empty"),
    ("pbx.main.sip.realm = ''", "pbx.main.sip.realm: is empty"),
    ("pbx.main.sip.password = ''", "pbx.main.sip.password: is empty"),
    ("pbx.main.sip.registrar = '192.0.2.1:0'", "has port 0"),
    ("pbx.main.sip.peers = ['192.0.2.1:0']", "pbx.main.sip.peers: \"192.0.2.1:0\" has port 0"),
    ("pbx.main.sip.registrar = '0.0.0.0'", "is not an address of a host"),
    ("pbx.main.sip.registrar = 'a b'", "is not a valid host"),
    ("pbx.main.sip.registrar = '127.0.0.1:5070'", "is trunkless itself"),
    ("pbx.main.sip.registrar = '192.0.2.1'\nsip.listen = '127.0.0.1:5070'", "loopback"),
    ("pbx.main.sip.registrar = '[2001:db8::1]'", "one is IPv4, the other IPv6"),
    ("pbx.main.sip.advertised = '0.0.0.0'", "is not an address of a host"),
    ("pbx.main.sip.expires = '1s'", "must be at least 10s"),
    ("pbx.main.sip.register = false", "pbx.main.sip.peers: is missing"),
    ("pbx.main.sip = { register = false, peers = [] }", "pbx.main.sip.peers: is missing"),
    (
        "[pbx.b]\nmode = 'sip'\nsip = { registrar = '127.0.0.1:9', username = '8001', \
         password = 'y' }",
        "registers the same extension",
    ),
    ("sip.listen = '224.0.0.1:5070'", "multicast"),
    ("http.listen = '127.0.0.1:5070'", "has the port of [sip] listen"),
    ("http.listen = '127.0.0.1:0'", "http.listen: has port 0"),
    ("http.listen = ''", "http.listen"),
    ("calls.answer_wait = '0s'", "calls.answer_wait: must be at least 100ms"),
    ("calls.answer_wait = '99d'", "is too long"),
    ("calls.max = 0", "must be at least 1"),
    ("calls.max = 9223372036854775807", "calls.max: must be at most 32000"),
    ("calls.max = -1", "calls.max"),
    ("calls.playout_minutes = 0", "calls.playout_minutes: must be from 1"),
    ("calls.playout_budget_mb = 0", "calls.playout_budget_mb: must be from 1"),
    ("calls.playout_budget_mb = 9223372036854775807", "calls.playout_budget_mb: must be from 1"),
    ("calls.prompt = ''", "calls.prompt"),
    ("media.ports = '20000-20000'", "is not a valid port range"),
    ("media.ports = '70000-70001'", "is not a valid port range"),
    ("media.reorder_wait = '2s'", "must be at most 500ms"),
    ("media.playout_prebuffer = '3s'", "must be at most 2s"),
    ("ai.url = 'ws://'", "ai.url: \"ws://\" is not"),
    ("ai.url = 'ws://:8080'", "ai.url"),
    ("ai.url = 'ws://ai:0'", "ai.url"),
    ("ai.url = 'http://ai'", "is not a ws:// or wss:// URL"),
    ("ai.url = ''", "ai.url"),
    ("ai.url = 'ws://bot:hunter2@ai/'", "ai.url: contains a user or password"),
    ("ai.url = 'http://bot:hunter2@ai/'", "ai.url: contains a user or password"),
    ("ai.ca_file = ''", "ai.ca_file: is empty"),
    ("log.level = 'loud'", "log.level: \"loud\" is not one of"),
    ("log.level = 'trunkless=loud'", "log.level: \"trunkless=loud\""),
    ("recording.keep = '1s'", "recording.keep: must be at least 1h"),
    ("recording.keep_gb = -1", "must be more than 0"),
    ("recording.keep_gb = inf", "must be more than 0"),
    ("recording.upload.url = 's3://'", "recording.upload.url"),
    ("recording.upload.url = 'ftp://x'", "recording.upload.url"),
    ("recording.upload.url = 's3://b'\nrecording.upload.endpoint = 'http://'", "upload.endpoint"),
    (
        "recording.upload.url = 's3://b'\nrecording.upload.endpoint = 'http://u:hunter2@h'",
        "upload.endpoint: must not contain a user",
    ),
    ("recording.webhook.url = 'crm'", "recording.webhook.url"),
    ("recording.directory = '/proc/version/x'", "recording.directory"),
    ("recording.directory = '/no/such/parent'", "/no/such does not exist; create it"),
    ("[pbx.a]\nmode = 'ari'", "needs a table [pbx.a.ari]"),
    ("pbx.a = { mode = 'ari', ari = { username = '', password = 'x' } }", "ari.username"),
    ("pbx.a = { mode = 'ari', ari = { url = 'ws://p', username = 'u', password = 'x' } }", "url"),
    ("callz.max = 1", "unknown field `callz`"),
];

#[test]
fn configurations_that_cannot_work_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (lines, words) in REFUSED {
        let text_of = with(directory.path(), lines);
        let checked = run(directory.path(), &text_of, &["--check"], &[]);
        let said = text(&checked);
        if checked.status.code() != Some(2) || !said.contains(words) || said.contains("hunter2") {
            wrong.push(format!("{lines}: {:?}\n{said}", checked.status));
        }
        if said.contains("recording.directory") {
            continue; // the disk may come back, so trunkless starts without it
        }
        let started = run(directory.path(), &text_of, &[], &[]);
        if started.status.code() != Some(2) || !text(&started).contains(words) {
            wrong.push(format!("{lines}: run: {:?}\n{}", started.status, text(&started)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!directory.path().join("recordings").exists());
}

#[test]
fn configurations_that_will_disappoint_are_warned_about() {
    let directory = tempfile::tempdir().unwrap();
    let rtp_conf = directory.path().join("rtp.conf");
    std::fs::write(&rtp_conf, "[general]\nrtpstart=40500\nrtpend=41000\n").unwrap();
    let ari = format!(
        "[pbx.a]\nmode = 'ari'\nari = {{ username = 'u', password = 'x', rtp_conf = {rtp_conf:?}, \
         max_media = 500 }}"
    );
    let table = [
        ("pbx.main.sip.password = 'CHANGE-ME'", "password: is the placeholder"),
        ("pbx.main.sip.password = 'changeme'", "password: is the placeholder"),
        ("media.ports = '40000-40019'", "media.ports: has ports for 10 calls"),
        ("sip.listen = '0.0.0.0:40500'", "contains the port 40500 of [sip] listen"),
        ("calls.media_timeout = '1ms'", "calls.media_timeout: 1ms is very short"),
        ("calls.max_duration = '1s'", "calls.max_duration: 1s is very short"),
        ("ai.silent_timeout = '10ms'", "ai.silent_timeout: 10ms is very short"),
        ("pbx.main.sip.media_peers = []", "allows every address"),
        ("recording.upload.url = 'file:///no/such'", "no such folder"),
        (&ari, "overlaps Asterisk's range 40500-41000"),
        (&ari, "pbx.a.ari.max_media: is more than [calls] max"),
    ];
    for (lines, words) in table {
        let checked = run(directory.path(), &with(directory.path(), lines), &["--check"], &[]);
        let said = text(&checked);
        assert!(checked.status.success() && said.contains(words), "{lines}: {said}");
    }
    let checked = run(directory.path(), &good(directory.path()), &["--check"], &[]);
    assert!(!text(&checked).contains("warning"), "{}", text(&checked));
}

#[test]
fn an_upload_into_the_recordings_directory_is_refused_by_any_name() {
    let directory = tempfile::tempdir().unwrap();
    let recordings = directory.path().join("recordings");
    std::fs::create_dir(&recordings).unwrap();
    std::fs::create_dir(directory.path().join("other")).unwrap();
    std::os::unix::fs::symlink(&recordings, directory.path().join("link")).unwrap();
    for name in ["recordings", "recordings/", "recordings/archive", "other/../recordings", "link"] {
        let url = format!("file://{}", directory.path().join(name).display());
        let lines = format!("recording.upload = {{ url = '{url}', delete_after = true }}");
        let checked = run(directory.path(), &with(directory.path(), &lines), &["--check"], &[]);
        let said = text(&checked);
        assert!(said.contains("is in the recordings' own directory"), "{name}: {said}");
        assert_eq!(checked.status.code(), Some(2), "{name}");
    }
    // the recordings are below the folder, which is harmless unless the layout leads there
    let lines = format!("recording.upload.url = 'file://{}'", directory.path().display());
    let checked = run(directory.path(), &with(directory.path(), &lines), &["--check"], &[]);
    assert!(checked.status.success(), "{}", text(&checked));
    let lines = format!("{lines}\nrecording.layout = 'recordings/{{id}}'");
    let checked = run(directory.path(), &with(directory.path(), &lines), &["--check"], &[]);
    assert_eq!(checked.status.code(), Some(2), "{}", text(&checked));
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let text_of = "[ai]\nurl = \"http://x\"\n[calls]\nmax = -1\nanswer_wait = \"0s\"\nmux = 1\n\
                   [pbx.main]\nmode = \"sip\"\n[pbx.main.sip]\nregistrar = \"x:0\"\n\
                   [pbx.b]\nmode = \"sip\"\n[pbx.b.sip]\nexpires = \"soon\"\n";
    let variables =
        [("TRUNKLESS_LOG__LEVEL", "loud"), ("TRUNKLESS_SIP_LISTEN", "x"), ("TRUNKLESS_X__Y", "1")];
    let checked = run(directory.path(), text_of, &["--check"], &variables);
    let said = text(&checked);
    for words in [
        "toml:2: ai.url",
        "toml:4: calls.max",
        "toml:5: calls.answer_wait",
        "toml:6: calls.mux",
        "pbx.main.sip.username: is missing",
        "pbx.main.sip.password: is missing",
        "pbx.main.sip.registrar: \"x:0\" has port 0",
        "pbx.b.sip.registrar: is missing",
        "pbx.b.sip.expires",
        "the environment: TRUNKLESS_LOG__LEVEL",
        "TRUNKLESS_SIP_LISTEN: is not a key: two underscores separate its parts",
        "TRUNKLESS_X__Y",
    ] {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    assert_eq!(checked.status.code(), Some(2));
}

#[test]
fn variables_of_others_do_not_prevent_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let good = good(directory.path());
    let others = [
        ("TRUNKLESS_IMAGE", "x"),
        ("TRUNKLESS_LAB_IMAGE", "x"),
        ("TRUNKLESS_PROFILE", "release"),
        ("TRUNKLESS_SERVICE_HOST", "10.0.0.1"),
        ("TRUNKLESS_SIP_SERVICE_HOST", "10.0.0.1"),
        ("TRUNKLESS_HTTP_PORT_8071_TCP_ADDR", "10.0.0.1"),
        ("TRUNKLESS_SIP_PORT", "udp://10.0.0.1:5070"),
        ("TRUNKLESS_PORT_8071_TCP_ADDR", "10.0.0.1"),
        ("TRUNKLESS_PORT", "tcp://10.0.0.1:8071"),
    ];
    let checked = run(directory.path(), &good, &["--check"], &others);
    assert!(checked.status.success(), "{}", text(&checked));
    assert!(!text(&checked).contains("warning"), "{}", text(&checked));
    let unknown = run(directory.path(), &good, &["--check"], &[("TRUNKLESS_COLOUR", "x")]);
    assert!(text(&unknown).contains("warning: the environment: TRUNKLESS_COLOUR: is not a key"));
    assert!(unknown.status.success());
    for typo in [
        "TRUNKLESS_CALLS_MAX",
        "TRUNKLESS_CALL__MAX",
        "TRUNKLESS_CALLS__MAXX",
        "TRUNKLESS_SIP_PORT_PROBE",
        "TRUNKLESS_MEDIA_PORT_RANGE",
    ] {
        let checked = run(directory.path(), &good, &["--check"], &[(typo, "7")]);
        assert_eq!(checked.status.code(), Some(2), "{typo}: {}", text(&checked));
        assert!(text(&checked).contains(typo), "{}", text(&checked));
    }
}

/// The image sets a default for the address of `/healthz`.
#[test]
fn the_file_and_variables_override_the_images_default() {
    let directory = tempfile::tempdir().unwrap();
    let health = |text: &str, variables: &[(&str, &str)]| {
        let file = directory.path().join("trunkless.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
        command.arg("health").arg("--config").arg(&file).env_clear().arg0("trunkless");
        command.envs(variables.iter().copied()).output().expect("trunkless runs")
    };
    let default = ("TRUNKLESS_HTTP_DEFAULT", "127.0.0.1:1");
    let in_file = with(directory.path(), "http.listen = '127.0.0.1:2'");
    let plain = good(directory.path());
    let variable = ("TRUNKLESS_HTTP__LISTEN", "127.0.0.1:3");
    assert!(text(&health(&plain, &[default])).contains("no answer from 127.0.0.1:1:"));
    assert!(text(&health(&in_file, &[default])).contains("no answer from 127.0.0.1:2:"));
    assert!(text(&health(&in_file, &[default, variable])).contains("no answer from 127.0.0.1:3:"));
    assert!(text(&health(&plain, &[])).contains("http.listen: is missing"));
    let checked = run(directory.path(), &in_file, &["--check"], &[variable]);
    assert!(text(&checked).contains("note: TRUNKLESS_HTTP__LISTEN overrides"));
}
