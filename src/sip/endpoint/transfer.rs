//! Transfers in SIP mode. The PBX joins caller and target, by REFER; trunkless is then out of the
//! path. Owns the clock.
//!
//! A plain transfer is one REFER: from then on the PBX has the caller, whatever the target does.
//! Any other transfer first calls the target, while the caller hears the PBX's music, and hands
//! over that call with Replaces once it has been answered. Until then the caller can come back. The
//! second call uses the RTP port of the first, so that in an attended transfer the AI's audio only
//! changes its direction.

use std::time::{Duration, Instant};

use crate::call::{RemoteMedia, Signal, SourceRequest};
use crate::command::{ANSWERED, Failure, RINGING, TransferKind};
use crate::sip::agent::{CallEnd, CallKey, Command};
use crate::sip::endpoint::Endpoint;
use crate::sip::sdp::{Direction, Remote};

/// The PBX has this long to accept a REFER, and to join two calls.
const REFER_LIMIT: Duration = Duration::from_secs(10);
/// Time for the PBX to end our calls after it has reported the transfer as done. Asterisk reports
/// it a moment before it exchanges the channels, and a BYE in between ends the target's call.
const LINGER: Duration = Duration::from_secs(1);

/// A transfer that is not complete.
pub(super) struct Transfer {
    order: u32,
    /// The extension that is called.
    user: String,
    kind: TransferKind,
    /// The target was not called first.
    plain: bool,
    /// The second call; `None` in a plain transfer, and once it has ended.
    consult: Option<CallKey>,
    step: Step,
    /// How long the target may ring.
    timeout: Duration,
    /// True once the PBX carries out our REFER.
    accepted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The target is being called.
    Calling,
    /// The AI talks to the target.
    Consulting,
    /// The PBX has been asked to join caller and target.
    Referring,
}

impl Transfer {
    /// True while the AI talks to the target.
    pub fn is_consulting(&self) -> bool {
        self.kind == TransferKind::Attended && self.step != Step::Calling
    }
}

impl Endpoint {
    pub(super) fn start_transfer(&mut self, call: CallKey, request: SourceRequest) {
        let SourceRequest::Transfer { order, destination, kind, timeout, plain, .. } = request
        else {
            return;
        };
        let Some(link) = self.calls.get_mut(&call) else { return };
        if link.transfer.is_some() {
            return self.reply(call, order, Err(Failure::WrongState));
        }
        let user = destination.exten;
        let (consult, step, limit) = match plain {
            true => (None, Step::Referring, REFER_LIMIT),
            false => (Some(self.agent.new_call_key()), Step::Calling, timeout),
        };
        let target = user.clone();
        link.transfer = Some(Transfer {
            order,
            user: target,
            kind,
            plain,
            consult,
            step,
            timeout,
            accepted: false,
        });
        self.set_deadline(call, limit);
        match consult {
            None => self.command(Command::Refer { call, user, replaces: None }),
            Some(consult) => {
                self.consults.insert(consult, call);
                self.command(Command::Direction { call, direction: Direction::SendOnly });
                self.command(Command::Consult { of: call, call: consult, user });
            }
        }
    }

    /// Returns the call whose AI the peer of `call` talks to: not the caller's during a
    /// consultation, but that of the second call.
    pub(super) fn partner_of(&self, call: CallKey) -> Option<CallKey> {
        let owner = self.owner(call);
        let partner = owner.unwrap_or(call);
        let transfer = self.calls.get(&partner)?.transfer.as_ref();
        let consulting = transfer.is_some_and(Transfer::is_consulting);
        (consulting == owner.is_some()).then_some(partner)
    }

    /// Returns the call that a second call belongs to.
    fn owner(&self, consult: CallKey) -> Option<CallKey> {
        self.consults.get(&consult).copied()
    }

    fn transfer(&mut self, call: CallKey) -> Option<&mut Transfer> {
        self.calls.get_mut(&call)?.transfer.as_mut()
    }

    pub(super) fn on_consult_progress(&mut self, consult: CallKey, code: u16) {
        let Some(call) = self.owner(consult) else { return };
        if code == 180
            && let Some(order) = self.transfer(call).map(|transfer| transfer.order)
        {
            self.signal(call, Signal::Progress { order, state: RINGING });
        }
    }

    pub(super) fn on_consult_answered(&mut self, consult: CallKey, remote: &Remote) {
        let Some(call) = self.owner(consult) else { return };
        let Some(link) = self.calls.get(&call) else { return };
        let media = self.remote_media(link, remote);
        let Some(transfer) = self.transfer(call) else { return };
        let (order, kind) = (transfer.order, transfer.kind);
        match kind {
            TransferKind::Blind => {
                self.signal(call, Signal::Progress { order, state: ANSWERED });
                self.join(call);
            }
            TransferKind::Attended => {
                transfer.step = Step::Consulting;
                // the AI decides when it is over; the call's own limits apply
                self.forget_deadline(call);
                self.signal(call, Signal::Media(RemoteMedia { trusted: true, ..media }));
                self.signal(call, Signal::Progress { order, state: ANSWERED });
            }
        }
    }

    /// Asks the PBX to join the caller and the target.
    fn join(&mut self, call: CallKey) {
        let Some(transfer) = self.transfer(call) else { return };
        transfer.step = Step::Referring;
        let (user, replaces) = (transfer.user.clone(), transfer.consult);
        self.set_deadline(call, REFER_LIMIT);
        self.command(Command::Refer { call, user, replaces });
    }

    /// Completes a consultation. While the PBX already joins the two, only the transfer's outcome
    /// is reported.
    pub(super) fn complete_transfer(&mut self, call: CallKey) {
        if self.transfer(call).is_some_and(|transfer| transfer.step == Step::Consulting) {
            self.join(call);
        }
    }

