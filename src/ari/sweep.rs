//! Finds orphans: callers, channels and bridges that no call owns, left on the PBX by a crash of
//! trunkless or by a command that failed.
//!
//! The PBX's lists are read twice, a moment apart. An object is an orphan if both readings have it
//! and no call owns it. One reading is not enough, because the event that gives the object an
//! owner may still be on its way.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ari::event::{Bridge, Channel};

/// Pause between the two readings.
const CONFIRM: Duration = Duration::from_millis(250);
/// Delay of a reading after an object may have been left behind.
const SOON: Duration = Duration::from_secs(1);
/// The owner of the PBX's calls takes its own callers away within this time, if they are orphans.
const SPARED: Duration = Duration::from_secs(20);
/// Interval of routine readings.
const ROUTINE: Duration = Duration::from_secs(60);

/// Orphans, by their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Callers in our application: they return to the dialplan before the rest is deleted.
    pub callers: Vec<String>,
    /// Our external media channels.
    pub media: Vec<String>,
    pub bridges: Vec<String>,
}

impl Orphans {
    pub fn is_empty(&self) -> bool {
        self.callers.is_empty() && self.media.is_empty() && self.bridges.is_empty()
    }
}

/// One reading: the PBX's lists of channels and bridges.
#[derive(Debug, Default)]
pub struct Reading {
    /// Numbers the readings; answers to an older one are ignored.
    pub number: u64,
    /// When the lists were requested.
    pub started: Option<Instant>,
    pub channels: Option<Vec<Channel>>,
    pub bridges: Option<Vec<Bridge>>,
}

#[derive(Debug, Default)]
pub struct Sweep {
    /// When the next reading starts.
    due: Option<Instant>,
    /// Number of readings started.
    count: u64,
    /// The reading in progress; complete when both lists have arrived.
    pub reading: Reading,
    /// Ids in the last reading that no call owned, and when each was first seen so.
    suspects: HashMap<String, Instant>,
    /// Our external media channels without an owner: they count towards the cap.
    pub media: usize,
    /// Consecutive readings that had orphans. The pause grows with it, so that an object that
    /// cannot be removed is not retried every second.
    times: u32,
    /// True once a reading has completed on this connection.
    pub seen: bool,
}

impl Sweep {
    pub fn next_timeout(&self) -> Option<Instant> {
        self.due
    }

    pub fn now(&mut self, now: Instant) {
        self.due = Some(now);
    }

