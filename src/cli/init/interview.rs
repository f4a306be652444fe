//! From the flags, the questions and what was found to the answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::cli::init::arguments::InitArguments;
use crate::cli::init::look::{self, Pbx};
use crate::cli::init::questions::{Question, Questions};
use crate::config::values::PortRange;
use crate::setup::answers::{
    self, Address, Answers, Driver, Flavour, Humans, Mode, PBX_PASSWORD, Vicidial,
};
use crate::setup::found::{media_ports, version_trap};
use crate::setup::pieces::usual_extension;
use crate::setup::settings::{CALLS, PORTS};
use crate::setup::{probe, sip_probe, write};
use crate::sip::uri::Host;

const SIP_PORT: u16 = 5070;
const HTTP_PORT: u16 = 8071;
/// VICIdial's chan_pjsip listens here.
const VICIDIAL_PJSIP: u16 = 5061;
/// Lines of a remote agent to begin with.
const VICIDIAL_CALLS: usize = 10;
const STAND_IN: &str = "ws://127.0.0.1:8080";

fn ask<'a>(flag: &'a str, text: &'a str) -> Question<'a> {
    Question { flag, text }
}

/// Asks and looks until everything is known. `None` if something is missing or wrong, which is
/// then among the mistakes of `questions`.
pub async fn answers(
    flags: &InitArguments,
    directory: PathBuf,
    questions: &mut Questions,
) -> Option<Answers> {
    let asterisk = &flags.asterisk_directory;
    let here = probe::flavour_here(asterisk);
    let (flavour, mode) = kind(flags, here, questions)?;
    let Some(address) = pbx_address(flags, mode, here.is_some(), questions).await else {
        // whatever else is missing is named at once
        let driver = driver(flags, flavour, mode, &Pbx::default(), questions)?;
        rest(flags, flavour, mode, driver, questions)?;
        return None;
    };
    let local = flags.listen.map(|listen| listen.ip()).filter(|ip| !ip.is_unspecified());
    let mut pbx = match flags.offline {
        true => offline(&address, asterisk),
        false => look::pbx(&address, mode, local, asterisk).await,
    };
    let driver = driver(flags, flavour, mode, &pbx, questions)?;
    if !flags.offline {
        let password = known_password(flags, &directory);
        let username = flags.username.as_deref().unwrap_or("trunkless");
        let login = password.as_deref().filter(|_| mode == Mode::Ari).map(|p| (username, p));
        let port = address.port.filter(|_| mode == Mode::Ari);
        look::ari(&mut pbx, port, mode, driver, login).await;
    }
    if let Some(why) = pbx.version.and_then(|version| version_trap(version, mode, driver)) {
        questions.mistakes.push(why);
        return None;
    }
    let address = with_port(address, flavour, mode, driver, &pbx);
    let rest = rest(flags, flavour, mode, driver, questions)?;
    if !flags.offline {
        look::ai(&rest.ai_url).await;
    }
    let places = places(flags, mode, &pbx, rest.calls, questions)?;
    let tcp = pbx.at(driver).is_some_and(|answer| answer.tcp);
    Some(Answers {
        flavour,
        mode,
        driver,
        pbx: address,
        username: rest.username,
        extension: rest.extension,
        humans: rest.humans,
        phones: rest.phones,
        ai_url: rest.ai_url,
        app: rest.app,
        calls: rest.calls,
        listen: places.listen,
        ports: places.ports,
        http: places.http,
        tcp,
        advertised: flags.advertised.or(pbx.nat()),
        same_host: pbx.ip.filter(|_| pbx.is_here),
        rtp_known: pbx.rtp.is_some(),
        vicidial: rest.vicidial,
        directory,
        asterisk: flags.asterisk_directory.clone(),
    })
}

/// The kind of PBX, and the mode.
fn kind(
    flags: &InitArguments,
    here: Option<Flavour>,
    questions: &mut Questions,
) -> Option<(Flavour, Mode)> {
    let default = here.unwrap_or(Flavour::Asterisk).word();
    let text = "What does the PBX run: asterisk, freepbx or vicidial?";
    let flavour = questions.decide(
        &ask("--flavour", text),
        flags.flavour.as_deref(),
        Some(default),
        str::parse::<Flavour>,
    )?;
    let text = "sip (trunkless registers as an extension) or ari (the dialplan hands calls over, \
                and they can return to it)?";
    let default = if flavour == Flavour::FreePbx { "ari" } else { "sip" };
    let question = ask("--mode", text);
    let mode =
        questions.decide(&question, flags.mode.as_deref(), Some(default), str::parse::<Mode>)?;
    Some((flavour, mode))
}

/// The password in the variable, or of an earlier run.
fn known_password(flags: &InitArguments, directory: &Path) -> Option<String> {
    match &flags.password_env {
        Some(name) => std::env::var(name).ok(),
        None => write::secret(&directory.join(PBX_PASSWORD)),
    }
}