    /// Cancels a transfer. Once the PBX joins the two, nothing can stop it, and the transfer's own
    /// outcome is reported.
    pub(super) fn cancel_transfer(&mut self, call: CallKey) {
        if self.transfer(call).is_some_and(|transfer| transfer.step != Step::Referring) {
            self.transfer_failed(call, Failure::Cancelled);
        }
    }

    /// Handles the end of a second call.
    pub(super) fn on_consult_ended(&mut self, consult: CallKey, end: &CallEnd) {
        let Some(call) = self.consults.remove(&consult) else { return };
        let Some(transfer) = self.transfer(call) else { return };
        transfer.consult = None;
        // the PBX ends the call that was handed over
        if transfer.step != Step::Referring {
            self.transfer_failed(call, failure(end));
        }
    }

    /// The PBX carries out our REFER.
    pub(super) fn on_refer_accepted(&mut self, call: CallKey) {
        let Some(transfer) = self.transfer(call).filter(|t| t.step == Step::Referring) else {
            return;
        };
        let first = !std::mem::replace(&mut transfer.accepted, true);
        // the PBX may report the outcome only when the target answers
        if first && transfer.plain {
            let limit = transfer.timeout + REFER_LIMIT;
            self.set_deadline(call, limit);
        }
    }

    pub(super) fn on_referred(&mut self, call: CallKey, code: u16) {
        let step = self.transfer(call).map(|transfer| transfer.step);
        if step != Some(Step::Referring) {
            return;
        }
        match code {
            200..300 => self.transferred(call),
            404 | 484 | 604 => self.transfer_failed(call, Failure::NoSuchTarget),
            486 | 600 => self.transfer_failed(call, Failure::Busy),
            _ => self.transfer_failed(call, Failure::Refused),
        }
    }

    /// True if the PBX carries out our REFER, so that its BYE means success. The BYE may overtake
    /// the NOTIFY.
    pub(super) fn is_handed_over(&mut self, call: CallKey) -> bool {
        self.transfer(call).is_some_and(|t| t.step == Step::Referring && t.accepted)
    }

    /// The PBX has joined caller and target. It ends our calls, or leaves that to us.
    pub(super) fn transferred(&mut self, call: CallKey) {
        self.forget_deadline(call);
        let Some(transfer) = self.calls.get_mut(&call).and_then(|link| link.transfer.take()) else {
            return;
        };
        self.reply(call, transfer.order, Ok(()));
        let until = Instant::now() + LINGER;
        self.lingering
            .extend([Some(call), transfer.consult].into_iter().flatten().map(|c| (until, c)));
    }

    fn transfer_failed(&mut self, call: CallKey, failure: Failure) {
        self.forget_deadline(call);
        let Some(link) = self.calls.get_mut(&call) else { return };
        let Some(transfer) = link.transfer.take() else { return };
        let media = link.media;
        if let Some(consult) = transfer.consult {
            self.consults.remove(&consult);
            self.command(Command::Hangup { call: consult, q850: 16, text: "transfer failed" });
        }
        if transfer.step == Step::Consulting || transfer.kind == TransferKind::Attended {
            media.into_iter().for_each(|media| self.signal(call, Signal::Media(media)));
        }
        // in a plain transfer, the caller was not put on hold
        if !transfer.plain {
            self.command(Command::Direction { call, direction: Direction::SendRecv });
        }
        self.reply(call, transfer.order, Err(failure));
    }

    /// Ends the second call of a call that is over.
    pub(super) fn drop_transfer(&mut self, call: CallKey) {
        self.forget_deadline(call);
        let transfer = self.calls.get_mut(&call).and_then(|link| link.transfer.take());
        if let Some(consult) = transfer.and_then(|transfer| transfer.consult) {
            self.consults.remove(&consult);
            self.command(Command::Hangup { call: consult, q850: 16, text: "caller hung up" });
        }
    }

    fn set_deadline(&mut self, call: CallKey, limit: Duration) {
        self.forget_deadline(call);
        self.deadlines.insert((Instant::now() + limit, call));
    }

    fn forget_deadline(&mut self, call: CallKey) {
        self.deadlines.retain(|(_, of)| *of != call);
    }

    fn on_deadline(&mut self, call: CallKey) {
        let Some(transfer) = self.transfer(call) else { return };
        match transfer.step {
            // nothing is left that could bring the caller back
            Step::Referring if transfer.accepted && transfer.consult.is_none() => {
                self.transferred(call);
            }
            Step::Referring => self.transfer_failed(call, Failure::Refused),
            Step::Calling | Step::Consulting => self.transfer_failed(call, Failure::NoAnswer),
        }
    }

    /// Settles the transfers that take too long, and ends the calls that the PBX had enough time to
    /// end itself.
    pub(super) fn move_transfers(&mut self, now: Instant) {
        while let Some((at, call)) = self.lingering.first().copied().filter(|(at, _)| *at <= now) {
            self.lingering.remove(&(at, call));
            self.command(Command::Hangup { call, q850: 16, text: "transferred" });
        }
        while let Some((at, call)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, call));
            self.on_deadline(call);
        }
    }
}

/// Why a second call was not answered, or ended too early.
fn failure(end: &CallEnd) -> Failure {
    match end {
        CallEnd::Refused { code: 486 | 600, .. } => Failure::Busy,
        CallEnd::Refused { code: 404 | 410 | 484 | 604, .. } => Failure::NoSuchTarget,
        CallEnd::Refused { code: 408 | 480 | 487, .. } => Failure::NoAnswer,
        CallEnd::Bye { .. } => Failure::TargetHungUp,
        _ => Failure::Refused,
    }
}
