//! Monitoring against a real Prometheus: the format of `/metrics`, the alert rules, and each query
//! of the dashboard while calls are made. Needs `prometheus` and `promtool`, which `tests/run.sh`
//! installs.

mod bot;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

const BRIDGE: &str = "127.19.83.1";
const CALLER: &str = "127.19.83.2";
const AI: &str = "127.19.83.3:8080";
const PROMETHEUS: &str = "127.19.83.4:9090";
const HTTP: &str = "127.19.83.1:8071";
/// Nothing is there.
const DEAD: &str = "127.19.83.5";
/// Queries that have no value here, because the phone sends no RTCP: part of each.
const NO_VALUE: &[&str] = &["rtp_round_trip_seconds"];
/// Longest wait for Prometheus to have the data.
const LIMIT: Duration = Duration::from_secs(60);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Running {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    Running(child.unwrap_or_else(|e| panic!("{command:?}: {e}")))
}

fn trunkless() -> Command {
    Command::new(env!("CARGO_BIN_EXE_trunkless"))
}

fn promtool(arguments: &[&str], input: Option<&str>) -> Output {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(root()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().expect("promtool, from Debian's package prometheus");
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        std::io::Write::write_all(&mut stdin, input.as_bytes()).expect("promtool reads");
    }
    child.wait_with_output().expect("promtool ends")
}

fn assert_clean(output: &Output) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn the_alert_rules_are_valid_and_fire_when_they_should() {
    assert_clean(&promtool(&["check", "rules", "docs/monitoring/alerts.yml"], None));
    assert_clean(&promtool(&["test", "rules", "tests/monitoring/alerts.test.yml"], None));
}

/// Each expression of the dashboard, with its variables filled in.
fn queries() -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/monitoring/dashboard.json")).expect("a file");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let fill = |expr: &str| expr.replace("$instance", ".*").replace("$__rate_interval", "20s");
    let all: Vec<String> = targets.filter_map(|t| Some(fill(t["expr"].as_str()?))).collect();
    assert!(all.len() > 50 && !all.iter().any(|query| query.contains('$')));
    all
}

/// The bridge: a trunk on this host, and a PBX that does not exist.
fn bridge(folder: &Path) -> Running {
    let file = folder.join("trunkless.toml");
    let config = format!(
        "[ai]\nurl = \"ws://{AI}/\"\n[sip]\nlisten = \"{BRIDGE}:5070\"\n\
         [media]\nports = \"20000-20200\"\n[http]\nlisten = \"{HTTP}\"\n\
         [recording]\ndirectory = \"{}\"\n\
         [pbx.phones]\nmode = \"sip\"\n[pbx.phones.sip]\nregister = false\npeers = [\"{CALLER}\"]\n\
         [pbx.gone]\nmode = \"sip\"\n[pbx.gone.sip]\nregistrar = \"{DEAD}\"\nusername = \"1\"\n\
         password = \"a-password\"\n\
         [pbx.stasis]\nmode = \"ari\"\n[pbx.stasis.ari]\nurl = \"http://{DEAD}:8088\"\n\
         username = \"trunkless\"\npassword = \"a-password\"\n",
        folder.join("recordings").display(),
    );
    fs::write(&file, config).expect("a folder");
    start(trunkless().args(["run", "--config"]).arg(file))
}

fn prometheus(folder: &Path) -> Running {
    let file = folder.join("prometheus.yml");
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [\"{}\"]\n\
         scrape_configs:\n  - job_name: trunkless\n    static_configs:\n\
         \x20     - targets: [\"{HTTP}\"]\n",
        root().join("docs/monitoring/alerts.yml").display()
    );
    fs::write(&file, config).expect("a folder");
    start(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .arg("--log.level=warn"),
    )
}

