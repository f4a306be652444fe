//! `[[route]]`: the tables as they are written, and the routes made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::call::admission::CallLimits;
use crate::call::hours::{Hours, Zone};
use crate::call::ladder::Rung;
use crate::call::routing::{Conditions, Named, TextPattern};
use crate::call::transfers::TransferRules;
use crate::call::{Prompts, RecordPlan};
use crate::config::check::{Findings, NO_CALLS};
use crate::config::ladder::rungs;
use crate::config::recording::{PbxRecording, WhenWord};
use crate::config::resolve::Resolver;
use crate::config::schema::{PbxCalls, Settings};
use crate::config::values::{RungWord, parsed_words};
use crate::config::{ConfigError, Source};
use crate::stream::dialect::MAX_PARAMETER;
use crate::user_pattern::UserPattern;

/// The name of the AI of `[ai]`, or of `[pbx.NAME.ai]`, in a route.
const DEFAULT: &str = "default";
/// All of them may be tried for each call.
const MAX_ROUTES: usize = 1000;

/// A table `[[route]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    pub name: Parsed<RouteName>,
    /// Names of PBXs.
    #[serde(default)]
    pub pbx: Many<String>,
    #[serde(default)]
    pub to: Many<Parsed<UserPattern>>,
    #[serde(default)]
    pub from: Many<Parsed<UserPattern>>,
    #[serde(default)]
    pub header: BTreeMap<String, Many<Parsed<TextPattern>>>,
    #[serde(default)]
    pub variable: BTreeMap<String, Many<Parsed<TextPattern>>>,
    #[serde(default)]
    pub campaign: Many<Parsed<TextPattern>>,
    #[serde(default)]
    pub time: Many<Parsed<Hours>>,
    pub zone: Option<Parsed<Zone>>,
    /// Names of `[endpoint.NAME]`, with weights.
    #[serde(default)]
    pub ai: Many<AiChoice>,
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    pub record: Option<WhenWord>,
    #[serde(default)]
    pub limits: PbxCalls,
    #[serde(default, deserialize_with = "parsed_words")]
    pub on_ai_failure: Option<Vec<RungWord>>,
    pub prompt: Option<String>,
}

/// The name of a route: it is a label of metrics.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteName(String);

impl FromStr for RouteName {
    type Err = String;

    fn from_str(text: &str) -> Result<RouteName, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
            let rule = "use up to 64 letters, digits, - and _";
            return Err(format!("\"{text}\" is not a valid name of a route; {rule}"));
        }
        Ok(RouteName(text.to_owned()))
    }
}

/// A value that is read from a text.
#[derive(Debug, Clone)]
pub struct Parsed<T>(pub T);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Parsed).map_err(de::Error::custom)
    }
}

/// One value, or a list of them.
#[derive(Debug, Clone)]
pub struct Many<T>(pub Vec<T>);

impl<T> Default for Many<T> {
    fn default() -> Self {
        Many(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMore<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
                T::deserialize(StrDeserializer::new(text)).map(|one| vec![one])
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = list.next_element()? {
                    all.push(one);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(OneOrMore(PhantomData)).map(Many)
    }
}

/// An AI of a route: `"a"`, or `{ name = "a", weight = 3 }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AiChoice {
    pub name: String,
    pub weight: u32,
}

impl<'de> Deserialize<'de> for AiChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Weighted {
            name: String,
            weight: u32,
        }
        struct Word;
        impl<'de> Visitor<'de> for Word {
            type Value = AiChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an AI, or { name = \"NAME\", weight = 1 }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AiChoice, E> {
                Ok(AiChoice { name: text.to_owned(), weight: 1 })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AiChoice, A::Error> {
                let Weighted { name, weight } =
                    Weighted::deserialize(MapAccessDeserializer::new(map))?;
                Ok(AiChoice { name, weight })
            }
        }
        deserializer.deserialize_any(Word)
    }
}

