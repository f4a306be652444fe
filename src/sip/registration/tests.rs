//! Registration in virtual time, with a registrar scripted by each test.

use super::*;
use crate::testing::start;

const CONTACT: &str = "sip:ai@10.0.0.1:5070";

struct Rig {
    registration: Registration,
    random: Random,
    now: Instant,
}

impl Rig {
    fn new() -> Rig {
        let settings = Settings {
            registrar_uri: "sip:10.0.0.2".into(),
            auth_username: "ai".into(),
            password: "secret".into(),
            realm: None,
            expires_s: 120,
            keepalive: Duration::from_secs(2),
        };
        let mut rig = Rig {
            registration: Registration::new(settings),
            random: Random::new([1; 32]),
            now: start(),
        };
        rig.registration.on_resolved(&mut rig.random);
        rig
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.registration.poll()).collect()
    }

    /// Returns the `Expires` of each REGISTER among the actions, with true if it has credentials.
    fn registers(&mut self) -> Vec<(u32, bool)> {
        let registers = self.actions().into_iter().filter_map(|a| match a {
            Action::Register { expires_s, authorization } => {
                Some((expires_s, authorization.is_some()))
            }
            _ => None,
        });
        registers.collect()
    }

    fn answer(&mut self, code: u16, headers: &[(&str, &str)]) {
        let request = Message::request("REGISTER", "sip:x")
            .with("Via", "SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK1;received=10.0.0.1;rport=5070");
        let mut response = Message::response(&request, code, "", "t");
        for (name, value) in headers {
            response.push(name, *value);
        }
        self.registration.on_response(self.now, &response, CONTACT, &mut self.random);
    }

    fn accept(&mut self) {
        self.answer(200, &[("Contact", "<sip:ai@10.0.0.1:5070>;expires=119"), ("Expires", "120")]);
    }

    fn challenge(&mut self, stale: bool) {
        let value = format!(
            "Digest realm=\"asterisk\",nonce=\"n{}\",qop=\"auth\",stale={stale}",
            self.random.token()
        );
        self.answer(401, &[("WWW-Authenticate", &value)]);
    }

    /// Advances to the next timer and returns the seconds that passed.
    fn step(&mut self) -> f64 {
        let at = self.registration.next_timeout().expect("a timer is running");
        let passed = (at - self.now).as_secs_f64();
        self.now = at;
        self.registration.on_timeout(at, &mut self.random);
        passed
    }

    fn registered() -> Rig {
        let mut rig = Rig::new();
        rig.challenge(false);
        rig.accept();
        rig.actions();
        rig
    }

    fn state(&self) -> State {
        self.registration.state
    }
}

#[test]
fn registers_refreshes_early_and_counts_the_nonce() {
    let mut rig = Rig::new();
    assert_eq!(rig.registers(), [(120, false)]);
    rig.challenge(false);
    assert_eq!(rig.registers(), [(120, true)]);
    rig.accept();
    let changed = Action::Changed(Status::Registered { expires_s: 119 });
    assert!(rig.actions().contains(&changed));
    let State::Registered { refresh } = rig.state() else { panic!() };
    let after = (refresh - rig.now).as_secs_f64();
    assert!((83.0..96.0).contains(&after), "{after}");
    rig.now = refresh;
    rig.registration.options_sent = None;
    rig.registration.on_timeout(refresh, &mut rig.random);
    let header = rig.actions().into_iter().find_map(|a| match a {
        Action::Register { authorization, .. } => authorization,
        _ => None,
    });
    assert!(header.unwrap().1.contains("nc=00000002"));
}

#[test]
fn a_wrong_password_is_tried_twice_then_once_a_minute() {
    let mut rig = Rig::new();
    rig.challenge(false);
    rig.challenge(false);
    assert_eq!(rig.registers().len(), 3);
    rig.challenge(false);
    let actions = rig.actions();
    assert!(matches!(&actions[..], [Action::Changed(Status::Refused { code: 401, .. })]));
    assert!(rig.step() >= 60.0);
    assert_eq!(rig.actions(), [Action::Resolve]);
    // the next cycle reports no change
    rig.registration.on_resolved(&mut rig.random);
    for _ in 0..3 {
        rig.challenge(false);
    }
    assert!(!rig.actions().iter().any(|a| matches!(a, Action::Changed(_))));
}

