//! `trunkless calls capture`, run as a program: its files, its exit codes and what it prints.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use trunkless::capture::reader::{self, Limits};
use trunkless::capture::redact::Redactor;
use trunkless::capture::{Direction, Kind};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

const WAIT: Duration = Duration::from_millis(10);

/// A capture of a packet and two messages, or of nothing.
async fn file(is_empty: bool) -> Vec<u8> {
    let limits = Limits { time: 60 * WAIT, wait: Some(WAIT), bytes: 1_000_000 };
    let (tap, mut reader) = reader::begin(limits, Redactor::default(), "a title".to_owned());
    let between = (([127, 0, 0, 1], 4000).into(), ([127, 0, 0, 2], 5000).into());
    if !is_empty {
        tap.packet(Kind::Rtp, Direction::Sent, between, &[0x80; 172]);
        tap.message(Kind::Ai, Direction::Sent, between, b"{\"event\":\"start\",\n\"b\":1}");
        tap.message(Kind::Ai, Direction::Received, between, b"hello");
        drop(tap);
    }
    let mut file = Vec::new();
    while let Some(part) = reader.part().await {
        file.extend(part);
    }
    file
}

async fn server(call: &str, response: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    let mock = Mock::given(method("GET")).and(path(format!("/v1/calls/{call}/capture")));
    let mock = mock.and(header("authorization", "Bearer only-for-captures-1"));
    mock.respond_with(response).mount(&server).await;
    server
}

/// Runs the command in a directory, with a token of these scopes.
async fn run(server: &MockServer, directory: &Path, scopes: &str, arguments: &[&str]) -> Output {
    let config = format!(
        "[control]\nlisten = \"{}\"\n\
         [control.tokens.lab]\ntoken = \"only-for-captures-1\"\nscopes = [{scopes}]\n\
         [ai]\nurl = \"ws://127.0.0.1:9/\"\n\
         [pbx.main]\nmode = \"sip\"\n\
         [pbx.main.sip]\nregister = false\npeers = [\"127.0.0.1\"]\n",
        server.address()
    );
    std::fs::write(directory.join("trunkless.toml"), config).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.args(["calls", "capture"]).args(arguments).current_dir(directory);
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    output.expect("no panic").expect("the program runs")
}

/// The exit code and what was printed for people.
fn printed(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_capture_becomes_two_files_that_only_their_owner_can_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let body = file(false).await;
    let server = server("CA1", ResponseTemplate::new(200).set_body_bytes(body.clone())).await;
    let (code, text) = printed(&run(&server, directory.path(), "\"capture\"", &["CA1"]).await);
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "capturing call CA1 to CA1.pcapng and CA1.jsonl; Ctrl-C ends the capture",
            "capture ended: the call has ended; 1 packets and 2 messages saved",
        ]
    );
    let saved = |name: &str| std::fs::read(directory.path().join(name)).expect("the file");
    assert_eq!(saved("CA1.pcapng"), body);
    let messages = String::from_utf8(saved("CA1.jsonl")).expect("text");
    let messages: Vec<serde_json::Value> =
        messages.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&messages[0]["what"], &messages[0]["message"]["b"]), (&"to_ai".into(), &1.into()));
    assert_eq!((&messages[1]["what"], &messages[1]["text"]), (&"from_ai".into(), &"hello".into()));
    let mode = std::fs::metadata(directory.path().join("CA1.pcapng")).expect("the file");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);

    // a second one does not overwrite it
    let (code, text) = printed(&run(&server, directory.path(), "\"capture\"", &["CA1"]).await);
    assert_eq!(
        (code, text.as_str()),
        (Some(1), "CA1.pcapng exists already; choose another --output\n")
    );
    let output = run(&server, directory.path(), "\"capture\"", &["CA1", "--output", "-"]).await;
    assert_eq!((output.status.code(), output.stdout), (Some(0), body));
}

#[tokio::test]
async fn failures_are_named_and_leave_no_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let error = "{\"error\": {\"code\": \"not_found\", \"message\": \"no live call has this id\"}}";
    let none = server("CA1", ResponseTemplate::new(404).set_body_string(error)).await;
    let files = || std::fs::read_dir(directory.path()).expect("the directory").count();
    for (scopes, arguments, code, words) in [
        ("\"capture\"", &["CA1"][..], 1, "no live call has this id"),
        ("\"read\", \"control\"", &["CA1"], 2, "no token with the scope capture; add"),
        ("\"capture\"", &[], 2, "required arguments were not provided"),
        ("\"capture\"", &["CA1", "--next"], 2, "cannot be used with"),
        ("\"capture\"", &["CA1", "--seconds", "0"], 2, "0 is not in 1..=3600"),
    ] {
        let output = run(&none, directory.path(), scopes, arguments).await;
        let (seen, text) = printed(&output);
        assert_eq!(seen, Some(code), "{arguments:?} {text}");
        assert!(text.contains(words), "{arguments:?} {text}");
        assert_eq!(files(), 1, "{arguments:?}: only the configuration");
    }
    let name = ["CA1", "--output", "a.jsonl"];
    let good = server("CA1", ResponseTemplate::new(200).set_body_bytes(file(false).await)).await;
    let (code, text) = printed(&run(&good, directory.path(), "\"capture\"", &name).await);
    assert!(code == Some(1) && text.contains("let --output end in .pcapng"), "{text}");
}

#[tokio::test]
async fn a_capture_that_is_cut_off_or_empty_is_a_failure() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut body = file(false).await;
    let end = body.len() - 200;
    body.truncate(end);
    let cut = server("CA1", ResponseTemplate::new(200).set_body_bytes(body)).await;
    let (code, text) = printed(&run(&cut, directory.path(), "\"capture\"", &["CA1"]).await);
    assert_eq!(code, Some(1));
    assert!(text.contains("connection to trunkless lost after 1 packets and "), "{text}");
    let empty = server("next", ResponseTemplate::new(200).set_body_bytes(file(true).await)).await;
    let (code, text) = printed(&run(&empty, directory.path(), "\"capture\"", &["--next"]).await);
    assert_eq!(code, Some(1));
    assert!(text.contains("capture ended: no call came within 0 s; 0 packets"), "{text}");
}
