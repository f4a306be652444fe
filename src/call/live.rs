//! The calls as the control API shows them, and what happens in them as events for programs. Owns
//! the clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::call::answering::Verdict;
use crate::call::end::EndReason;
use crate::call::ended::{Given, Record};
use crate::call::history::History;
use crate::call::listening::MAX_LISTENERS;
use crate::call::outgoing::Callbacks;
use crate::call::turns::TurnLatency;
use crate::call::vitals::Vitals;
use crate::command::{Disposition, Reply, Sender};
use crate::record::sidecar::rfc3339;

/// A call, from its offer until some time after its end.
#[derive(Debug)]
pub struct LiveCall {
    pub id: String,
    pub call_sid: String,
    pub account_sid: String,
    pub pbx: Arc<str>,
    pub from_number: String,
    pub from_name: String,
    pub to_number: String,
    /// The PBX's own id of the call.
    pub native_id: String,
    /// Time since 1970.
    pub started: Duration,
    /// The name of the route that applied to it.
    pub route: Option<Arc<str>>,
    /// The names of its AIs, as in [`State::ai`].
    pub ais: Vec<String>,
    /// The names of the targets to which the caller may be transferred, and the patterns of
    /// extensions.
    pub targets: [Vec<String>; 2],
    /// True if we placed the call.
    pub outgoing: bool,
    /// Where it is reported, if we placed it.
    pub callbacks: Callbacks,
    /// The figures of the live call.
    pub vitals: Vitals,
    listeners: AtomicUsize,
    state: Mutex<State>,
    history: Mutex<History>,
}

/// The part that changes during a call. Times are since 1970.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// When the callee's phone began to ring.
    pub ringing: Option<Duration>,
    /// The SIP status or the Q.850 cause with which a callee did not answer.
    pub refused_code: Option<u16>,
    pub answered: Option<Duration>,
    /// The answerer, if that was to be found out.
    pub answered_by: Option<Verdict>,
    pub held: bool,
    pub ended: Option<(Duration, EndReason)>,
    pub disposition: Option<Disposition>,
    /// How a dialler knows the call: its ids there, by name.
    pub details: BTreeMap<String, String>,
    /// `None` while no turn was measured.
    pub turn_latency: Option<TurnLatency>,
    /// The AI that was dialled last.
    pub ai: usize,
}

/// The directions of calls.
pub const INBOUND: &str = "inbound";
pub const OUTBOUND: &str = "outbound";
/// The states of a call in progress.
pub const STATES: [&str; 3] = ["connecting", "talking", "held"];

impl State {
    fn word(&self) -> &'static str {
        let [connecting, talking, held] = STATES;
        match self {
            State { ended: Some(_), .. } => "ended",
            State { answered: None, .. } => connecting,
            State { held: true, .. } => held,
            _ => talking,
        }
    }
}

/// Something that has happened in a call.
pub enum EventKind<'a> {
    Started,
    /// The PBX is asked to call the callee.
    Dialling,
    /// The callee's phone rings.
    Ringing,
    Answered,
    /// It is known who has answered.
    AnsweredBy(Verdict),
    /// The caller was put on hold, or is back.
    Held(bool),
    /// The caller is with the target of a transfer.
    Transferred,
    /// A reply to an order.
    Command {
        by: &'a Sender,
        command: &'static str,
        id: &'a str,
        reply: &'a Reply,
    },
    Ended(&'a Record),
}

