//! Keeps the requests that start and stop a channel's music in order. Each request has a connection
//! of its own, so two at once may be carried out the wrong way round, and the music never ends.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, VecDeque};

use crate::ari::api::RequestId;
use crate::ari::request::RestRequest;

/// The requests of all channels.
#[derive(Debug, Default)]
pub(super) struct Music {
    /// The request in flight on each channel.
    in_flight: HashMap<RequestId, String>,
    /// Later requests of the channels that have one in flight.
    waiting: VecDeque<(RequestId, RestRequest)>,
}

impl Music {
    /// Returns the request if it can be sent now. Requests that are not about music always can.
    pub(super) fn admit(&mut self, id: RequestId, request: RestRequest) -> Option<RestRequest> {
        let RestRequest::Music { channel, .. } = &request else { return Some(request) };
        if self.in_flight.values().any(|busy| busy == channel) {
            self.waiting.push_back((id, request));
            return None;
        }
        self.in_flight.insert(id, channel.clone());
        Some(request)
    }

    /// Handles an outcome. Returns the next request on the channel, if one was waiting.
    pub(super) fn next(&mut self, id: RequestId) -> Option<(RequestId, RestRequest)> {
        let channel = self.in_flight.remove(&id)?;
        let at = self.waiting.iter().position(|(_, request)| match request {
            RestRequest::Music { channel: of, .. } => *of == channel,
            _ => false,
        })?;
        let (next, request) = self.waiting.remove(at)?;
        self.in_flight.insert(next, channel);
        Some((next, request))
    }

    /// The requests that were waiting, in order.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = (RequestId, RestRequest)> {
        self.waiting.into_iter()
    }
}