/// A route, checked.
#[derive(Debug, Clone)]
pub struct RoutePlan {
    pub name: Arc<str>,
    pub conditions: Conditions,
    /// The AIs in their order: the place in [`crate::call::CallConfig::ais`], and the weight. None:
    /// the AI of the PBX.
    pub ais: Vec<(usize, u32)>,
    /// These replace the AI's own ones of the same names.
    pub parameters: Vec<(String, String)>,
    pub limits: CallLimits,
    /// The part that depends on the PBX of a call, by its name. A PBX that is not listed does not
    /// use the route.
    pub pbxs: BTreeMap<String, PbxRoute>,
}

/// A route, for the calls of one PBX.
#[derive(Debug, Clone)]
pub struct PbxRoute {
    /// The steps to try when the AIs of the route fail.
    pub ladder: Vec<Rung>,
    /// `None` if the calls are not recorded.
    pub record: Option<RecordPlan>,
}

/// Makes an error about a key of the route at this place in the file.
fn error(source: &Source, at: usize, route: &RouteTable, key: &str, why: String) -> ConfigError {
    let line = line_of(&source.text, at, key);
    let place = line.map_or(source.name.clone(), |line| format!("{}:{line}", source.name));
    ConfigError { place, key: format!("route.{}.{key}", route.name.0.0), message: why }
}

/// Returns the line of a key of the nth route, or else that of the route.
fn line_of(text: &str, nth: usize, key: &str) -> Option<usize> {
    let is_route = |line: &str| line.trim_start().starts_with("[[route]]");
    let lines = || text.lines().enumerate().map(|(at, line)| (at + 1, line));
    let (start, _) = lines().filter(|(_, line)| is_route(line)).nth(nth)?;
    let own = |line: &str| {
        let line = line.trim_start();
        !line.starts_with('[') || line.starts_with("[route.")
    };
    let first = key.split('.').next().unwrap_or(key);
    let names = |line: &str| {
        let name = line.trim_start().trim_start_matches("[route.").strip_prefix(first);
        name.is_some_and(|rest| rest.trim_start().starts_with(['=', '.', ']']))
    };
    let found = lines().skip(start).take_while(|(_, line)| own(line)).find(|(_, l)| names(l));
    Some(found.map_or(start, |(line, _)| line))
}

/// Other tables, to which the routes refer.
struct Parts<'a> {
    settings: &'a Settings,
    prompts: &'a Prompts,
    transfers: &'a BTreeMap<String, TransferRules>,
}

