//! VICIdial's id of a call, which it sends as the caller's name.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Length of an id.
const LENGTH: usize = 20;
/// Digits of the lead at its end.
const LEAD: usize = 10;

/// The kind of a call, from the first letter of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// The dialler has called the customer.
    Outbound,
    /// The customer has called, or was transferred to an in-group.
    Inbound,
    /// An agent has dialled by hand.
    Manual,
    /// A transfer to a closer.
    Closer,
}

/// The id of a call: `V`, `Y`, `M` or `J`, nine digits of the date and time, ten of the lead.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallId(String);

impl CallId {
    /// Reads the caller's name. Other names are not of calls to a remote agent: VICIdial also sends
    /// `RINGAGENT…`, `DC…` and the names of in-groups.
    pub fn parse(name: &str) -> Option<CallId> {
        let digits = name.strip_prefix(['V', 'Y', 'M', 'J'])?;
        let valid = name.len() == LENGTH && digits.bytes().all(|b| b.is_ascii_digit());
        valid.then(|| CallId(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn kind(&self) -> CallKind {
        match self.0.as_bytes().first() {
            Some(b'V') => CallKind::Outbound,
            Some(b'M') => CallKind::Manual,
            Some(b'J') => CallKind::Closer,
            _ => CallKind::Inbound,
        }
    }

    /// The lead's id, without leading zeros.
    pub fn lead_id(&self) -> &str {
        let digits = &self.0[LENGTH - LEAD..];
        match digits.trim_start_matches('0') {
            "" => "0",
            id => id,
        }
    }
}

impl CallKind {
    /// The word for the AI and in records.
    pub fn word(self) -> &'static str {
        match self {
            CallKind::Outbound => "outbound",
            CallKind::Inbound => "inbound",
            CallKind::Manual => "manual",
            CallKind::Closer => "closer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_strictly() {
        let of = |name| CallId::parse(name).map(|id| (id.kind(), id.lead_id().to_owned()));
        let lead = || "402027".to_owned();
        assert_eq!(of("V1231456150000402027"), Some((CallKind::Outbound, lead())));
        assert_eq!(of("Y1231456150000402027"), Some((CallKind::Inbound, lead())));
        assert_eq!(of("M1231456150000402027"), Some((CallKind::Manual, lead())));
        assert_eq!(of("J1231456150000402027"), Some((CallKind::Closer, lead())));
        assert_eq!(of("V1231456150000000000"), Some((CallKind::Outbound, "0".to_owned())));
        for other in [
            "",
            "V",
            "V123145615000040202",
            "V12314561500004020277",
            "v1231456150000402027",
            "X1231456150000402027",
            "V123145615000040202a",
            "V12314561500004020²7",
            " V1231456150000402027",
            "V1231456150000402027 ",
            "RINGAGENT12345678901",
            "DC231456W000402027W1",
            "Maria Lopez",
        ] {
            assert_eq!(of(other), None, "{other:?}");
        }
    }
}
