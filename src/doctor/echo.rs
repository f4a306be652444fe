//! A test call to an extension that echoes: whether RTP flows both ways. Owns a phone, and so its
//! sockets and clock.
//!
//! Asterisk's `Echo()` is silent as long as it hears nothing, so that silence does not show which
//! direction is blocked. It ends at the key `#`: if the PBX hangs up after that key, which is sent
//! by RTP, it hears us.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::{Instant, timeout_at};

use crate::doctor::finding::Finding;
use crate::doctor::tone::{is_tone, tone};
use crate::faults;
use crate::peer::phone::{Heard, Keys, Phone, PhoneCommand, PhoneConfig, PhoneEvent};
use crate::sip::agent::{CallEnd, Route};
use crate::sip::sdp;

/// Time limit for the answer.
const ANSWER: Duration = Duration::from_millis(3500);
/// How long audio is waited for.
const AUDIO: Duration = Duration::from_millis(2500);
/// How long the end of `Echo()` is waited for after the key.
const KEY: Duration = Duration::from_millis(1500);
/// A call takes no longer than this.
pub const LONGEST: Duration = Duration::from_secs(9);
/// This many frames with our tone prove that it came back.
const FRAMES: usize = 10;

/// The call to place.
pub struct Call<'a> {
    pub extension: &'a str,
    pub user: &'a str,
    pub password: Option<SecretString>,
    pub route: &'a Route,
    pub advertised: Option<IpAddr>,
    /// RTP comes to one of these ports, as for real calls.
    pub ports: (u16, u16),
}

/// The course of the call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub extension: String,
    /// Why it could not be placed.
    pub failed: Option<String>,
    pub answered: bool,
    /// The status with which it was refused.
    pub refused: Option<u16>,
    /// The PBX's SDP cannot be used.
    pub unusable: bool,
    pub our_rtp: Option<SocketAddr>,
    /// Where the PBX's SDP wants our RTP.
    pub pbx_rtp: Option<SocketAddr>,
    pub pbx_signalling: Option<SocketAddr>,
    /// Source of the first packet.
    pub from: Option<SocketAddr>,
    pub packets: usize,
    /// Frames with our tone.
    pub echoed: usize,
    /// True if the PBX hung up after the key.
    pub key_ended_it: bool,
}

impl Outcome {
    pub fn is_heard(&self) -> bool {
        self.echoed >= FRAMES
    }
}

/// Places the call, and hangs up.
pub async fn place(call: &Call<'_>) -> Outcome {
    let mut outcome = Outcome {
        extension: call.extension.to_owned(),
        pbx_signalling: Some(call.route.remote),
        ..Outcome::default()
    };
    let mut config = PhoneConfig::new(call.route.local, call.user);
    config.codecs = sdp::all_codecs().to_vec();
    config.password = call.password.clone();
    config.advertised = call.advertised;
    config.rtp_ports = Some(call.ports);
    config.source = Box::new(|index| Some(tone(index)));
    let mut phone = match Phone::start(config).await {
        Ok(phone) => phone,
        Err(error) => {
            outcome.failed = Some(error.to_string());
            return outcome;
        }
    };
    outcome.our_rtp = Some(phone.rtp);
    let uri = format!("sip:{}@{}", call.extension, call.route.remote);
    phone.command(PhoneCommand::Dial { uri, target: call.route.remote });
    if follow(&mut phone, &mut outcome, ANSWER, |outcome| outcome.answered).await {
        return outcome;
    }
    if outcome.answered {
        if follow(&mut phone, &mut outcome, AUDIO, Outcome::is_heard).await {
            return outcome;
        }
        if outcome.packets == 0 {
            phone.command(PhoneCommand::Press('#', Keys::Rtp));
            if follow(&mut phone, &mut outcome, KEY, |_| false).await {
                outcome.key_ended_it = true;
                return outcome;
            }
        }
    }
    phone.command(PhoneCommand::Hangup);
    let _ = follow(&mut phone, &mut outcome.clone(), KEY, |_| false).await;
    outcome
}

