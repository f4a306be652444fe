//! A transfer in the call: the caller is away until the target has the caller, or it fails.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::SourceRequest;
use crate::call::core::falling::WHATEVER;
use crate::call::core::state::{Open, Transferring};
use crate::call::core::{Call, Phase};
use crate::call::end::EndReason;
use crate::call::words::Output;
use crate::command::{
    ANSWERED, Cause, Disposition, Failure, OnFail, Reply, Sender, Transfer, TransferKind,
};
use crate::stream::{CallState, ToAi};

impl Call {
    /// Returns the open transfer and its number.
    fn transferring(&mut self) -> Option<(u32, &mut Transferring)> {
        self.orders.open.iter_mut().find_map(|(number, open)| match open {
            Open::Transferring(transferring) => Some((*number, transferring)),
            _ => None,
        })
    }

    pub(super) fn transfer(&mut self, number: u32, transfer: Transfer, by: &Sender) {
        let Some(destination) = self.transfers.find(&transfer.to) else {
            return self.reply(number, Reply::Failed(Failure::NotAllowed));
        };
        if destination.in_group && self.owned.is_none() {
            return self.reply(number, Reply::Failed(Failure::Unsupported));
        }
        if self.transferring().is_some() {
            return self.reply(number, Reply::Failed(Failure::WrongState));
        }
        let Transfer { kind, timeout, on_fail, status, .. } = transfer;
        // only then may the PBX keep the caller if it fails; in a shutdown there is no time to wait
        // for the target
        let keeps = on_fail == OnFail::Hangup || self.leave_by.is_some();
        let plain = keeps && kind == TransferKind::Blind;
        let of_request = status.clone();
        let request = SourceRequest::Transfer {
            order: number,
            destination,
            kind,
            timeout,
            plain,
            status: of_request,
        };
        let by = by.clone();
        let was_held = self.orders.held;
        let transferring = Transferring { kind, was_held, on_fail, by, status, consulting: false };
        self.ask(number, Open::Transferring(transferring), request);
        // from now on the transfer decides whether the caller hears music
        (self.orders.away, self.orders.held) = (true, false);
        self.wait_for_order();
        self.tell(CallState::Transferring);
    }

    /// The AI is gone while it consults the target, who is on the line: the caller gets the target.
    pub(super) fn hand_over(&mut self) {
        if self.transferring().is_some_and(|(_, transferring)| transferring.consulting) {
            self.out.push_back(Output::Request(SourceRequest::CompleteTransfer));
        }
    }

    /// Completes or cancels the open transfer.
    pub(super) fn end_transfer(&mut self, number: u32, completes: bool) {
        let possible = match self.transferring() {
            Some((_, transferring)) => !completes || transferring.consulting,
            None => false,
        };
        if !possible {
            return self.reply(number, Reply::Failed(Failure::WrongState));
        }
        let complete = SourceRequest::CompleteTransfer;
        let request = if completes { complete } else { SourceRequest::CancelTransfer };
        self.ask(number, Open::EndingTransfer { completes }, request);
    }

    /// Replies to the orders that were to complete or cancel the transfer.
    fn transfer_ended(&mut self, result: Result<(), Failure>) {
        let ending = |open: &Open| match open {
            Open::EndingTransfer { completes } => Some(*completes),
            _ => None,
        };
        let open = self.orders.open.iter();
        let mut all: Vec<(u32, bool)> =
            open.filter_map(|(number, open)| Some((*number, ending(open)?))).collect();
        all.sort_unstable();
        for (number, completes) in all {
            self.orders.open.remove(&number);
            let reply = match (completes, result) {
                (true, Ok(())) | (false, Err(Failure::Cancelled)) => Reply::Done,
                (true, Err(failure)) => Reply::Failed(failure),
                // the target had the caller, or was gone, before
                (false, _) => Reply::Failed(Failure::WrongState),
            };
            self.reply(number, reply);
        }
    }

    pub(super) fn on_progress(&mut self, number: u32, state: &'static str) {
        if !self.orders.open.contains_key(&number) {
            return;
        }
        self.reply(number, Reply::Progress(state));
        if let Some((_, transferring)) = self.transferring()
            && state == ANSWERED
            && transferring.kind == TransferKind::Attended
        {
            transferring.consulting = true;
            self.orders.away = false;
            if matches!(self.phase, Phase::Finishing { .. }) {
                self.hand_over();
            }
        }
    }

    pub(super) fn on_transferred(
        &mut self,
        now: Instant,
        number: u32,
        transferring: &Transferring,
        result: Result<(), Failure>,
    ) {
        self.orders.away = false;
        let Err(failure) = result else {
            self.dispose(transferring.status.clone().map(Disposition::of_status));
            self.out.push_back(Output::Transferred);
            self.tell(CallState::Transferred);
            self.reply(number, Reply::Done);
            self.transfer_ended(Ok(()));
            return self.conclude(EndReason::Transferred, self.owned.is_some());
        };
        if transferring.was_held {
            let request = SourceRequest::Hold { order: WHATEVER, on: false };
            self.out.push_back(Output::Request(request));
        }
        self.orders.told_held = self.is_on_hold();
        self.tell(CallState::TransferFailed(failure));
        self.reply(number, Reply::Failed(failure));
        self.transfer_ended(Err(failure));
        match (transferring.on_fail, self.phase) {
            // it was cancelled for the AI, which is to have the caller back
            (_, Phase::Talking) if failure == Failure::Cancelled => {}
            (OnFail::Hangup, _) => self.hang_up(Cause::Normal, &transferring.by),
            // without the AI, the call cannot be resumed
            (OnFail::Resume | OnFail::Ladder, Phase::Finishing { reason, .. }) => {
                self.ai_failed(now, reason);
            }
            (OnFail::Resume, _) => {}
            (OnFail::Ladder, _) => self.ai_failed(now, EndReason::TransferFailed),
        }
    }

    pub(super) fn tell(&mut self, state: CallState) {
        if self.phase == Phase::Talking {
            self.out.push_back(Output::Ai(ToAi::State(state)));
        }
    }
}
