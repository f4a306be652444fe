//! Places calls: the rules of each PBX on who may be called, the limits on how often, and the way
//! to the source that carries it out. Nothing may be called unless the configuration allows it.
//! Owns the clock.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::call::answering::Detection;
use crate::call::counters;
use crate::call::live::LiveCall;
use crate::call::outgoing::{Callbacks, Outcome, Outgoing};
use crate::telemetry::{Masked, Throttle};
use crate::user_pattern::UserPattern;

/// The longest number, in characters.
const MAX_NUMBER: usize = 40;
/// How long a phone rings, unless the request says otherwise. Twilio's default.
const RING: Duration = Duration::from_secs(60);
/// How long a source may take to admit a call.
const ADMIT: Duration = Duration::from_secs(5);
const DAY: u64 = 86_400;

/// The rules for the calls that are placed through one PBX.
#[derive(Debug, Clone, Default)]
pub struct DialRules {
    /// Numbers that may be called; none by default.
    pub allow: Vec<UserPattern>,
    /// Numbers that may be shown to the callee.
    pub from: Vec<UserPattern>,
    /// The number that is shown unless the request names another.
    pub caller_id: Option<String>,
    /// The context in which numbers are dialled, for a source that needs one.
    pub context: Option<String>,
    /// Calls per second, which may all come at once.
    pub per_second: u32,
    /// Calls per day, counted in UTC and from the start of the program.
    pub per_day: u32,
    /// Calls at the same time; `None` = no limit besides those of all calls.
    pub max: Option<usize>,
    /// The longest time that a phone may ring.
    pub max_ring: Duration,
    /// Hosts that may get status callbacks.
    pub callback_hosts: Vec<String>,
}

impl DialRules {
    /// Checks that a URL of a program may be requested.
    ///
    /// # Errors
    /// Returns [`Refused::CallbackHost`] if its host is not one of `callback_hosts`.
    pub fn may_request(&self, url: &str) -> Result<(), Refused> {
        let host = host_of(url).unwrap_or_default();
        match self.callback_hosts.iter().any(|known| known.eq_ignore_ascii_case(&host)) {
            true => Ok(()),
            false => Err(Refused::CallbackHost(host)),
        }
    }
}

/// A call that is to be placed.
#[derive(Debug)]
pub struct CallWish {
    pub to: String,
    /// `None` for the configured one.
    pub from: Option<String>,
    /// The AI's name or URL; empty for the PBX's own.
    pub ai: String,
    pub parameters: Vec<(String, String)>,
    /// How long the phone may ring; `None` for the usual time.
    pub ring: Option<Duration>,
    pub record: bool,
    /// Find out who answers.
    pub detection: Option<Detection>,
    /// The text from which the call's ids are derived; `None` to leave that to the source.
    pub sid_seed: Option<String>,
    pub callbacks: Callbacks,
    /// Set if the call has been counted already.
    pub reserved: Option<Reserved>,
    /// The sender of the request, for the log.
    pub by: String,
}

/// A call that counts, and has not been placed yet. Dropping this counts it less.
pub struct Reserved {
    /// The caller id.
    pub from: String,
    place: Place,
    pbx: String,
    /// `None` once it has been passed to its source.
    placer: Option<Placer>,
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserved").field("pbx", &self.pbx).finish_non_exhaustive()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.placer.iter().for_each(|placer| placer.give_back(&self.pbx));
    }
}

/// A call on its way to the source.
pub struct NewCall {
    pub to: String,
    pub from: String,
    /// See [`DialRules::context`].
    pub context: Option<String>,
    pub outgoing: Outgoing,
}

/// Passes a call to the source. Returns false if the source is gone or has too much to do.
pub type Submit = Arc<dyn Fn(NewCall) -> bool + Send + Sync>;

/// A PBX through which calls can be placed.
#[derive(Clone)]
pub struct Line {
    pub account_sid: String,
    pub rules: DialRules,
    /// The names and URLs of the AIs, the PBX's own first.
    pub ais: Vec<(String, String)>,
    /// True if calls can be recorded.
    pub records: bool,
    pub submit: Submit,
}

