//! `trunkless demo` without `--ai`: the bundled stand-in greets, is interrupted, and echoes. The
//! caller knows every frame it sent, so the report has latency and loss. Owns sockets.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{CALLER, DemoArguments, Narrator, dial, recording_levels, start_bridge, start_phone};
use crate::call::end::EndReason;
use crate::call::ended::Record;
use crate::media::frame::SILENCE;
use crate::peer::ai::{self, AgentEvent};
use crate::peer::phone::{Heard, Phone, PhoneCommand, PhoneEvent};
use crate::sip::agent::CallEnd;

/// From the caller's last words to the hang-up, so that the last echo arrives.
const HANG_UP_AFTER: Duration = Duration::from_millis(700);

/// Everything the demo observes. Caller and AI run in this process, so they share one clock.
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

pub(super) async fn demo(arguments: &DemoArguments) -> Result<ExitCode> {
    outln!("trunkless demo: one call, caller -> PBX -> trunkless -> AI, all on this machine.\n");
    let narrator = Narrator::new();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("ws://{}", listener.local_addr()?);
    let (agent_tx, agent_rx) = mpsc::unbounded_channel();
    tokio::spawn(ai::serve(listener, Some(agent_tx)));
    narrator.say(&format!("AI stand-in listens on {url}"));

    let mut phone = start_phone(&narrator).await?;
    let (app, records) = start_bridge(&narrator, &phone, &url, arguments).await?;
    let outcome = converse(&narrator, &mut phone, agent_rx, records).await;
    app.shutdown(std::future::ready(())).await;
    let (seen, record) = outcome?;
    report(&seen, &record, &arguments.output)
}

async fn converse(
    narrator: &Narrator,
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
                    dial(narrator, phone, contact)?;
                }
                Some(event) => on_phone(narrator, &mut seen, event)?,
                None => bail!("internal error: the phone has stopped"),
            },
            Some(event) = agent.recv() => on_agent(narrator, &mut seen, event),
            () = tokio::time::sleep_until(until.into()) => match hang_up_at.take() {
                Some(_) => {
                    narrator.say("the caller hangs up");
                    phone.command(PhoneCommand::Hangup);
                }
                None => bail!("nothing has happened for 10 s"),
            },
            Some(record) = records.recv() => {
                // the AI may still be reading its stop message
                let moment = Duration::from_millis(100);
                while let Ok(Some(event)) = timeout(moment, agent.recv()).await {
                    on_agent(narrator, &mut seen, event);
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

fn on_phone(narrator: &Narrator, seen: &mut Seen, event: PhoneEvent) -> Result<()> {
    match event {
        PhoneEvent::Progress(code) => narrator.say(&format!("ringing ({code})")),
        PhoneEvent::Answered { .. } => narrator.say("answered: the AI's WebSocket is open"),
        PhoneEvent::Sent { at, samples } => {
            if seen.sent.is_empty() {
                narrator.say("the caller starts to speak over the greeting");
            }
            seen.sent.push((at, samples.to_vec()));
        }
        PhoneEvent::Heard(packet) => {
            let speech = |h: &Heard| h.samples.iter().any(|s| *s != SILENCE);
            if speech(&packet) && !seen.heard.iter().any(speech) {
                narrator.say("first audio from the AI reaches the caller");
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

fn on_agent(narrator: &Narrator, seen: &mut Seen, event: AgentEvent) {
    match event {
        AgentEvent::Started { call_sid, .. } => {
            narrator.say(&format!("AI connected: start, callSid {call_sid}"));
        }
        AgentEvent::Heard { at, payload } => {
            if seen.ai_heard.is_empty() {
                narrator.say("first audio from the caller reaches the AI");
            }
            seen.ai_heard.push((at, payload));
        }
        AgentEvent::Echoed { at, payload } => seen.ai_sent.push((at, payload)),
        AgentEvent::BargeIn => {
            seen.barge_in = true;
            narrator.say("barge-in: the AI sends clear");
        }
        AgentEvent::MarkReturned(name) => {
            if name == "greeting" {
                seen.greeting_back = true;
                narrator.say("the greeting is cut off; the AI now echoes the caller");
            }
        }
        AgentEvent::Digit(digit) => narrator.say(&format!("key {digit}")),
        AgentEvent::Stopped => {
            seen.stopped = true;
            narrator.say("the AI receives stop; its stream is closed");
        }
    }
}

/// The delay in ms from each frame in `from` to the same audio in `to`, sorted. Frames that occur
/// more than once are left out.
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

/// The number of frames in `from` that are not in `to`.
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
    // the last echoes were in flight when the caller hung up
    let echoed = &seen.ai_sent[..seen.ai_sent.len().saturating_sub(10)];
    let (lost, lost_back) = (missing(spoken, &seen.ai_heard), missing(echoed, &heard));
    let summary = &record.summary;
    outln!("\nReport");
    outln!("  setup, INVITE to answer       {:.1} ms", summary.setup.as_secs_f64() * 1000.0);
    for (name, delays) in [("caller -> AI", &to_ai), ("AI -> caller", &to_caller)] {
        outln!(
            "  added latency {name:14}  p50 {:.2} ms, p99 {:.2} ms ({} frames)",
            quantile(delays, 0.5),
            quantile(delays, 0.99),
            delays.len()
        );
    }
    outln!("  (AI -> caller includes the wait for the next 20 ms slot of the call)");
    outln!(
        "  frames lost                   {lost} of {} spoken, {lost_back} of {} echoed",
        spoken.len(),
        echoed.len()
    );
    outln!(
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
            outln!("  recording                     {file} (left: caller, right: AI)");
            expect(caller > -40.0 && ai > -40.0, "the recording does not hold both voices");
        }
        Err(why) => expect(false, &format!("the recording cannot be read: {why}")),
    }
    expect(lost + lost_back == 0, "audio was lost");
    expect(seen.barge_in && seen.greeting_back, "the greeting was not interrupted");
    expect(!to_ai.is_empty() && !to_caller.is_empty(), "audio did not go both ways");
    expect(seen.stopped, "the AI did not receive stop");
    expect(
        record.reason == EndReason::CallerHangup,
        "the call was not ended by the caller's hang-up",
    );
    if failures.is_empty() {
        outln!("\nAll well.");
        return Ok(ExitCode::SUCCESS);
    }
    outln!();
    failures.iter().for_each(|failure| outln!("FAILED: {failure}"));
    Ok(ExitCode::FAILURE)
}
