//! `trunkless demo`: a whole call on this machine. A small PBX registers and calls, the bridge
//! runs in SIP mode with its real configuration path, the bundled AI stand-in answers; all over
//! real sockets on loopback. Owns them and the clock.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::app::App;
use crate::call::end::EndReason;
use crate::call::run::Record;
use crate::cli::block_on;
use crate::cli::call::frame_of;
use crate::config::resolve::resolve;
use crate::config::{Source, load};
use crate::folder::Root;
use crate::media::frame::{SILENCE, level_dbfs};
use crate::peer::ai::{self, AgentEvent};
use crate::peer::phone::{Heard, Phone, PhoneCommand, PhoneConfig, PhoneEvent};
use crate::peer::registrar::Registrar;
use crate::record::disk::with_ending;
use crate::record::{library, wav};
use crate::sip::agent::CallEnd;
use crate::sip::uri::Uri;
use crate::telemetry;

/// What the caller says: mu-law, 8 kHz.
const CALLER: &[u8] = include_bytes!("assets/caller.ulaw");
/// The caller starts to speak, in the middle of the greeting.
const SPEAK_AT_FRAME: u64 = 90;
/// The caller's last words, then a moment for the echo.
const HANG_UP_AFTER: Duration = Duration::from_millis(700);

#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Where the recording of the call goes.
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    output: PathBuf,
    /// Show the program's own log too.
    #[arg(long)]
    verbose: bool,
}

pub fn main(arguments: &DemoArguments) -> ExitCode {
    block_on(demo(arguments))
}

/// What the demo has seen, with the caller's and the AI's clocks being one.
#[derive(Default)]
struct Seen {
    sent: Vec<(Instant, Vec<u8>)>,
    ai_heard: Vec<(Instant, Vec<u8>)>,
    ai_sent: Vec<(Instant, Vec<u8>)>,
    heard: Vec<Heard>,
    barge_in: bool,
    greeting_back: bool,
    stopped: bool,
}

struct Teller {
    begin: Instant,
}

impl Teller {
    fn say(&self, text: &str) {
        println!("{:7.3} s  {text}", self.begin.elapsed().as_secs_f64());
    }
}

async fn demo(arguments: &DemoArguments) -> Result<ExitCode> {
    let level = if arguments.verbose { "info" } else { "error" };
    telemetry::init(level, false).map_err(anyhow::Error::msg)?;
    let teller = Teller { begin: Instant::now() };
    println!("trunkless demo: one call, caller -> PBX -> trunkless -> AI, all on this machine.\n");

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let ai_address = listener.local_addr()?;
    let (agent_tx, agent_rx) = mpsc::unbounded_channel();
    tokio::spawn(ai::serve(listener, Some(agent_tx)));
    teller.say(&format!("AI stand-in listens on ws://{ai_address}"));

    let local = IpAddr::from([127, 0, 0, 1]);
    let mut config = PhoneConfig::new(local, "caller");
    config.registrar = Some(Registrar::new("ai", "demo", format!("{:x}", std::process::id())));
    config.source = Box::new(|index| frame_of(CALLER, index.checked_sub(SPEAK_AT_FRAME)?));
    let phone = Phone::start(config).await?;
    teller.say(&format!("PBX stand-in listens on {} (UDP)", phone.address));

    let (records_tx, records) = mpsc::unbounded_channel();
    let app = start_bridge(&phone, &ai_address.to_string(), arguments, records_tx).await?;
    if let Some(address) = app.address {
        teller.say(&format!("trunkless listens on {address} (SIP)"));
    }

    let mut phone = phone;
    let outcome = converse(&teller, &mut phone, agent_rx, records).await;
    app.shutdown(std::future::ready(())).await;
    let (seen, record) = outcome?;
    report(&seen, &record, &arguments.output)
}

/// The bridge with a configuration as a user writes it.
async fn start_bridge(
    phone: &Phone,
    ai: &str,
    arguments: &DemoArguments,
    records: mpsc::UnboundedSender<Record>,
) -> Result<App> {
    std::fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot make {}", arguments.output.display()))?;
    let text = format!(
        "[ai]\nurl = \"ws://{ai}\"\n[sip]\nlisten = \"127.0.0.1:0\"\n[calls]\nringing = true\n\
         [recording]\ndirectory = {}\n\
         [pbx.demo]\nmode = \"sip\"\n[pbx.demo.sip]\nregistrar = \"{}\"\n\
         username = \"ai\"\npassword = \"demo\"\n",
        toml::Value::from(arguments.output.display().to_string()),
        phone.address,
    );
    let source = Source { name: "the demo's configuration".to_owned(), text };
    let environment = HashMap::new();
    let plan = resolve(&source, load(&source, &environment)?, &environment)?;
    App::start(plan, Some(records)).await
}