/// Why a call is not placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The number cannot be one.
    BadNumber,
    /// No pattern of `allow` matches the number.
    NotAllowed(String),
    NoCallerId,
    /// The caller id is not one of `from`.
    CallerId(String),
    NoSuchAi,
    NotRecorded,
    /// Longer than `max_ring`.
    RingTime(Duration),
    /// The host is not one of `callback_hosts`.
    CallbackHost(String),
    PerSecond(String),
    PerDay(String),
    /// As many calls as there may be, no connection to the PBX, or a shutdown.
    Busy(String),
}

impl Refused {
    /// A word for programs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Refused::BadNumber => "bad_number",
            Refused::NotAllowed(_) => "number_not_allowed",
            Refused::NoCallerId => "no_caller_id",
            Refused::CallerId(_) => "caller_id_not_allowed",
            Refused::NoSuchAi => "no_such_ai",
            Refused::NotRecorded => "not_recorded",
            Refused::RingTime(_) => "ring_time",
            Refused::CallbackHost(_) => "callback_host",
            Refused::PerSecond(_) => "per_second",
            Refused::PerDay(_) => "per_day",
            Refused::Busy(_) => "busy",
        }
    }

    /// All words of [`Refused::word`].
    pub const WORDS: [&str; 11] = [
        "bad_number",
        "number_not_allowed",
        "no_caller_id",
        "caller_id_not_allowed",
        "no_such_ai",
        "not_recorded",
        "ring_time",
        "callback_host",
        "per_second",
        "per_day",
        "busy",
    ];
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::BadNumber => write!(
                f,
                "the number may have digits, letters and +*#_.- only, at most {MAX_NUMBER}; leave \
                 out spaces and brackets"
            ),
            Refused::NotAllowed(pbx) => {
                write!(f, "the number may not be called; add a pattern to [pbx.{pbx}.dial] allow")
            }
            Refused::NoCallerId => {
                f.write_str("no caller id: send one, or set caller_id in [pbx.NAME.dial]")
            }
            Refused::CallerId(pbx) => {
                write!(f, "the caller id may not be shown; add it to [pbx.{pbx}.dial] from")
            }
            Refused::NoSuchAi => f.write_str(
                "the configuration has no such AI; use the URL of [ai], or the name or URL of an \
                 [endpoint]",
            ),
            Refused::NotRecorded => {
                f.write_str("the calls of this PBX cannot be recorded; set [recording] enabled")
            }
            Refused::RingTime(max) => {
                let seconds = max.as_secs();
                write!(
                    f,
                    "the phone may ring for at most {seconds} s; see [pbx.NAME.dial] max_ring"
                )
            }
            Refused::CallbackHost(host) => write!(
                f,
                "requests to the host \"{host}\" are not allowed; add it to [pbx.NAME.dial] \
                 callback_hosts"
            ),
            Refused::PerSecond(pbx) => {
                write!(f, "[pbx.{pbx}.dial] per_second is reached; try again in a second")
            }
            Refused::PerDay(pbx) => {
                write!(f, "[pbx.{pbx}.dial] per_day is reached; it counts again from 00:00 UTC")
            }
            Refused::Busy(why) => f.write_str(why),
        }
    }
}

