//! `trunkless demo --ai`: the call goes to the user's own bot. The caller listens, speaks over the
//! greeting, presses a key, listens again and hangs up. Owns the clock.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::{CALLER, DemoArguments, Narrator, dial, recording, recording_levels};
use super::{start_bridge, start_phone};
use crate::call::end::{CallerFate, EndReason};
use crate::call::ended::Record;
use crate::folder::Root;
use crate::media::frame::{FRAME_TIME, level_dbfs};
use crate::peer::phone::{Heard, Keys, Phone, PhoneCommand, PhoneEvent};
use crate::record::library;
use crate::record::sidecar::What;

/// The key that the caller presses.
const KEY: char = '1';
/// From the end of the caller's speech to the key.
const PRESS_AFTER: Duration = Duration::from_secs(2);
/// From the key to the hang-up.
const HANG_UP_AFTER: Duration = Duration::from_secs(3);
/// Give up when nothing happens for this long.
const STUCK: Duration = Duration::from_secs(15);
/// Quieter frames count as silence.
const AUDIBLE_DBFS: f64 = -50.0;
/// The bot has stopped speaking after this much silence.
const PAUSE: Duration = Duration::from_millis(300);

/// Times and frames of the call, as the caller saw and heard it.
#[derive(Default)]
struct Seen {
    answered: Option<Instant>,
    first_audio: Option<Instant>,
    last_audio: Option<Instant>,
    bot_speaks: bool,
    frames: usize,
    /// The audible frames.
    audio: Vec<u8>,
    spoken: usize,
    key_pressed: bool,
}

