//! Registration in virtual time, with a registrar scripted by each test.

use super::*;
use crate::testing::start;

/// Stands for the missing `Expires` of a query.
const QUERY: u32 = 77_777;
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
        rig.registration.on_resolved(rig.now, &mut rig.random);
        rig
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.registration.poll()).collect()
    }

    /// Returns the `Expires` of each REGISTER among the actions, with true if it has credentials.
    fn registers(&mut self) -> Vec<(u32, bool)> {
        let registers = self.actions().into_iter().filter_map(|a| match a {
            Action::Register { expires_s, authorization } => {
                Some((expires_s.unwrap_or(QUERY), !authorization.is_empty()))
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
        Action::Register { authorization, .. } => Some(authorization),
        _ => None,
    });
    assert!(header.unwrap()[0].1.contains("nc=00000002"));
}

#[test]
fn a_wrong_password_is_tried_twice_then_once_a_minute() {
    let mut rig = Rig::new();
    rig.challenge(false);
    rig.challenge(false);
    assert_eq!(rig.registers().len(), 3);
    rig.challenge(false);
    let actions = rig.actions();
    let refused = |a: &Action| matches!(a, Action::Changed(Status::Refused { code: 401, .. }));
    assert!(actions.iter().any(refused) && actions.contains(&Action::NextAddress));
    assert!(rig.step() >= 60.0);
    assert_eq!(rig.actions(), [Action::Resolve]);
    // the next cycle reports the longer pause
    rig.registration.on_resolved(rig.now, &mut rig.random);
    for _ in 0..3 {
        rig.challenge(false);
    }
    let longer = |a: &Action| match a {
        Action::Changed(Status::Refused { retry, .. }) => retry.as_secs() == 180,
        _ => false,
    };
    assert!(rig.actions().iter().any(longer));
}

#[test]
fn a_stale_nonce_is_answered_at_once_but_not_forever() {
    let mut rig = Rig::registered();
    rig.registration.ask(rig.now, Step::Add, &mut rig.random);
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
fn errors_are_retried_within_two_seconds_and_less_often_after_minutes() {
    let mut rig = Rig::new();
    let mut waits = Vec::new();
    for _ in 0..160 {
        rig.answer(500, &[]);
        waits.push(rig.step());
        rig.registration.on_resolved(rig.now, &mut rig.random);
    }
    assert!(waits[0] < 0.7 && waits[3..150].iter().all(|w| (1.5..2.0).contains(w)), "{waits:?}");
    assert!((30.0..40.0).contains(&waits[159]), "{waits:?}");
    rig.answer(503, &[("Retry-After", "100 (busy);duration=3")]);
    assert!((100.0..102.0).contains(&rig.step()));
    rig.registration.on_resolved(rig.now, &mut rig.random);
    rig.answer(503, &[("Retry-After", "999999")]);
    assert!(rig.step() < 302.0);
}

/// Runs for an hour and returns when the registrar refused credentials or a user. `refuse` answers
/// a REGISTER, given whether it has credentials, and returns true if that was a refusal.
fn refusals(mut rig: Rig, refuse: impl Fn(&mut Rig, bool) -> bool) -> Vec<f64> {
    let begin = rig.now;
    let mut times = Vec::new();
    while (rig.now - begin).as_secs() < 3600 {
        let actions = rig.actions();
        if actions.is_empty() {
            rig.step();
        }
        for action in actions {
            match action {
                Action::Register { authorization, .. } => {
                    let refused = refuse(&mut rig, !authorization.is_empty());
                    times.extend(refused.then(|| (rig.now - begin).as_secs_f64()));
                }
                Action::Resolve => rig.registration.on_resolved(rig.now, &mut rig.random),
                _ => {}
            }
        }
    }
    times
}

/// fail2ban blocks an address after five refusals within ten minutes.
#[test]
fn refusals_never_come_often_enough_for_fail2ban() {
    let password = |rig: &mut Rig, signed: bool| {
        rig.challenge(false);
        signed
    };
    let refused = |code: u16| {
        move |rig: &mut Rig, _| {
            rig.answer(code, &[]);
            true
        }
    };
    let after_password = |rig: &mut Rig, signed: bool| {
        match signed {
            true => rig.answer(403, &[]),
            false => rig.challenge(false),
        }
        signed
    };
    let lost = || {
        let mut rig = Rig::registered();
        rig.registration.on_unreachable(rig.now, false, true);
        rig
    };
    let refreshing = || {
        let mut rig = Rig::registered();
        rig.registration.ask(rig.now, Step::Add, &mut rig.random);
        rig
    };
    for rig in [Rig::new as fn() -> Rig, lost, refreshing] {
        let mut all = vec![refusals(rig(), password), refusals(rig(), after_password)];
        for code in [400, 401, 403, 404, 407, 488, 600, 603] {
            all.push(refusals(rig(), refused(code)));
        }
        for times in all {
            let worst = times
                .iter()
                .map(|from| times.iter().filter(|at| (*from..*from + 600.0).contains(*at)).count());
            let worst = worst.max().unwrap();
            assert!((1..=4).contains(&worst), "{times:?}");
            assert!(times.len() >= 5 && times.last().unwrap() > &1500.0, "{times:?}");
        }
    }
}

#[test]
fn a_refusal_while_the_pbx_starts_is_retried_after_two_seconds() {
    let mut rig = Rig::registered();
    rig.registration.on_unreachable(rig.now, false, true);
    rig.step();
    rig.answer(403, &[]);
    rig.actions();
    assert!(rig.step() <= 2.0);
    assert_eq!(rig.registers().len(), 1);
    rig.accept();
    rig.accept();
    rig.accept();
    assert!(matches!(rig.state(), State::Registered { .. }));
}

#[test]
fn a_registrar_that_takes_31_seconds_to_answer_is_registered_with() {
    let mut rig = Rig::new();
    rig.actions();
    let mut asked = 0;
    for _ in 0..31 {
        rig.step();
        asked += rig.registers().len();
    }
    assert!((25..=31).contains(&asked), "{asked}");
    rig.challenge(false);
    assert_eq!(rig.registers(), [(120, true)]);
    for _ in 0..31 {
        rig.step();
    }
    rig.actions();
    rig.accept();
    let registered = Action::Changed(Status::Registered { expires_s: 119 });
    assert_eq!(rig.actions(), [registered]);
}

#[test]
fn provisional_responses_show_that_an_address_is_not_silent() {
    let mut rig = Rig::new();
    for _ in 0..5 {
        rig.actions();
        rig.now += Duration::from_millis(2900);
        rig.answer(100, &[]);
    }
    assert_eq!(rig.actions(), []);
    assert!((rig.step() - 3.0).abs() < 0.01);
    assert!(rig.actions().contains(&Action::Silent));
}

#[test]
fn a_silent_registrar_is_lost_retried_each_second_and_re_registered() {
    let mut rig = Rig::registered();
    assert_eq!(rig.step(), 2.0);
    assert_eq!(rig.actions(), [Action::Options]);
    assert_eq!(rig.step(), 1.0);
    let lost = Action::Changed(Status::Lost { why: "it does not answer OPTIONS", gone: false });
    let actions = rig.actions();
    assert_eq!(actions[0], lost);
    assert!(matches!(actions[1], Action::Register { .. }), "at once");
    for n in 1..=6 {
        let at = rig.now;
        assert_eq!(rig.step(), 1.0);
        let actions = rig.actions();
        assert!(matches!(actions.last(), Some(Action::Register { .. })), "{actions:?}");
        // after three that were not answered
        assert_eq!(actions.contains(&Action::Silent), n % 3 == 0, "{n}: {:?}", rig.now - at);
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
    rig.registration.on_unreachable(rig.now, false, true);
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
    rig.registration.on_resolved(rig.now, &mut rig.random);
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

/// Advances to the refresh and returns the REGISTER that is sent.
fn refresh(rig: &mut Rig) -> Vec<(u32, bool)> {
    rig.actions();
    rig.registration.stop_keepalive();
    rig.step();
    rig.registers()
}

#[test]
fn a_contact_that_was_replaced_is_a_conflict_until_it_no_longer_is() {
    let mut rig = Rig::registered();
    assert_eq!(refresh(&mut rig), [(QUERY, true)]);
    rig.answer(200, &[("Contact", "<sip:ai@10.0.0.9:5070>;expires=9")]);
    assert_eq!(rig.registers(), [(120, true)]);
    rig.accept();
    let conflict = Action::Changed(Status::Conflict { contact: "sip:ai@10.0.0.9:5070".into() });
    assert_eq!(rig.actions(), [conflict]);
    assert!(rig.registration.is_registered());
    refresh(&mut rig);
    rig.answer(200, &[("Contact", "<sip:ai@10.0.0.9:5070>;expires=9")]);
    rig.accept();
    assert!(!rig.actions().iter().any(|a| matches!(a, Action::Changed(_))), "reported once");
    refresh(&mut rig);
    rig.accept();
    rig.accept();
    assert!(rig.actions().contains(&Action::Changed(Status::Registered { expires_s: 119 })));
}

#[test]
fn a_registrar_that_does_not_answer_queries_is_refreshed_all_the_same() {
    for code in [0, 400, 403, 500] {
        let mut rig = Rig::registered();
        assert_eq!(refresh(&mut rig), [(QUERY, true)]);
        match code {
            0 => assert!(rig.step() <= 3.0),
            code => rig.answer(code, &[]),
        }
        let actions = rig.actions();
        assert!(!actions.contains(&Action::Silent), "{code}");
        assert!(matches!(actions[..], [Action::Register { expires_s: Some(120), .. }]), "{code}");
        rig.accept();
        assert_eq!(refresh(&mut rig), [(120, true)], "{code}: not asked again");
    }
    let mut rig = Rig::registered();
    refresh(&mut rig);
    rig.answer(200, &[]);
    rig.accept();
    assert!(!rig.actions().iter().any(|a| matches!(a, Action::Changed(_))), "an empty list");
}

#[test]
fn unregisters_with_credentials() {
    let mut rig = Rig::registered();
    rig.registration.stop(rig.now, &mut rig.random);
    assert_eq!(rig.registers(), [(0, true)]);
    rig.challenge(true);
    assert_eq!(rig.registers(), [(0, true)]);
    rig.accept();
    assert!(rig.registration.is_stopped());
}
