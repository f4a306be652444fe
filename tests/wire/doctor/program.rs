//! The command: its exit codes and output.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::bridge::Net;
use crate::doctor::Case;
use crate::doctor::good_ai;
use crate::doctor::pbx::good;

async fn run(file: &Path, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    program.arg("doctor").arg("--config").arg(file).args(arguments);
    tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn the_exit_code_and_json_are_as_documented() {
    let net = Net::new();
    let (pbx, ai) = (good(net).await, good_ai(net).await);
    let case = Case::sip("", net, pbx.address, ai);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trunkless.toml");
    std::fs::write(&file, case.text()).unwrap();
    let output = run(&file, &["--json"]).await;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &value["result"]), (Some(0), &"warning".into()), "{value:#}");
    assert_eq!((&value["format"], &value["faults"]), (&1.into(), &0.into()));
    // the password is in a file that all may read
    let files =
        value["findings"].as_array().unwrap().iter().find(|f| f["step"] == "files").unwrap();
    assert_eq!(files["state"], "warning");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let output = run(&file, &["--no-ai-call"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).ends_with("no fault found\n"), "{}", text(&output));
    pbx.be_silent(true);
    let output = run(&file, &["--no-ai-call"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("  FAULT  pbx.main.sip: registrar does not answer"));
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_has_its_own_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trunkless.toml");
    let output = run(&file, &[]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("cannot be read"), "{}", text(&output));
    std::fs::write(&file, "[pbx.main]\nmode = \"sip\"\n").unwrap();
    let output = run(&file, &["--json"]).await;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(value["faults"].as_u64().unwrap() >= 2, "all mistakes are listed: {value:#}");
}
