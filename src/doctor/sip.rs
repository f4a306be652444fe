//! The checks of a PBX in SIP mode. Owns sockets, by way of `asking` and `echo`.
//!
//! The registration is checked by a REGISTER without a Contact (RFC 3261 §10.2.3): the PBX checks
//! user and password and lists the registered contacts, and changes none of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use secrecy::ExposeSecret as _;
use tokio::time::{Instant, timeout};

use crate::config::plan::SipPbx;
use crate::doctor::asking::{Client, Reply};
use crate::doctor::echo;
use crate::doctor::finding::{Finding, State};
use crate::doctor::judge_sip::{self, Own, Reaction};
use crate::doctor::running::PbxState;
use crate::sip::agent::Route;
use crate::sip::challenges::{Challenges, Verdict};
use crate::sip::contact::Bindings;
use crate::sip::digest::{Credentials, Signed};
use crate::sip::endpoint::resolve::routes;
use crate::sip::message::Message;
use crate::sip::registration::Settings;
use crate::sip::uri::escape_user;

/// Time limit for DNS.
const LOOKUP: Duration = Duration::from_secs(3);
/// Time limit for OPTIONS.
const OPTIONS: Duration = Duration::from_millis(2200);
/// Time limit for each REGISTER.
const REGISTER: Duration = Duration::from_millis(2200);
/// Most challenges that are answered: those of a registrar and of a proxy, each with a nonce that
/// has expired.
const CHALLENGES: usize = 4;
/// Most addresses of the PBX's names that are asked.
const MAX_ADDRESSES: usize = 8;

/// The parts of the configuration that the checks of all PBXs in SIP mode share.
pub struct Shared {
    /// `[sip] listen`.
    pub listen: SocketAddr,
    /// `[media] ports`.
    pub media: (u16, u16),
    /// The extension that echoes.
    pub echo: Option<String>,
    /// When the run ends.
    pub end: Instant,
}

/// Runs the checks, in the order in which they depend on each other.
pub async fn check(pbx: &SipPbx, shared: &Shared, running: Option<&PbxState>) -> Vec<Finding> {
    let name = &pbx.account.name;
    let step = |part: &str| format!("pbx.{name}.{part}");
    let rest = |parts: &[&str], why: &str| -> Vec<Finding> {
        parts.iter().map(|part| Finding::skipped(step(part), why)).collect()
    };
    let mut findings = Vec::new();
    let found = timeout(LOOKUP, addresses(pbx, shared.listen.ip())).await;
    let found =
        found.unwrap_or_else(|_| Err("cannot resolve the PBX's name: no answer".to_owned()));
    let routes = match found {
        Ok(routes) => routes,
        Err(why) => {
            findings.push(Finding::fault(
                step("dns"),
                why,
                "check the name in registrar or peers, and this host's DNS",
            ));
            findings
                .extend(rest(&["sip", "registration", "device", "address"], "needs an address"));
            return findings;
        }
    };
    let listed = routes.iter().map(|route| route.remote.to_string()).collect::<Vec<_>>();
    findings.push(Finding::ok(step("dns"), listed.join(", ")));
    let mut asked = join_all(routes.iter().map(|route| ask(pbx, route))).await;
    // the first that answers, as trunkless uses it
    let best = asked.iter().position(|a| matches!(a.options, Reaction::Answered(_)));
    let best = best.or_else(|| asked.iter().position(Asked::registers)).unwrap_or(0);
    let asked = asked.swap_remove(best);
    let route = &routes[best];
    let register = asked.register.as_ref().map(|register| register.reaction);
    findings.push(match &asked.failed {
        Some(why) => Finding::fault(
            step("sip"),
            format!("nothing can be sent to {}: {why}", route.remote),
            "check this host's routes, and the address of [sip] listen",
        ),
        None => judge_sip::reachable(&step("sip"), route.remote, asked.options, register),
    });
    if findings.last().is_some_and(Finding::is_fault) {
        findings.extend(rest(&["registration", "device", "address"], "needs SIP"));
        return findings;
    }
    let user = &pbx.account.username;
    let mut echo_password = None;
    if let (Some(register), Some(settings)) = (&asked.register, &pbx.account.registration) {
        findings.push(match &register.error {
            Some(why) => Finding::fault(
                step("registration"),
                format!("registration refused: {why}"),
                "check realm, and allow MD5 or SHA-256 digest on the PBX",
            ),
            None => {
                let (to, rejected) = (register.reaction, register.rejected);
                judge_sip::registration(
                    &step("registration"),
                    &settings.auth_username,
                    to,
                    rejected,
                )
            }
        });
        if findings.last().is_some_and(Finding::is_fault) {
            findings.extend(rest(&["device", "address"], "needs the registration"));
            return findings;
        }
        let announced = pbx.account.advertised.unwrap_or(route.local);
        let own =
            Own { contact: SocketAddr::new(announced, shared.listen.port()), seen: asked.seen };
        findings.push(judge_sip::devices(&step("device"), &register.contacts, &own, running));
        echo_password = Some(settings.password.clone());
    }
    let has_time = Instant::now() + echo::LONGEST < shared.end;
    let echo = match shared.echo.as_ref().filter(|_| has_time) {
        None => None,
        Some(extension) => {
            let call = echo::Call {
                extension,
                user,
                password: echo_password,
                route,
                advertised: pbx.account.advertised,
                ports: shared.media,
            };
            Some(echo::place(&call).await)
        }
    };
    let heard = echo.as_ref().is_some_and(echo::Outcome::is_heard);
    let announced = pbx.account.advertised.unwrap_or(route.local);
    findings.push(judge_sip::address(&step("address"), announced, asked.seen, heard));
    if let Some(outcome) = echo {
        let is_explained = findings.last().is_some_and(Finding::is_fault);
        let finding = echo::judge(&step("echo"), &outcome);
        findings.push(match is_explained && finding.state == State::Fault {
            true => Finding::skipped(step("echo"), "the address above explains why it fails"),
            false => finding,
        });
    } else {
        let why = match has_time {
            true => "no test call: --echo EXTENSION places one",
            false => "no test call: the PBX answers too slowly",
        };
        findings.push(Finding::skipped(step("echo"), why));
    }
    findings
}