/// Receives the events of all calls. Never blocks.
pub type EventSink = Arc<dyn Fn(&LiveCall, &EventKind<'_>) + Send + Sync>;

impl LiveCall {
    pub fn new(
        ids: [String; 3],
        pbx: Arc<str>,
        parties: [String; 3],
        native_id: String,
    ) -> LiveCall {
        let [id, call_sid, account_sid] = ids;
        let [from_number, from_name, to_number] = parties;
        LiveCall {
            id,
            call_sid,
            account_sid,
            pbx,
            from_number,
            from_name,
            to_number,
            native_id,
            started: unix(),
            route: None,
            ais: Vec::new(),
            targets: Default::default(),
            outgoing: false,
            callbacks: Callbacks::default(),
            vitals: Vitals::default(),
            listeners: AtomicUsize::new(0),
            state: Mutex::default(),
            history: Mutex::default(),
        }
    }

    /// A panic in another thread leaves the state consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Returns a copy of the call as it is now, without its figures and history.
    pub fn snapshot(&self) -> LiveCall {
        let ids = [&self.id, &self.call_sid, &self.account_sid].map(String::clone);
        let parties = [&self.from_number, &self.from_name, &self.to_number].map(String::clone);
        LiveCall {
            started: self.started,
            outgoing: self.outgoing,
            callbacks: self.callbacks.clone(),
            route: self.route.clone(),
            state: Mutex::new(self.state()),
            ..LiveCall::new(ids, self.pbx.clone(), parties, self.native_id.clone())
        }
    }

    pub fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
    }

    /// How many listen to the call.
    pub fn listeners(&self) -> usize {
        self.listeners.load(Ordering::Relaxed)
    }

    /// Counts a listener. Returns false if there are too many.
    pub fn listener_came(&self) -> bool {
        let more = |n: usize| (n < MAX_LISTENERS).then_some(n + 1);
        self.listeners.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub fn listener_left(&self) {
        self.listeners.fetch_sub(1, Ordering::Relaxed);
    }

    /// The events of the call, and its summary once it has ended.
    pub fn history(&self) -> History {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes an event in the state and in the history.
    pub fn note(&self, event: &EventKind<'_>) {
        let now = unix();
        let ended = match event {
            EventKind::Ended(record) => Some(summary(record)),
            _ => None,
        };
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.note(now.saturating_sub(self.started), event, ended);
        drop(history);
        self.update(|state| match event {
            EventKind::Ringing => state.ringing = Some(now),
            EventKind::Answered => state.answered = Some(now),
            EventKind::AnsweredBy(verdict) => state.answered_by = Some(*verdict),
            EventKind::Held(on) => state.held = *on,
            EventKind::Ended(record) => state.ended = Some((now, record.reason)),
            EventKind::Started
            | EventKind::Dialling
            | EventKind::Transferred
            | EventKind::Command { .. } => {}
        });
    }

    /// The call's state in a word: one of [`STATES`], or `ended`.
    pub fn word(&self) -> &'static str {
        self.lock().word()
    }

    /// The direction in a word.
    pub fn direction(&self) -> &'static str {
        if self.outgoing { OUTBOUND } else { INBOUND }
    }

    pub fn json(&self) -> Value {
        let state = self.state();
        let word = state.word();
        let mut call = json!({
            "id": self.id,
            "call_sid": self.call_sid,
            "account_sid": self.account_sid,
            "pbx": &*self.pbx,
            "direction": self.direction(),
            "route": self.route.as_deref(),
            "from_number": self.from_number,
            "from_name": self.from_name,
            "to_number": self.to_number,
            "native_id": self.native_id,
            "details": state.details,
            "state": word,
            "started_at": rfc3339(self.started),
            "ringing_at": state.ringing.map(rfc3339),
            "answered_at": state.answered.map(rfc3339),
            "answered_by": state.answered_by.map(|verdict| verdict.by.word()),
            "ended_at": state.ended.map(|(at, _)| rfc3339(at)),
            "end_reason": state.ended.map(|(_, reason)| reason.label()),
            "disposition": state.disposition.as_ref().map(disposition),
        });
        add_turns(&mut call, state.turn_latency.as_ref());
        call
    }
}

impl EventKind<'_> {
    /// True for the events that a webhook gets: they are few in each call.
    pub fn is_for_webhook(&self) -> bool {
        matches!(self, EventKind::Started | EventKind::Answered | EventKind::Ended(_))
            || matches!(self, EventKind::Transferred | EventKind::Dialling | EventKind::Ringing)
            || matches!(self, EventKind::AnsweredBy(_))
    }

    /// The event's name.
    pub fn name(&self) -> &'static str {
        match self {
            EventKind::Started => "call.started",
            EventKind::Dialling => "call.dialling",
            EventKind::Ringing => "call.ringing",
            EventKind::Answered => "call.answered",
            EventKind::AnsweredBy(_) => "call.answered_by",
            EventKind::Held(true) => "call.held",
            EventKind::Held(false) => "call.resumed",
            EventKind::Transferred => "call.transferred",
            EventKind::Command { .. } => "call.command",
            EventKind::Ended(_) => "call.ended",
        }
    }

    /// Returns the event with its call.
    pub fn json(&self, call: &LiveCall) -> Value {
        let mut data = Map::new();
        data.insert("call".to_owned(), call.json());
        match self {
            EventKind::Started
            | EventKind::Dialling
            | EventKind::Ringing
            | EventKind::Answered
            | EventKind::AnsweredBy(_)
            | EventKind::Held(_)
            | EventKind::Transferred => {}
            EventKind::Command { by, command, id, reply } => {
                let mut result = reply_json(command, id, reply);
                result.insert("by".to_owned(), by.to_string().into());
                data.insert("command".to_owned(), result.into());
            }
            EventKind::Ended(record) => {
                data.insert("summary".to_owned(), summary(record));
            }
        }
        json!({ "type": self.name(), "timestamp": rfc3339(unix()), "data": data })
    }
}

