//! A call as others see it: the control API and its events, the sidecars of its recordings, and the
//! AI's `start` message.

use std::sync::Arc;
use std::time::Duration;

use crate::call::ended::Given;
use crate::call::live::{EventKind, EventSink, LiveCall};
use crate::call::transfers::TransferRules;
use crate::call::turns::Turn;
use crate::call::{Ai, CallConfig, Offer, parameters};
use crate::command::Disposition;
use crate::record::sidecar::{CommandInfo, DispositionInfo, Outcome, TurnInfo};
use crate::stream::StreamInfo;
use crate::stream::dialect::sid;

/// The call as others see it, and the receiver of its events.
pub struct Observed {
    pub call: Arc<LiveCall>,
    pub sink: EventSink,
}

impl Observed {
    pub(super) fn event(&self, event: &EventKind<'_>) {
        self.call.note(event);
        (self.sink)(&self.call, event);
    }
}

/// Returns the call as others see it.
pub fn live_call(offer: &Offer, config: &CallConfig) -> Arc<LiveCall> {
    let call_sid = sid("CA", &offer.sid_seed);
    let account = config.ais.get(config.first).map(|ai| ai.account_sid.clone()).unwrap_or_default();
    let ids = [offer.id.clone(), call_sid, account];
    let parties = [&offer.from_number, &offer.from_name, &offer.to_number].map(String::clone);
    let mut call = LiveCall::new(ids, offer.pbx.clone(), parties, offer.native_id.clone());
    call.route = config.route.clone();
    call.ais = config.ais.iter().map(|ai| ai.name.clone()).collect();
    let extensions = config.transfers.extensions.iter().map(ToString::to_string);
    call.targets = [config.transfers.targets.keys().cloned().collect(), extensions.collect()];
    if let Some(outgoing) = &offer.outgoing {
        (call.outgoing, call.callbacks) = (true, outgoing.callbacks.clone());
    }
    let ai = first_ai(offer, config);
    call.update(|state| {
        (state.details, state.ai) = (parameters::recorded(offer.added.entries()), ai);
    });
    Arc::new(call)
}

/// Returns the place of the AI that a call begins with.
pub(super) fn first_ai(offer: &Offer, config: &CallConfig) -> usize {
    let Some(outgoing) = &offer.outgoing else { return config.first };
    let named = |ai: &Ai| ai.name == outgoing.ai || ai.target.url() == outgoing.ai;
    config.ais.iter().position(named).unwrap_or(config.first)
}

/// Returns the orders and turns of a call for the sidecars of its recordings.
pub(super) fn outcome(
    commands: &[Given],
    disposition: Option<&Disposition>,
    turns: &[Turn],
) -> Outcome {
    let command = |given: &Given| CommandInfo {
        by: given.by.to_string(),
        command: given.command.to_owned(),
        to: given.to.clone(),
        failure: given.failure.map(|failure| failure.word().to_owned()),
    };
    let info = |of: &Disposition| DispositionInfo {
        status: of.status.clone(),
        data: serde_json::from_str(&of.data).unwrap_or_default(),
    };
    let ms = |time: Duration| time.as_millis() as u64;
    let turn = |turn: &Turn| TurnInfo {
        caller_stopped_ms: ms(turn.caller_stopped),
        ai_first_audio_ms: ms(turn.ai_first_audio),
        first_rtp_ms: ms(turn.first_rtp),
    };
    Outcome {
        disposition: disposition.map(info),
        commands: commands.iter().map(command).collect(),
        turns: turns.iter().map(turn).collect(),
    }
}

pub(super) fn stream_info(offer: &Offer, ai: &Ai, transfers: &TransferRules) -> StreamInfo {
    let ours: [(&str, &str); 5] = [
        ("from_number", &offer.from_number),
        ("from_name", &offer.from_name),
        ("to_number", &offer.to_number),
        ("pbx", &offer.pbx),
        ("sip_call_id", &offer.native_id),
    ];
    // those of the request to place a call replace configured ones
    let own = offer.outgoing.iter().flat_map(|outgoing| &outgoing.parameters);
    let own: Vec<(String, String)> = own.cloned().collect();
    let is_new = |name: &str| !own.iter().any(|(known, _)| known == name);
    let others = ai.parameters.iter().filter(|(name, _)| is_new(name)).cloned();
    let configured: Vec<(String, String)> = own.iter().cloned().chain(others).collect();
    StreamInfo {
        account_sid: ai.account_sid.clone(),
        call_sid: sid("CA", &offer.sid_seed),
        stream_sid: sid("MZ", &offer.sid_seed),
        parameters: parameters::all(&ours, &offer.added, &configured),
        targets: transfers.targets.keys().cloned().collect(),
        resumed: false,
        resumption: None,
    }
}
