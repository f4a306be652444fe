//! When the model is asked to speak. The server answers the caller by itself; it is asked only
//! after what it cannot notice, such as the output of a tool, and never while it or the caller
//! speaks.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The server's own answer is expected within this many frames (2 s) after the caller has spoken.
const EXPECTED: u32 = 100;
/// Failed responses in a row after which the model has failed.
const MAX_FAILURES: u32 = 2;

/// The responses of a session.
#[derive(Debug, Default)]
pub(super) struct Responses {
    /// The response that the model is giving.
    active: Option<String>,
    /// The last response that has ended.
    ended: Option<String>,
    /// True from our request until the response begins.
    asked: bool,
    caller_speaks: bool,
    /// Frames during which the server's own response is still expected.
    expected: u32,
    /// True if something was sent that the model has not answered.
    owed: bool,
    /// Items sent that the server has not added yet.
    not_added: u32,
    /// Failed responses in a row.
    failures: u32,
}

impl Responses {
    pub fn active(&self) -> Option<&str> {
        self.active.as_deref()
    }

    /// Notes that an item is sent which the model has to answer.
    pub fn owes_answer(&mut self) {
        self.owed = true;
        self.not_added += 1;
    }

    /// Notes that the server has added an item, or refused it.
    pub fn item_added(&mut self) {
        self.not_added = self.not_added.saturating_sub(1);
    }

    /// Returns true if the model is to be asked now. `complete`: all its tools have been answered.
    pub fn wants_answer(&self, complete: bool) -> bool {
        let speaks = self.active.is_some() || self.asked || self.caller_speaks || self.expected > 0;
        self.owed && complete && !speaks
    }

    pub fn asked(&mut self) {
        (self.asked, self.owed) = (true, false);
    }

    /// Notes that the server refused our request, because another response is active.
    pub fn refused(&mut self) {
        if std::mem::take(&mut self.asked) {
            self.owed = true;
            // it ends with `response.done`
            self.active.get_or_insert_default();
        }
    }

    /// Notes that the server refused our request for another reason.
    pub fn gave_up(&mut self) {
        self.asked = false;
    }

    pub fn created(&mut self, id: Option<&str>) {
        self.active = Some(id.unwrap_or_default().to_owned());
        (self.asked, self.expected) = (false, 0);
        // it answers everything that was there when it began
        if self.not_added == 0 {
            self.owed = false;
        }
    }

    /// Notes audio of a response. Runs for each piece, and allocates for the first one only.
    pub fn speaks(&mut self, id: &str) {
        let is = |of: &Option<String>| of.as_deref() == Some(id);
        if !is(&self.active) && !is(&self.ended) {
            self.active = Some(id.to_owned());
        }
    }

    pub fn done(&mut self, id: Option<&str>) {
        let other = |active: &String| id.is_some_and(|id| id != active && !active.is_empty());
        self.active = self.active.take().filter(other);
        self.ended = id.map(str::to_owned);
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Notes that a response failed. Returns true if it is tried again.
    pub fn failed(&mut self) -> bool {
        self.failures += 1;
        self.owed = true;
        self.failures < MAX_FAILURES
    }

    pub fn caller_speaks(&mut self) {
        (self.caller_speaks, self.expected) = (true, 0);
    }

    /// Notes that the caller has stopped. `creates`: the server answers by itself.
    pub fn caller_pauses(&mut self, creates: bool) {
        self.caller_speaks = false;
        self.expected = if creates { EXPECTED } else { 0 };
    }

    /// Notes that we have interrupted the model. It is asked to speak if the server does not notice
    /// the caller, and so gives no answer.
    pub fn interrupted(&mut self) {
        (self.owed, self.expected) = (true, EXPECTED);
    }

    /// Notes that 20 ms have passed.
    pub fn on_frame(&mut self) {
        self.expected = self.expected.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_asked_once_when_nobody_speaks() {
        let mut responses = Responses::default();
        assert!(!responses.wants_answer(true));
        responses.created(Some("r1"));
        responses.owes_answer();
        responses.owes_answer();
        // it still speaks, and then one of its tools is not answered
        assert!(!responses.wants_answer(true));
        responses.done(Some("r1"));
        // late audio
        responses.speaks("r1");
        assert!(!responses.wants_answer(false) && responses.wants_answer(true));
        responses.asked();
        assert!(!responses.wants_answer(true));
        responses.item_added();
        responses.item_added();
        responses.created(Some("r2"));
        responses.done(Some("r2"));
        assert!(!responses.wants_answer(true));
    }

    #[test]
    fn the_servers_own_answer_is_awaited() {
        let mut responses = Responses::default();
        responses.caller_speaks();
        responses.owes_answer();
        assert!(!responses.wants_answer(true));
        responses.caller_pauses(true);
        assert!(!responses.wants_answer(true));
        // it began before the item was added, so that it does not answer it
        responses.created(Some("r1"));
        responses.item_added();
        responses.done(Some("r1"));
        assert!(responses.wants_answer(true));
        // this one answers it
        responses.created(Some("r2"));
        responses.done(Some("r2"));
        assert!(!responses.wants_answer(true));
        // none comes
        responses.owes_answer();
        responses.caller_speaks();
        responses.caller_pauses(true);
        (0..EXPECTED).for_each(|_| responses.on_frame());
        assert!(responses.wants_answer(true));
        responses.caller_speaks();
        responses.caller_pauses(false);
        assert!(responses.wants_answer(true));
    }

    #[test]
    fn a_refused_request_is_repeated_after_the_other_response() {
        let mut responses = Responses::default();
        responses.owes_answer();
        responses.item_added();
        responses.asked();
        responses.refused();
        assert!(!responses.wants_answer(true));
        responses.done(Some("other"));
        assert!(responses.wants_answer(true));
        responses.asked();
        responses.gave_up();
        assert!(!responses.wants_answer(true));
    }

    #[test]
    fn the_second_failure_in_a_row_is_the_last() {
        let mut responses = Responses::default();
        assert!(responses.failed());
        responses.succeeded();
        assert!(responses.failed() && responses.wants_answer(true));
        assert!(!responses.failed());
    }
}