/// Without the network, only this host is looked at.
fn offline(address: &Address, asterisk: &Path) -> Pbx {
    let Host::Ip(ip) = address.host else { return Pbx::default() };
    let is_here = probe::is_own(ip);
    let rtp = probe::rtp_range(asterisk).filter(|_| is_here).and_then(Result::ok);
    Pbx { ip: Some(ip), is_here, rtp, ..Pbx::default() }
}

async fn pbx_address(
    flags: &InitArguments,
    mode: Mode,
    is_here: bool,
    questions: &mut Questions,
) -> Option<Address> {
    let text = match mode {
        Mode::Sip => "The PBX's address, with its SIP port if you know it",
        Mode::Ari => "The PBX's address, with the port of its HTTP server if it is not 8088",
    };
    let mut default = is_here.then(|| Ipv4Addr::LOCALHOST.to_string());
    if is_here && flags.pbx.is_none() && mode == Mode::Sip && !flags.offline {
        // a PBX behind NAT may name its public address for audio to 127.0.0.1
        if let Some(own) = probe::own_address()
            && !sip_probe::ask(own, own, &sip_probe::PORTS).await.is_empty()
        {
            default = Some(own.to_string());
        }
    }
    questions.decide(&ask("--pbx", text), flags.pbx.as_deref(), default.as_deref(), str::parse)
}

fn driver(
    flags: &InitArguments,
    flavour: Flavour,
    mode: Mode,
    pbx: &Pbx,
    questions: &mut Questions,
) -> Option<Driver> {
    let usual = match flavour {
        Flavour::Vicidial => Driver::ChanSip,
        Flavour::Asterisk | Flavour::FreePbx => Driver::Pjsip,
    };
    if mode == Mode::Ari {
        return Some(Driver::Pjsip);
    }
    let given = flags.registrar_driver.as_deref();
    if flavour == Flavour::FreePbx {
        if given == Some(Driver::ChanSip.word()) {
            let why = "--registrar-driver: there are no files for FreePBX with chan_sip; use pjsip";
            questions.mistakes.push(why.to_owned());
        }
        return Some(Driver::Pjsip);
    }
    let found = |driver: Driver| pbx.at(driver).map(|_| driver);
    let other = if usual == Driver::Pjsip { Driver::ChanSip } else { Driver::Pjsip };
    let default = found(usual).or_else(|| found(other)).unwrap_or(usual).word();
    let text = "The channel driver to register with: pjsip or chan_sip?";
    questions.decide(&ask("--registrar-driver", text), given, Some(default), str::parse)
}

/// Adds the port at which the driver answers.
fn with_port(address: Address, flavour: Flavour, mode: Mode, driver: Driver, pbx: &Pbx) -> Address {
    if address.port.is_some() {
        return address;
    }
    let port = match mode {
        Mode::Ari => Some(answers::ARI_PORT),
        Mode::Sip => {
            let vicidial = (flavour, driver) == (Flavour::Vicidial, Driver::Pjsip);
            let usual = if vicidial { VICIDIAL_PJSIP } else { 5060 };
            // a name without a port may have SRV records
            let is_name = matches!(address.host, Host::Name(_)) && !vicidial;
            let usual = (!is_name).then_some(usual);
            pbx.at(driver).map(|answer| answer.port).or(usual)
        }
    };
    Address { port, ..address }
}

/// The answers that depend on nothing that was found.
struct Rest {
    username: String,
    extension: String,
    humans: Humans,
    phones: Option<String>,
    ai_url: String,
    app: String,
    calls: usize,
    vicidial: Option<Vicidial>,
}

fn rest(
    flags: &InitArguments,
    flavour: Flavour,
    mode: Mode,
    driver: Driver,
    questions: &mut Questions,
) -> Option<Rest> {
    let is_vicidial = flavour == Flavour::Vicidial;
    let (text, default) = match (mode, is_vicidial, driver) {
        (Mode::Ari, ..) => ("The ARI user for trunkless", "trunkless"),
        (Mode::Sip, true, Driver::ChanSip) => ("VICIdial's phone for trunkless", "8001"),
        (Mode::Sip, true, Driver::Pjsip) => ("VICIdial's phone for trunkless", "8002"),
        (Mode::Sip, false, _) => ("The name of trunkless' own extension", "ai"),
    };
    let given = flags.username.as_deref();
    let username = questions.decide(&ask("--username", text), given, Some(default), answers::name);
    let usual = usual_extension(flavour, mode, driver);
    let question = ask("--extension", "The number that reaches the AI");
    let given = flags.extension.as_deref();
    let extension = questions.decide(&question, given, Some(usual), answers::extension);
    let humans = humans(flags, flavour, questions);
    let asks = flavour == Flavour::Asterisk;
    let phones = asks.then(|| phones_context(flags, driver, questions));
    let question = ask("--ai-url", "The WebSocket of your AI");
    let given = flags.ai_url.as_deref();
    let ai_url = questions.decide(&question, given, Some(STAND_IN), answers::ai_url);
    let usual = if is_vicidial { VICIDIAL_CALLS } else { CALLS }.to_string();
    let text = match is_vicidial {
        true => "Most calls at once, which is the number of lines of the remote agent",
        false => "Most calls at once",
    };
    let given = flags.calls.as_deref();
    let calls = questions.decide(&ask("--calls", text), given, Some(&usual), answers::calls);
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    if flags.app.is_empty() || flags.app.len() > 64 || !flags.app.bytes().all(good) {
        let why = "is not the name of an application; use up to 64 letters, digits, _ - .";
        questions.mistakes.push(format!("--app: \"{}\" {why}", flags.app));
    }
    let vicidial = is_vicidial.then(|| vicidial(flags, questions));
    Some(Rest {
        username: username?,
        extension: extension?,
        humans: humans?,
        phones: match phones {
            Some(phones) => Some(phones?),
            None => None,
        },
        ai_url: ai_url?,
        app: flags.app.clone(),
        calls: calls?,
        vicidial: match vicidial {
            Some(vicidial) => Some(vicidial?),
            None => None,
        },
    })
}

