//! The channel variables that orders may set.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::str::FromStr;

/// The names that are allowed for the calls of one PBX; by default none. Variables steer the
/// dialplan: some make it run programs, and others decide whom it dials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VariableRules(pub Vec<VariableName>);

/// A name: `lead_id`, `CDR(userfield)`, or `lead_*` for all that begin with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariableName {
    name: String,
    /// True if the name is only the beginning.
    is_prefix: bool,
}

impl VariableRules {
    pub fn allow(&self, name: &str) -> bool {
        is_settable(name) && self.0.iter().any(|allowed| allowed.matches(name))
    }
}

impl VariableName {
    fn matches(&self, name: &str) -> bool {
        match self.is_prefix {
            true => name.starts_with(&self.name) && is_plain(name),
            false => name == self.name,
        }
    }
}

impl FromStr for VariableName {
    type Err = String;

    fn from_str(text: &str) -> Result<VariableName, String> {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let valid = if is_prefix { is_plain(name) } else { is_settable(name) };
        let name = name.to_owned();
        valid.then_some(VariableName { name, is_prefix }).ok_or_else(|| {
            format!(
                "\"{text}\" is not the name of a variable: use letters, digits and _, with a * at \
                 the end for all that begin so, or CDR(field); not TRUNKLESS"
            )
        })
    }
}

/// True for a plain variable and for a field of the call's CDR. Other functions of the dialplan
/// reach beyond the call: GLOBAL, DB and FILE, for example. Our snippets use names with TRUNKLESS.
fn is_settable(name: &str) -> bool {
    let field = name.strip_prefix("CDR(").and_then(|rest| rest.strip_suffix(')'));
    let ours = name.trim_start_matches('_').to_ascii_uppercase().starts_with("TRUNKLESS");
    field.map_or(is_plain(name) && !ours, is_plain)
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(names: &[&str]) -> VariableRules {
        VariableRules(names.iter().map(|name| name.parse().unwrap()).collect())
    }

    #[test]
    fn only_listed_variables_may_be_set() {
        assert!(!VariableRules::default().allow("lead_id"));
        let rules = rules(&["lead_*", "CDR(userfield)", "__INHERITED"]);
        for name in ["lead_id", "lead_", "CDR(userfield)", "__INHERITED"] {
            assert!(rules.allow(name), "{name}");
        }
        for name in
            ["", "MONITOR_EXEC", "lead", "xlead_id", "lead_(x)", "lead_${x}", "CDR(x)", "INHERITED"]
        {
            assert!(!rules.allow(name), "{name}");
        }
        assert!(!super::tests::rules(&["T*"]).allow("TRUNKLESS_PEER"));
        assert!(!super::tests::rules(&["_*"]).allow("__trunkless_peer"));
    }

    #[test]
    fn functions_cannot_be_listed() {
        for name in [
            "",
            "*",
            "GLOBAL(x)",
            "DB(a/b)",
            "FILE(/etc/x)",
            "CDR()",
            "CDR(a)(b)",
            "CDR(a,b)",
            "a b",
            "${x}",
            "x,y",
            "TRUNKLESS_PEER",
            "CHANNEL(language)",
            "CDR(*",
        ] {
            assert!(name.parse::<VariableName>().is_err(), "{name}");
        }
    }
}
