//! `trunkless calls`, run as a program: its exit codes, and the token that it chooses.

use std::path::Path;
use std::process::{Command, Output};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wiremock::matchers::{header, method};
use wiremock::{Mock, MockServer, ResponseTemplate};

/// A server that answers reads with one token, and commands with another.
async fn server(reply: (u16, &str)) -> MockServer {
    let server = MockServer::start().await;
    let list = ResponseTemplate::new(200).set_body_string("{\"calls\": []}");
    let read = Mock::given(method("GET")).and(header("authorization", "Bearer only-for-reading-1"));
    read.respond_with(list).mount(&server).await;
    let command =
        Mock::given(method("POST")).and(header("authorization", "Bearer only-for-control-1"));
    let reply = ResponseTemplate::new(reply.0).set_body_string(reply.1);
    command.respond_with(reply).mount(&server).await;
    server
}

async fn run(server: &MockServer, directory: &Path, arguments: &[&str]) -> Output {
    let config = format!(
        "[control]\nlisten = \"{}\"\n\
         [control.tokens.desk]\ntoken = \"only-for-control-1\"\nscopes = [\"control\"]\n\
         [control.tokens.wall]\ntoken = \"only-for-reading-1\"\nscopes = [\"read\"]\n\
         [ai]\nurl = \"ws://127.0.0.1:9/\"\n\
         [pbx.main]\nmode = \"sip\"\n\
         [pbx.main.sip]\nregister = false\npeers = [\"127.0.0.1\"]\n",
        server.address()
    );
    let file = directory.join("trunkless.toml");
    std::fs::write(&file, config).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.arg("calls").args(arguments).arg("--config").arg(file);
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    output.expect("no panic").expect("the program runs")
}

#[tokio::test]
async fn an_outcome_that_is_still_open_is_not_a_success() {
    let directory = tempfile::tempdir().expect("a directory");
    for (status, reply, code, words) in [
        (200, "{\"status\": \"done\"}", 0, ""),
        (202, "{\"status\": \"accepted\"}", 1, "the outcome is still open"),
        (202, "{\"status\": \"progress\", \"state\": \"ringing\"}", 1, "still open"),
        (409, "{\"status\": \"failed\", \"detail\": \"the target is busy\"}", 1, "busy"),
    ] {
        let server = server((status, reply)).await;
        let output = run(&server, directory.path(), &["transfer", "CA1", "humans"]).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{reply} {error}");
        assert!(error.contains(words), "{reply} {error}");
        let output = run(&server, directory.path(), &["ls"]).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

/// The CAs of the system, here in a file of its own, vouch for the server.
#[tokio::test]
async fn the_address_may_be_https() {
    let (acceptor, ca) = crate::tls::acceptor("127.0.0.1");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("HTTPS://{}", listener.local_addr().expect("an address"));
    let serve = async move {
        let (tcp, _) = listener.accept().await.expect("a client");
        let mut tls = acceptor.accept(tcp).await.expect("TLS");
        let mut request = vec![0; 4096];
        let length = tls.read(&mut request).await.expect("a request");
        let text = String::from_utf8_lossy(&request[..length]).to_ascii_lowercase();
        assert!(text.contains("authorization: bearer secret"), "{text}");
        let body = "{\"calls\": []}";
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        tls.write_all((head + body).as_bytes()).await.expect("sent");
        let _ = tls.shutdown().await;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, "secret\n").expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.args(["calls", "ls", "--url", &url, "--token-file"]).arg(token);
    command.env("SSL_CERT_FILE", ca.path());
    let run = tokio::task::spawn_blocking(move || command.output());
    let (output, ()) = tokio::join!(run, serve);
    let output = output.expect("no panic").expect("the program runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
