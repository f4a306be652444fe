//! Credentials for requests within calls and for outgoing calls: the answers to the challenges of a
//! PBX and of proxies before it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use secrecy::{ExposeSecret, SecretString};

use crate::sip::agent::{Agent, CallKey};
use crate::sip::challenges::{Challenges, Verdict};
use crate::sip::digest::{Credentials, Signed};
use crate::sip::message::Message;

/// Number of challenges that are answered for one request: a server's and those of proxies before
/// it.
const MAX_ANSWERS: u32 = 4;

/// The credentials for the requests of a call.
pub(super) struct CallAuth {
    user: String,
    password: SecretString,
    /// If set, only challenges for this realm are answered.
    realm: Option<String>,
    /// Number of challenges answered since a request was last accepted.
    answered: u32,
    challenges: Challenges,
}

impl CallAuth {
    pub fn new(user: String, password: SecretString, realm: Option<String>) -> CallAuth {
        CallAuth { user, password, realm, answered: 0, challenges: Challenges::default() }
    }

    /// Notes that a request was accepted.
    pub fn accepted(&mut self) {
        self.answered = 0;
        self.challenges.begin();
    }

    /// Adds the answers to all challenges so far.
    pub fn sign(&mut self, request: &mut Message, cnonce: &str) {
        let body = String::from_utf8_lossy(&request.body);
        let method = request.method().unwrap_or_default();
        let signed = Signed { method, uri: request.uri(), body: &body };
        let who = Credentials { username: &self.user, password: self.password.expose_secret() };
        let answers = self.challenges.answers(signed, who, cnonce);
        answers.into_iter().for_each(|(field, value)| request.push(field, value));
    }
}

impl Agent {
    /// Prepares the answer to a challenge. Returns false if the challenge cannot be answered, or if
    /// two answers have been rejected already.
    pub(super) fn take_challenge(&mut self, key: CallKey, response: &Message) -> bool {
        let Some(call) = self.calls.get_mut(&key) else { return false };
        if call.auth.is_none() {
            // the password is the registrar's; a further peer must not see its hash
            let account = call.account.map(|id| &self.accounts[id]);
            let account = account.filter(|account| {
                let ip = call.flow.remote.ip();
                account.registrar.iter().any(|route| route.remote.ip() == ip)
            });
            let settings = account.and_then(|a| a.registration.as_ref()).map(|r| r.settings());
            call.auth = settings.map(|s| {
                CallAuth::new(s.auth_username.clone(), s.password.clone(), s.realm.clone())
            });
        }
        let Some(auth) = &mut call.auth else { return false };
        auth.answered += 1;
        let verdict = auth.challenges.take(response, auth.realm.as_deref());
        auth.answered <= MAX_ANSWERS && verdict.is_ok_and(|v| !matches!(v, Verdict::Rejected(2..)))
    }
}