/// Returns an order's reply: its id, command and status, and the reason or the state.
pub fn reply_json(command: &str, id: &str, reply: &Reply) -> Map<String, Value> {
    let mut out = Map::new();
    let mut put = |name: &str, value: String| drop(out.insert(name.to_owned(), value.into()));
    put("id", id.to_owned());
    put("command", command.to_owned());
    put("status", reply.status().to_owned());
    match reply {
        Reply::Accepted | Reply::Done => {}
        Reply::Progress(state) => put("state", (*state).to_owned()),
        Reply::Failed(failure) => {
            put("reason", failure.word().to_owned());
            put("detail", failure.to_string());
        }
    }
    out
}

fn disposition(of: &Disposition) -> Value {
    let data: Value = serde_json::from_str(&of.data).unwrap_or_else(|_| json!({}));
    json!({ "status": of.status, "data": data })
}

/// The figures of an ended call.
fn summary(record: &Record) -> Value {
    let (summary, ai) = (&record.summary, &record.ai);
    let sequence = &summary.received.sequence;
    let ms = |time: Duration| time.as_millis() as u64;
    let command = |given: &Given| {
        json!({
            "by": given.by.to_string(),
            "command": given.command,
            "to": given.to,
            "failure": given.failure.map(|failure| failure.word()),
        })
    };
    let mut figures = json!({
        "reason": record.reason.label(),
        "answered": summary.answered,
        "setup_ms": ms(summary.setup),
        "talk_ms": ms(summary.talk),
        "first_audio_ms": summary.first_audio.map(ms),
        "packets_in": sequence.received,
        "packets_out": summary.packets_sent,
        "packets_lost": sequence.lost,
        "ai_dropped_frames": ai.dropped_audio,
        "ai_discarded_bytes": summary.playout_discarded,
        "ai_end": record.ai_end,
        "recordings": record.recordings,
        "commands": record.commands.iter().map(command).collect::<Vec<_>>(),
        "disposition": record.disposition.as_ref().map(disposition),
    });
    add_turns(&mut figures, summary.turn_latency.as_ref());
    figures
}

/// Adds the turn latency to `out`, if a turn was measured.
fn add_turns(out: &mut Value, latency: Option<&TurnLatency>) {
    let Some(latency) = latency else { return };
    let ms = |time: Duration| time.as_millis() as u64;
    out["turn_latency"] = json!({
        "turns": latency.turns,
        "last_ms": ms(latency.last.total()),
        "median_ms": ms(latency.median),
        "p95_ms": ms(latency.p95),
        "last_ai_ms": ms(latency.last.ai_share()),
        "last_bridge_ms": ms(latency.last.bridge_share()),
    });
}

/// The time since 1970.
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time as Twilio writes it: `Sun, 29 Nov 2026 20:00:00 +0000`.
pub fn rfc2822(unix: Duration) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let at = std::time::UNIX_EPOCH + Duration::from_secs(unix.as_secs());
    // 2026-11-29T20:00:00Z
    let text = humantime::format_rfc3339_seconds(at).to_string();
    let day = DAYS[(unix.as_secs() / 86_400 % 7) as usize];
    let month = text[5..7].parse::<usize>().unwrap_or(1);
    let month = MONTHS.get(month - 1).copied().unwrap_or("Jan");
    format!("{day}, {} {month} {} {} +0000", &text[8..10], &text[..4], &text[11..19])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_twilio_does() {
        assert_eq!(rfc2822(Duration::ZERO), "Thu, 01 Jan 1970 00:00:00 +0000");
        assert_eq!(rfc2822(Duration::from_secs(1_795_982_625)), "Sun, 29 Nov 2026 20:03:45 +0000");
    }
}