/// A caller who speaks, pauses and speaks again.
fn caller(folder: &Path) -> Running {
    let words = fs::read(root().join("src/cli/assets/caller.ulaw")).expect("the caller's words");
    let pause = vec![0xff; 8000 * 3];
    let (file, words) = (folder.join("words.ulaw"), &words[..words.len().min(16_000)]);
    fs::write(&file, [&pause, words, &pause, words, &pause].concat()).expect("a folder");
    let to = format!("sip:100@{BRIDGE}:5070");
    start(trunkless().args(["call", &to, "--local", CALLER, "--seconds", "14", "--play"]).arg(file))
}

struct Client(reqwest::Client);

impl Client {
    fn new() -> Client {
        // reqwest comes without a crypto provider
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build();
        Client(client.expect("a client"))
    }

    async fn text(&self, url: &str) -> Option<String> {
        self.0.get(url).send().await.ok()?.text().await.ok()
    }

    /// Asks Prometheus.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = format!("http://{PROMETHEUS}/api/v1/{path}");
        let Ok(answer) = self.0.get(url).query(parameters).send().await else { return Value::Null };
        let text = answer.text().await.unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// True if the query has a number at any time of the last minute; without a `number`, any
    /// result will do.
    async fn has_data(&self, query: &str, number: bool) -> bool {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("a clock").as_secs();
        let (from, to) = ((now - 60).to_string(), now.to_string());
        let range = [("query", query), ("start", &from), ("end", &to), ("step", "1")];
        let answer = self.ask("query_range", &range).await;
        let series = answer["data"]["result"].as_array().map(Vec::as_slice).unwrap_or_default();
        let values = series.iter().filter_map(|s| s["values"].as_array()).flatten();
        let mut values = values.filter_map(|pair| pair[1].as_str()?.parse::<f64>().ok());
        if number { values.any(f64::is_finite) } else { values.next().is_some() }
    }
}

async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(begin.elapsed() < LIMIT, "{what}");
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn every_query_of_the_dashboard_has_data_while_calls_are_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let path: PathBuf = folder.path().to_owned();
    let address: SocketAddr = AI.parse().expect("an address");
    let listener = tokio::net::TcpListener::bind(address).await.expect("the AI's port");
    tokio::spawn(bot::serve(listener));
    let _bridge = bridge(&path);
    let client = Client::new();
    let page = format!("http://{HTTP}/metrics");
    eventually("/metrics", async || client.text(&page).await).await;
    let _prometheus = prometheus(&path);
    let up = async || client.has_data("up{job=\"trunkless\"} == 1", true).await.then_some(());
    eventually("Prometheus scrapes", up).await;
    let _calls = [caller(&path), caller(&path)];

    let mut missing = queries();
    let begin = Instant::now();
    while !missing.is_empty() {
        let mut left = Vec::new();
        for query in missing {
            let number = !NO_VALUE.iter().any(|part| query.contains(part));
            if !client.has_data(&query, number).await {
                left.push(query);
            }
        }
        missing = left;
        assert!(begin.elapsed() < LIMIT, "no data for:\n{}", missing.join("\n"));
        sleep(Duration::from_secs(1)).await;
    }
    let text = client.text(&page).await.expect("the metrics");
    assert_clean(&promtool(&["check", "metrics"], Some(&text)));
    let turns = text.lines().find_map(|l| l.strip_prefix("trunkless_turn_latency_seconds_count "));
    assert!(turns.is_some_and(|n| n.parse::<u32>().unwrap() >= 2), "{turns:?}");

    // the rules are loaded, and the registrar that is not there has been noticed
    let rules = client.ask("rules", &[]).await;
    let rules = rules["data"]["groups"][0]["rules"].as_array().expect("the rules").clone();
    assert!(rules.len() > 15 && rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
    let noticed = async || {
        let alerts = client.ask("alerts", &[]).await;
        let alerts = alerts["data"]["alerts"].as_array()?.clone();
        let labels = alerts.iter().map(|alert| &alert["labels"]);
        let mut gone = labels.filter(|l| l["alertname"] == "TrunklessPbxNotReady");
        gone.any(|l| l["pbx"] == "gone").then_some(())
    };
    eventually("an alert for the dead registrar", noticed).await;
}