#[test]
fn a_stale_nonce_is_answered_at_once_but_not_forever() {
    let mut rig = Rig::registered();
    rig.registration.begin(&mut rig.random);
    rig.actions();
    for _ in 0..2 {
        rig.challenge(true);
        assert_eq!(rig.registers(), [(120, true)]);
    }
    rig.challenge(true);
    assert_eq!(rig.registers(), []);
}

#[test]
fn a_423_raises_the_expiry_unless_min_expires_is_unusable() {
    let mut rig = Rig::new();
    rig.actions();
    rig.answer(423, &[("Min-Expires", "300")]);
    assert_eq!(rig.registers(), [(300, false)]);
    for bad in ["4294967295", "x", "-1", "0"] {
        let mut rig = Rig::new();
        rig.answer(423, &[("Min-Expires", bad)]);
        assert!(matches!(rig.state(), State::Waiting { .. }), "{bad}");
    }
}

#[test]
fn errors_back_off_and_retry_after_is_honoured() {
    let mut rig = Rig::new();
    let mut waits = Vec::new();
    for _ in 0..9 {
        rig.answer(500, &[]);
        waits.push(rig.step());
        rig.registration.on_resolved(&mut rig.random);
    }
    assert!(waits[0] < 0.8 && waits[8] >= 30.0 && waits[8] <= 45.0, "{waits:?}");
    rig.answer(503, &[("Retry-After", "100 (busy);duration=3")]);
    assert!((100.0..102.0).contains(&rig.step()));
    rig.registration.on_resolved(&mut rig.random);
    rig.answer(503, &[("Retry-After", "999999")]);
    assert!(rig.step() < 302.0);
}

#[test]
fn a_silent_registrar_is_lost_retried_each_second_and_re_registered() {
    let mut rig = Rig::registered();
    assert_eq!(rig.step(), 2.0);
    assert_eq!(rig.actions(), [Action::Options]);
    assert_eq!(rig.step(), 1.0);
    let lost = Action::Changed(Status::Lost { why: "it does not answer OPTIONS" });
    assert_eq!(rig.actions()[0], lost);
    for _ in 0..3 {
        rig.step();
        assert_eq!(rig.registers().len(), 1);
    }
    rig.challenge(true);
    assert_eq!(rig.registers(), [(0, true)]);
    rig.accept();
    assert_eq!(rig.registers(), [(120, true)]);
    rig.accept();
    assert!(matches!(rig.state(), State::Registered { .. }));
}

#[test]
fn a_closed_port_means_a_register_at_once() {
    let mut rig = Rig::registered();
    rig.registration.on_unreachable(rig.now);
    assert_eq!(rig.step(), 0.0);
    assert_eq!(rig.registers().len(), 1);
}

#[test]
fn a_new_nat_port_means_a_new_registration() {
    let mut rig = Rig::registered();
    let request = Message::request("OPTIONS", "sip:x")
        .with("Via", "SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK1;received=10.0.0.1;rport=6000");
    let response = Message::response(&request, 200, "OK", "t");
    rig.registration.on_options_answered(&response);
    assert_eq!(rig.actions(), [Action::Resolve]);
    rig.registration.on_resolved(&mut rig.random);
    assert_eq!(rig.registers(), [(120, true)]);
}

#[test]
fn another_devices_contact_is_a_conflict_and_not_ours() {
    let mut rig = Rig::new();
    rig.answer(
        200,
        &[("Contact", "<sip:ai@10.0.0.9:5070>;expires=9, <sip:ai@10.0.0.1:5070>;expires=60")],
    );
    let conflict = Action::Changed(Status::Conflict { contact: "sip:ai@10.0.0.9:5070".into() });
    assert!(rig.actions().contains(&conflict));
    let mut rig = Rig::new();
    rig.answer(200, &[("Contact", "<sip:ai@10.0.0.1:5070>;expires=0")]);
    assert!(matches!(rig.state(), State::Waiting { .. }));
}

#[test]
fn unregisters_with_credentials() {
    let mut rig = Rig::registered();
    rig.registration.stop(&mut rig.random);
    assert_eq!(rig.registers(), [(0, true)]);
    rig.challenge(true);
    assert_eq!(rig.registers(), [(0, true)]);
    rig.accept();
    assert!(rig.registration.is_stopped());
}
