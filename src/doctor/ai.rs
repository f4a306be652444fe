//! The checks of an AI: its WebSocket, and a short test stream on it. Owns sockets and a clock.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::time::{MissedTickBehavior, interval};
use tokio_tungstenite::tungstenite;

use crate::config::plan::AiPlan;
use crate::doctor::ari_media::token;
use crate::doctor::finding::Finding;
use crate::media::frame::{FRAME_TIME, SILENCE, Samples};
use crate::peer::ai::GREETING;
use crate::stream::connect::Socket;
use crate::stream::dialect::{Form, sid};
use crate::stream::unreachable::ConnectError;
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi};

/// How long the AI may stay silent before we speak.
const GREETING_WAIT: Duration = Duration::from_millis(2500);
/// How long a model may take to accept its session.
const READY_WAIT: Duration = Duration::from_secs(5);
/// How long we speak, and wait for a reaction.
const SPEECH: Duration = Duration::from_millis(2500);
/// Pause between the AI's first audio and our interruption.
const BEFORE_INTERRUPTION: Duration = Duration::from_millis(300);
/// An AI that streams as it speaks has stopped if nothing arrives for this long.
const STOPPED: Duration = Duration::from_millis(600);
/// The name of the parameter that marks the test stream.
const PARAMETER: &str = "doctor";

/// One AI to check.
pub struct Ai<'a> {
    /// Beginning of the steps' names, such as `ai`.
    pub label: String,
    pub plan: &'a AiPlan,
    /// `[calls] answer_wait`.
    pub wait: Duration,
    /// Also open a stream and listen.
    pub talk: bool,
}

/// The steps up to an open WebSocket.
const STEPS: [&str; 4] = ["dns", "connect", "tls", "handshake"];

pub async fn check(ai: &Ai<'_>) -> Vec<Finding> {
    let step = |part: &str| format!("{}.{part}", ai.label);
    let shown = ai.plan.target.shown();
    let secure = shown.starts_with("wss:");
    if ai.plan.create.is_some() {
        // the request may be charged for
        let why = "[ai.create] is asked for each call only; place a test call";
        return vec![Finding::skipped(step(STEPS[3]), why)];
    }
    let connected = ai.plan.target.connect(ai.wait).await;
    let failed = connected.as_ref().err().map(|error| (failed_step(error), error));
    let mut findings = Vec::new();
    for (n, part) in STEPS.iter().enumerate().filter(|(_, part)| secure || **part != "tls") {
        findings.push(match failed {
            Some((at, _)) if n > at => Finding::skipped(step(part), "needs the step before"),
            Some((at, error)) if n == at => Finding::fault(
                step(part),
                format!("AI unreachable: {error} ({shown})"),
                error.cure(),
            ),
            _ if *part == "handshake" => Finding::ok(step(part), format!("{shown} is open")),
            _ => Finding::ok(step(part), "passed"),
        });
    }
    let Ok(socket) = connected else { return findings };
    if !ai.talk {
        findings.push(Finding::skipped(step("audio"), "no test stream: --no-ai-call"));
        return findings;
    }
    let heard = Conversation::new(ai.plan, socket).run().await;
    findings.push(judge_audio(&step("audio"), &heard));
    findings.push(judge_barge_in(&step("barge_in"), &heard));
    findings
}

/// The index in [`STEPS`] of the step at which the connection failed.
fn failed_step(error: &ConnectError) -> usize {
    match error {
        ConnectError::Dns(..) => 0,
        ConnectError::Tcp(..) | ConnectError::Proxy(_) => 1,
        ConnectError::Tls(_) => 2,
        _ => 3,
    }
}

/// The AI's part of the test stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Heard {
    /// Time from the start of the stream to the first audio.
    first_audio: Option<Duration>,
    /// True if the AI waited until it was spoken to.
    after_speech: bool,
    /// Time from the beginning of our interruption to `clear`, or to the last audio.
    cleared: Option<Duration>,
    stopped: Option<Duration>,
    /// Messages that were not understood, with the last reason.
    ignored: Option<&'static str>,
    /// Why the stream ended early.
    closed: Option<String>,
}

fn judge_audio(step: &str, heard: &Heard) -> Finding {
    let ms = |time: Duration| time.as_millis();
    if let Some(first) = heard.first_audio {
        let after = if heard.after_speech { ", once spoken to" } else { "" };
        return Finding::ok(step, format!("first audio after {} ms{after}", ms(first)));
    }
    if let Some(why) = &heard.closed {
        return Finding::fault(
            step,
            format!("the AI closed the stream before it sent audio: {why}"),
            "look at the AI's log; it may refuse the parameters, or fail to reach its own services",
        );
    }
    match heard.ignored {
        Some(why) => Finding::fault(
            step,
            format!("the AI's messages are not understood: {why}"),
            "send media messages as in docs/write-your-bot.md, with the streamSid from start",
        ),
        None => Finding::warning(
            step,
            "the AI sent no audio within 5 s, neither at the start nor after speech",
            "look at the AI's log; an AI that waits for real speech is heard in a real call",
        ),
    }
}

