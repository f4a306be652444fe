//! Continues after a panic in the task of one PBX. The event is lost, so the events socket is
//! opened again and our calls are compared with the PBX's lists. Owns the clock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::time::sleep;
use tracing::error;

use crate::ari::api::Input;
use crate::ari::client::inbox::after;
use crate::ari::client::{Socket, Source};
use crate::call::Signal;
use crate::call::departure::Departure;
use crate::call::end::EndReason;

/// Pause after the first panic; it doubles with each further one.
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// After this time without a panic, the next one counts as the first.
const QUIET: Duration = Duration::from_secs(60);
/// After this many panics in a row, the calls of this PBX are given up, as one of them may be the
/// cause.
const MAX_PANICS: u32 = 4;

impl Source {
    /// Waits for the next event and handles it. Continues after a panic, with a pause.
    pub(super) async fn guarded_turn(&mut self) {
        if AssertUnwindSafe(self.turn()).catch_unwind().await.is_err() {
            let pause = self.recover();
            // requests and outcomes wait; the calls' audio does not pass through here
            sleep(pause).await;
        }
    }

    fn recover(&mut self) -> Duration {
        let (last, count) = self.panics;
        let count = if last.elapsed() > QUIET { 1 } else { count + 1 };
        self.panics = (Instant::now(), count);
        let pause = PAUSE.saturating_mul(1 << (count - 1).min(16)).min(MAX_PAUSE);
        let pause_ms = pause.as_millis();
        let pbx = &*self.name;
        error!(
            pbx,
            pause_ms, "internal error: the ARI client panicked; reopening the events socket"
        );
        self.config.status.set(false, "internal error");
        if !matches!(self.socket, Socket::Closed) {
            self.socket = Socket::Waiting(Instant::now() + pause);
        }
        let settled = catch_unwind(AssertUnwindSafe(|| self.settle())).is_ok();
        if !settled || count >= MAX_PANICS {
            self.give_up();
        }
        pause
    }

    /// Ends the calls whose events were lost: those that only the application has, and those
    /// that nothing listens for.
    fn settle(&mut self) {
        self.feed(Input::Disconnected);
        let known = self.application.recover();
        for call in &known {
            if self.calls.get(call).is_none_or(|link| link.signals.is_closed()) {
                self.feed(Input::End(*call, after(EndReason::Internal, Departure::Continue)));
            }
        }
    }

    /// Ends all calls of this PBX. What they leave there is removed when the socket is open again.
    fn give_up(&mut self) {
        self.application = self.application.successor();
        for (_, link) in self.calls.drain() {
            let _ = link.signals.try_send(Signal::Ended(EndReason::Internal));
        }
    }
}
