//! Calls that we place.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::ari::api::{CallKey, NotTaken};
use crate::ari::application::{Application, Call, Link};
use crate::ari::bridging::Bridging;
use crate::ari::bridging::callee::CalleeWish;

impl Application {
    /// Begins a call that we place. [`Input::Accept`] creates its objects, and [`Input::Answer`]
    /// calls the callee. Returns its key, its id and the id of the callee's channel.
    ///
    /// # Errors
    /// Returns the reason why no call begins.
    ///
    /// [`Input::Accept`]: crate::ari::api::Input::Accept
    /// [`Input::Answer`]: crate::ari::api::Input::Answer
    pub fn place(
        &mut self,
        now: Instant,
        wish: CalleeWish,
    ) -> Result<(CallKey, String, String), NotTaken> {
        if self.stopping || self.link != Link::Up {
            return Err(NotTaken::Stopping);
        }
        if self.media() >= self.settings.max_media {
            return Err(NotTaken::Full);
        }
        self.last_key += 1;
        let call = self.last_key;
        let id = self.settings.ids.id(call);
        let bridging = Bridging::outgoing(id.clone(), wish, &self.names);
        let channel = bridging.channel.clone();
        self.channels.insert(channel.clone(), call);
        self.calls.insert(call, Call { bridging, created: now, asking: None, refused: false });
        Ok((call, id, channel))
    }
}