async fn converse(
    teller: &Teller,
    phone: &mut Phone,
    mut agent: mpsc::UnboundedReceiver<AgentEvent>,
    mut records: mpsc::UnboundedReceiver<Record>,
) -> Result<(Seen, Record)> {
    let mut seen = Seen::default();
    let mut dialled = false;
    let speech = CALLER.len().div_ceil(160);
    let mut hang_up_at: Option<Instant> = None;
    loop {
        let until = hang_up_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(10));
        tokio::select! {
            event = phone.events.recv() => match event {
                Some(PhoneEvent::Registered { contact }) if !dialled => {
                    dialled = true;
                    teller.say("trunkless has registered as extension \"ai\" (digest)");
                    let uri = Uri::parse(&contact)?;
                    let ip = uri.host.ip().context("the contact has no address")?;
                    let target = (ip, uri.port.unwrap_or(5060)).into();
                    teller.say("the PBX calls it: INVITE");
                    phone.command(PhoneCommand::Dial { uri: contact, target });
                }
                Some(event) => on_phone(teller, &mut seen, event)?,
                None => bail!("the phone has ended"),
            },
            Some(event) = agent.recv() => on_agent(teller, &mut seen, event),
            () = tokio::time::sleep_until(until.into()) => match hang_up_at.take() {
                Some(_) => {
                    teller.say("the caller hangs up");
                    phone.command(PhoneCommand::Hangup);
                }
                None => bail!("nothing has happened for 10 s"),
            },
            Some(record) = records.recv() => {
                // the AI's farewell may still be on its way
                let moment = Duration::from_millis(100);
                while let Ok(Some(event)) = timeout(moment, agent.recv()).await {
                    on_agent(teller, &mut seen, event);
                }
                return Ok((seen, record));
            }
        }
        if seen.sent.len() == speech {
            seen.sent.push((Instant::now(), Vec::new()));
            hang_up_at = Some(Instant::now() + HANG_UP_AFTER);
        }
    }
}

fn on_phone(teller: &Teller, seen: &mut Seen, event: PhoneEvent) -> Result<()> {
    match event {
        PhoneEvent::Progress(code) => teller.say(&format!("ringing ({code})")),
        PhoneEvent::Answered { .. } => teller.say("answered: the AI's socket is open"),
        PhoneEvent::Sent { at, samples } => {
            if seen.sent.is_empty() {
                teller.say("the caller begins to speak, over the greeting");
            }
            seen.sent.push((at, samples.to_vec()));
        }
        PhoneEvent::Heard(packet) => {
            let speech = |h: &Heard| h.samples.iter().any(|s| *s != SILENCE);
            if speech(&packet) && !seen.heard.iter().any(speech) {
                teller.say("first audio from the AI reaches the caller");
            }
            seen.heard.push(packet);
        }
        PhoneEvent::Ended(CallEnd::Refused { code, reason }) => {
            bail!("the call was refused: {code} {reason}");
        }
        _ => {}
    }
    Ok(())
}

fn on_agent(teller: &Teller, seen: &mut Seen, event: AgentEvent) {
    match event {
        AgentEvent::Started { call_sid, .. } => {
            teller.say(&format!("AI connected: start, callSid {call_sid}"));
        }
        AgentEvent::Heard { at, payload } => {
            if seen.ai_heard.is_empty() {
                teller.say("first audio from the caller reaches the AI");
            }
            seen.ai_heard.push((at, payload));
        }
        AgentEvent::Echoed { at, payload } => seen.ai_sent.push((at, payload)),
        AgentEvent::BargeIn => {
            seen.barge_in = true;
            teller.say("barge-in: the AI sends clear");
        }
        AgentEvent::MarkReturned(name) => {
            if name == "greeting" {
                seen.greeting_back = true;
                teller.say("the greeting is cut off; from now on the AI echoes");
            }
        }
        AgentEvent::Digit(digit) => teller.say(&format!("key {digit}")),
        AgentEvent::Stopped => {
            seen.stopped = true;
            teller.say("AI told: stop; stream closed");
        }
    }
}

