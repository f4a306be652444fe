//! The bridge under test, started from a configuration as a user would write it, and the addresses
//! of a test. Each test has its own loopback addresses, so that its packets cannot reach another.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{Mutex, OnceCell, mpsc};
use tokio::time::timeout;
use trunkless::app::App;
use trunkless::app::reload::{Outcome, Reloads};
use trunkless::call::OrderRequest;
use trunkless::call::ended::Record;
use trunkless::command::{Cause, Command, Order, RecordCommand, Sender, When};
use trunkless::config::resolve::resolve;
use trunkless::config::{Source, load};

use crate::call::Call;
use crate::overlay::lay_over;
use crate::pbx::Pbx;
use crate::stream::Stream;
use crate::strict::Ai;

static NEXT: AtomicU8 = AtomicU8::new(1);

/// The addresses of one test.
#[derive(Debug, Clone, Copy)]
pub enum Net {
    V4 { process: u8, test: u8 },
    V6,
}

impl Net {
    pub fn new() -> Net {
        // keeps concurrent runs of the tests apart
        let process = 16 + (std::process::id() % 200) as u8;
        Net::V4 { process, test: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Address number `n` of this test; 1 to 4 have names below.
    pub fn host(self, n: u8) -> IpAddr {
        match self {
            Net::V4 { process, test } => Ipv4Addr::new(127, process, test, n).into(),
            Net::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    pub fn bridge(self) -> IpAddr {
        self.host(1)
    }

    pub fn pbx(self) -> IpAddr {
        self.host(2)
    }

    pub fn ai(self) -> IpAddr {
        self.host(3)
    }

    pub fn stranger(self) -> IpAddr {
        self.host(4)
    }
}

pub struct Bridge {
    /// The running program.
    app: App,
    /// Records of ended calls that the test has not taken yet.
    records: Mutex<mpsc::UnboundedReceiver<Record>>,
    /// The configuration, for reloads.
    tables: Mutex<toml::Table>,
    /// The folder with the file, and the way to ask for reloads; they are made on the first use.
    file: OnceCell<(TempDir, Reloads)>,
}

impl Bridge {
    /// Starts a bridge that registers with the PBX at `pbx` and dials `ai`. The TOML in `config`
    /// overrides the plain configuration.
    pub async fn start(net: Net, pbx: SocketAddr, ai: SocketAddr, config: &str) -> Bridge {
        let listen = SocketAddr::new(net.bridge(), 0);
        let plain = format!(
            "[ai]\nurl = \"ws://{ai}/media\"\n\
             [sip]\nlisten = \"{listen}\"\n\
             [pbx.main]\nmode = \"sip\"\n\
             [pbx.main.sip]\nregistrar = \"{pbx}\"\nusername = \"ai\"\npassword = \"secret\"\n\
             keepalive = \"0s\"\n"
        );
        Bridge::launch(&plain, config).await
    }

    /// Starts a bridge from the TOML in `plain`, overridden by that in `config`.
    pub async fn launch(plain: &str, config: &str) -> Bridge {
        let mut tables: toml::Table = toml::from_str(plain).unwrap();
        lay_over(&mut tables, toml::from_str(config).unwrap());
        let source = Source { name: "test.toml".to_owned(), text: tables.to_string() };
        let environment = HashMap::new();
        let settings = load(&source, &environment).unwrap();
        let plan = resolve(&source, settings, &environment).unwrap();
        let (records_tx, records) = mpsc::unbounded_channel();
        let app = App::start(plan, Some(records_tx)).await.unwrap();
        let (records, tables) = (Mutex::new(records), Mutex::new(tables));
        Bridge { app, records, tables, file: OnceCell::new() }
    }

    /// Lays the TOML in `lines` over the configuration, and reloads it.
    pub async fn reload(&self, lines: &str) -> Outcome {
        let mut tables = self.tables.lock().await;
        lay_over(&mut tables, toml::from_str(lines).unwrap());
        let text = tables.to_string();
        drop(tables);
        self.reload_text(&text).await
    }

    /// Removes a table of the configuration, and reloads it.
    pub async fn reload_without(&self, table: &str, name: &str) -> Outcome {
        let mut tables = self.tables.lock().await;
        let table = tables.get_mut(table).and_then(toml::Value::as_table_mut);
        table.expect("the table").remove(name).expect("the entry");
        let text = tables.to_string();
        drop(tables);
        self.reload_text(&text).await
    }

    /// Writes this configuration to the file, and reloads it.
    pub async fn reload_text(&self, text: &str) -> Outcome {
        let start = async || {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("test.toml");
            (folder, self.app.follow(file, HashMap::new()))
        };
        let (folder, reloads) = self.file.get_or_init(start).await;
        std::fs::write(folder.path().join("test.toml"), text).unwrap();
        reloads.reload().await
    }

    /// The configuration as text.
    pub async fn text(&self) -> String {
        self.tables.lock().await.to_string()
    }

    /// The bridge's SIP address.
    pub fn address(&self) -> SocketAddr {
        self.app.address.expect("SIP is served")
    }

    /// Waits for the next call to end and returns its record.
    pub async fn record(&self) -> Record {
        timeout(Duration::from_secs(10), self.next_record()).await.expect("a call ends")
    }

    /// Like [`Bridge::record`], without a time limit.
    pub async fn next_record(&self) -> Record {
        self.records.lock().await.recv().await.expect("the app is running")
    }

    /// Sends a recording command to the only live call.
    pub fn record_command(&self, command: RecordCommand) {
        let calls = self.app.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        let (by, command) = (Sender::Http("test".to_owned()), Command::Record(command));
        let order = Order { id: String::new(), by, when: When::Now, command };
        let request = OrderRequest { order, replies: mpsc::unbounded_channel().0 };
        assert_eq!(self.app.order(&calls[0], request), Ok(()));
    }

    /// Hangs up a live call.
    #[allow(dead_code, reason = "the tests of the page use it")]
    pub fn hang_up(&self, call: &str) {
        let (by, id) = (Sender::Http("test".to_owned()), String::new());
        let command = Command::Hangup { cause: Cause::Normal, status: None };
        let order = Order { id, by, when: When::Now, command };
        let request = OrderRequest { order, replies: mpsc::unbounded_channel().0 };
        assert_eq!(self.app.order(call, request), Ok(()));
    }

    /// Waits for the next call to end and returns the reason.
    pub async fn end(&self) -> &'static str {
        self.record().await.reason.label()
    }

    /// Waits until no PBX will send this bridge a call any more.
    pub async fn useless(&self) {
        self.app.all_replaced().await;
    }

    /// Shuts the bridge down as SIGTERM does.
    pub async fn shutdown(self) {
        self.app.shutdown(std::future::pending()).await;
    }

    /// Shuts the bridge down and returns the records not taken so far.
    pub async fn all_records(self) -> Vec<Record> {
        self.app.shutdown(std::future::pending()).await;
        let mut records = self.records.into_inner();
        let mut all = Vec::new();
        let rest = async {
            while let Some(record) = records.recv().await {
                all.push(record);
            }
        };
        timeout(Duration::from_secs(10), rest).await.expect("the app ends");
        all
    }
}

/// A PBX, an AI and the bridge between them.
pub struct Rig {
    pub net: Net,
    pub pbx: Pbx,
    pub ai: Ai,
    pub bridge: Bridge,
}

impl Rig {
    pub async fn new(config: &str) -> Rig {
        let net = Net::new();
        let pbx = Pbx::udp(net.pbx()).await;
        let ai = Ai::start(net.ai()).await;
        Rig::with(net, pbx, ai, config).await
    }

    pub async fn with(net: Net, pbx: Pbx, ai: Ai, config: &str) -> Rig {
        let bridge = Bridge::start(net, pbx.address, ai.address, config).await;
        pbx.registered().await;
        Rig { net, pbx, ai, bridge }
    }

    /// Sets up a call and returns both ends.
    pub async fn call(&self) -> (Call, Stream) {
        let mut call = self.pbx.call(&self.bridge).await;
        call.invite().await;
        let stream = self.ai.stream().await;
        call.answered().await;
        (call, stream)
    }
}