fn humans(flags: &InitArguments, flavour: Flavour, questions: &mut Questions) -> Option<Humans> {
    let (question, given) = match flavour {
        Flavour::Vicidial => {
            let text = "The in-group of humans, for customers whom the AI cannot take";
            (ask("--in-group", text), &flags.in_group)
        }
        Flavour::FreePbx => {
            let text = "Where callers go when there is no AI: a number that phones dial, or \
                        context,extension,priority";
            (ask("--humans", text), &flags.humans)
        }
        Flavour::Asterisk => {
            let text = "Where callers go when there is no AI: phones (PJSIP/1001&PJSIP/1002), or \
                        context,extension,priority";
            (ask("--humans", text), &flags.humans)
        }
    };
    questions.decide(&question, given.as_deref(), None, |text| Humans::parse(text, flavour))
}

fn phones_context(
    flags: &InitArguments,
    driver: Driver,
    questions: &mut Questions,
) -> Option<String> {
    let command = match driver {
        Driver::Pjsip => "pjsip show endpoint 1001",
        Driver::ChanSip => "sip show peer 1001",
    };
    let text = format!("The context of the phones that may dial the AI (see: {command})");
    let given = flags.phones_context.as_deref();
    questions.decide(&ask("--phones-context", &text), given, None, answers::name)
}

fn vicidial(flags: &InitArguments, questions: &mut Questions) -> Option<Vicidial> {
    let question = ask("--vicidial-url", "VICIdial's web server, such as http://192.0.2.10");
    let url = questions.decide(&question, flags.vicidial_url.as_deref(), None, answers::http_url);
    let user = answers::name(&flags.vicidial_user);
    let user = user.map_err(|why| questions.mistakes.push(format!("--vicidial-user: {why}"))).ok();
    let question = ask("--remote-agent", "User Start of the remote agent");
    let given = flags.remote_agent.as_deref();
    let agent = questions.decide(&question, given, Some("7001"), answers::remote_agent);
    Some(Vicidial { url: url?, user: user?, remote_agent: agent? })
}

/// The addresses and ports on this host.
struct Places {
    listen: SocketAddr,
    ports: (u16, u16),
    http: SocketAddr,
}

fn places(
    flags: &InitArguments,
    mode: Mode,
    pbx: &Pbx,
    calls: usize,
    questions: &mut Questions,
) -> Option<Places> {
    let any: IpAddr = match pbx.ip {
        Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let usual = SocketAddr::new(any, SIP_PORT);
    let listen = flags.listen.or_else(|| match mode {
        Mode::Sip => free_or_moved(usual, true, "--listen", questions),
        Mode::Ari => Some(usual),
    });
    let usual = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HTTP_PORT);
    let http = flags.http.or_else(|| free_or_moved(usual, false, "--http", questions));
    let ports = match &flags.ports {
        Some(ports) => match ports.parse::<PortRange>() {
            Ok(range) => Some((range.first, range.last)),
            Err(why) => {
                questions.mistakes.push(format!("--ports: {why}"));
                None
            }
        },
        None => media_ports(pbx.rtp, calls),
    };
    if ports.is_none() && flags.ports.is_none() {
        questions.mistakes.push(format!(
            "no ports for {calls} calls are left beside Asterisk's RTP range: narrow that in \
             rtp.conf, lower --calls, or give --ports"
        ));
    }
    if let Some(ports) = ports.filter(|ports| *ports != PORTS) {
        errln!("  found: ports {}-{} for audio, outside Asterisk's", ports.0, ports.1);
    }
    Some(Places { listen: listen?, ports: ports?, http: http? })
}

fn free_or_moved(
    usual: SocketAddr,
    udp: bool,
    flag: &str,
    questions: &mut Questions,
) -> Option<SocketAddr> {
    let found = probe::free(usual, udp);
    match found {
        None => questions
            .mistakes
            .push(format!("{flag} is missing: {usual} and the ports after it are in use")),
        Some(found) if found != usual => errln!(
            "  note: {usual} is in use, so {found} is entered; if trunkless itself uses it, give \
             {flag} {usual}"
        ),
        Some(_) => {}
    }
    found
}
