//! Reloads under calls: the PBX changes in place, and is removed and added again.

use std::sync::Arc;

use super::{CALLER, OPEN, SECOND, rest, site, start};
use crate::block_on;
use crate::caller::Caller;
use crate::rig::{Bystanders, Rig, until};

/// Other settings of the PBX, a wrong password, a file with a mistake, and everything as before.
async fn reloads(rig: &Rig) {
    let before = rig.configuration();
    let with = async |keys: &[(&str, toml::Value)]| {
        let change = |tables: &mut toml::Table| {
            let ari = tables["pbx"]["main"]["ari"].as_table_mut().expect("the PBX");
            ari.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        };
        let (code, text) = rig.reload(change).await;
        assert_eq!(code, Some(0), "{text}");
        text
    };
    let text = with(&[("variables", vec!["lead_id"].into()), ("max_media", 90.into())]).await;
    assert!(text.contains("changed: pbx.main.ari.max_media"), "{text}");
    with(&[("password", "wrong".into())]).await;
    let refused = || rig.log().contains("ARI does not accept the new credentials");
    assert!(until(5 * SECOND, refused).await, "{}", rig.log());
    let (code, text) = rig.reload_text(&format!("{before}\n[nonsense]\n")).await;
    assert!(code == Some(2) && text.contains("trunkless.toml:"), "{code:?} {text}");
    let (code, text) = rig.reload_text(&before).await;
    assert_eq!(code, Some(0), "{text}");
}

/// The calls continue while their PBX is not in the configuration, and end cleanly when it is back.
async fn leaves(rig: &Rig, target: std::net::SocketAddr) {
    let before = rig.configuration();
    let (code, text) = rig.reload(|t| drop(t["pbx"].as_table_mut().unwrap().remove("main"))).await;
    assert!(code == Some(0) && text.contains("PBX removed: main"), "{code:?} {text}");
    // a new caller continues in the dialplan
    let mut caller = Caller::dial(CALLER, target, "8010", 99, 0).await;
    caller.answered().await;
    assert!(caller.until(5 * SECOND, super::hears_the_tone).await, "{}", rig.log());
    caller.hang_up().await;
    let (code, text) = rig.reload_text(&before).await;
    assert!(code == Some(0) && text.contains("PBX added: main"), "{code:?} {text}");
    // the client has not gone, and takes calls again
    assert_eq!(rig.log().matches(OPEN).count(), 1, "{}", rig.log());
    let answered = || rig.log().matches("call answered").count();
    let calls = answered();
    let mut caller = Caller::dial(CALLER, target, "8010", 98, 0).await;
    caller.answered().await;
    assert!(until(5 * SECOND, || answered() > calls).await, "{}", rig.log());
    caller.hang_up().await;
}

#[test]
fn no_call_notices_a_reload() {
    block_on(async {
        for (version, n) in [(16, 143), (22, 144)] {
            let asterisk = Arc::new(start(version, n));
            let fault = async |rig: &Rig| reloads(rig).await;
            println!("{version}");
            Bystanders::new(site(&asterisk, n)).calls(50).during(fault).await;
            assert!(rest::channels(&asterisk).is_empty());
        }
    });
}

#[test]
fn calls_outlive_the_removal_of_their_pbx() {
    block_on(async {
        for (version, n) in [(16, 145), (22, 146)] {
            let asterisk = Arc::new(start(version, n));
            let target = asterisk.sip_addr();
            let fault = async |rig: &Rig| leaves(rig, target).await;
            println!("{version}");
            Bystanders::new(site(&asterisk, n)).during(fault).await;
        }
    });
}
