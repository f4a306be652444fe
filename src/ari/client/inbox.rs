//! Messages to the task: what its calls request, and what its handles ask for. Owns I/O: the task
//! that closes the events socket.

use crate::ari::api::{Input, Wish};
use crate::ari::bridging::transfer::TransferWish;
use crate::ari::bridging::words::After;
use crate::ari::client::{Internal, Socket, Source};
use crate::ari::request::NORMAL;
use crate::call::SourceRequest;
use crate::call::departure::Departure;
use crate::call::end::EndReason;

impl Source {
    pub(super) fn on_internal(&mut self, internal: Internal) {
        match internal {
            Internal::Place(new) => self.on_place(*new),
            Internal::Left(call, after) => self.feed(Input::End(call, after)),
            Internal::Request(call, SourceRequest::Answer) => self.feed(Input::Answer(call)),
            Internal::Request(call, SourceRequest::Ringing) => self.feed(Input::Ring(call)),
            Internal::Request(call, SourceRequest::End { reason, departure }) => {
                self.feed(Input::End(call, after(reason, departure)));
            }
            Internal::Request(call, SourceRequest::HangUp { cause, .. }) => {
                // ARI has the same words
                self.feed(Input::End(call, After::HangUp(cause.name())));
            }
            Internal::Request(call, SourceRequest::Hold { order, on }) => {
                self.feed(Input::Order { call, order, wish: Wish::Hold(on) });
            }
            Internal::Request(call, SourceRequest::Digits { order, digits }) => {
                let wish = Wish::Digits(digits.as_str().to_owned());
                self.feed(Input::Order { call, order, wish });
            }
            Internal::Request(
                call,
                SourceRequest::Transfer { order, destination, kind, timeout, plain, .. },
            ) => {
                let wish = TransferWish { destination, kind, timeout, plain };
                self.feed(Input::Transfer { call, order, wish });
            }
            Internal::Request(call, SourceRequest::CompleteTransfer) => {
                self.feed(Input::CompleteTransfer(call));
            }
            Internal::Request(call, SourceRequest::CancelTransfer) => {
                self.feed(Input::CancelTransfer(call));
            }
            // these are for an owner
            Internal::Request(
                _,
                SourceRequest::Disposition(_) | SourceRequest::Spoken | SourceRequest::Lead { .. },
            ) => {}
            Internal::Request(call, SourceRequest::Capture(tap)) => {
                self.capture(call, tap);
            }
            Internal::Request(call, SourceRequest::SetVariables { order, variables }) => {
                self.feed(Input::Order { call, order, wish: Wish::Variables(variables) });
            }
            Internal::Stop => self.feed(Input::Stop),
            Internal::Leave(done) => {
                self.leaving = Some(done);
                self.feed(Input::Stop);
            }
            Internal::Change(change) => self.on_change(*change),
            Internal::Tried(target, result) => self.on_tried(*target, result),
            Internal::Closed => self.feed(Input::Close),
            Internal::Close(done) => {
                self.closing = Some(done);
                let socket = std::mem::replace(&mut self.socket, Socket::Closed);
                let internal = self.internal_tx.clone();
                tokio::spawn(async move {
                    if let Socket::Open(link) = socket {
                        link.close().await;
                    }
                    let _ = internal.send(Internal::Closed).await;
                });
            }
        }
    }
}

/// Returns the instruction to the PBX for the caller at the end of a call.
pub(super) fn after(reason: EndReason, departure: Departure) -> After {
    match departure {
        Departure::HangUp => After::HangUp(NORMAL),
        Departure::Continue => After::Continue(reason.label().to_owned()),
    }
}