pub(super) async fn demo(arguments: &DemoArguments, url: &str) -> Result<ExitCode> {
    if !url.starts_with("ws://") && !url.starts_with("wss://") {
        bail!("--ai: \"{url}\" is not a ws:// or wss:// URL");
    }
    outln!("trunkless demo: one call, caller -> PBX -> trunkless -> your bot at {url}.\n");
    let narrator = Narrator::new();
    let mut phone = start_phone(&narrator).await?;
    let (app, records) = start_bridge(&narrator, &phone, url, arguments).await?;
    let outcome = converse(&narrator, &mut phone, records).await;
    app.shutdown(std::future::ready(())).await;
    let (seen, record) = outcome?;
    if seen.answered.is_some() {
        report(&seen, &record, &arguments.output);
    }
    match failure(&seen, &record, url) {
        None => {
            outln!("\nAll well: your bot connected and was heard.");
            Ok(ExitCode::SUCCESS)
        }
        Some(why) => {
            outln!("\nFAILED: {why}");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn converse(
    narrator: &Narrator,
    phone: &mut Phone,
    mut records: mpsc::UnboundedReceiver<Record>,
) -> Result<(Seen, Record)> {
    let mut seen = Seen::default();
    let speech_frames = CALLER.len().div_ceil(160);
    let mut next_step: Option<Instant> = None;
    let mut progress = Instant::now();
    let mut dialled = false;
    loop {
        let wake = next_step.unwrap_or(progress + STUCK);
        tokio::select! {
            event = phone.events.recv() => match event {
                Some(PhoneEvent::Registered { contact }) if !dialled => {
                    dialled = true;
                    dial(narrator, phone, contact)?;
                }
                Some(PhoneEvent::Sent { .. }) => {
                    progress = Instant::now();
                    seen.spoken += 1;
                    if seen.spoken == 1 {
                        narrator.say("the caller starts to speak");
                    }
                    if seen.spoken == speech_frames {
                        narrator.say("the caller has finished");
                        next_step = Some(progress + PRESS_AFTER);
                    }
                }
                Some(event) => on_phone(narrator, &mut seen, event),
                None => bail!("internal error: the phone has stopped"),
            },
            () = sleep_until(wake.into()) => match next_step.take() {
                Some(_) if !seen.key_pressed => {
                    seen.key_pressed = true;
                    narrator.say(&format!("the caller presses {KEY}"));
                    phone.command(PhoneCommand::Press(KEY, Keys::Rtp));
                    next_step = Some(wake + HANG_UP_AFTER);
                }
                Some(_) => {
                    progress = Instant::now();
                    narrator.say("the caller hangs up");
                    phone.command(PhoneCommand::Hangup);
                }
                None => bail!("nothing has happened for {} s", STUCK.as_secs()),
            },
            Some(record) = records.recv() => return Ok((seen, record)),
        }
    }
}

fn on_phone(narrator: &Narrator, seen: &mut Seen, event: PhoneEvent) {
    match event {
        PhoneEvent::Progress(code) => narrator.say(&format!("ringing ({code})")),
        PhoneEvent::Answered { at } => {
            seen.answered = Some(at);
            narrator.say("the bot has accepted the WebSocket: the call is answered");
        }
        PhoneEvent::Heard(packet) => on_heard(narrator, seen, &packet),
        _ => {}
    }
}

fn on_heard(narrator: &Narrator, seen: &mut Seen, packet: &Heard) {
    seen.frames += 1;
    if level_dbfs(&packet.samples) > AUDIBLE_DBFS {
        if !seen.bot_speaks {
            seen.bot_speaks = true;
            narrator.say("the bot is heard");
        }
        seen.first_audio.get_or_insert(packet.at);
        seen.last_audio = Some(packet.at);
        seen.audio.extend_from_slice(&packet.samples);
    } else if seen.bot_speaks
        && seen.last_audio.is_some_and(|last| packet.at.duration_since(last) > PAUSE)
    {
        seen.bot_speaks = false;
        narrator.say(&format!("the bot is silent (for {} ms)", PAUSE.as_millis()));
    }
}

fn report(seen: &Seen, record: &Record, output: &Path) {
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let line = |name: &str, value: &str| outln!("  {name:16}{value}");
    outln!("\nReport");
    line("connected", &format!("{} after the INVITE", ms(record.summary.setup)));
    let first = seen.first_audio.zip(seen.answered);
    let first = first.map(|(audio, answer)| audio.saturating_duration_since(answer));
    match first {
        Some(after) => line("first audio", &format!("{} after the answer", ms(after))),
        None => line("first audio", "none"),
    }
    let audible = seen.audio.len() / 160;
    let seconds = FRAME_TIME.as_secs_f64() * audible as f64;
    let level = match audible {
        0 => String::new(),
        _ => format!(", level {:.1} dBFS", level_dbfs(&seen.audio)),
    };
    let total = seen.frames;
    line("heard", &format!("{audible} audible frames of {total} ({seconds:.1} s){level}"));
    let key = if seen.key_pressed { format!(", key {KEY}") } else { String::new() };
    line("sent", &format!("{} frames of speech{key}", seen.spoken));
    line("marks", &marks(record, output));
    if record.ai.ignored > 0 {
        let count = record.ai.ignored;
        line("not understood", &format!("{count} of the bot's messages; --verbose logs why"));
    }
    if record.ai.dropped_audio > 0 {
        let count = record.ai.dropped_audio;
        line("dropped", &format!("{count} frames, because the bot read too slowly"));
    }
    line("ended", &ended(record));
    match recording_levels(record, output) {
        Ok((path, ..)) => {
            line("recording", &format!("{} (left: caller, right: bot)", path.display()));
        }
        Err(why) => line("recording", &format!("none: {why}")),
    }
}

/// The marks that came back to the bot during the call.
fn marks(record: &Record, output: &Path) -> String {
    let sidecar = recording(record, output)
        .and_then(|path| Ok(library::read(&Root::new(output.into()), &path)?));
    let Ok(sidecar) = sidecar else { return "unknown: there is no recording".to_owned() };
    let names: Vec<&str> = sidecar
        .events
        .iter()
        .filter_map(|event| match &event.what {
            What::Mark(name) => Some(name.as_str()),
            What::Dtmf(_) => None,
        })
        .collect();
    match names.len() {
        0 => "none".to_owned(),
        count @ 1..=8 => format!("{count} returned: {}", names.join(", ")),
        count => format!("{count} returned: {} …", names[..8].join(", ")),
    }
}

fn ended(record: &Record) -> String {
    let seconds = record.summary.talk.as_secs_f64();
    let how = match (record.reason, &record.ai_end) {
        (EndReason::CallerHangup, None) => {
            "the caller hung up; trunkless sent stop and closed with code 1000".to_owned()
        }
        (EndReason::AiHangup, Some(end)) => format!("the bot hung up: {end}"),
        (EndReason::AiHandover, Some(end)) => format!("the bot handed the caller over: {end}"),
        (reason, Some(end)) => format!("{}: {end}", reason.label()),
        (reason, None) => reason.label().to_owned(),
    };
    format!("after {seconds:.1} s, {how}")
}

/// Why the call was not a success, and what to do.
fn failure(seen: &Seen, record: &Record, url: &str) -> Option<String> {
    let seconds = record.summary.talk.as_secs_f64();
    let end = record.ai_end.as_deref().unwrap_or("no details");
    let heard = seen.first_audio.is_some();
    match record.reason {
        EndReason::AiUnreachable => Some(format!(
            "cannot connect to {url}: {end}. Check that the bot is running, its URL and its token"
        )),
        reason if reason.row().caller == CallerFate::AfterAiFailure => Some(format!(
            "the bot's connection failed after {seconds:.1} s ({end}). The bot's own log may say \
             why; close with code 1000 to hang up"
        )),
        EndReason::AiHangup | EndReason::AiHandover if !heard => Some(format!(
            "the bot closed the connection after {seconds:.1} s ({end}), before it was heard"
        )),
        EndReason::AiHangup | EndReason::AiHandover | EndReason::CallerHangup if heard => None,
        EndReason::CallerHangup => Some(
            "silence: the bot connected, but the caller heard nothing. Send media messages \
             (µ-law, 8 kHz, base64) with the streamSid of start"
                .to_owned(),
        ),
        reason => Some(format!("the call ended unexpectedly: {}", reason.label())),
    }
}
