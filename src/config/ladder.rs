//! The ladder of `on_ai_failure`, with the AIs, prompts and targets that it names.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::call::Prompts;
use crate::call::ladder::Rung;
use crate::call::transfers::TransferRules;
use crate::config::check::Findings;
use crate::config::resolve::Resolver;
use crate::config::schema::Settings;
use crate::config::values::RungWord;

/// The prompt that is always there.
pub const SORRY: &str = "sorry";
/// "Sorry, we have a technical problem. One moment, please." mu-law, 8 kHz.
pub const SORRY_AUDIO: &[u8] = include_bytes!("../call/assets/sorry.ulaw");

impl Resolver<'_> {
    /// Returns the ladders by PBX name.
    pub(super) fn ladders(
        &self,
        settings: &Settings,
        prompts: &Prompts,
        transfers: &BTreeMap<String, TransferRules>,
        findings: &mut Findings,
    ) -> BTreeMap<String, Vec<Rung>> {
        let prompt = settings.calls.prompt.as_deref();
        let prompt = prompt.map(|path| self.audio("calls.prompt", path)).transpose();
        let prompt = findings.keep(prompt).flatten();
        let none = TransferRules::default();
        let mut ladder = |name: &String| {
            let rules = transfers.get(name).unwrap_or(&none);
            self.ladder(name, settings, prompts, prompt.as_ref(), rules, findings)
        };
        let names = settings.pbx.keys().map(|name| name.0.clone());
        names.map(|name| (name.clone(), ladder(&name))).collect()
    }

    /// Returns the ladder of one PBX. `prompt` is that of `[calls] prompt`.
    fn ladder(
        &self,
        pbx: &str,
        settings: &Settings,
        prompts: &Prompts,
        prompt: Option<&Bytes>,
        rules: &TransferRules,
        findings: &mut Findings,
    ) -> Vec<Rung> {
        let (ladder, wrong) = rungs(pbx, None, settings, prompts, prompt, rules);
        for why in wrong {
            findings.error(self.source.error("calls.on_ai_failure", why));
        }
        ladder
    }
}

/// Returns the ladder of a PBX, or of a route for its calls, and what is wrong with it. `own`: the
/// steps of the route; without them, those of `[calls]` apply.
pub(super) fn rungs(
    pbx: &str,
    own: Option<&[RungWord]>,
    settings: &Settings,
    prompts: &Prompts,
    prompt: Option<&Bytes>,
    rules: &TransferRules,
) -> (Vec<Rung>, Vec<String>) {
    let default = [RungWord::Continue, RungWord::Hangup(None)];
    let words = own.or(settings.calls.on_ai_failure.as_deref()).unwrap_or(&default);
    let mut ladder: Vec<Rung> = prompt.cloned().map(Rung::PlayIfConnected).into_iter().collect();
    let mut wrong = Vec::new();
    for word in words {
        let rung = match word {
            RungWord::Ai(name) => {
                let place = settings.endpoint.keys().position(|other| other.0 == *name);
                // the first AI is the one of [ai]
                let missing = format!("there is no table [endpoint.{name}]");
                place.map(|place| Rung::Ai(place + 1)).ok_or(missing)
            }
            RungWord::Play(name) => {
                let missing = format!("[prompts] has no {name}");
                prompts.get(name).cloned().map(Rung::Play).ok_or(missing)
            }
            RungWord::Transfer(to) => {
                let missing = format!("[pbx.{pbx}.transfer] does not allow {to}");
                rules.find(to).map(|_| Rung::Transfer(to.clone())).ok_or(missing)
            }
            RungWord::Continue => Ok(Rung::Continue),
            RungWord::Hangup(cause) => Ok(Rung::Hangup(*cause)),
        };
        match rung {
            Ok(rung) => ladder.push(rung),
            Err(why) => wrong.push(why),
        }
    }
    (ladder, wrong)
}