/// Returns the routes to the registrar, or to the peers of a trunk.
async fn addresses(pbx: &SipPbx, bound: IpAddr) -> Result<Vec<Route>, String> {
    let registers = pbx.account.registration.is_some();
    // further peers only send calls
    let hosts = if registers { &pbx.hosts[..pbx.hosts.len().min(1)] } else { &pbx.hosts[..] };
    let found =
        join_all(hosts.iter().map(|to| routes(&to.host, to.port, pbx.account.transport, bound)));
    let (mut all, mut error) = (Vec::new(), None);
    for routes in found.await {
        match routes {
            Ok(routes) => all.extend(routes),
            Err(why) => error = Some(why),
        }
    }
    all.truncate(MAX_ADDRESSES);
    match all.is_empty() {
        true => Err(error.unwrap_or_else(|| "the PBX has no address, only ranges".to_owned())),
        false => Ok(all),
    }
}

/// The reactions of one address.
struct Asked {
    options: Reaction,
    register: Option<Registered>,
    /// Our address as the PBX sees it.
    seen: Option<IpAddr>,
    /// The kernel's reason why nothing can be sent.
    failed: Option<String>,
}

impl Asked {
    fn registers(&self) -> bool {
        let reaction = self.register.as_ref().map(|register| register.reaction);
        matches!(reaction, Some(Reaction::Answered(_)))
    }
}

/// The outcome of a REGISTER without a Contact.
struct Registered {
    reaction: Reaction,
    /// True if the last answer was to our credentials.
    rejected: bool,
    /// Why the challenge could not be answered.
    error: Option<String>,
    contacts: Vec<String>,
    seen: Option<IpAddr>,
}

fn reaction(reply: &Reply) -> Reaction {
    match reply {
        Reply::Answer(message) => Reaction::Answered(message.code().unwrap_or(0)),
        Reply::Refused => Reaction::Refused,
        Reply::Silent | Reply::Failed(_) => Reaction::Silent,
    }
}

async fn ask(pbx: &SipPbx, route: &Route) -> Asked {
    let failed = |reply: &Reply| match reply {
        Reply::Failed(why) => Some(why.clone()),
        _ => None,
    };
    let unreachable = |reply: &Reply| {
        let (options, failed) = (reaction(reply), failed(reply));
        Asked { options, register: None, seen: None, failed }
    };
    let mut client = match Client::open(route, pbx.account.transport).await {
        Ok(client) => client,
        Err(reply) => return unreachable(&reply),
    };
    let uri = format!("sip:{}", route.remote);
    let aor = format!("sip:{}@{}", escape_user(&pbx.account.username), route.remote);
    let options = client.request("OPTIONS", &uri, &aor);
    let reply = client.ask(&options, OPTIONS).await;
    let (options, mut seen) = (reaction(&reply), None);
    if let Reply::Answer(message) = &reply {
        seen = judge_sip::seen(message);
    }
    let settings = pbx.account.registration.as_ref();
    let register = match settings.filter(|_| options != Reaction::Refused) {
        None => None,
        Some(settings) => Some(register(&mut client, &pbx.account.username, settings).await),
    };
    let seen = register.as_ref().and_then(|register| register.seen).or(seen);
    Asked { options, register, seen, failed: failed(&reply) }
}

/// Asks for the contacts of our user, with the real credentials. Wrong ones are sent only once, so
/// that a filter such as fail2ban does not block this host.
async fn register(client: &mut Client, user: &str, settings: &Settings) -> Registered {
    let uri = &settings.registrar_uri;
    let host = uri.trim_start_matches("sip:").split(';').next().unwrap_or_default();
    let aor = format!("sip:{}@{host}", escape_user(user));
    let mut challenges = Challenges::default();
    let mut outcome = Registered {
        reaction: Reaction::Silent,
        rejected: false,
        error: None,
        contacts: Vec::new(),
        seen: None,
    };
    challenges.begin();
    for _ in 0..=CHALLENGES {
        let password = settings.password.expose_secret();
        let who = Credentials { username: &settings.auth_username, password };
        let signed = Signed { method: "REGISTER", uri, body: "" };
        let authorization = challenges.answers(signed, who, &client.random.token());
        let mut request = client.request("REGISTER", uri, &aor);
        authorization.into_iter().for_each(|(name, value)| request.push(name, value));
        let reply = client.ask(&request, REGISTER).await;
        outcome.reaction = reaction(&reply);
        let Reply::Answer(message) = reply else { return outcome };
        outcome.seen = judge_sip::seen(&message).or(outcome.seen);
        match message.code().unwrap_or(0) {
            200..300 => {
                outcome.contacts = contacts(&message);
                return outcome;
            }
            401 | 407 => {}
            _ => return outcome,
        }
        match challenges.take(&message, settings.realm.as_deref()) {
            Err(why) => {
                outcome.error = Some(why.to_string());
                return outcome;
            }
            Ok(Verdict::Rejected(_)) => {
                outcome.rejected = true;
                return outcome;
            }
            Ok(Verdict::New | Verdict::Stale) => {}
        }
    }
    outcome.rejected = true;
    outcome
}

fn contacts(response: &Message) -> Vec<String> {
    Bindings::read(response, "", None).uris().map(str::to_owned).collect()
}
