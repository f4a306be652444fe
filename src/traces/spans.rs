//! The spans of one call (pure):
//!
//! ```text
//! call ───────────────────────────────────────────────
//!   set-up ──────  AI connect ──   (from the offer to the answer)
//!   conversation   ────────────────────────────────────  (from the answer to the end)
//!     turn                ────       (caller stopped, to the first RTP of the answer)
//!     transfer                             ──────
//! ```
//!
//! The trace's id is the hexadecimal part of the `callSid`, by which it can be looked up.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use sha2::{Digest, Sha256};
use tracing::Level;

use crate::call::ended::{Dialled, Given, Record};
use crate::call::live::{LiveCall, State};
use crate::call::turns::Turn;
use crate::telemetry::Masked;

/// The command in records of calls that has a span.
const TRANSFER: &str = "transfer";

/// The spans of a call that has ended.
pub fn of(call: &LiveCall, record: &Record) -> Vec<SpanData> {
    let state = call.state();
    let began = call.started;
    let ended = state.ended.map_or(began, |(at, _)| at).max(began);
    let mut spans = Spans {
        trace: trace_id(&call.call_sid),
        scope: InstrumentationScope::builder("trunkless")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
        made: Vec::with_capacity(4 + record.dialled.len() + record.turns.len()),
        began,
        ended,
    };
    let root = spans.add(None, "call", began, ended, attributes(call, record));
    if record.reason.row().level <= Level::WARN {
        spans.failed(record.reason.label());
    }
    let answered = state.answered;
    let set_up = spans.add(Some(root), "set-up", began, answered.unwrap_or(ended), Vec::new());
    for dialled in &record.dialled {
        let parent = if is_before(dialled, &state, began) { set_up } else { root };
        let from = began + dialled.at;
        let number = KeyValue::new("trunkless.ai.connected", dialled.failure.is_none());
        spans.add(Some(parent), "AI connect", from, from + dialled.took, vec![number]);
        dialled.failure.iter().for_each(|kind| spans.failed(kind));
    }
    let Some(answered) = answered else { return spans.made };
    let talk = spans.add(Some(root), "conversation", answered, ended, Vec::new());
    record.turns.iter().for_each(|turn| spans.turn(talk, answered, turn));
    let transfers = record.commands.iter().filter(|given| given.command == TRANSFER);
    transfers.for_each(|given| spans.transfer(talk, given));
    spans.made
}

fn is_before(dialled: &Dialled, state: &State, began: Duration) -> bool {
    state.answered.is_none_or(|answered| began + dialled.at < answered)
}

fn attributes(call: &LiveCall, record: &Record) -> Vec<KeyValue> {
    let (summary, sequence) = (&record.summary, &record.summary.received.sequence);
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut all = vec![
        KeyValue::new("trunkless.call", call.id.clone()),
        KeyValue::new("trunkless.call_sid", call.call_sid.clone()),
        KeyValue::new("trunkless.native_id", call.native_id.clone()),
        KeyValue::new("trunkless.pbx", call.pbx.to_string()),
        KeyValue::new("trunkless.from", Masked(&call.from_number).to_string()),
        KeyValue::new("trunkless.to", call.to_number.clone()),
        KeyValue::new("trunkless.end_reason", record.reason.label()),
        KeyValue::new("trunkless.answered", summary.answered),
        KeyValue::new("trunkless.packets_in", number(sequence.received)),
        KeyValue::new("trunkless.packets_out", i64::from(summary.packets_sent)),
        KeyValue::new("trunkless.packets_lost", number(sequence.lost)),
    ];
    if let Some(latency) = summary.turn_latency {
        let ms = |time: Duration| number(time.as_millis() as u64);
        all.push(KeyValue::new("trunkless.turns", number(latency.turns)));
        all.push(KeyValue::new("trunkless.turn_median_ms", ms(latency.median)));
        all.push(KeyValue::new("trunkless.turn_p95_ms", ms(latency.p95)));
    }
    all
}

/// The id in a `callSid`, or one that is made of it.
fn trace_id(call_sid: &str) -> TraceId {
    let hex = call_sid.strip_prefix("CA").filter(|hex| hex.len() == 32);
    let known = hex.and_then(|hex| u128::from_str_radix(hex, 16).ok());
    let made = || u128::from_be_bytes(first(&Sha256::digest(call_sid)));
    // zero is not valid
    TraceId::from_bytes(known.unwrap_or_else(made).max(1).to_be_bytes())
}

fn first<const N: usize>(hash: &[u8]) -> [u8; N] {
    hash.first_chunk().copied().unwrap_or([1; N])
}

/// The spans so far. Times are since 1970.
struct Spans {
    trace: TraceId,
    scope: InstrumentationScope,
    made: Vec<SpanData>,
    began: Duration,
    ended: Duration,
}

impl Spans {
    /// Adds a span. Its times are kept within the call, because the clock may have been set.
    fn add(
        &mut self,
        parent: Option<SpanId>,
        name: &'static str,
        from: Duration,
        to: Duration,
        attributes: Vec<KeyValue>,
    ) -> SpanId {
        let from = from.clamp(self.began, self.ended);
        let to = to.clamp(from, self.ended);
        let seed = [&self.trace.to_bytes()[..], &self.made.len().to_be_bytes()[..]].concat();
        let id = u64::from_be_bytes(first(&Sha256::digest(seed))).max(1);
        let id = SpanId::from_bytes(id.to_be_bytes());
        let sampled = TraceFlags::SAMPLED;
        self.made.push(SpanData {
            span_context: SpanContext::new(self.trace, id, sampled, false, TraceState::default()),
            parent_span_id: parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: false,
            span_kind: if parent.is_none() { SpanKind::Server } else { SpanKind::Internal },
            name: Cow::Borrowed(name),
            start_time: time(from),
            end_time: time(to),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        });
        id
    }

    /// Marks the last span as failed.
    fn failed(&mut self, why: &'static str) {
        if let Some(span) = self.made.last_mut() {
            span.status = Status::error(why);
        }
    }

    fn turn(&mut self, parent: SpanId, answered: Duration, turn: &Turn) {
        let ms = |name: &'static str, time: Duration| {
            KeyValue::new(name, i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
        };
        let shares = vec![
            ms("trunkless.turn.ai_ms", turn.ai_share()),
            ms("trunkless.turn.bridge_ms", turn.bridge_share()),
        ];
        let (from, to) = (answered + turn.caller_stopped, answered + turn.first_rtp);
        self.add(Some(parent), "turn", from, to, shares);
        let at = time(answered + turn.ai_first_audio);
        if let Some(span) = self.made.last_mut() {
            span.events.events.push(Event::new("first audio of the AI", at, Vec::new(), 0));
        }
    }

    fn transfer(&mut self, parent: SpanId, given: &Given) {
        let from = self.began + given.at;
        let by = vec![KeyValue::new("trunkless.by", given.by.to_string())];
        self.add(Some(parent), "transfer", from, from + given.took, by);
        given.failure.iter().for_each(|failure| self.failed(failure.word()));
    }
}

fn time(unix: Duration) -> SystemTime {
    UNIX_EPOCH.checked_add(unix).unwrap_or(UNIX_EPOCH)
}
