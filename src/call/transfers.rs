//! The targets that callers of one PBX may be transferred to. All others are refused: an AI never
//! dials a number that the configuration does not allow.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use crate::command::Destination;
use crate::user_pattern::UserPattern;

/// The longest name or extension, in characters.
const MAX_TARGET: usize = 64;

#[derive(Debug, Clone, Default)]
pub struct TransferRules {
    /// Destinations by name.
    pub targets: BTreeMap<String, Destination>,
    /// Extensions that may be dialled as they are.
    pub extensions: Vec<UserPattern>,
    /// The context in which extensions are dialled.
    pub context: Option<String>,
}

impl TransferRules {
    /// Returns the destination for a name, or for an extension that is allowed.
    pub fn find(&self, to: &str) -> Option<Destination> {
        if let Some(destination) = self.targets.get(to) {
            let context = destination.context.clone().or_else(|| self.context.clone());
            return Some(Destination { context, ..destination.clone() });
        }
        // what a dialplan could take for something else than an extension
        let plain = |c: char| c.is_ascii_alphanumeric() || "+*#_-.".contains(c);
        let safe = !to.is_empty() && to.len() <= MAX_TARGET && to.chars().all(plain);
        let allowed = safe && self.extensions.iter().any(|pattern| pattern.matches(to));
        let (context, exten) = (self.context.clone(), to.to_owned());
        allowed.then_some(Destination { context, exten, priority: 1, in_group: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_targets_are_found() {
        let humans = Destination {
            context: Some("queues".into()),
            exten: "sales".into(),
            priority: 2,
            in_group: false,
        };
        let boss =
            Destination { context: None, exten: "1001".into(), priority: 1, in_group: false };
        let rules = TransferRules {
            targets: [("humans".to_owned(), humans.clone()), ("boss".to_owned(), boss)].into(),
            extensions: vec!["20XX".parse().unwrap()],
            context: Some("phones".into()),
        };
        assert_eq!(rules.find("humans"), Some(humans));
        let of = |to: &str| rules.find(to).map(|d| (d.context.unwrap(), d.exten));
        assert_eq!(of("boss"), Some(("phones".into(), "1001".into())));
        assert_eq!(of("2042"), Some(("phones".into(), "2042".into())));
        for bad in ["", "1001", "+19005550100", "20421", "20a2", "2042@evil", "2042,1", "20 42"] {
            assert_eq!(of(bad), None, "{bad}");
        }
        let open = TransferRules { extensions: vec!["any".parse().unwrap()], ..rules };
        assert!(open.find("+4930123").is_some());
        for bad in ["2042@evil", "a/b", "a&PJSIP/b", "x,1,2", "${X}"] {
            assert_eq!(open.find(bad), None, "{bad}");
        }
    }
}
