//! Routes: which settings apply to a call, decided by what is known of it when it is offered.
//!
//! The routes of a configuration are tried in order, and the first one whose conditions all hold
//! applies. [`Conditions::check`] names the first condition that does not hold, for
//! `trunkless route explain`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::call::hours::{Hours, Local, Zone};
use crate::call::parameters::common_name;
use crate::user_pattern::UserPattern;

/// The parameter that holds a dialler's campaign.
pub const CAMPAIGN: &str = "campaign";

/// A text in which `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPattern(String);

impl TextPattern {
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TextPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<TextPattern, String> {
        match text.trim().is_empty() {
            true => Err("is empty; write a text, in which * stands for any characters".to_owned()),
            false => Ok(TextPattern(text.to_owned())),
        }
    }
}

/// A value that a call must have under this name: one of the patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub patterns: Vec<TextPattern>,
}

/// The conditions of a route. An empty list matches all calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditions {
    /// Names of PBXs.
    pub pbx: Vec<String>,
    pub to: Vec<UserPattern>,
    pub from: Vec<UserPattern>,
    /// Header fields of the INVITE.
    pub headers: Vec<Named>,
    /// Parameters of the stream, or channel variables.
    pub variables: Vec<Named>,
    pub campaign: Vec<TextPattern>,
    pub hours: Vec<Hours>,
    /// The zone of `hours`.
    pub zone: Option<Zone>,
}

/// The facts known of a call when it is offered.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub pbx: &'a str,
    /// The called user.
    pub to: &'a str,
    /// The caller's number.
    pub from: &'a str,
    /// Header fields of the INVITE; none in ARI mode.
    pub headers: &'a [(String, String)],
    /// The parameters from the PBX, under their common names.
    pub parameters: &'a [(String, String)],
    /// Time since 1970.
    pub now: Duration,
}

impl<'a> Facts<'a> {
    /// The values of a header field. Where the PBX passes no header fields on, as in ARI mode, they
    /// are those of the parameter of that name.
    fn header(&self, name: &str) -> Vec<&'a str> {
        let fields = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let fields: Vec<&str> = fields.map(|(_, value)| value.as_str()).collect();
        if fields.is_empty() { self.parameter(name).into_iter().collect() } else { fields }
    }

    /// The value of a parameter or channel variable.
    fn parameter(&self, name: &str) -> Option<&'a str> {
        let common = common_name(name);
        let ours = match common.as_str() {
            "pbx" => Some(self.pbx),
            "to_number" => Some(self.to),
            "from_number" => Some(self.from),
            _ => None,
        };
        let found = |(known, _): &&(String, String)| *known == common || known == name;
        ours.or_else(|| self.parameters.iter().find(found).map(|(_, value)| value.as_str()))
    }
}

/// The first condition of a route that does not hold, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The condition as in the configuration: `to`, `header.X-Lead-ID`.
    pub condition: String,
    pub why: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.condition, self.why)
    }
}

impl Conditions {
    /// Returns the first condition that does not hold; `None` if all do.
    pub fn check(&self, facts: &Facts<'_>) -> Option<Mismatch> {
        self.without_campaign(facts).or_else(|| {
            let given = facts.parameter(CAMPAIGN);
            one_of(CAMPAIGN, &self.campaign, given.as_slice(), TextPattern::matches)
        })
    }

    /// True if only the campaign decides whether this route applies, and it is not known yet.
    pub fn awaits_campaign(&self, facts: &Facts<'_>) -> bool {
        !self.campaign.is_empty()
            && facts.parameter(CAMPAIGN).is_none()
            && self.without_campaign(facts).is_none()
    }

