//! The bridge under test, started from a configuration as a user writes it, and the addresses of a
//! test. Every test has loopback addresses of its own, so that no packet of one reaches another.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use trunkless::app::App;
use trunkless::call::Command;
use trunkless::call::run::Record;
use trunkless::config::resolve::resolve;
use trunkless::config::{Source, load};
use trunkless::record::RecordCommand;

use crate::call::Call;
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
        // another run of the tests at the same time must not be met either
        let process = 16 + (std::process::id() % 200) as u8;
        Net::V4 { process, test: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Further ones, for those who need more than the four below.
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
    app: App,
    records: Mutex<mpsc::UnboundedReceiver<Record>>,
}

impl Bridge {
    /// A bridge that registers with the PBX at `pbx` and dials `ai`. `config`: TOML that is laid
    /// over the plain configuration.
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

    /// `config`: TOML that is laid over `plain`.
    pub async fn launch(plain: &str, config: &str) -> Bridge {
        let mut tables: toml::Table = toml::from_str(plain).unwrap();
        lay_over(&mut tables, toml::from_str(config).unwrap());
        let source = Source { name: "test.toml".to_owned(), text: tables.to_string() };
        let environment = HashMap::new();
        let settings = load(&source, &environment).unwrap();
        let plan = resolve(&source, settings, &environment).unwrap();
        let (records_tx, records) = mpsc::unbounded_channel();
        let app = App::start(plan, Some(records_tx)).await.unwrap();
        Bridge { app, records: Mutex::new(records) }
    }

    /// Where it serves SIP.
    pub fn address(&self) -> SocketAddr {
        self.app.address.expect("SIP is served")
    }

    /// The record of the next call that has ended.
    pub async fn record(&self) -> Record {
        let record = timeout(Duration::from_secs(10), async {
            self.records.lock().await.recv().await.expect("the app lives")
        });
        record.await.expect("a call has ended")
    }

    /// Asks something of the only call that is up.
    pub fn record_command(&self, command: RecordCommand) {
        let calls = self.app.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert!(self.app.command(&calls[0], Command::Record(command)));
    }

    /// Why the next call has ended.
    pub async fn end(&self) -> &'static str {
        self.record().await.reason.label()
    }

    /// Returns when no PBX will ever send it a call again.
    pub async fn useless(&self) {
        self.app.useless().await;
    }

    /// Shuts the bridge down as SIGTERM does.
    pub async fn shutdown(self) {
        self.app.shutdown(std::future::pending()).await;
    }

    /// The same; returns the records that nobody has taken.
    pub async fn all_records(self) -> Vec<Record> {
        self.app.shutdown(std::future::pending()).await;
        let mut records = self.records.into_inner();
        let mut all = Vec::new();
        let rest = async {
            while let Some(record) = records.recv().await {
                all.push(record);
            }
        };
        timeout(Duration::from_secs(10), rest).await.expect("the app has ended");
        all
    }
}

fn lay_over(below: &mut toml::Table, above: toml::Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => lay_over(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

/// All three parties.
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

    /// A call that is up.
    pub async fn call(&self) -> (Call, Stream) {
        let mut call = self.pbx.call(&self.bridge).await;
        call.invite().await;
        let stream = self.ai.stream().await;
        call.answered().await;
        (call, stream)
    }
}
