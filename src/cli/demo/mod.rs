//! `trunkless demo`: a whole call on this machine. A small PBX registers and calls, and the bridge
//! runs in SIP mode from a configuration text, all over real sockets on loopback. The bundled AI
//! stand-in takes the call, or with `--ai` the user's own bot. Owns them and the clock.

mod bot;
mod stand_in;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::sync::mpsc;

use crate::app::App;
use crate::call::ended::Record;
use crate::cli::call::frame_of;
use crate::cli::{block_on, environment};
use crate::config::resolve::resolve;
use crate::config::{Source, load};
use crate::folder::Root;
use crate::media::frame::level_dbfs;
use crate::peer::phone::{Phone, PhoneCommand, PhoneConfig};
use crate::peer::registrar::Registrar;
use crate::record::disk::with_ending;
use crate::record::{library, wav};
use crate::sip::uri::Uri;
use crate::telemetry;

/// The caller's speech: mu-law, 8 kHz.
const CALLER: &[u8] = include_bytes!("../assets/caller.ulaw");
/// The caller starts to speak at this frame, during the greeting.
const SPEAK_AT_FRAME: u64 = 90;

#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Call this bot instead of the bundled stand-in: ws:// or wss://. Other keys of [ai] are
    /// taken from the environment, such as TRUNKLESS_AI__AUTH_TOKEN.
    #[arg(long, value_name = "URL")]
    ai: Option<String>,
    /// Where to write the recording of the call.
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    output: PathBuf,
    /// Show trunkless' own log as well.
    #[arg(long)]
    verbose: bool,
}

pub fn main(arguments: &DemoArguments) -> ExitCode {
    block_on(demo(arguments))
}

async fn demo(arguments: &DemoArguments) -> Result<ExitCode> {
    let level = if arguments.verbose { "info" } else { "error" };
    telemetry::init(level, false).map_err(anyhow::Error::msg)?;
    match &arguments.ai {
        Some(url) => bot::demo(arguments, url).await,
        None => stand_in::demo(arguments).await,
    }
}

/// Prints what happens, with the time since the start.
struct Narrator {
    begin: Instant,
}

impl Narrator {
    fn new() -> Narrator {
        Narrator { begin: Instant::now() }
    }

    fn say(&self, text: &str) {
        outln!("{:7.3} s  {text}", self.begin.elapsed().as_secs_f64());
    }
}

/// The PBX stand-in. Its caller is silent at first, then speaks once.
async fn start_phone(narrator: &Narrator) -> Result<Phone> {
    let local = IpAddr::from([127, 0, 0, 1]);
    let mut config = PhoneConfig::new(local, "caller");
    config.registrar = Some(Registrar::new("ai", "demo", format!("{:x}", std::process::id())));
    config.source = Box::new(|index| frame_of(CALLER, index.checked_sub(SPEAK_AT_FRAME)?));
    let phone = Phone::start(config).await?;
    narrator.say(&format!("PBX stand-in listens on {} (UDP)", phone.address));
    Ok(phone)
}

/// Starts the bridge from a configuration text like a user's.
async fn start_bridge(
    narrator: &Narrator,
    phone: &Phone,
    ai: &str,
    arguments: &DemoArguments,
) -> Result<(App, mpsc::UnboundedReceiver<Record>)> {
    std::fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot create {}", arguments.output.display()))?;
    let text = format!(
        "[ai]\nurl = {}\n[sip]\nlisten = \"127.0.0.1:0\"\n[calls]\nringing = true\n\
         [recording]\ndirectory = {}\n\
         [pbx.demo]\nmode = \"sip\"\n[pbx.demo.sip]\nregistrar = \"{}\"\n\
         username = \"ai\"\npassword = \"demo\"\n",
        toml::Value::from(ai),
        toml::Value::from(arguments.output.display().to_string()),
        phone.address,
    );
    let source = Source { name: "the demo's configuration".to_owned(), text };
    let settings = load(&source, &ai_settings(arguments.ai.is_some()))?;
    let plan = resolve(&source, settings, &environment())?;
    let (records_tx, records) = mpsc::unbounded_channel();
    let app = App::start(plan, Some(records_tx)).await?;
    if let Some(address) = app.address {
        narrator.say(&format!("trunkless listens on {address} (SIP)"));
    }
    Ok((app, records))
}

/// The keys of `[ai]` in the environment, apart from the URL: only the user's own bot needs them.
fn ai_settings(own_bot: bool) -> HashMap<String, String> {
    let mut variables = environment();
    let wanted = |name: &str| name.starts_with("TRUNKLESS_AI__") && name != "TRUNKLESS_AI__URL";
    variables.retain(|name, _| own_bot && wanted(name));
    variables
}

/// The PBX calls the bridge at the contact that it registered.
fn dial(narrator: &Narrator, phone: &Phone, contact: String) -> Result<()> {
    narrator.say("trunkless has registered as extension \"ai\" (digest)");
    let uri = Uri::parse(&contact)?;
    let ip = uri.host.ip().context("the contact has no address")?;
    let target = (ip, uri.port.unwrap_or(5060)).into();
    narrator.say("the PBX calls it: INVITE");
    phone.command(PhoneCommand::Dial { uri: contact, target });
    Ok(())
}

/// Where the recording of a call is: a path without its ending.
fn recording(record: &Record, output: &Path) -> Result<PathBuf> {
    let id = record.recordings.first().context("no recording was made")?;
    Ok(library::find(&Root::new(output.to_owned()), id)?)
}

/// The audio file of a call, and the level of caller and AI in dBFS.
fn recording_levels(record: &Record, output: &Path) -> Result<(PathBuf, f64, f64)> {
    let path = output.join(with_ending(&recording(record, output)?, "wav"));
    let channels = wav::read(&std::fs::read(&path)?)?;
    let [caller, ai] = &channels[..] else { bail!("it has {} channels", channels.len()) };
    Ok((path, level_dbfs(caller), level_dbfs(ai)))
}