impl Resolver<'_> {
    pub(super) fn routes(
        &self,
        settings: &Settings,
        prompts: &Prompts,
        transfers: &BTreeMap<String, TransferRules>,
        findings: &mut Findings,
    ) -> Vec<RoutePlan> {
        let parts = Parts { settings, prompts, transfers };
        if settings.route.len() > MAX_ROUTES {
            let why = format!("there are more than {MAX_ROUTES}; remove some");
            findings.error(self.source.error("route", why));
        }
        let mut names = BTreeSet::new();
        let mut plans: Vec<RoutePlan> = Vec::new();
        for (at, route) in settings.route.iter().enumerate() {
            let mut wrong: Vec<(String, String)> = Vec::new();
            if !names.insert(route.name.0.clone()) {
                let why = "is the name of an earlier route, too; give each its own";
                wrong.push(("name".to_owned(), why.to_owned()));
            }
            let plan = self.route(route, &parts, &mut wrong);
            for (key, why) in wrong {
                findings.error(error(self.source, at, route, &key, why));
            }
            let wider = plans.iter().find(|earlier| earlier.conditions.covers(&plan.conditions));
            if let Some(wider) = wider {
                let why = format!(
                    "never applies: route \"{}\" before it takes all of its calls; move this route \
                     up, or remove it",
                    wider.name
                );
                findings.warnings.push(error(self.source, at, route, "name", why));
            }
            plans.push(plan);
        }
        plans
    }

    /// Makes a route, and reports what is wrong with which of its keys.
    fn route(
        &self,
        route: &RouteTable,
        parts: &Parts<'_>,
        wrong: &mut Vec<(String, String)>,
    ) -> RoutePlan {
        let settings = parts.settings;
        let conditions = conditions(route);
        let mut error = |key: &str, why: &str| wrong.push((key.to_owned(), why.to_owned()));
        for pbx in conditions.pbx.iter().filter(|pbx| !is_pbx(settings, pbx)) {
            error("pbx", &format!("there is no table [pbx.{pbx}]"));
        }
        match (conditions.hours.is_empty(), &conditions.zone) {
            (false, None) => error("zone", "is missing; set a time zone such as \"Europe/Berlin\""),
            (true, Some(_)) => error("zone", "applies only to time; set time, or remove it"),
            _ => {}
        }
        if route.limits.max == Some(0) || route.limits.per_second == Some(0) {
            error("limits", NO_CALLS);
        }
        if route.record.is_some_and(|when| when != WhenWord::Never)
            && settings.recording.directory().is_none()
        {
            error("record", "needs a directory for recordings; set [recording] directory");
        }
        let prompt = route.prompt.as_deref().or(settings.calls.prompt.as_deref());
        let prompt = match prompt.map(|path| self.audio("prompt", path)).transpose() {
            Ok(prompt) => prompt,
            // that of [calls] is reported there
            Err(why) if route.prompt.is_some() => {
                error("prompt", &why.message);
                None
            }
            Err(_) => None,
        };
        RoutePlan {
            name: route.name.0.0.as_str().into(),
            ais: ais(route, settings, wrong),
            parameters: self.route_parameters(route, wrong),
            limits: route.limits.limits(),
            pbxs: self.pbx_routes(route, &conditions, parts, prompt.as_ref(), wrong),
            conditions,
        }
    }

    fn pbx_routes(
        &self,
        route: &RouteTable,
        conditions: &Conditions,
        parts: &Parts<'_>,
        prompt: Option<&Bytes>,
        wrong: &mut Vec<(String, String)>,
    ) -> BTreeMap<String, PbxRoute> {
        let settings = parts.settings;
        let none = TransferRules::default();
        let uses =
            |name: &str| conditions.pbx.is_empty() || conditions.pbx.iter().any(|p| p == name);
        let pbxs = settings.pbx.iter().filter(|(name, _)| uses(&name.0));
        let mut all = BTreeMap::new();
        for (name, pbx) in pbxs {
            let rules = parts.transfers.get(&name.0).unwrap_or(&none);
            let own = route.on_ai_failure.as_deref();
            let (ladder, missing) = rungs(&name.0, own, settings, parts.prompts, prompt, rules);
            // those of [calls] are reported there
            let missing = missing.into_iter().filter(|_| own.is_some());
            wrong.extend(missing.map(|why| ("on_ai_failure".to_owned(), why)));
            let recording = PbxRecording { when: route.record, ..pbx.recording.clone() };
            let recording = if route.record.is_some() { &recording } else { &pbx.recording };
            // what is wrong with it is reported for the PBX
            let record = self.record_plan(&name.0, &settings.recording, recording);
            let record = record.ok().flatten();
            all.insert(name.0.clone(), PbxRoute { ladder, record });
        }
        all
    }

    fn route_parameters(
        &self,
        route: &RouteTable,
        wrong: &mut Vec<(String, String)>,
    ) -> Vec<(String, String)> {
        let limit = MAX_PARAMETER;
        let length = |text: &str| text.chars().count();
        for (name, value) in &route.parameters {
            if length(name).max(length(value)) > limit {
                let why = format!("is too long; names and values have at most {limit} characters");
                wrong.push((format!("parameters.{name}"), why));
            }
        }
        route.parameters.clone().into_iter().collect()
    }
}

fn is_pbx(settings: &Settings, name: &str) -> bool {
    settings.pbx.keys().any(|known| known.0 == name)
}

fn conditions(route: &RouteTable) -> Conditions {
    fn plain<T: Clone>(many: &Many<Parsed<T>>) -> Vec<T> {
        many.0.iter().map(|parsed| parsed.0.clone()).collect()
    }
    let named = |table: &BTreeMap<String, Many<Parsed<TextPattern>>>| {
        let named = table
            .iter()
            .map(|(name, patterns)| Named { name: name.clone(), patterns: plain(patterns) });
        named.collect()
    };
    Conditions {
        pbx: route.pbx.0.clone(),
        to: plain(&route.to),
        from: plain(&route.from),
        headers: named(&route.header),
        variables: named(&route.variable),
        campaign: plain(&route.campaign),
        hours: plain(&route.time),
        zone: route.zone.as_ref().map(|zone| zone.0.clone()),
    }
}