/// Takes the phone's events until `done`, the end of the call or this limit. Returns true if the
/// call has ended.
async fn follow(
    phone: &mut Phone,
    outcome: &mut Outcome,
    limit: Duration,
    done: impl Fn(&Outcome) -> bool,
) -> bool {
    let end = Instant::now() + limit;
    while !done(outcome) {
        match timeout_at(end, phone.events.recv()).await {
            Ok(Some(PhoneEvent::Media { rtp })) => outcome.pbx_rtp = Some(rtp),
            Ok(Some(PhoneEvent::Answered { .. })) => outcome.answered = true,
            Ok(Some(PhoneEvent::Heard(heard))) => take(outcome, &heard),
            Ok(Some(PhoneEvent::Ended(end))) => {
                match end {
                    CallEnd::Refused { code, .. } => outcome.refused = Some(code),
                    CallEnd::BadAnswer => outcome.unusable = true,
                    _ => {}
                }
                return true;
            }
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
    false
}

fn take(outcome: &mut Outcome, heard: &Heard) {
    outcome.packets += 1;
    outcome.from.get_or_insert(heard.from);
    outcome.echoed += usize::from(is_tone(&heard.samples));
}

/// Judges a test call.
pub fn judge(step: &str, call: &Outcome) -> Finding {
    let extension = &call.extension;
    if let Some(why) = &call.failed {
        return Finding::fault(step, format!("test call not placed: {why}"), "check [media] ports");
    }
    if call.unusable || matches!(call.refused, Some(415 | 488 | 606)) {
        return Finding::fault(
            step,
            format!("no common codec: the PBX refuses G.711 for the call to {extension}"),
            "allow ulaw or alaw on the endpoint (allow = ulaw)",
        );
    }
    if let Some(code) = call.refused {
        let remedy = match code {
            401 | 407 => "compare username and password with the PBX",
            403 => "check the ACLs, and that the endpoint may place calls",
            404 | 484 => {
                "put the extension into the context of trunkless' own endpoint, which has none by \
                 default: exten => NUMBER,1,Answer() and same => n,Echo()"
            }
            _ => "look at the PBX's own log",
        };
        let what = format!("the PBX refuses the call to {extension} with {code}");
        return Finding::fault(step, what, remedy);
    }
    if !call.answered {
        return Finding::fault(
            step,
            format!("the call to {extension} is not answered"),
            "name an extension that runs Answer() and Echo()",
        );
    }
    judge_audio(step, call)
}

/// Judges an answered call.
fn judge_audio(step: &str, call: &Outcome) -> Finding {
    let address = |of: Option<SocketAddr>| of.map_or("?".to_owned(), |of| of.to_string());
    let (ours, theirs) = (address(call.our_rtp), address(call.pbx_rtp));
    if call.is_heard() {
        return match (call.from, call.pbx_rtp) {
            (Some(from), Some(named)) if from.ip() != named.ip() => Finding::fault(
                step,
                format!("RTP comes from {from}, but the PBX's SDP names {named}: dropped"),
                faults::RTP_FROM_ELSEWHERE_CURE,
            ),
            _ => Finding::ok(step, format!("audio flows both ways ({ours} and {theirs})")),
        };
    }
    if call.packets > 0 {
        return Finding::warning(
            step,
            format!("the PBX sends audio to {ours}, but our tone did not come back"),
            format!(
                "name an extension that runs Echo() without an announcement; if it does, open UDP \
                 from here to {theirs}"
            ),
        );
    }
    if call.key_ended_it {
        return Finding::fault(
            step,
            format!(
                "no RTP from the PBX, which hears ours: firewall? It has to send to {ours} by UDP"
            ),
            "open the UDP ports of [media] ports towards this host; behind NAT set advertised",
        );
    }
    let signalling = call.pbx_signalling.map(|to| to.ip());
    match call.pbx_rtp.filter(|rtp| Some(rtp.ip()) != signalling) {
        Some(rtp) => Finding::fault(
            step,
            format!(
                "the PBX hears nothing: its SDP names {rtp} for audio, but its SIP is at {}",
                address(call.pbx_signalling)
            ),
            "correct external_media_address and local_net (chan_sip: externaddr and localnet)",
        ),
        None => Finding::fault(
            step,
            format!("the PBX hears nothing: {}", faults::RTP_NOT_HEARD)
                .replace("our_rtp", &ours)
                .replace("pbx_rtp", &theirs),
            "open UDP from here to the PBX's RTP range (rtpstart to rtpend in rtp.conf)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    fn answered() -> Outcome {
        Outcome {
            extension: "600".into(),
            answered: true,
            our_rtp: Some(([10, 0, 0, 5], 20_002).into()),
            pbx_rtp: Some(([10, 0, 0, 1], 10_000).into()),
            pbx_signalling: Some(([10, 0, 0, 1], 5060).into()),
            ..Outcome::default()
        }
    }

    #[test]
    fn each_direction_has_its_own_fault() {
        let judge = |outcome: &Outcome| judge("e", outcome);
        let from = Some(SocketAddr::from(([10, 0, 0, 1], 10_000)));
        let good = Outcome { packets: 50, echoed: 40, from, ..answered() };
        assert_eq!(judge(&good).state, State::Ok);
        let deaf = Outcome { key_ended_it: true, ..answered() };
        assert!(judge(&deaf).what.contains("no RTP from the PBX, which hears ours"));
        assert!(judge(&answered()).what.contains("it heard no RTP from us"));
        let wrong = Outcome { pbx_rtp: Some(([203, 0, 113, 1], 10_000).into()), ..answered() };
        assert!(judge(&wrong).what.contains("its SDP names 203.0.113.1:10000"));
        let elsewhere = Outcome { from: Some(([10, 0, 0, 9], 10_000).into()), ..good };
        assert!(judge(&elsewhere).what.contains("RTP comes from 10.0.0.9"));
    }

    #[test]
    fn refusals_have_their_remedies() {
        let judge = |code| {
            let call = Outcome { answered: false, refused: Some(code), ..answered() };
            judge("e", &call)
        };
        assert!(judge(488).what.contains("no common codec"));
        assert!(judge(404).remedy.is_some_and(|r| r.contains("context")));
        assert!(judge(486).is_fault());
    }
}
