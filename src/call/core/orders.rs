//! Carries out the orders of the AI and of the control API: which are possible now, what they
//! change, and when they are complete.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::SourceRequest;
use crate::call::core::state::Open;
use crate::call::core::{Call, Phase};
use crate::call::end::EndReason;
use crate::call::words::Output;
use crate::command::{
    Cause, Command, Digits, Disposition, Failure, Order, RecordCommand, Reply, Sender, Side,
    Transfer, When,
};
use crate::media::g711::Law;
use crate::media::playout::Cue;
use crate::record::When as RecordWhen;
use crate::stream::{CallState, ToAi};

/// At most this many orders of a call may be open, before those of the AI are refused, and before
/// those of others are, too.
const MAX_OPEN: [usize; 2] = [64, 128];
/// At most this many recordings of a call may be started.
const MAX_RECORDINGS: u32 = 100;

impl Call {
    pub(super) fn on_order(&mut self, now: Instant, number: u32, order: Order) {
        let Order { command, by, when, .. } = order;
        self.past.ai_heard |= by == Sender::Ai;
        if self.leaves() {
            return self.reply(number, Reply::Failed(Failure::Ended));
        }
        let most = MAX_OPEN[usize::from(by != Sender::Ai)];
        let ends = matches!(command, Command::Hangup { .. }) && when == When::Now;
        if self.orders.open.len() >= most && !ends {
            return self.reply(number, Reply::Failed(Failure::QueueFull));
        }
        if let Err(failure) = self.is_possible(&command) {
            return self.reply(number, Reply::Failed(failure));
        }
        match when {
            // the words that it was to follow have been interrupted
            When::AfterAudio if by == Sender::Ai && self.is_interrupted(now) => {
                self.reply(number, Reply::Failed(Failure::Cancelled));
            }
            When::Now => self.carry_out(now, number, command, &by),
            When::AfterAudio => {
                self.reply(number, Reply::Accepted);
                self.orders.open.insert(number, Open::Waiting { command, by });
                self.playing.push_order(now, number);
                self.take_cues(now);
            }
        }
    }

    /// Checks what is known before an order is carried out.
    fn is_possible(&self, command: &Command) -> Result<(), Failure> {
        let connected = self.past.answered.is_some();
        match command {
            Command::Disposition(Disposition { status, .. }) => self.may_have(status),
            Command::Hangup { status, .. } => {
                status.as_deref().map_or(Ok(()), |s| self.may_have(s))
            }
            Command::Transfer(Transfer { status: Some(status), .. })
                if self.may_have(status).is_err() =>
            {
                Err(Failure::BadStatus)
            }
            Command::Transfer(transfer) if self.transfers.find(&transfer.to).is_none() => {
                Err(Failure::NotAllowed)
            }
            Command::Redirect(redirect) if connected => self.may_redirect(redirect),
            _ if !connected => Err(Failure::WrongState),
            Command::Play(name) if !self.prompts.contains_key(name) => Err(Failure::NoSuchPrompt),
            Command::Record(_) if self.record.is_none() => Err(Failure::NotRecorded),
            Command::Lead(_) if self.owned.is_none() => Err(Failure::Unsupported),
            Command::SetVariables(_) if !self.can_continue => Err(Failure::Unsupported),
            Command::SetVariables(all) => {
                let allowed = all.iter().all(|(name, _)| self.variables.allow(name));
                if allowed { Ok(()) } else { Err(Failure::NotAllowed) }
            }
            // the caller would not hear it
            Command::Play(_) | Command::SendDigits(_) if self.is_on_hold() => {
                Err(Failure::WrongState)
            }
            Command::Hold(_) if self.orders.transfer() || self.orders.holding() => {
                Err(Failure::WrongState)
            }
            _ => Ok(()),
        }
    }

    /// Checks the status of a disposition.
    fn may_have(&self, status: &str) -> Result<(), Failure> {
        let Some(owned) = self.owned else { return Ok(()) };
        let plain = status.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if plain && status.len() <= owned.max_status { Ok(()) } else { Err(Failure::BadStatus) }
    }

    /// Sets the disposition of the call, if there is one.
    pub(super) fn dispose(&mut self, disposition: Option<Disposition>) {
        let Some(disposition) = disposition else { return };
        if self.owned.is_some() {
            let request = SourceRequest::Disposition(disposition.status.clone());
            self.out.push_back(Output::Request(request));
        }
        self.out.push_back(Output::Disposition(disposition));
    }