fn judge_barge_in(step: &str, heard: &Heard) -> Finding {
    match (heard.cleared, heard.stopped) {
        _ if heard.first_audio.is_none() => Finding::skipped(step, "needs audio of the AI"),
        (Some(after), _) => Finding::ok(
            step,
            format!("clear {} ms after the caller began to speak", after.as_millis()),
        ),
        (None, Some(after)) => Finding::ok(
            step,
            format!("audio stopped {} ms after the caller began to speak", after.as_millis()),
        ),
        (None, None) => Finding::skipped(
            step,
            "no clear while the caller spoke: it cannot be interrupted, or its greeting was over",
        ),
    }
}

/// The state of the test stream.
struct Conversation {
    socket: Socket,
    codec: Box<dyn crate::stream::dialect::Codec>,
    start: Instant,
    /// When we began to speak, first to elicit audio, then to interrupt it.
    speaking: Option<Instant>,
    /// Position in the speech, in frames.
    spoken: usize,
    interrupting: bool,
    last_audio: Option<Instant>,
    /// Frames of audio that arrived since we interrupted.
    after_interruption: usize,
    heard: Heard,
}

impl Conversation {
    fn new(plan: &AiPlan, mut socket: Socket) -> Conversation {
        // the library reads everything by itself from now on
        let behind = socket.get_mut().begin();
        socket.get_mut().hand_over(&behind);
        let id = token();
        let mut parameters = plan.parameters.clone();
        parameters.push((PARAMETER.to_owned(), "1".to_owned()));
        let info = StreamInfo {
            account_sid: plan.account_sid.clone().unwrap_or_else(|| sid("AC", "doctor")),
            call_sid: sid("CA", &id),
            stream_sid: sid("MZ", &id),
            parameters,
            targets: Vec::new(),
            resumed: false,
            resumption: None,
        };
        Conversation {
            socket,
            codec: plan.target.codec(info, plan.extensions),
            start: Instant::now(),
            speaking: None,
            spoken: 0,
            interrupting: false,
            last_audio: None,
            after_interruption: 0,
            heard: Heard::default(),
        }
    }

    async fn run(mut self) -> Heard {
        let mut ticks = interval(FRAME_TIME);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.codec.hello().into_iter().for_each(|message| self.send(message));
        while !self.codec.is_ready() && self.heard.closed.is_none() {
            ticks.tick().await;
            self.read();
            if self.start.elapsed() > READY_WAIT {
                self.close(format!("its session was not ready after {READY_WAIT:?}"));
                return self.heard;
            }
        }
        self.start = Instant::now();
        self.codec.opening().into_iter().for_each(|message| self.send(message));
        let mut t_ms = 0;
        while !self.is_over() {
            ticks.tick().await;
            let samples = self.next_frame();
            self.encode(&ToAi::Audio { samples, t_ms });
            t_ms += 20;
            self.read();
        }
        self.encode(&ToAi::Stop);
        let _ = self.socket.close(None);
        let _ = self.socket.flush();
        self.heard
    }

    fn is_over(&self) -> bool {
        let since = |at: Option<Instant>| at.map(|at| at.elapsed());
        if self.heard.closed.is_some() || self.heard.cleared.is_some() {
            return true;
        }
        if self.interrupting {
            return since(self.speaking).is_some_and(|time| time > SPEECH);
        }
        self.heard.first_audio.is_none() && self.start.elapsed() > GREETING_WAIT + SPEECH
    }

    /// Returns the caller's next 20 ms: silence, then speech.
    fn next_frame(&mut self) -> Samples {
        let now = Instant::now();
        let heard_for = self.heard.first_audio.map(|first| self.start.elapsed() - first);
        if !self.interrupting && heard_for.is_some_and(|time| time > BEFORE_INTERRUPTION) {
            (self.interrupting, self.spoken, self.speaking) = (true, 0, Some(now));
        } else if self.speaking.is_none() && self.start.elapsed() > GREETING_WAIT {
            self.speaking = Some(now);
            self.heard.after_speech = self.heard.first_audio.is_none();
        }
        let mut samples = [SILENCE; 160];
        // half of the time is left for an answer, except while interrupting
        let speaks = self.speaking.is_some_and(|at| {
            let limit = if self.interrupting { SPEECH } else { SPEECH / 2 };
            at.elapsed() < limit
        });
        if speaks {
            let frames = GREETING.len() / 160;
            let at = self.spoken % frames.max(1) * 160;
            samples.copy_from_slice(&GREETING[at..at + 160]);
            self.spoken += 1;
        }
        samples
    }

