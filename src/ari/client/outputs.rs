//! Carries out what the application decides. Owns I/O: the tasks that wait for REST responses.

use tracing::{debug, error, warn};

use crate::ari::api::{Output, RequestId};
use crate::ari::client::{Socket, Source};
use crate::ari::request::RestRequest;

impl Source {
    pub(super) fn on_output(&mut self, output: Output) {
        let pbx = &*self.name;
        match output {
            Output::Send(id, request) => self.send(id, request),
            Output::Offer(new) => self.on_offer(*new),
            Output::Refused(call, why, channel) => self.on_not_taken(call, why, &channel),
            Output::Tell(call, tell) => self.send_signal(call, tell),
            Output::Finished(call) => drop(self.calls.remove(&call)),
            Output::Orphans(found) => warn!(
                pbx,
                callers = found.callers.len(),
                channels = found.media.len(),
                bridges = found.bridges.len(),
                "orphaned calls found on the PBX: callers continue in the dialplan, the rest is \
                 deleted"
            ),
            Output::Failed(what, outcome) => {
                warn!(
                    pbx,
                    "ARI refused {what}: {}; check that the ARI user still has write permission",
                    outcome.text()
                );
                // callers would be stuck in our application: check before taking the next one
                self.probed = false;
                self.on_closed("a command was refused");
            }
            Output::Replaced => {
                error!(
                    pbx,
                    app = self.config.pbx.app,
                    "Stasis application taken over by another program: no more calls from this PBX \
                     until trunkless is restarted; give each program its own [pbx.NAME.ari] app"
                );
                self.config.status.set(false, "application taken by another program");
                self.socket = Socket::Closed;
            }
        }
    }

    fn send(&mut self, id: RequestId, request: RestRequest) {
        let captured = self.capture_request(&request);
        let (rest, outcomes) = (self.rest.clone(), self.outcomes_tx.clone());
        let name = self.name.clone();
        tokio::spawn(async move {
            let outcome = rest.run(&request).await;
            captured.iter().for_each(|captured| captured.response(&outcome));
            if !outcome.is_success() {
                debug!(pbx = &*name, "{} {}", request.name(), outcome.text());
            }
            let _ = outcomes.send((id, outcome)).await;
        });
    }
}
