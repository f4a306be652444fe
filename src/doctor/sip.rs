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
use crate::doctor::finding::Finding;
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

/// The steps after `dns`; those after a fault are skipped.
const STEPS: [&str; 4] = ["sip", "registration", "device", "address"];

/// Runs the checks, in the order in which they depend on each other.
pub async fn check(pbx: &SipPbx, shared: &Shared, running: Option<&PbxState>) -> Vec<Finding> {
    let mut checks = Checks { pbx, shared, running, findings: Vec::new() };
    if let Some((route, asked)) = checks.reach().await
        && checks.account(&route, &asked)
    {
        checks.address_and_echo(&route, &asked).await;
    }
    checks.findings
}

struct Checks<'a> {
    pbx: &'a SipPbx,
    shared: &'a Shared,
    running: Option<&'a PbxState>,
    findings: Vec<Finding>,
}

impl Checks<'_> {
    fn step(&self, part: &str) -> String {
        format!("pbx.{}.{part}", self.pbx.account.name)
    }

    /// Adds a finding, and skips the other steps behind a fault. Returns true to continue.
    fn add(&mut self, finding: Finding) -> bool {
        let at = STEPS.iter().position(|part| finding.step.ends_with(&format!(".{part}")));
        let is_fault = finding.is_fault();
        self.findings.push(finding);
        if is_fault {
            let rest = STEPS[at.map_or(0, |at| at + 1)..].iter();
            let rest = rest.map(|part| Finding::skipped(self.step(part), "needs the step before"));
            let rest: Vec<Finding> = rest.collect();
            self.findings.extend(rest);
        }
        !is_fault
    }

    /// Finds the address that answers, as trunkless uses it.
    async fn reach(&mut self) -> Option<(Route, Asked)> {
        let found = timeout(LOOKUP, addresses(self.pbx, self.shared.listen.ip())).await;
        let found = found.unwrap_or_else(|_| Err("cannot resolve the PBX's name".to_owned()));
        let mut routes = match found {
            Ok(routes) => routes,
            Err(why) => {
                let remedy = "check the name in registrar or peers, and this host's DNS";
                self.add(Finding::fault(self.step("dns"), why, remedy));
                return None;
            }
        };
        let listed = routes.iter().map(|route| route.remote.to_string()).collect::<Vec<_>>();
        self.add(Finding::ok(self.step("dns"), listed.join(", ")));
        let mut asked = join_all(routes.iter().map(|route| ask(self.pbx, route))).await;
        let best = asked.iter().position(|a| matches!(a.options, Reaction::Answered(_)));
        let best = best.or_else(|| asked.iter().position(Asked::registers)).unwrap_or(0);
        let (asked, route) = (asked.swap_remove(best), routes.swap_remove(best));
        let register = asked.register.as_ref().map(|register| register.reaction);
        let finding = match &asked.failed {
            Some(why) => Finding::fault(
                self.step("sip"),
                format!("nothing can be sent to {}: {why}", route.remote),
                "check this host's routes, and the address of [sip] listen",
            ),
            None => judge_sip::reachable(&self.step("sip"), route.remote, asked.options, register),
        };
        self.add(finding).then_some((route, asked))
    }

    /// Judges the registration and the devices. Returns true to continue.
    fn account(&mut self, route: &Route, asked: &Asked) -> bool {
        let settings = self.pbx.account.registration.as_ref();
        let Some((register, settings)) = asked.register.as_ref().zip(settings) else { return true };
        let step = self.step("registration");
        let finding = match &register.error {
            Some(why) => Finding::fault(
                step,
                format!("registration refused: {why}"),
                "check realm, and allow MD5 or SHA-256 digest on the PBX",
            ),
            None => {
                let (user, to) = (&settings.auth_username, register.reaction);
                judge_sip::registration(&step, user, to, register.rejected)
            }
        };
        if !self.add(finding) {
            return false;
        }
        let port = self.shared.listen.port();
        let own = Own { contact: SocketAddr::new(self.announced(route), port), seen: asked.seen };
        let step = self.step("device");
        let finding = judge_sip::devices(&step, &register.contacts, &own, self.running);
        // the other checks do not depend on it
        self.findings.push(finding);
        true
    }

    fn announced(&self, route: &Route) -> IpAddr {
        self.pbx.account.advertised.unwrap_or(route.local)
    }

    async fn address_and_echo(&mut self, route: &Route, asked: &Asked) {
        let outcome = self.echo(route).await;
        let heard = outcome.as_ref().is_ok_and(echo::Outcome::is_heard);
        let announced = self.announced(route);
        let address = judge_sip::address(&self.step("address"), announced, asked.seen, heard);
        let is_explained = address.is_fault();
        self.findings.push(address);
        let step = self.step("echo");
        self.findings.push(match outcome {
            Err(why) => Finding::skipped(step, format!("no test call: {why}")),
            Ok(outcome) => match echo::judge(&step, &outcome) {
                finding if is_explained && finding.is_fault() => {
                    Finding::skipped(step, "the address above explains why it fails")
                }
                finding => finding,
            },
        });
    }

    /// Places the test call, or returns why there is none.
    async fn echo(&self, route: &Route) -> Result<echo::Outcome, &'static str> {
        let account = &self.pbx.account;
        let extension = self.shared.echo.as_ref().ok_or("--echo EXTENSION places one")?;
        if Instant::now() + echo::LONGEST > self.shared.end {
            return Err("the PBX answers too slowly");
        }
        let settings = account.registration.as_ref();
        if settings.is_some_and(|settings| settings.auth_username != account.username) {
            return Err("not possible with auth_username");
        }
        let call = echo::Call {
            extension,
            user: &account.username,
            password: settings.map(|settings| settings.password.clone()),
            route,
            advertised: account.advertised,
            ports: self.shared.media,
        };
        Ok(echo::place(&call).await)
    }
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