    pub fn soon(&mut self, now: Instant) {
        let at = now + SOON;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Stops reading: the lists need a connection.
    pub fn stop(&mut self) {
        *self = Sweep { media: self.media, count: self.count, ..Sweep::default() };
    }

    /// True if the last reading had an object that no call owned.
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Returns the pause before removed orphans are checked again.
    fn pause(&mut self) -> Duration {
        self.times += 1;
        (SOON * (1 << (self.times - 1).min(6))).min(ROUTINE)
    }

    /// Starts a reading if one is due. Returns true if the lists must be requested now.
    pub fn start(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        self.due = Some(now + ROUTINE);
        self.count += 1;
        self.reading = Reading { number: self.count, started: Some(now), ..Reading::default() };
        true
    }

    /// Evaluates a complete reading and returns the orphans, for the name of our application and
    /// the prefix of our ids. `owned` returns true for an id that a call owns. A caller for whose
    /// name `spared` is true is an orphan only after a while: the owner of the calls comes first.
    pub fn sort(
        &mut self,
        now: Instant,
        reading: &Reading,
        (app, prefix): (&str, &str),
        owned: impl Fn(&str) -> bool,
        spared: impl Fn(&str) -> bool,
    ) -> Orphans {
        let channels = reading.channels.as_deref().unwrap_or_default();
        let bridges = reading.bridges.as_deref().unwrap_or_default();
        let ours = |id: &str| is_ours(prefix, id);
        let free = |id: &&str| !owned(id);
        let callers = channels.iter().filter(|c| c.is_in(app) && !ours(&c.id) && !is_tool(c));
        // the target of a transfer that is complete has our name, but is the dialplan's
        let joined = |id: &str| channels.iter().any(|c| c.is_joined_with(id));
        // so has a callee who was transferred
        let sent_off = |c: &Channel| {
            let is_callee = c.id.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("c-"));
            is_callee && c.is_up() && !c.is_in(app)
        };
        let media = channels.iter().filter(|c| ours(&c.id) && !joined(&c.id) && !sent_off(c));
        let mut found: Vec<(Kind, &str)> = Vec::new();
        found.extend(callers.filter(|c| free(&c.id.as_str())).map(|c| {
            match spared(&c.caller.name) {
                true => (Kind::Spared, c.id.as_str()),
                false => (Kind::Caller, c.id.as_str()),
            }
        }));
        found.extend(media.map(|c| c.id.as_str()).filter(free).map(|id| (Kind::Media, id)));
        let bridges = bridges.iter().map(|b| b.id.as_str()).filter(|id| ours(id));
        found.extend(bridges.filter(free).map(|id| (Kind::Bridge, id)));
        let mut orphans = Orphans::default();
        let mut waits = false;
        for (kind, id) in &found {
            if let Some(since) = self.suspects.get(*id) {
                if *kind == Kind::Spared && *since + SPARED > now {
                    waits = true;
                    continue;
                }
                let list = match kind {
                    Kind::Caller | Kind::Spared => &mut orphans.callers,
                    Kind::Media => &mut orphans.media,
                    Kind::Bridge => &mut orphans.bridges,
                };
                list.push((*id).to_owned());
            }
        }
        self.media = found.iter().filter(|(kind, _)| *kind == Kind::Media).count();
        let since = |id: &str| self.suspects.get(id).copied().unwrap_or(now);
        self.suspects = found.iter().map(|(_, id)| ((*id).to_owned(), since(id))).collect();
        if waits && orphans.is_empty() {
            self.due = Some(now + SOON);
        } else if !found.is_empty() {
            // a first sighting is confirmed soon; removed orphans are checked again later
            self.due = Some(now + if orphans.is_empty() { CONFIRM } else { self.pause() });
        } else {
            self.times = 0;
        }
        orphans
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Caller,
    /// A caller whom the owner of the calls takes away.
    Spared,
    Media,
    Bridge,
}

/// True for an id of the form that [`crate::ari::bridging`] assigns: `PREFIXm-SECONDS-HEX` for a
/// channel, with `b` for a bridge and `c` for a callee, and `PREFIXt-SECONDS-HEX-NUMBER` for the
/// target of a transfer.
/// If another application's name begins with ours, its ids do not match.
pub fn is_ours(prefix: &str, id: &str) -> bool {
    let rest = id.strip_prefix(prefix);
    let kinds = ["m-", "b-", "t-", "c-"];
    let Some(rest) = rest.and_then(|r| kinds.iter().find_map(|kind| r.strip_prefix(kind))) else {
        return false;
    };
    let mut parts = rest.split('-');
    let digits = parts.next().is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    let hex =
        parts.next().is_some_and(|p| p.len() == 10 && p.bytes().all(|b| b.is_ascii_hexdigit()));
    let (end, more) = (parts.next(), parts.next());
    let numbered = end.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    digits && hex && more.is_none() && (numbered || matches!(end, None | Some("again")))
}

/// True for channels that are not callers: other programs' media, taps and announcements.
fn is_tool(channel: &Channel) -> bool {
    const TOOLS: [&str; 6] =
        ["UnicastRTP/", "Snoop/", "Announcer/", "Recorder/", "WebSocket/", "AudioSocket/"];
    TOOLS.iter().any(|tool| channel.name.starts_with(tool))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ari::event::Dialplan;
    use crate::testing::start;

    const NAMES: (&str, &str) = ("ai", "trunkless-ai-");

    fn channel(id: &str, name: &str, app_data: &str) -> Channel {
        let dialplan = Dialplan {
            app_name: "Stasis".into(),
            app_data: app_data.into(),
            ..Dialplan::default()
        };
        Channel { id: id.into(), name: name.into(), dialplan, ..Channel::default() }
    }

    #[test]
    fn orphans_are_ours_and_in_two_readings() {
        let now = start();
        let mut sweep = Sweep::default();
        sweep.now(now);
        assert!(sweep.start(now) && !sweep.start(now));
        let reading = Reading {
            number: 1,
            started: Some(now),
            channels: Some(vec![
                channel("1.1", "PJSIP/a", "ai,x=1"),
                channel("1.2", "PJSIP/b", "ai"),
                channel("1.3", "PJSIP/c", "ai2"),
                channel("trunkless-ai-m-1-00000000aa", "UnicastRTP/x", "ai"),
                channel("trunkless-ai-m-2-00000000aa-again", "UnicastRTP/x", "ai"),
                channel("trunkless-ai-m-m-1-00000000aa", "UnicastRTP/x", "ai2"),
                channel("em-1", "UnicastRTP/x", "ai"),
            ]),
            bridges: Some(
                ["trunkless-ai-b-1-00000000aa", "trunkless-ai-x-b-1-00000000aa", "other"]
                    .map(|id| Bridge { id: id.into() })
                    .to_vec(),
            ),
        };
        let owned = |id: &str| id == "1.2" || id.ends_with("again");
        let first = sweep.sort(now, &reading, NAMES, owned, |_| false);
        assert!(first.is_empty());
        assert_eq!((sweep.next_timeout(), sweep.media), (Some(now + CONFIRM), 1));
        let second = sweep.sort(now, &reading, NAMES, owned, |_| false);
        let wanted = Orphans {
            callers: vec!["1.1".into()],
            media: vec!["trunkless-ai-m-1-00000000aa".into()],
            bridges: vec!["trunkless-ai-b-1-00000000aa".into()],
        };
        assert_eq!(second, wanted);
        let none = sweep.sort(now, &Reading::default(), NAMES, owned, |_| false);
        assert!(none.is_empty() && sweep.media == 0);
    }

    #[test]
    fn callers_of_an_owner_are_left_alone_for_a_while() {
        let now = start();
        let mut sweep = Sweep::default();
        let reading =
            Reading { channels: Some(vec![channel("1.1", "PJSIP/a", "ai")]), ..Reading::default() };
        let mut sort = |seconds| {
            let at = now + Duration::from_secs(seconds);
            let orphans = sweep.sort(at, &reading, NAMES, |_| false, |_| true);
            (orphans.callers.len(), sweep.next_timeout().map(|due| due - at))
        };
        assert_eq!(sort(0), (0, Some(CONFIRM)));
        assert_eq!(sort(1), (0, Some(SOON)));
        assert_eq!(sort(19), (0, Some(SOON)));
        assert_eq!(sort(20).0, 1);
    }
}
