//! The challenges of a server and of the proxies before it. Each asks for credentials of its own,
//! and a request has to carry all of them (RFC 3261 §22.3).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::digest::{Challenge, ChallengeError, Credentials, Session, Signed};
use crate::sip::message::Message;

/// The header fields of a challenge and of its answer.
const FIELDS: [(&str, &str); 2] =
    [("WWW-Authenticate", "Authorization"), ("Proxy-Authenticate", "Proxy-Authorization")];

/// Maximum number of challenges that are answered in one request.
const MAX: usize = 4;

/// The meaning of a 401 or 407 for the credentials that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// None were sent for these challenges, or they answered an old one.
    New,
    /// The nonce has expired.
    Stale,
    /// They are wrong. The number counts such responses since [`Challenges::begin`].
    Rejected(u32),
}

/// An answered challenge.
#[derive(Debug, Clone)]
struct Entry {
    /// Header field of the answer.
    field: &'static str,
    session: Session,
    /// True if the challenge came since [`Challenges::begin`].
    fresh: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Challenges {
    entries: Vec<Entry>,
    rejected: u32,
}

impl Challenges {
    /// Begins a cycle of requests. A challenge from an earlier one may have expired, so that its
    /// rejection does not show that the password is wrong.
    pub fn begin(&mut self) {
        self.rejected = 0;
        self.entries.iter_mut().for_each(|entry| entry.fresh = false);
    }

    /// Takes the challenges of a 401 or 407, of the server and of proxies alike. If `realm` is set,
    /// others are not answered.
    ///
    /// # Errors
    /// Returns an error if there is no challenge that we can answer.
    pub fn take(
        &mut self,
        response: &Message,
        realm: Option<&str>,
    ) -> Result<Verdict, ChallengeError> {
        let (mut verdict, mut error) = (None, ChallengeError::Unsupported);
        for (ask, field) in FIELDS {
            for challenge in strongest(response.all(ask), realm, &mut error) {
                let found = self.entries.iter().position(|entry| {
                    entry.field == field && entry.session.challenge.realm == challenge.realm
                });
                let before = found.map(|at| self.entries.remove(at));
                let one = match before {
                    _ if challenge.stale => Verdict::Stale,
                    Some(entry) if entry.fresh => Verdict::Rejected(self.rejected + 1),
                    _ => Verdict::New,
                };
                verdict = Some(worse(verdict, one));
                if self.entries.len() >= MAX {
                    self.entries.remove(0);
                }
                self.entries.push(Entry { field, session: Session::new(challenge), fresh: true });
            }
        }
        if let Some(Verdict::Rejected(times)) = verdict {
            self.rejected = times;
        }
        verdict.ok_or(error)
    }

    /// Returns the header fields for a request. Each call counts as one use of the nonces.
    pub fn answers(
        &mut self,
        signed: Signed<'_>,
        who: Credentials<'_>,
        cnonce: &str,
    ) -> Vec<(&'static str, String)> {
        let entries = self.entries.iter_mut();
        entries.map(|e| (e.field, e.session.authorize(signed, who, cnonce))).collect()
    }
}

/// Returns the strongest challenge of each realm that we can answer (RFC 8760 §2.3). Sets `error`
/// for one of another realm than `realm`.
fn strongest<'a>(
    values: impl Iterator<Item = &'a str>,
    realm: Option<&str>,
    error: &mut ChallengeError,
) -> Vec<Challenge> {
    let mut best: Vec<Challenge> = Vec::new();
    for challenge in values.filter_map(Challenge::parse) {
        if realm.is_some_and(|realm| realm != challenge.realm) {
            *error = ChallengeError::WrongRealm(challenge.realm);
            continue;
        }
        match best.iter_mut().find(|other| other.realm == challenge.realm) {
            Some(other) if other.algorithm < challenge.algorithm => *other = challenge,
            Some(_) => {}
            None => best.push(challenge),
        }
    }
    best
}

fn worse(before: Option<Verdict>, one: Verdict) -> Verdict {
    match (before, one) {
        (Some(rejected @ Verdict::Rejected(_)), _) => rejected,
        (Some(Verdict::Stale), Verdict::New) => Verdict::Stale,
        (_, one) => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: Signed<'static> = Signed { method: "REGISTER", uri: "sip:pbx", body: "" };
    const WHO: Credentials<'static> = Credentials { username: "ai", password: "secret" };

    fn response(fields: &[(&str, &str)]) -> Message {
        let request = Message::request("REGISTER", "sip:pbx");
        let mut response = Message::response(&request, 401, "Unauthorized", "t");
        fields.iter().for_each(|(name, value)| response.push(name, *value));
        response
    }

    fn answers(challenges: &mut Challenges) -> Vec<(&'static str, String)> {
        challenges.answers(SIGNED, WHO, "c")
    }

    #[test]
    fn picks_the_strongest_challenge_in_any_order() {
        let all = [
            "Basic realm=\"x\"",
            "Digest realm=\"a\", nonce=\"1\", algorithm=SHA-256, qop=\"auth\"",
            "Digest realm=\"a\", nonce=\"2\", algorithm=SHA-512-256, qop=\"auth\"",
            "Digest realm=\"a\", nonce=\"3\", algorithm=MD5",
            "Digest realm=\"a\", nonce=\"4\", algorithm=SHA3",
        ];
        let mut error = ChallengeError::Unsupported;
        let mut best = |values: Vec<&str>, realm| {
            let found = strongest(values.into_iter(), realm, &mut error);
            found.into_iter().map(|c| c.nonce).collect::<Vec<_>>()
        };
        assert_eq!(best(all.to_vec(), None), ["2"]);
        assert_eq!(best(all.iter().rev().copied().collect(), None), ["2"]);
        assert_eq!(best(all[4..].to_vec(), None), [""; 0]);
        assert_eq!(best(all.to_vec(), Some("b")), [""; 0]);
        assert_eq!(error, ChallengeError::WrongRealm("a".into()));
    }

    #[test]
    fn a_proxy_and_a_server_are_both_answered() {
        let proxy = ("Proxy-Authenticate", "Digest realm=\"edge\", nonce=\"p\"");
        let server = ("WWW-Authenticate", "Digest realm=\"pbx\", nonce=\"s\"");
        let fields = |c: &mut Challenges| answers(c).iter().map(|(f, _)| *f).collect::<Vec<_>>();
        let mut challenges = Challenges::default();
        assert_eq!(challenges.take(&response(&[proxy]), None), Ok(Verdict::New));
        assert_eq!(challenges.take(&response(&[server]), None), Ok(Verdict::New));
        assert_eq!(fields(&mut challenges), ["Proxy-Authorization", "Authorization"]);
        assert_eq!(challenges.take(&response(&[server]), None), Ok(Verdict::Rejected(1)));
        assert_eq!(challenges.take(&response(&[server]), None), Ok(Verdict::Rejected(2)));
        challenges.begin();
        assert_eq!(challenges.take(&response(&[server]), None), Ok(Verdict::New));
        let mut challenges = Challenges::default();
        assert_eq!(challenges.take(&response(&[server, proxy]), None), Ok(Verdict::New));
        assert_eq!(answers(&mut challenges).len(), 2, "both in one response of a forking proxy");
        for n in 0..9 {
            let value = format!("Digest realm=\"{n}\", nonce=\"n\"");
            let _ = challenges.take(&response(&[("WWW-Authenticate", &value)]), None);
        }
        assert_eq!(answers(&mut challenges).len(), MAX);
    }
}
