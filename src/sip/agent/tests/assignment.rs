//! The account that takes a call, if there are several, and the users that it takes calls to.

use super::rig::{Rig, Text, account, settings};
use crate::sip::agent::{AccountConfig, Event, Input, Route, Routes};

fn extension(username: &str, users: &[&str]) -> AccountConfig {
    let users = users.iter().map(|user| user.parse().unwrap()).collect();
    AccountConfig { users, ..account(username, Some(settings())) }
}

fn trunk(users: &[&str]) -> AccountConfig {
    AccountConfig { registration: None, ..extension("trunkless", users) }
}

/// An agent with these accounts and the address of each.
fn rig(accounts: Vec<(AccountConfig, &str)>) -> Rig {
    let (accounts, addresses): (Vec<_>, Vec<_>) = accounts.into_iter().unzip();
    let registers: Vec<bool> = accounts.iter().map(|a| a.registration.is_some()).collect();
    let mut rig = Rig::of(accounts, 100);
    for (account, address) in addresses.into_iter().enumerate() {
        let route = Route { remote: address.parse().unwrap(), local: [10, 0, 0, 1].into() };
        let (registrar, peers) = match registers[account] {
            true => (vec![route], Vec::new()),
            false => (Vec::new(), vec![route]),
        };
        let routes = Routes { registrar: Ok(registrar), peers };
        rig.input(Input::Resolved { account, routes });
    }
    rig.sent();
    rig.events();
    rig
}

/// The account that takes an INVITE to this user, or the status of the refusal.
fn taken(rig: &mut Rig, from: &str, user: &str, id: u32) -> Result<usize, u16> {
    let invite = Text::invite().uri(&format!("sip:{user}@10.0.0.1")).call_id(&id.to_string());
    rig.feed(from, &invite.render());
    let taken = rig.events().into_iter().find_map(|event| match event {
        Event::Invite(invite) => Some(invite.account),
        _ => None,
    });
    let code = rig.sent().last().and_then(|m| m.code());
    taken.ok_or(code.unwrap_or(0))
}

#[test]
fn an_extension_takes_calls_to_its_users() {
    let mut rig = rig(vec![(extension("ai", &["8010", "80XX", "4930."]), "10.0.0.2:5060")]);
    let table = [("ai", true), ("8010", true), ("8099", true), ("493012", true), ("8100", false)];
    for (n, (user, good)) in table.into_iter().enumerate() {
        let expected = if good { Ok(0) } else { Err(404) };
        assert_eq!(taken(&mut rig, "10.0.0.2:5060", user, n as u32), expected, "{user}");
    }
    let mut any = super::assignment::rig(vec![(extension("ai", &["any"]), "10.0.0.2:5060")]);
    assert_eq!(taken(&mut any, "10.0.0.2:5060", "15551234", 1), Ok(0));
    let mut few = super::assignment::rig(vec![(trunk(&["80XX"]), "10.0.0.2:5060")]);
    assert_eq!(taken(&mut few, "10.0.0.2:5060", "8001", 1), Ok(0));
    assert_eq!(taken(&mut few, "10.0.0.2:5060", "ai", 2), Err(404));
}

#[test]
fn the_port_distinguishes_pbxs_behind_one_address() {
    let (first, second) = ("10.0.0.2:5060", "10.0.0.2:5062");
    for pair in [[extension("ai", &[]), extension("ai", &[])], [trunk(&[]), trunk(&[])]] {
        let [a, b] = pair;
        let mut rig = rig(vec![(a, first), (b, second)]);
        assert_eq!(taken(&mut rig, first, "ai", 1), Ok(0));
        assert_eq!(taken(&mut rig, second, "ai", 2), Ok(1));
        // a connection made by the PBX has any port, but its Via names the PBX's
        let via =
            Text::invite().call_id("3").render().replace("UDP 10.0.0.2:5060", "UDP 10.0.0.2:5062");
        rig.feed("10.0.0.2:40123", &via);
        assert!(rig.events().iter().any(|e| matches!(e, Event::Invite(i) if i.account == 1)));
    }
}

#[test]
fn the_user_decides_where_the_port_does_not() {
    let at = "10.0.0.2:5060";
    let accounts =
        vec![(trunk(&[]), at), (extension("ai", &["80XX"]), at), (extension("8001", &[]), at)];
    let mut rig = rig(accounts);
    for (n, (user, account)) in [("ai", 1), ("8002", 1), ("8001", 2), ("5", 0)].iter().enumerate() {
        assert_eq!(taken(&mut rig, at, user, n as u32), Ok(*account), "{user}");
    }
}

#[test]
fn peers_may_be_ranges() {
    let ranges = ["10.9.0.0/24", "2001:db8::/32"].map(|range| range.parse().unwrap());
    let mut rig = Rig::of(vec![AccountConfig { ranges: ranges.to_vec(), ..trunk(&[]) }], 100);
    for (n, from) in ["10.9.0.77:5060", "[2001:db8::7]:5060"].into_iter().enumerate() {
        let ip = from.parse::<std::net::SocketAddr>().unwrap().ip();
        assert!(rig.agent.knows(ip) && rig.agent.lacks_local_ip(ip));
        rig.agent.set_local_ip(ip, [10, 9, 0, 1].into());
        assert!(!rig.agent.lacks_local_ip(ip));
        assert_eq!(taken(&mut rig, from, "8001", n as u32), Ok(0), "{from}");
    }
    let stranger = "10.9.1.1".parse().unwrap();
    assert!(!rig.agent.knows(stranger) && !rig.agent.lacks_local_ip(stranger));
}

#[test]
fn to_names_the_called_user_where_the_pbx_addresses_the_contact() {
    // the Request-URI, To, and the called user
    let table = [
        ("ai", "8010", "8010"),
        ("ai", "ai", "ai"),
        ("ai", "5550", "ai"),
        ("8011", "8010", "8011"),
    ];
    let called = |account: AccountConfig, uri: &str, to: &str| {
        let mut rig = rig(vec![(account, "10.0.0.2:5060")]);
        let invite = Text::invite().uri(&format!("sip:{uri}@10.0.0.1:5070")).render();
        let invite = invite.replace("To: <sip:ai@", &format!("To: <sip:{to}@"));
        rig.feed("10.0.0.2:5060", &invite);
        let called = |event| match event {
            Event::Invite(invite) => Some(invite.to_user),
            _ => None,
        };
        rig.events().into_iter().find_map(called)
    };
    for (uri, to, user) in table {
        assert_eq!(
            called(extension("ai", &["80XX"]), uri, to).as_deref(),
            Some(user),
            "{uri} {to}"
        );
    }
    assert_eq!(called(extension("ai", &[]), "ai", "8010").as_deref(), Some("ai"));
    assert_eq!(called(trunk(&["any"]), "trunkless", "8010").as_deref(), Some("trunkless"));
}