/// The time from each of `from` to the same audio in `to`, in ms; frames that occur twice are left
/// out.
fn delays(from: &[(Instant, Vec<u8>)], to: &[(Instant, Vec<u8>)]) -> Vec<f64> {
    let mut when: HashMap<&[u8], Vec<Instant>> = HashMap::new();
    to.iter().for_each(|(at, audio)| when.entry(audio).or_default().push(*at));
    let mut count: HashMap<&[u8], u32> = HashMap::new();
    from.iter().for_each(|(_, audio)| *count.entry(audio).or_default() += 1);
    let mut delays: Vec<f64> = from
        .iter()
        .filter(|(_, audio)| count[&audio[..]] == 1)
        .filter_map(|(sent, audio)| match when.get(&audio[..])?[..] {
            [arrived] => arrived.checked_duration_since(*sent),
            _ => None,
        })
        .map(|d| d.as_secs_f64() * 1000.0)
        .collect();
    delays.sort_by(f64::total_cmp);
    delays
}

/// How many frames of `from` are not in `to`.
fn missing(from: &[(Instant, Vec<u8>)], to: &[(Instant, Vec<u8>)]) -> usize {
    let arrived: HashSet<&[u8]> = to.iter().map(|(_, audio)| &audio[..]).collect();
    from.iter().filter(|(_, audio)| !arrived.contains(&audio[..])).count()
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * q).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn report(seen: &Seen, record: &Record, output: &Path) -> Result<ExitCode> {
    let heard: Vec<(Instant, Vec<u8>)> =
        seen.heard.iter().map(|h| (h.at, h.samples.clone())).collect();
    let spoken = &seen.sent[..seen.sent.len().saturating_sub(1)];
    let to_ai = delays(spoken, &seen.ai_heard);
    let to_caller = delays(&seen.ai_sent, &heard);
    // the last echoes were on their way when the caller hung up
    let echoed = &seen.ai_sent[..seen.ai_sent.len().saturating_sub(10)];
    let (lost, lost_back) = (missing(spoken, &seen.ai_heard), missing(echoed, &heard));
    let summary = &record.summary;
    println!("\nReport");
    println!("  set-up, INVITE to answer      {:.1} ms", summary.setup.as_secs_f64() * 1000.0);
    for (name, delays) in [("caller -> AI", &to_ai), ("AI -> caller", &to_caller)] {
        println!(
            "  added latency {name:14}  p50 {:.2} ms, p99 {:.2} ms ({} frames)",
            quantile(delays, 0.5),
            quantile(delays, 0.99),
            delays.len()
        );
    }
    println!("  (AI -> caller includes the wait for the next 20 ms slot of the call)");
    println!(
        "  frames lost                   {lost} of {} spoken, {lost_back} of {} echoed",
        spoken.len(),
        echoed.len()
    );
    println!(
        "  call                          {:.1} s, ended by {}",
        summary.talk.as_secs_f64(),
        record.reason.label()
    );
    let mut failures = Vec::new();
    let mut expect = |good: bool, what: &str| {
        if !good {
            failures.push(what.to_owned());
        }
    };
    match recording_levels(record, output) {
        Ok((path, caller, ai)) => {
            let file = path.display();
            println!("  recording                     {file} (left: caller, right: AI)");
            expect(caller > -40.0 && ai > -40.0, "the recording does not hold both voices");
        }
        Err(why) => expect(false, &format!("the recording cannot be read: {why}")),
    }
    expect(lost + lost_back == 0, "audio was lost");
    expect(seen.barge_in && seen.greeting_back, "the greeting was not interrupted");
    expect(!to_ai.is_empty() && !to_caller.is_empty(), "audio did not go both ways");
    expect(seen.stopped, "the AI was not told of the end");
    expect(
        record.reason == EndReason::CallerHangup,
        "the call did not end with the caller's hang-up",
    );
    if failures.is_empty() {
        println!("\nAll well.");
        return Ok(ExitCode::SUCCESS);
    }
    println!();
    failures.iter().for_each(|failure| println!("FAILED: {failure}"));
    Ok(ExitCode::FAILURE)
}

/// The file, and the loudness of both channels in dBFS.
fn recording_levels(record: &Record, output: &Path) -> Result<(PathBuf, f64, f64)> {
    let root = Root::new(output.to_owned());
    let id = record.recordings.first().context("none was made")?;
    let path = output.join(with_ending(&library::find(&root, id)?, "wav"));
    let channels = wav::read(&std::fs::read(&path)?)?;
    let [caller, ai] = &channels[..] else { bail!("{} channels", channels.len()) };
    Ok((path, level_dbfs(caller), level_dbfs(ai)))
}
