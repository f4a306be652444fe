//! The users that calls may be addressed to, written like the extensions of an Asterisk dialplan:
//! `8010`, `80XX`, `_4930.` or `any`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::{self, Write as _};
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// One of these digits: `X`, `Z` and `N`.
    Digit(char, char),
    Exact(char),
    /// One or more characters, at the end: `.`.
    Rest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserPattern(Vec<Place>);

impl UserPattern {
    pub fn matches(&self, user: &str) -> bool {
        let mut rest = user.chars();
        for place in &self.0 {
            let good = match (place, rest.next()) {
                (Place::Rest, next) => return next.is_some() || self.0.len() == 1,
                (Place::Digit(low, high), Some(c)) => (*low..=*high).contains(&c),
                (Place::Exact(wanted), Some(c)) => c == *wanted,
                (_, None) => false,
            };
            if !good {
                return false;
            }
        }
        rest.next().is_none()
    }

    /// True if a user may match both patterns.
    pub fn overlaps(&self, other: &UserPattern) -> bool {
        for (a, b) in self.0.iter().zip(&other.0) {
            let range = |place: &Place| match place {
                Place::Digit(low, high) => Some((*low, *high)),
                Place::Exact(c) => Some((*c, *c)),
                Place::Rest => None,
            };
            let (Some(a), Some(b)) = (range(a), range(b)) else { return true };
            if a.0 > b.1 || b.0 > a.1 {
                return false;
            }
        }
        self.0.len() == other.0.len()
    }
}

impl fmt::Display for UserPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == [Place::Rest] {
            return f.write_str("any");
        }
        self.0.iter().try_for_each(|place| match place {
            Place::Digit('0', _) => f.write_char('X'),
            Place::Digit('1', _) => f.write_char('Z'),
            Place::Digit(..) => f.write_char('N'),
            Place::Exact(c) => f.write_char(*c),
            Place::Rest => f.write_char('.'),
        })
    }
}

impl FromStr for UserPattern {
    type Err = String;

    /// A text is a pattern if it begins with `_`, as in Asterisk, or if it consists of digits, `+`,
    /// `*`, `#`, `.` and the letters X, Z and N. Any other text is a name.
    fn from_str(text: &str) -> Result<UserPattern, String> {
        if text == "any" {
            return Ok(UserPattern(vec![Place::Rest]));
        }
        let marked = text.strip_prefix('_');
        let pattern = marked.unwrap_or(text);
        if pattern.is_empty() || pattern.contains(['[', ']', '!', '@', ' ']) {
            let forms = "write an extension such as \"8010\", a pattern such as \"80XX\" or \
                         \"4930.\" (X 0-9, Z 1-9, N 2-9, a point for the rest), or \"any\"";
            return Err(format!("\"{text}\" is not a user: {forms}"));
        }
        let like_number = pattern.chars().all(|c| "0123456789+*#.XZNxzn".contains(c));
        if marked.is_none() && !like_number {
            return Ok(UserPattern(text.chars().map(Place::Exact).collect()));
        }
        let (body, rest) = match pattern.strip_suffix('.') {
            Some(body) => (body, Some(Place::Rest)),
            None => (pattern, None),
        };
        if body.contains('.') {
            return Err(format!(
                "\"{text}\": the point, for the rest of a user, must be at its end"
            ));
        }
        let places = body.chars().map(|c| match c {
            'X' | 'x' => Place::Digit('0', '9'),
            'Z' | 'z' => Place::Digit('1', '9'),
            'N' | 'n' => Place::Digit('2', '9'),
            other => Place::Exact(other),
        });
        Ok(UserPattern(places.chain(rest).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_asterisk_does() {
        let table = [
            ("8010", "8010", "8011 801 80100"),
            ("80XX", "8000 8099", "80a0 800 80000 80XX"),
            ("ZN5", "125 995", "025 115"),
            ("4930.", "49301 4930123", "4930 48301"),
            ("_sales.", "sales1", "sales"),
            ("+49.", "+4930", "4930"),
            ("any", "8001 x", ""),
            ("bob.smith", "bob.smith", "bobxsmith bob.smith2"),
            ("Xavier", "Xavier", "1avier"),
        ];
        for (text, good, bad) in table {
            let pattern: UserPattern = text.parse().unwrap();
            assert!(good.split(' ').all(|user| pattern.matches(user)), "{text}: {good}");
            assert!(
                !bad.split(' ').any(|user| !user.is_empty() && pattern.matches(user)),
                "{text}"
            );
        }
        let any: UserPattern = "any".parse().unwrap();
        assert!(any.matches(""), "a call to the address alone");
        for bad in ["", "_", "80[1-3]X", "8.0", "ai@pbx", "80!"] {
            assert!(bad.parse::<UserPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn overlapping_patterns_are_found() {
        let overlap = |a: &str, b: &str| {
            let (a, b): (UserPattern, UserPattern) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.overlaps(&b), b.overlaps(&a));
            a.overlaps(&b)
        };
        assert!(overlap("80XX", "8010") && overlap("80XX", "8.") && overlap("any", "x"));
        assert!(!overlap("80XX", "801") && !overlap("80XX", "81XX") && !overlap("ZX", "0X"));
    }
}
