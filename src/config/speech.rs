//! `[speech]`: the keys, and the settings made from them.

use std::time::Duration;

use serde::Deserialize;

use crate::call::speech::SpeechSettings;
use crate::config::schema::Ai;
use crate::config::values::Span;
use crate::stream::dialect::{Dialect, Extensions};

/// The limits of `pause` and `barge_in_after`.
const LEAST: Duration = Duration::from_millis(40);
const MOST: Duration = Duration::from_secs(5);

/// The uses of the caller's voice.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpeechTable {
    /// Tell the AI when the caller begins and stops speaking.
    pub events: bool,
    /// The silence after which speech has stopped.
    pub pause: Span,
    /// Discard the AI's audio once the caller has spoken for this long; zero = never.
    pub barge_in_after: Span,
    /// But not while less than this of its utterance has been played.
    pub protect_first: Span,
    /// Tell people and answering machines apart, and find the beep.
    pub machine_detection: bool,
}

impl Default for SpeechTable {
    fn default() -> Self {
        SpeechTable {
            events: false,
            pause: Span(Duration::from_millis(200)),
            barge_in_after: Span(Duration::ZERO),
            protect_first: Span(Duration::ZERO),
            machine_detection: false,
        }
    }
}

impl SpeechTable {
    pub fn settings(&self) -> SpeechSettings {
        SpeechSettings {
            events: self.events,
            pause: self.pause.0,
            barge_in_after: Some(self.barge_in_after.0).filter(|after| !after.is_zero()),
            protect_first: self.protect_first.0,
            machine_detection: self.machine_detection,
        }
    }

    /// Returns the key that cannot work, and the reason.
    pub fn check(&self) -> Option<(&'static str, &'static str)> {
        let fits = |time: Duration| (LEAST..=MOST).contains(&time);
        let after = self.barge_in_after.0;
        if !fits(self.pause.0) {
            return Some(("speech.pause", "must be from 40ms to 5s"));
        }
        if !after.is_zero() && !fits(after) {
            return Some(("speech.barge_in_after", "must be from 40ms to 5s, or 0s for never"));
        }
        let protects = !self.protect_first.0.is_zero();
        (protects && after.is_zero())
            .then_some(("speech.protect_first", "needs barge_in_after: nothing interrupts the AI"))
    }

    /// Returns the key of messages that this AI is not sent, and the reason.
    pub fn is_unheard(&self, ai: &Ai) -> Option<(&'static str, &'static str)> {
        let wanted =
            [("speech.events", self.events), ("speech.machine_detection", self.machine_detection)];
        let (key, _) = wanted.into_iter().find(|(_, wanted)| *wanted)?;
        if ai.extensions == Some(Extensions::Off) {
            return Some((key, "has no effect on an AI with extensions = \"off\""));
        }
        let why = "has no effect on a model, which listens itself";
        ai.dialect.is_some_and(Dialect::has_session).then_some((key, why))
    }
}