    /// Takes the cues whose audio has been played: marks return to the AI once its stream has
    /// started, and orders are carried out.
    pub(super) fn take_cues(&mut self, now: Instant) {
        if self.phase == Phase::Connecting {
            return;
        }
        while self.phase != Phase::Ended
            && let Some(due) = self.playing.next_cue(now)
        {
            match due.cue {
                Cue::Mark(name) if self.phase == Phase::Talking => {
                    self.out.push_back(Output::Ai(ToAi::Mark { name, cleared: due.cleared }));
                }
                Cue::Mark(_) => {}
                Cue::Order(number) => self.order_due(now, number),
            }
        }
    }

    fn order_due(&mut self, now: Instant, number: u32) {
        let has_cue =
            |open: &Open| !matches!(open, Open::Transferring(_) | Open::EndingTransfer { .. });
        if !self.orders.open.get(&number).is_some_and(has_cue) {
            return;
        }
        match self.orders.open.remove(&number) {
            Some(Open::Waiting { command, by }) => match self.is_possible(&command) {
                Ok(()) => self.carry_out(now, number, command, &by),
                Err(failure) => self.reply(number, Reply::Failed(failure)),
            },
            Some(Open::Redirecting { then, by }) => self.then(now, number, then, &by),
            Some(_) => self.reply(number, Reply::Done),
            None => {}
        }
    }

