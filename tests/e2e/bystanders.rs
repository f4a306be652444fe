//! Calls through Asterisk beside a fault: no call notices it, and neither bridge nor PBX holds
//! anything afterwards. `tests/bystanders/rig` does the comparing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use toml::Table;
use trunkless::peer::phone::PhoneCommand;

use crate::ai::{Ai, Plan};
use crate::fixture::Lab;
use crate::rig::{Bystanders, Dial, Rig, Site, fault_pbx, pass, until};
use crate::{Pbx, block_on};

/// Asterisk reads and writes its packets in turns of 20 ms too.
pub const USUAL: Duration = Duration::from_millis(45);

/// Bystanders in SIP mode.
fn site(lab: &Arc<Lab>) -> Site {
    let (offender, bridge) = (lab.address(4), SocketAddr::new(lab.address(2).into(), 5070));
    let (setup, objects) = (lab.clone(), lab.clone());
    Site {
        config: Box::new(move |ai, fault_ai| {
            format!("{}{}", setup.setup(ai).config(), fault_pbx(offender, fault_ai))
        }),
        ready: "registered pbx=\"main\"",
        dial: Dial {
            from: [127, 0, 9, 1].into(),
            target: lab.asterisk.sip_addr(),
            extension: lab.pbx.extension().to_owned(),
        },
        ai: lab.address(3),
        offender,
        bridge,
        usual: USUAL,
        objects: Some(Box::new(move || {
            let bridges = objects.asterisk.cli("bridge show all");
            let bridges = bridges.lines().filter(|l| l.contains("simple") || l.contains("native"));
            vec![
                format!("{} channels", objects.asterisk.channels()),
                format!("{} bridges", bridges.count()),
            ]
        })),
        pool: None,
        pbx: Some(lab.asterisk.id()),
        log_limit: None,
    }
}

/// Calls from another PBX whose AI resets the connection: right after the handshake, or while audio
/// flows. There are few of them, because the transactions of a call stay in memory for 32 s.
async fn an_ai_that_resets(rig: &Rig) {
    for n in 0..15 {
        let (phone, stream) = rig.fault_call().await;
        if n % 3 > 0 {
            pass(Duration::from_millis(20 * (n % 3))).await;
        }
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
        drop(stream);
        phone.command(PhoneCommand::Hangup);
        pass(Duration::from_millis(10)).await;
    }
}

#[test]
fn no_call_notices_the_resets_of_another_ai() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Arc::new(Lab::start(pbx));
            println!("{pbx:?}");
            Bystanders::new(site(&lab)).repeated().during(an_ai_that_resets).await;
        }
    });
}

/// A second PBX comes, has a call with an AI of its own, and goes while its call is up. In between,
/// the file has a mistake.
#[test]
fn no_call_notices_a_reload() {
    block_on(async {
        for pbx in Pbx::ALL {
            let (lab, other) = (Arc::new(Lab::start(pbx)), Lab::start(pbx));
            let fault = async |rig: &Rig| reload(rig, &other).await;
            println!("{pbx:?}");
            Bystanders::new(site(&lab)).calls(50).during(fault).await;
        }
    });
}

async fn reload(rig: &Rig, other: &Lab) {
    let ai = Ai::start(Plan { say: 25, ..Plan::default() }).await;
    let before = rig.configuration();
    let theirs: Table = other.setup(&ai.url).config().parse().expect("TOML");
    let (code, text) = rig
        .reload(|tables| {
            let mut second = theirs["pbx"]["main"].clone();
            let own = Table::from_iter([("url".to_owned(), ai.url.clone().into())]);
            second.as_table_mut().expect("a PBX").insert("ai".to_owned(), own.into());
            tables["pbx"].as_table_mut().expect("PBXs").insert("second".to_owned(), second);
        })
        .await;
    assert!(code == Some(0) && text.contains("PBX added: second"), "{code:?} {text}");
    let registered = || rig.log().contains("registered pbx=\"second\"");
    assert!(until(Duration::from_secs(5), registered).await, "{}", rig.log());
    let mut caller = other.dial(25).await;
    caller.answered().await;
    let (code, text) = rig.reload_text(&format!("{before}\n[nonsense]\n")).await;
    assert!(code == Some(2) && text.contains("trunkless.toml:"), "{code:?} {text}");
    let (code, text) = rig.reload_text(&before).await;
    assert!(code == Some(0) && text.contains("PBX removed: second"), "{code:?} {text}");
    let gone = || rig.log().contains("unregistered pbx=\"second\"");
    assert!(until(Duration::from_secs(5), gone).await, "{}", rig.log());
    // its call continues, and the PBX has no way to send another
    assert!(caller.until(Duration::from_secs(5), |c| c.heard_last(1000, 25)).await, "cut off");
    assert!(caller.ended.is_none(), "{:?}", caller.ended);
    let mut late = other.dial(0).await;
    assert!(late.until(Duration::from_secs(5), |c| c.ended.is_some()).await, "taken");
    assert!(late.answered.is_none());
    caller.hang_up().await;
}