    fn encode(&mut self, message: &ToAi) {
        let mut out = BytesMut::new();
        let form = self.codec.encode(message, &mut out);
        if !out.is_empty() {
            self.send(match form {
                Form::Text => Message::Text(String::from_utf8_lossy(&out).into_owned()),
                Form::Binary => Message::Binary(out.to_vec()),
            });
        }
        self.send_further();
    }

    /// Sends what the dialect adds by itself.
    fn send_further(&mut self) {
        while let Some(message) = self.codec.next_message() {
            self.send(message);
        }
    }

    fn send(&mut self, message: Message) {
        let _ = self.socket.write(match message {
            Message::Text(text) => tungstenite::Message::text(text),
            Message::Binary(data) => tungstenite::Message::binary(data),
        });
        match self.socket.flush() {
            Err(error) if !would_block(&error) => self.close(error.to_string()),
            _ => {}
        }
    }

    fn close(&mut self, why: String) {
        self.heard.closed.get_or_insert(why);
    }

    /// Takes everything that has arrived.
    fn read(&mut self) {
        self.socket.get_mut().readable_at_length();
        loop {
            match self.socket.read() {
                Ok(tungstenite::Message::Text(text)) => self.take(Received::Text(&text)),
                Ok(tungstenite::Message::Binary(data)) => self.take(Received::Binary(&data)),
                Ok(tungstenite::Message::Close(frame)) => {
                    let code = frame.map_or("no code".to_owned(), |f| format!("code {}", f.code));
                    return self.close(format!("closed with {code}"));
                }
                Ok(_) => {}
                Err(error) if would_block(&error) => break,
                Err(error) => return self.close(error.to_string()),
            }
        }
        let silent = self.last_audio.is_some_and(|at| at.elapsed() > STOPPED);
        if self.interrupting && silent && self.after_interruption > 0 {
            let began = self.speaking.zip(self.last_audio);
            self.heard.stopped = began.map(|(from, to)| to.saturating_duration_since(from));
        }
    }

    fn take(&mut self, message: Received<'_>) {
        let now = Instant::now();
        let (mut audio, mut marks) = (Vec::new(), Vec::new());
        let Conversation { codec, heard, speaking, interrupting, .. } = self;
        let (mut last_audio, mut frames, mut failed) = (self.last_audio, 0, None);
        codec.decode(message, &mut audio, &mut |message| match message {
            FromAi::Audio(_) => {
                heard.first_audio.get_or_insert(now - self.start);
                last_audio = Some(now);
                frames += usize::from(*interrupting);
            }
            FromAi::Clear => {
                let began = speaking.filter(|_| *interrupting);
                heard.cleared = heard.cleared.or(began.map(|at| now - at));
            }
            FromAi::Ignored(why) => heard.ignored = Some(why),
            FromAi::Mark(name) => marks.push(name),
            FromAi::Failed(why) | FromAi::SessionEnded(why) => failed = Some(why),
            FromAi::Done(how) => failed = Some(how.to_owned()),
            FromAi::Order(_) | FromAi::Tool(_) | FromAi::Warning(_) => {}
        });
        self.last_audio = last_audio;
        self.after_interruption += frames;
        if let Some(why) = failed {
            self.close(why);
        }
        self.send_further();
        // the greeting counts as still being played, so that it can be interrupted
        if self.interrupting || self.heard.first_audio.is_none() {
            for name in marks {
                self.encode(&ToAi::Mark { name, cleared: false });
            }
        }
    }
}

fn would_block(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn the_test_stream_is_judged() {
        let time = Some(Duration::from_millis(120));
        let greeted = Heard { first_audio: time, ..Heard::default() };
        assert_eq!(judge_audio("a", &greeted).state, State::Ok);
        assert_eq!(judge_barge_in("b", &greeted).state, State::Skipped);
        let cleared = Heard { cleared: time, ..greeted };
        assert!(judge_barge_in("b", &cleared).what.contains("clear 120 ms"));
        assert_eq!(judge_audio("a", &Heard::default()).state, State::Warning);
        let closed = Heard { closed: Some("code 1011".into()), ..Heard::default() };
        assert!(judge_audio("a", &closed).is_fault());
        let odd = Heard { ignored: Some("no streamSid"), ..Heard::default() };
        assert!(judge_audio("a", &odd).what.contains("no streamSid"));
    }
}