    fn without_campaign(&self, facts: &Facts<'_>) -> Option<Mismatch> {
        let named = |kind: &str, named: &Named, given: &[&str]| {
            one_of(&format!("{kind}.{}", named.name), &named.patterns, given, TextPattern::matches)
        };
        one_of("pbx", &self.pbx, &[facts.pbx], |name, pbx| name == pbx)
            .or_else(|| one_of("to", &self.to, &[facts.to], UserPattern::matches))
            .or_else(|| one_of("from", &self.from, &[facts.from], UserPattern::matches))
            .or_else(|| {
                let header = |of: &Named| named("header", of, &facts.header(&of.name));
                self.headers.iter().find_map(header)
            })
            .or_else(|| {
                let variable =
                    |of: &Named| named("variable", of, facts.parameter(&of.name).as_slice());
                self.variables.iter().find_map(variable)
            })
            .or_else(|| self.outside_hours(facts.now))
    }

    fn outside_hours(&self, now: Duration) -> Option<Mismatch> {
        let zone = self.zone.as_ref().filter(|_| !self.hours.is_empty())?;
        let local = Local::at(now, zone);
        if self.hours.iter().any(|hours| hours.contains(local)) {
            return None;
        }
        let why = format!("is {local} in {zone}, not {}", list(&self.hours));
        Some(Mismatch { condition: "time".to_owned(), why })
    }

    /// True if every call for which `other` applies meets these conditions, as far as the texts of
    /// the conditions show that. A route behind this one can then never apply.
    pub fn covers(&self, other: &Conditions) -> bool {
        fn within<T: PartialEq>(wide: &[T], narrow: &[T]) -> bool {
            let each = || narrow.iter().all(|pattern| wide.contains(pattern));
            wide.is_empty() || (!narrow.is_empty() && each())
        }
        let named = |wide: &[Named], narrow: &[Named]| {
            wide.iter().all(|wide| {
                let same = |narrow: &&Named| common_name(&narrow.name) == common_name(&wide.name);
                let narrow = narrow.iter().find(same);
                narrow.is_some_and(|narrow| within(&wide.patterns, &narrow.patterns))
            })
        };
        within(&self.pbx, &other.pbx)
            && within(&self.to, &other.to)
            && within(&self.from, &other.from)
            && named(&self.headers, &other.headers)
            && named(&self.variables, &other.variables)
            && within(&self.campaign, &other.campaign)
            && within(&self.hours, &other.hours)
            && (self.hours.is_empty() || self.zone == other.zone)
    }
}

/// Checks that one of the values matches one of the patterns.
fn one_of<P: fmt::Display>(
    condition: &str,
    patterns: &[P],
    given: &[&str],
    matches: impl Fn(&P, &str) -> bool,
) -> Option<Mismatch> {
    let good = |value: &&str| patterns.iter().any(|pattern| matches(pattern, value));
    if patterns.is_empty() || given.iter().any(good) {
        return None;
    }
    let wanted = list(patterns);
    let why = match given {
        [] => format!("is not known, wanted {wanted}"),
        given => format!("is {}, not {wanted}", list(given)),
    };
    Some(Mismatch { condition: condition.to_owned(), why })
}

/// `"a" or "b"`.
fn list<T: fmt::Display>(all: &[T]) -> String {
    let quoted: Vec<String> = all.iter().map(|one| format!("\"{one}\"")).collect();
    quoted.join(" or ")
}