/// Returns the places and weights of a route's AIs.
fn ais(
    route: &RouteTable,
    settings: &Settings,
    wrong: &mut Vec<(String, String)>,
) -> Vec<(usize, u32)> {
    let mut error = |why: String| wrong.push(("ai".to_owned(), why));
    let mut found: Vec<(usize, u32)> = Vec::new();
    for AiChoice { name, weight } in &route.ai.0 {
        let endpoint = settings.endpoint.keys().position(|known| known.0 == *name);
        let place = match (name.as_str(), endpoint) {
            (DEFAULT, Some(_)) => {
                error("\"default\" is the AI of [ai]; rename [endpoint.default]".to_owned());
                continue;
            }
            (DEFAULT, None) => 0,
            (_, Some(place)) => place + 1,
            (_, None) => {
                error(format!("there is no table [endpoint.{name}]"));
                continue;
            }
        };
        if found.iter().any(|(known, _)| *known == place) {
            error(format!("\"{name}\" is listed twice; give it one entry with a weight"));
            continue;
        }
        found.push((place, *weight));
    }
    if !found.is_empty() && found.iter().all(|(_, weight)| *weight == 0) {
        error("all weights are 0; set at least one to 1".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::inspect;
    use crate::config::plan::Plan;
    use crate::record::When;

    const PLAIN: &str = "\
[ai]
url = 'ws://127.0.0.1:8080'
[endpoint.a]
url = 'ws://127.0.0.1:8081'
[endpoint.b]
url = 'ws://127.0.0.1:8082'
[pbx.main]
mode = 'sip'
sip = { registrar = '192.0.2.1', username = '1', password = 'p' }
transfer = { targets = { humans = '1001' } }
[pbx.other]
mode = 'sip'
sip = { registrar = '192.0.2.2', username = '1', password = 'p' }
[calls]
on_ai_failure = ['hangup']
";

    /// The plan, and all errors and warnings.
    fn read(routes: &str) -> (Option<Plan>, Vec<String>) {
        let text = format!("{PLAIN}{routes}");
        let source = Source { name: "t.toml".to_owned(), text };
        let (plan, report) = inspect(&source, &HashMap::new());
        let found = report.findings.errors.into_iter().chain(report.findings.warnings);
        (plan, found.map(|found| found.to_string()).collect())
    }

    #[test]
    fn a_route_is_read_as_written() {
        let (plan, found) = read(
            "\
[[route]]
name = 'sales'
pbx = 'main'
to = ['8010', '81XX']
from = '+49.'
header.X-Lead = 'a*'
variable.LANG = ['de', 'en']
campaign = 'S'
time = ['Mon,Wed 09:00-17:00', 'Sat']
zone = 'Europe/Berlin'
ai = ['b', { name = 'default', weight = 3 }]
parameters = { lang = 'de' }
limits = { max = 5 }
on_ai_failure = ['ai:a', 'transfer:humans']
[[route]]
name = 'rest'
",
        );
        assert_eq!(found, [""; 0]);
        let plan = plan.unwrap();
        let [sales, rest] = &plan.routes[..] else { panic!("{:?}", plan.routes) };
        let own = &sales.conditions;
        assert_eq!((own.to.len(), own.from.len(), own.hours.len()), (2, 1, 2));
        assert_eq!((own.headers[0].name.as_str(), own.variables[0].patterns.len()), ("X-Lead", 2));
        assert_eq!((&sales.ais[..], sales.limits.max), (&[(2, 1), (0, 3)][..], Some(5)));
        let names: Vec<&String> = sales.pbxs.keys().collect();
        assert_eq!(names, ["main"]);
        let ladder = [Rung::Ai(1), Rung::Transfer("humans".to_owned())];
        assert_eq!(sales.pbxs["main"].ladder, ladder);
        assert_eq!(rest.pbxs["other"].ladder, [Rung::Hangup(None)]);
        assert!(rest.ais.is_empty() && rest.conditions == Conditions::default());
    }

    #[test]
    fn mistakes_have_the_line_of_their_route() {
        for (line, expected) in [
            ("pbx = 'none'", "route.x.pbx: there is no table [pbx.none]"),
            ("ai = 'none'", "route.x.ai: there is no table [endpoint.none]"),
            (
                "ai = ['a', 'a']",
                "route.x.ai: \"a\" is listed twice; give it one entry with a weight",
            ),
            (
                "ai = { name = 'a', weight = 0 }",
                "route.x.ai: all weights are 0; set at least one to 1",
            ),
            ("zone = 'UTC'", "route.x.zone: applies only to time; set time, or remove it"),
            (
                "record = 'always'",
                "route.x.record: needs a directory for recordings; set [recording] directory",
            ),
            (
                "limits.max = 0",
                "route.x.limits: is 0, so that no call would be taken; remove the key for no limit",
            ),
            (
                "on_ai_failure = ['transfer:humans']",
                "route.x.on_ai_failure: [pbx.other.transfer] does not allow humans",
            ),
            ("name = 'x'", "route.x.name: is the name of an earlier route, too; give each its own"),
        ] {
            let own = if line.starts_with("name") { "to = 'x'" } else { "name = 'x'" };
            let before = if own.starts_with("name") { "y" } else { "x" };
            let (plan, found) = read(&format!(
                "[[route]]\nname = '{before}'\nto = '1'\n[[route]]\n{own}\n{line}\n"
            ));
            let at = PLAIN.lines().count() + 6;
            assert_eq!(found[0], format!("t.toml:{at}: {expected}"), "{line}");
            assert!(plan.is_none(), "{line}");
        }
        let (_, found) = read("[[route]]\nname = 'x'\ntime = '09:00-10:00'\n");
        assert!(found[0].contains("route.x.zone: is missing"), "{found:?}");
    }

    #[test]
    fn what_the_parser_refuses_has_a_reason() {
        for (lines, expected) in [
            ("name = 'a b'", "is not a valid name of a route"),
            ("name = 'x'\ntime = 'Mondays'", "is not a time of the week"),
            ("name = 'x'\nzone = 'Mars'", "is not a time zone"),
            ("name = 'x'\nto = '8[01]'", "is not a user"),
            ("name = 'x'\nai = [{ name = 'a', wight = 1 }]", "unknown field `wight`"),
            ("name = 'x'\nai = [{ name = 'a', weight = -1 }]", "invalid value: integer `-1`"),
            ("name = 'x'\nheader.X-A = ''", "is empty; write a text"),
            ("name = 'x'\nrecord = 'often'", "is not one of: always, on_command, never"),
            ("to = '1'", "missing field `name`"),
        ] {
            let (plan, found) = read(&format!("[[route]]\n{lines}\n"));
            assert!(plan.is_none() && found[0].contains(expected), "{lines}: {found:?}");
        }
    }

    #[test]
    fn a_route_that_never_applies_is_a_warning() {
        let (plan, found) =
            read("[[route]]\nname = 'all'\n[[route]]\nto = '1'\nname = 'late'\nai = 'a'\n");
        assert!(plan.is_some());
        let line = PLAIN.lines().count() + 5;
        assert_eq!(
            found,
            [format!(
                "t.toml:{line}: route.late.name: never applies: route \"all\" before it takes all \
                 of its calls; move this route up, or remove it"
            )]
        );
    }

    #[test]
    fn a_route_may_record_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let recording = format!("[recording]\ndirectory = {:?}\n", folder.path());
        let route =
            |when: &str| format!("[[route]]\nname = '{when}'\nrecord = '{when}'\nto = '{when}'\n");
        let routes = format!("{recording}{}{}", route("never"), route("on_command"));
        let (plan, found) = read(&routes);
        assert_eq!(found, [""; 0]);
        let plan = plan.unwrap();
        let when = |at: usize| plan.routes[at].pbxs["main"].record.as_ref().map(|plan| plan.when);
        assert_eq!((when(0), when(1)), (None, Some(When::OnCommand)));
    }
}