    /// Ends the wait of the orders behind the audio of an AI that has failed: those for the record
    /// of the call are carried out, the others fail.
    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        for (number, command, by) in self.orders.take_waiting() {
            match command {
                Command::Disposition(_) | Command::SetVariables(_) | Command::Record(_) => {
                    self.carry_out(now, number, command, &by);
                }
                _ => self.reply(number, Reply::Failed(Failure::Cancelled)),
            }
        }
    }

    /// Once the AI's stream has ended, the call continues until an order is complete.
    pub(super) fn wait_for_order(&mut self) {
        if let Phase::Finishing { until, .. } = &mut self.phase {
            *until = None;
        }
    }

    /// The caller is on hold now, or is not. A transfer has begun meanwhile, or the AI is gone, if
    /// that is no longer wanted.
    fn on_held(&mut self, on: bool) {
        if self.orders.transfer() {
            return;
        }
        self.orders.held = on;
        self.tell_hold();
        if matches!(self.phase, Phase::Finishing { .. }) {
            self.release_caller();
        }
    }

    /// Fails all open orders, because the call is over.
    pub(super) fn fail_open(&mut self) {
        let mut open: Vec<u32> = self.orders.open.drain().map(|(number, _)| number).collect();
        open.sort_unstable();
        open.into_iter().for_each(|number| self.reply(number, Reply::Failed(Failure::Ended)));
    }

    pub(super) fn reply(&mut self, order: u32, reply: Reply) {
        self.out.push_back(Output::Reply { order, reply });
    }

    fn carry_out(&mut self, now: Instant, number: u32, command: Command, by: &Sender) {
        match command {
            Command::Hangup { cause, status } => {
                self.dispose(status.map(Disposition::of_status));
                self.reply(number, Reply::Done);
                self.hang_up(cause, by);
            }
            Command::SendDigits(digits) => self.send_digits(now, number, &digits),
            Command::Hold(on) if on == self.orders.held => self.reply(number, Reply::Done),
            Command::Hold(on) => {
                self.ask(number, Open::Holding(on), SourceRequest::Hold { order: number, on });
            }
            Command::Mute { side, on } => {
                match side {
                    Side::Caller => self.orders.caller_muted = on,
                    Side::Ai => self.orders.ai_muted = on,
                }
                self.reply(number, Reply::Done);
            }
            Command::Record(command) => {
                let reply =
                    self.on_record(now, command).map_or_else(Reply::Failed, |()| Reply::Done);
                self.reply(number, reply);
            }
            Command::Play(name) => {
                self.reply(number, Reply::Accepted);
                let prompt = self.prompts.get(&name).cloned().unwrap_or_default();
                if prompt.is_empty() {
                    return self.reply(number, Reply::Done);
                }
                self.orders.open.insert(number, Open::Playing);
                self.playing.announce(now, &prompt, Some(number));
                self.wait_for_order();
            }
            Command::Lead(change) => {
                self.ask(number, Open::Asked, SourceRequest::Lead { order: number, change });
            }
            Command::SetVariables(variables) => {
                let request = SourceRequest::SetVariables { order: number, variables };
                self.ask(number, Open::Asked, request);
            }
            Command::Disposition(disposition) => {
                self.dispose(Some(disposition));
                self.reply(number, Reply::Done);
            }
            Command::Transfer(transfer) => self.transfer(number, transfer, by),
            Command::Redirect(redirect) => self.redirect(now, number, *redirect, by),
            Command::CompleteTransfer => self.end_transfer(number, true),
            Command::CancelTransfer => self.end_transfer(number, false),
        }
    }

    pub(super) fn ask(&mut self, number: u32, open: Open, request: SourceRequest) {
        self.reply(number, Reply::Accepted);
        self.orders.open.insert(number, open);
        self.out.push_back(Output::Request(request));
    }

    pub(super) fn hang_up(&mut self, cause: Cause, by: &Sender) {
        let reason = match by {
            Sender::Ai => EndReason::AiHangup,
            Sender::Http(_) => EndReason::ApiHangup,
        };
        self.end_with(reason, Some(SourceRequest::HangUp { reason, cause }));
    }

    /// Keys go out as RFC 4733 events if the PBX accepts those from us. Otherwise the source has
    /// its own way.
    fn send_digits(&mut self, now: Instant, number: u32, digits: &Digits) {
        self.press(now, number, digits, Open::Playing);
    }

    pub(super) fn press(&mut self, now: Instant, number: u32, digits: &Digits, open: Open) {
        match self.remote.and_then(|remote| remote.format.dtmf_payload_type) {
            Some(payload_type) => {
                self.reply(number, Reply::Accepted);
                self.orders.open.insert(number, open);
                self.playing.press(now, digits.as_str(), payload_type, number);
                self.wait_for_order();
            }
            // pauses need no event
            None if digits.as_str().bytes().all(|key| key == b'w') => {
                self.reply(number, Reply::Accepted);
                self.orders.open.insert(number, open);
                self.playing.press(now, digits.as_str(), 0, number);
                self.wait_for_order();
            }
            None => {
                let digits = digits.clone();
                self.ask(number, open, SourceRequest::Digits { order: number, digits });
            }
        }
    }

    /// Handles the source's answer to an order.
    pub(super) fn on_replied(&mut self, now: Instant, number: u32, result: Result<(), Failure>) {
        let Some(open) = self.orders.open.remove(&number) else { return };
        let open = match open {
            // the rest follows, whatever became of the keys
            Open::Redirecting { then, by } => return self.then(now, number, then, &by),
            open => open,
        };
        if let Open::Transferring(transferring) = open {
            return self.on_transferred(now, number, &transferring, result);
        }
        if let (Open::Holding(on), Ok(())) = (&open, result) {
            self.on_held(*on);
        }
        self.reply(number, result.map_or_else(Reply::Failed, |()| Reply::Done));
    }

    /// # Errors
    /// Returns [`Failure::NotRecorded`] before time 0 and if the call is not to be recorded,
    /// [`Failure::WrongState`] if the recording is already in that state, and
    /// [`Failure::QueueFull`] after very many recordings.
    pub(super) fn on_record(
        &mut self,
        now: Instant,
        command: RecordCommand,
    ) -> Result<(), Failure> {
        let Some(plan) = self.record.as_ref().filter(|_| self.past.answered.is_some()) else {
            return Err(Failure::NotRecorded);
        };
        match command {
            RecordCommand::Start if self.recording => return Err(Failure::WrongState),
            RecordCommand::Start if self.recordings >= MAX_RECORDINGS => {
                return Err(Failure::QueueFull);
            }
            RecordCommand::Start => {
                (self.recording, self.recordings) = (true, self.recordings + 1);
                let notice = plan.notice.clone();
                if !self.playing.has_announcement() {
                    self.playing.announce(now, &notice, None);
                }
            }
            RecordCommand::Stop if !self.recording => return Err(Failure::WrongState),
            RecordCommand::Stop => self.recording = false,
            RecordCommand::Pause | RecordCommand::Resume => {}
        }
        let law = self.remote.map_or(Law::Mu, |r| r.format.law);
        self.out.push_back(Output::Recording { command, index: self.playing.next_index(), law });
        Ok(())
    }

    /// True if the call is recorded from its answer.
    pub(super) fn records_always(&self) -> bool {
        self.record.as_ref().is_some_and(|plan| plan.when == RecordWhen::Always)
    }

    /// True while the caller hears the PBX's music, by an order or because the PBX has us on hold.
    pub(super) fn is_on_hold(&self) -> bool {
        self.orders.held
            || self.orders.away
            || self.remote.is_some_and(|remote| remote.is_on_hold())
    }

    /// Reports to the AI that the caller was put on hold, or is back.
    pub(super) fn tell_hold(&mut self) {
        let on = self.is_on_hold();
        if std::mem::replace(&mut self.orders.told_held, on) == on {
            return;
        }
        self.out.push_back(Output::Held(on));
        self.tell(if on { CallState::Held } else { CallState::Resumed });
    }
}