/// Counts one placed call until this is dropped.
#[derive(Debug, Default)]
pub struct Place(Option<Arc<AtomicUsize>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The calls placed so far through one PBX.
#[derive(Default)]
struct Usage {
    /// The `per_second` of `throttle`.
    per_second: u32,
    throttle: Option<Throttle>,
    /// Number of the day since 1970, and the calls placed on it.
    day: (u64, u32),
    active: Arc<AtomicUsize>,
}

impl Usage {
    /// Counts a call, unless a limit is reached. `unix`: the time since 1970.
    fn take(
        &mut self,
        now: Instant,
        unix: Duration,
        pbx: &str,
        rules: &DialRules,
    ) -> Result<Place, Refused> {
        let day = unix.as_secs() / DAY;
        if self.day.0 != day {
            self.day = (day, 0);
        }
        if self.day.1 >= rules.per_day {
            return Err(Refused::PerDay(pbx.to_owned()));
        }
        let max = rules.max.unwrap_or(usize::MAX);
        if self.active.load(Ordering::Acquire) >= max {
            return Err(Refused::Busy(format!("[pbx.{pbx}.dial] max is reached")));
        }
        if self.throttle.is_none() || self.per_second != rules.per_second {
            let count = rules.per_second.max(1);
            self.throttle = Some(Throttle::with_burst(Duration::from_secs(1) / count, count));
            self.per_second = rules.per_second;
        }
        if !self.throttle.as_mut().is_some_and(|throttle| throttle.admits(now)) {
            return Err(Refused::PerSecond(pbx.to_owned()));
        }
        self.day.1 += 1;
        self.active.fetch_add(1, Ordering::AcqRel);
        Ok(Place(Some(self.active.clone())))
    }
}

#[derive(Default)]
struct Lines {
    lines: BTreeMap<String, Line>,
    usage: BTreeMap<String, Usage>,
}

/// Places calls. Clones share the limits.
#[derive(Clone, Default)]
pub struct Placer(Arc<Mutex<Lines>>);

impl Placer {
    /// A panic in another thread leaves it consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses these PBXs from now on. What has been counted stays.
    pub fn set(&self, lines: BTreeMap<String, Line>) {
        self.lock().lines = lines;
    }

    /// The PBXs through which calls may be placed.
    pub fn lines(&self) -> Vec<(String, Line)> {
        self.lock().lines.iter().map(|(name, line)| (name.clone(), line.clone())).collect()
    }

    /// Checks a call whose AI is not known yet, and counts it: see [`CallWish::reserved`].
    ///
    /// # Errors
    /// Returns the reason if the call would be refused.
    pub fn reserve(&self, pbx: &str, wish: &CallWish) -> Result<Reserved, Refused> {
        self.count(pbx, wish).inspect_err(|refused| note(pbx, &wish.to, &wish.by, refused))
    }

    fn count(&self, pbx: &str, wish: &CallWish) -> Result<Reserved, Refused> {
        let mut all = self.lock();
        let Lines { lines, usage } = &mut *all;
        let line = lines.get(pbx).ok_or_else(gone)?;
        let (from, _) = check(pbx, line, wish)?;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let usage = usage.entry(pbx.to_owned()).or_default();
        let place = usage.take(Instant::now(), unix, pbx, &line.rules)?;
        Ok(Reserved { from, place, pbx: pbx.to_owned(), placer: Some(self.clone()) })
    }

    /// Counts a call less, because nothing was called.
    fn give_back(&self, pbx: &str) {
        self.lock().usage.entry(pbx.to_owned()).and_modify(|usage| {
            usage.day.1 = usage.day.1.saturating_sub(1);
        });
    }

    /// Places a call through a PBX, and returns it once it has begun. The callee is called as soon
    /// as the AI is there.
    ///
    /// # Errors
    /// Returns the reason if the call does not begin.
    pub async fn place(&self, pbx: &str, wish: CallWish) -> Result<Arc<LiveCall>, Refused> {
        let (to, by) = (wish.to.clone(), wish.by.clone());
        let result = self.try_place(pbx, wish).await;
        match &result {
            Ok(call) => info!(call = call.id, pbx, to = %Masked(&to), by, "call placed"),
            Err(refused) => note(pbx, &to, &by, refused),
        }
        result
    }

    async fn try_place(&self, pbx: &str, mut wish: CallWish) -> Result<Arc<LiveCall>, Refused> {
        let mut reserved = match wish.reserved.take() {
            Some(reserved) => reserved,
            None => self.count(pbx, &wish)?,
        };
        let (outcome, wait) = oneshot::channel();
        let busy = || Refused::Busy("trunkless is overloaded or shutting down".to_owned());
        if !self.submit(pbx, wish, &mut reserved, outcome)? {
            return Err(busy());
        }
        // it counts from here on, even if no one waits for its outcome
        reserved.placer = None;
        match timeout(ADMIT, wait).await {
            Ok(outcome) => outcome.unwrap_or(Err(busy())).inspect_err(|_| self.give_back(pbx)),
            Err(_) => {
                let why = "no outcome within 5 s: the call may still be placed, so look for it in \
                           the list of calls before you try again";
                Err(Refused::Busy(why.to_owned()))
            }
        }
    }

    /// Passes a call to its source. Returns false if that is gone or has too much to do.
    fn submit(
        &self,
        pbx: &str,
        wish: CallWish,
        reserved: &mut Reserved,
        outcome: Outcome,
    ) -> Result<bool, Refused> {
        let (new, submit) = {
            let all = self.lock();
            let line = all.lines.get(pbx).ok_or_else(gone)?;
            let (from, ai) = check(pbx, line, &wish)?;
            let outgoing = Outgoing {
                ai,
                ring: wish.ring.unwrap_or(RING.min(line.rules.max_ring)),
                parameters: wish.parameters,
                record: wish.record,
                detection: wish.detection,
                sid_seed: wish.sid_seed,
                callbacks: wish.callbacks,
                outcome: Some(outcome),
                place: std::mem::take(&mut reserved.place),
            };
            let context = line.rules.context.clone();
            (NewCall { to: wish.to, from, context, outgoing }, line.submit.clone())
        };
        Ok(submit(new))
    }
}

fn note(pbx: &str, to: &str, by: &str, refused: &Refused) {
    counters::not_placed(refused.word());
    warn!(pbx, to = %Masked(to), by, "call not placed: {refused}");
}

fn gone() -> Refused {
    Refused::Busy("no calls are placed through this PBX".to_owned())
}

/// Checks a call against the rules. Returns the caller id and the AI's URL.
fn check(pbx: &str, line: &Line, wish: &CallWish) -> Result<(String, String), Refused> {
    let rules = &line.rules;
    let matches = |patterns: &[UserPattern], number: &str| {
        patterns.iter().any(|pattern| pattern.matches(number))
    };
    if !is_number(&wish.to) {
        return Err(Refused::BadNumber);
    }
    if !matches(&rules.allow, &wish.to) {
        return Err(Refused::NotAllowed(pbx.to_owned()));
    }
    let from = wish.from.as_ref().or(rules.caller_id.as_ref()).ok_or(Refused::NoCallerId)?;
    let is_own = rules.caller_id.as_ref() == Some(from);
    let may_be_shown = is_own || (is_number(from) && matches(&rules.from, from));
    if !may_be_shown {
        return Err(Refused::CallerId(pbx.to_owned()));
    }
    let named = |(name, url): &&(String, String)| *name == wish.ai || *url == wish.ai;
    let ai = match wish.ai.as_str() {
        "" => line.ais.first(),
        _ => line.ais.iter().find(named),
    };
    let (name, url) = ai.ok_or(Refused::NoSuchAi)?;
    if wish.record && !line.records {
        return Err(Refused::NotRecorded);
    }
    if wish.ring.is_some_and(|ring| ring > rules.max_ring) {
        return Err(Refused::RingTime(rules.max_ring));
    }
    let Callbacks { status, answered_by } = &wish.callbacks;
    let status = status.iter().map(|callback| &callback.to);
    for to in status.chain(answered_by.iter().map(|to| &**to)) {
        rules.may_request(&to.url)?;
    }
    // the PBX's own AI has no name
    Ok((from.clone(), if name.is_empty() { url.clone() } else { name.clone() }))
}

/// True for what a dialplan cannot take for something else than a number.
fn is_number(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+*#_-.".contains(c);
    !text.is_empty() && text.len() <= MAX_NUMBER && text.chars().all(plain)
}

/// Returns the host of an http or https URL without credentials; with its port, if it has one.
pub fn host_of(url: &str) -> Option<String> {
    // what parsers of URLs read in different ways
    if url.contains(|c: char| c == '\\' || c.is_whitespace() || c.is_control()) {
        return None;
    }
    let (scheme, rest) = url.split_once("://")?;
    let known = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let plain =
        !host.is_empty() && !host.contains('@') && host.bytes().all(|b| b.is_ascii_graphic());
    (known && plain).then(|| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::outgoing::{CallbackEvent, SignedUrl, StatusCallback};

    fn rules() -> DialRules {
        let patterns = |all: &[&str]| all.iter().map(|p| p.parse().unwrap()).collect();
        DialRules {
            allow: patterns(&["_+4930.", "1XX"]),
            from: patterns(&["_+49301234X"]),
            caller_id: Some("+49301".to_owned()),
            context: None,
            per_second: 2,
            per_day: 3,
            max: Some(5),
            max_ring: Duration::from_secs(60),
            callback_hosts: vec!["app.example.com".to_owned()],
        }
    }

    fn line() -> Line {
        let ais = [("", "ws://a/"), ("second", "ws://b/")];
        Line {
            account_sid: "AC1".to_owned(),
            rules: rules(),
            ais: ais.map(|(name, url)| (name.to_owned(), url.to_owned())).to_vec(),
            records: false,
            submit: Arc::new(|_| true),
        }
    }

    fn wish(to: &str) -> CallWish {
        CallWish {
            to: to.to_owned(),
            from: None,
            ai: String::new(),
            parameters: Vec::new(),
            ring: None,
            record: false,
            detection: None,
            sid_seed: None,
            callbacks: Callbacks::default(),
            reserved: None,
            by: "test".to_owned(),
        }
    }

    #[test]
    fn only_what_is_allowed_is_called() {
        let checked = |wish: CallWish| check("main", &line(), &wish);
        let word = |wish: CallWish| checked(wish).map_err(|refused| refused.word());
        let good = |from: &str, ai: &str| Ok((from.to_owned(), ai.to_owned()));
        assert_eq!(word(wish("+49301")), good("+49301", "ws://a/"));
        assert_eq!(word(wish("101")), good("+49301", "ws://a/"));
        for bad in ["", "101@x", "Local/101", "1 01", "101,1", "1;2", "101&102", &"1".repeat(41)] {
            assert_eq!(word(wish(bad)), Err("bad_number"), "{bad}");
        }
        for other in ["+4931", "1011", "900123", "+4930", "+1900"] {
            assert_eq!(word(wish(other)), Err("number_not_allowed"), "{other}");
        }
        let from = |from: &str| CallWish { from: Some(from.to_owned()), ..wish("101") };
        assert_eq!(word(from("+493012345")), good("+493012345", "ws://a/"));
        assert_eq!(word(from("+49302")), Err("caller_id_not_allowed"));
        assert_eq!(word(from("")), Err("caller_id_not_allowed"));
        for (ai, found) in [("second", Ok("second")), ("ws://b/", Ok("second")), ("x", Err(()))] {
            let checked = checked(CallWish { ai: ai.to_owned(), ..wish("101") });
            assert_eq!(
                checked.map(|(_, ai)| ai),
                found.map(str::to_owned).map_err(|()| Refused::NoSuchAi)
            );
        }
        assert_eq!(word(CallWish { record: true, ..wish("101") }), Err("not_recorded"));
        let ring = |seconds| CallWish { ring: Some(Duration::from_secs(seconds)), ..wish("101") };
        assert!(word(ring(60)).is_ok());
        assert_eq!(word(ring(61)), Err("ring_time"));
        let callback = |url: &str| {
            let events = vec![CallbackEvent::Completed];
            let to = SignedUrl { url: url.to_owned(), get: false, token: "x".into() };
            let answered_by = Some(Arc::new(to.clone()));
            let status = Some(Arc::new(StatusCallback { to, events }));
            let [first, second] =
                [Callbacks { status, answered_by: None }, Callbacks { status: None, answered_by }]
                    .map(|callbacks| word(CallWish { callbacks, ..wish("101") }));
            assert_eq!(first, second, "{url}");
            first
        };
        assert!(callback("https://App.example.com/status?x=1").is_ok());
        for bad in [
            "https://other.example/",
            "https://app.example.com@evil.example/",
            "https://app.example.com\\@evil.example/",
            "https://app.example.com:81/",
            "ftp://app.example.com/",
            "app.example.com",
        ] {
            assert_eq!(callback(bad), Err("callback_host"), "{bad}");
        }
        let nothing = Line { rules: DialRules::default(), ..line() };
        assert_eq!(check("main", &nothing, &wish("101")), Err(Refused::NotAllowed("main".into())));
    }

    #[test]
    fn calls_are_counted_per_second_per_day_and_at_once() {
        let (begin, day) = (Instant::now(), Duration::from_secs(20_000 * DAY));
        let mut usage = Usage::default();
        let mut rules = rules();
        let mut take = |rules: &DialRules, ms, days: u64| {
            let at = begin + Duration::from_millis(ms);
            let unix = day + Duration::from_secs(days * DAY);
            usage.take(at, unix, "main", rules).map_err(|refused| refused.word())
        };
        let first: Vec<_> = (0..2).map(|_| take(&rules, 0, 0)).collect();
        assert!(first.iter().all(Result::is_ok));
        assert_eq!(take(&rules, 0, 0).err(), Some("per_second"));
        let third = take(&rules, 501, 0);
        assert!(third.is_ok());
        assert_eq!(take(&rules, 9000, 0).err(), Some("per_day"));
        let next_day = take(&rules, 9000, 1);
        assert!(next_day.is_ok());
        rules.max = Some(4);
        assert_eq!(take(&rules, 20_000, 1).err(), Some("busy"));
        drop(first);
        assert!(take(&rules, 20_000, 1).is_ok());
    }
}