/// Picks one of several by weight. `random`: a uniformly distributed number. Those that are not
/// `usable` are left out, unless none is; a weight of 0 is only picked if there is nothing else.
pub fn pick(weights: &[u32], usable: impl Fn(usize) -> bool, random: u64) -> usize {
    let good: Vec<usize> = (0..weights.len()).filter(|at| usable(*at)).collect();
    let good = if good.is_empty() { (0..weights.len()).collect() } else { good };
    let total: u64 = good.iter().map(|at| u64::from(weights[*at])).sum();
    let Some(mut rest) = random.checked_rem(total) else {
        return good.first().copied().unwrap_or_default();
    };
    for at in &good {
        let weight = u64::from(weights[*at]);
        if rest < weight {
            return *at;
        }
        rest -= weight;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(text: &str) -> Vec<UserPattern> {
        text.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    fn texts(text: &str) -> Vec<TextPattern> {
        text.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    fn named(name: &str, text: &str) -> Vec<Named> {
        vec![Named { name: name.to_owned(), patterns: texts(text) }]
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Why these conditions do not hold for one call; empty if they do.
    fn why(conditions: &Conditions) -> String {
        let headers = pairs(&[("X-Lead-ID", "77"), ("x-list", "a"), ("X-List", "b"), ("Via", "x")]);
        let parameters = pairs(&[("lang", "de"), ("CHANNEL(musicclass)", "moh"), ("amd", "human")]);
        let facts = Facts {
            pbx: "main",
            to: "8010",
            from: "+4930123",
            headers: &headers,
            parameters: &parameters,
            now: Duration::from_secs(1_796_025_600), // Mon 30 Nov 2026, 08:00 UTC
        };
        conditions.check(&facts).map(|mismatch| mismatch.to_string()).unwrap_or_default()
    }

    #[test]
    fn each_condition_must_hold() {
        let none = Conditions::default;
        let zone = || Some("Europe/Berlin".parse().unwrap());
        let hours = |text: &str| vec![text.parse().unwrap()];
        let (main, other) = ("main".to_owned(), "other".to_owned());
        for (conditions, expected) in [
            (none(), ""),
            (Conditions { pbx: vec![other.clone(), main], ..none() }, ""),
            (Conditions { pbx: vec![other], ..none() }, "pbx is \"main\", not \"other\""),
            (Conditions { to: users("8011 80XX"), ..none() }, ""),
            (
                Conditions { to: users("8011 81XX"), ..none() },
                "to is \"8010\", not \"8011\" or \"81XX\"",
            ),
            (Conditions { from: users("+49."), ..none() }, ""),
            (Conditions { from: users("49."), ..none() }, "from is \"+4930123\", not \"49.\""),
            (Conditions { headers: named("x-lead-id", "7*"), ..none() }, ""),
            (Conditions { headers: named("X-List", "b"), ..none() }, ""),
            (
                Conditions { headers: named("X-List", "c"), ..none() },
                "header.X-List is \"a\" or \"b\", not \"c\"",
            ),
            // in ARI mode, a field is a parameter
            (Conditions { headers: named("X-Lang", "de"), ..none() }, ""),
            (
                Conditions { headers: named("X-Other", "*"), ..none() },
                "header.X-Other is not known, wanted \"*\"",
            ),
            (Conditions { variables: named("LANG", "de en"), ..none() }, ""),
            (Conditions { variables: named("CHANNEL(musicclass)", "moh"), ..none() }, ""),
            (Conditions { variables: named("to_number", "8010"), ..none() }, ""),
            (
                Conditions { variables: named("LANG", "en"), ..none() },
                "variable.LANG is \"de\", not \"en\"",
            ),
            (
                Conditions { campaign: texts("SALES"), ..none() },
                "campaign is not known, wanted \"SALES\"",
            ),
            (Conditions { hours: hours("Mon-Fri 09:00-17:00"), zone: zone(), ..none() }, ""),
            (
                Conditions { hours: hours("Mon-Fri 08:00-09:00"), zone: zone(), ..none() },
                "time is Mon 09:00 in Europe/Berlin, not \"Mon-Fri 08:00-09:00\"",
            ),
            (
                Conditions { to: users("8010"), from: users("1"), ..none() },
                "from is \"+4930123\", not \"1\"",
            ),
        ] {
            assert_eq!(why(&conditions), expected, "{conditions:?}");
        }
    }

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, good, bad) in [
            ("gold", "gold", "Gold golden old"),
            ("*", "x gold", ""),
            ("go*", "go gold", "ago"),
            ("*ld", "ld gold", "lds"),
            ("a*b*c", "abc axxbxxc abbc", "ab ac acb abcd"),
            ("a*a", "aa aba", "a"),
            ("**", "x", ""),
        ] {
            let pattern: TextPattern = pattern.parse().unwrap();
            let words = |text: &'static str| text.split_whitespace();
            assert!(words(good).all(|text| pattern.matches(text)), "{pattern}");
            assert!(!words(bad).any(|text| pattern.matches(text)), "{pattern}");
        }
        assert!("".parse::<TextPattern>().is_err());
    }

    #[test]
    fn a_route_waits_for_the_campaign_only_if_nothing_else_decides() {
        let of = |parameters: &[(String, String)], conditions: &Conditions| {
            let facts = Facts {
                pbx: "main",
                to: "8010",
                from: "",
                headers: &[],
                parameters,
                now: Duration::ZERO,
            };
            conditions.awaits_campaign(&facts)
        };
        let wanted = Conditions { campaign: texts("A"), ..Conditions::default() };
        assert!(of(&[], &wanted));
        assert!(!of(&pairs(&[("campaign", "B")]), &wanted));
        assert!(!of(&[], &Conditions { to: users("8011"), ..wanted }));
        assert!(!of(&[], &Conditions::default()));
    }

    #[test]
    fn a_wider_route_covers_a_narrower_one() {
        let none = Conditions::default;
        let to = |text: &str| Conditions { to: users(text), ..none() };
        let zone = |name: &str| Some(name.parse().unwrap());
        let open = |name: &str| Conditions {
            hours: vec!["Mon".parse().unwrap()],
            zone: zone(name),
            ..none()
        };
        for (wide, narrow, covers) in [
            (none(), to("8010"), true),
            (none(), none(), true),
            (to("8010 8011"), to("8011"), true),
            (to("8010"), to("8010 8011"), false),
            (to("8010"), none(), false),
            (to("8010"), Conditions { from: users("1"), ..to("8010") }, true),
            (Conditions { from: users("1"), ..to("8010") }, to("8010"), false),
            (
                Conditions { headers: named("x-a", "1 2"), ..none() },
                Conditions { headers: named("X-A", "2"), ..none() },
                true,
            ),
            (
                Conditions { headers: named("X-A", "1"), ..none() },
                Conditions { headers: named("X-B", "1"), ..none() },
                false,
            ),
            (open("UTC"), open("UTC"), true),
            (open("UTC"), open("Europe/Berlin"), false),
        ] {
            assert_eq!(wide.covers(&narrow), covers, "{wide:?} {narrow:?}");
        }
    }

    /// A generator with a fixed seed (splitmix64).
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    #[test]
    fn calls_are_shared_by_weight() {
        let mut state = 1;
        for weights in [vec![1, 1], vec![3, 1], vec![70, 25, 5], vec![9, 0, 1], vec![1]] {
            let mut counts = vec![0u32; weights.len()];
            for _ in 0..10_000 {
                counts[pick(&weights, |_| true, random(&mut state))] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let (share, wanted) = (count * 100, weight * 1_000_000 / total);
                assert!(share.abs_diff(wanted) <= 20_000, "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn one_that_cannot_be_used_leaves_its_share_to_the_others() {
        let mut state = 2;
        let mut picks = |weights: &[u32], usable: fn(usize) -> bool| {
            let mut counts = vec![0; weights.len()];
            (0..1000).for_each(|_| counts[pick(weights, usable, random(&mut state))] += 1);
            counts
        };
        let counts = picks(&[8, 1, 1], |at| at != 0);
        assert!(counts[0] == 0 && counts[1].min(counts[2]) > 400, "{counts:?}");
        assert_eq!(picks(&[5, 0], |at| at == 1), [0, 1000]);
        let counts = picks(&[1, 1], |_| false);
        assert!(counts[0].min(counts[1]) > 400, "{counts:?}");
        assert_eq!((pick(&[0, 0], |_| true, 7), pick(&[], |_| true, 7)), (0, 0));
    }
}
