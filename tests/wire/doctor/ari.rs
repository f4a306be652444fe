//! Faults of a PBX in ARI mode.

use std::net::SocketAddr;

use trunkless::doctor::finding::State;

use crate::bridge::Net;
use crate::doctor::asterisk::{Asterisk, Trouble};
use crate::doctor::{Case, Wanted, good_ai};
use crate::http::free;

async fn planted(fault: &'static str, trouble: Trouble, wanted: Wanted) {
    let net = Net::new();
    let (asterisk, ai) = (Asterisk::start(net, trouble).await, good_ai(net).await);
    Case::ari(fault, net, asterisk.address, ai).shows(wanted).await;
    assert!(asterisk.is_clean(), "objects are left on the PBX");
}

#[tokio::test]
async fn without_a_fault_all_steps_pass() {
    let net = Net::new();
    let (asterisk, ai) = (Asterisk::start(net, Trouble::None).await, good_ai(net).await);
    let report = Case::ari("none", net, asterisk.address, ai).report().await;
    assert_eq!(report.result(), State::Ok, "{:#?}", report.findings);
    for step in ["pbx.main.ari", "pbx.main.version", "pbx.main.application", "pbx.main.media"] {
        let found = report.findings.iter().find(|finding| finding.step == step);
        assert_eq!(found.map(|finding| finding.state), Some(State::Ok), "{step}");
    }
    assert!(asterisk.is_clean());
}

#[tokio::test]
async fn a_disabled_http_server() {
    let net = Net::new();
    let ai = good_ai(net).await;
    let words = &["its HTTP server is off", "set enabled = yes and bindaddr in http.conf"];
    Case::ari("http.conf disabled", net, free(net.pbx()), ai)
        .shows(Wanted::fault("pbx.main.ari", words).logged("its HTTP server is off"))
        .await;
}

#[tokio::test]
async fn a_firewall_before_http() {
    let net = Net::new();
    let (pbx, ai) = (DropsSyns::start(net), good_ai(net).await);
    let words = &["no answer within", "firewall"];
    Case::ari("firewall on HTTP", net, pbx.address, ai)
        .shows(Wanted::fault("pbx.main.ari", words).logged("no answer within"))
        .await;
}

/// An address that drops SYNs: its queue of new connections is full.
struct DropsSyns {
    address: SocketAddr,
    _socket: socket2::Socket,
    _queued: Vec<std::net::TcpStream>,
}

impl DropsSyns {
    fn start(net: Net) -> DropsSyns {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(net.pbx(), 0).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let limit = std::time::Duration::from_millis(200);
        let fill = || std::net::TcpStream::connect_timeout(&address, limit).ok();
        let queued = std::iter::from_fn(fill).collect();
        DropsSyns { address, _socket: socket, _queued: queued }
    }
}

#[tokio::test]
async fn a_wrong_password() {
    let words =
        &["refused user \"ai\" or its password (401)", "compare [pbx.NAME.ari] with ari.conf"];
    let wanted = Wanted::fault("pbx.main.ari", words).logged("or its password (401)");
    planted("wrong ARI password", Trouble::Status(401), wanted).await;
}

#[tokio::test]
async fn a_read_only_user() {
    let words = &["no write permission (403)", "set read_only = no"];
    let wanted = Wanted::fault("pbx.main.ari", words).logged("no write permission (403)");
    planted("read-only ARI user", Trouble::ReadOnly, wanted).await;
}

#[tokio::test]
async fn no_ari_at_the_url() {
    let words = &["(404)", "res_ari"];
    let wanted = Wanted::fault("pbx.main.ari", words).logged("no ARI at");
    planted("res_ari not loaded", Trouble::Status(404), wanted).await;
}

#[tokio::test]
async fn an_asterisk_that_starts() {
    let wanted =
        Wanted::fault("pbx.main.ari", &["503", "Asterisk is starting"]).logged("answered 503");
    planted("Asterisk starting", Trouble::Status(503), wanted).await;
}

#[tokio::test]
async fn an_old_version() {
    let words = &["13.38.3 has no external media", "SIP mode"];
    let wanted = Wanted::fault("pbx.main.version", words);
    planted("Asterisk too old", Trouble::Version("13.38.3"), wanted).await;
}

#[tokio::test]
async fn external_media_is_refused() {
    let words = &["external media cannot be created", "answered 500", "chan_rtp"];
    planted("chan_rtp not loaded", Trouble::NoMedia, Wanted::fault("pbx.main.media", words)).await;
}

#[tokio::test]
async fn rtp_from_the_pbx_is_dropped() {
    let words = &["no RTP from the PBX: firewall? It has to send to 127.", "[media] ports"];
    let wanted = Wanted::fault("pbx.main.media", words);
    planted("ARI: RTP from the PBX dropped", Trouble::DropsTheirs, wanted).await;
}

#[tokio::test]
async fn rtp_to_the_pbx_is_dropped() {
    let words = &["it heard no RTP from us", "rtpstart to rtpend"];
    let wanted = Wanted::fault("pbx.main.media", words);
    planted("ARI: RTP to the PBX dropped", Trouble::DropsOurs, wanted).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve() {
    let net = Net::new();
    let (pbx, ai) = ((net.pbx(), 8088).into(), good_ai(net).await);
    Case::ari("ARI host not in the DNS", net, pbx, ai)
        .with("[pbx.main.ari]\nurl = \"http://pbx.invalid:8088\"")
        .shows(Wanted::fault("pbx.main.dns", &["cannot resolve pbx.invalid"]).logged("pbx.invalid"))
        .await;
}

#[tokio::test]
async fn https_against_http() {
    let net = Net::new();
    let (asterisk, ai) = (Asterisk::start(net, Trouble::None).await, good_ai(net).await);
    Case::ari("https:// against http://", net, asterisk.address, ai)
        .with(format!("[pbx.main.ari]\nurl = \"https://{}\"", asterisk.address))
        .shows(Wanted::fault("pbx.main.ari", &["does Asterisk expect http:// there?"]))
        .await;
}

/// A folder with the configuration of an Asterisk on this host.
fn etc(rtp: &str, extensions: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rtp.conf"), rtp).unwrap();
    std::fs::write(folder.path().join("extensions.conf"), extensions).unwrap();
    folder
}

const RANGE: &str = "[general]\nrtpstart = 10000\nrtpend = 12000\n";

async fn with_etc(fault: &'static str, folder: &tempfile::TempDir, more: &str, wanted: Wanted) {
    let net = Net::new();
    let (asterisk, ai) = (Asterisk::start(net, Trouble::None).await, good_ai(net).await);
    let rtp_conf = folder.path().join("rtp.conf");
    let more = format!("{more}\n[pbx.main.ari]\nrtp_conf = \"{}\"\n", rtp_conf.display());
    Case::ari(fault, net, asterisk.address, ai).with(more).shows(wanted).await;
}

#[tokio::test]
async fn another_application_in_the_dialplan() {
    let folder = etc(RANGE, "[a]\nexten => 1,1,Answer()\n same => n,Stasis(aibridge)\n");
    let words = &["application mismatch", "Stasis(aibridge)", "app is \"ai\""];
    let wanted = Wanted::fault("pbx.main.dialplan", words);
    with_etc("app name mismatch", &folder, "", wanted).await;
}

#[tokio::test]
async fn a_dialplan_without_stasis() {
    let folder = etc(RANGE, "[a]\nexten => 1,1,Answer()\n");
    let wanted = Wanted::warning("pbx.main.dialplan", &["calls no Stasis application"]);
    with_etc("dialplan without Stasis()", &folder, "", wanted).await;
}

#[tokio::test]
async fn media_ports_inside_asterisks_range() {
    let folder = etc("#include rtp_additional.conf\n", "[a]\nexten => 1,1,Stasis(ai)\n");
    let included = "[general]\nrtpstart=20000\nrtpend=21000\n";
    std::fs::write(folder.path().join("rtp_additional.conf"), included).unwrap();
    let words = &["media.ports", "overlaps Asterisk's range 20000-21000", "move one"];
    let wanted = Wanted::fault("configuration", words);
    with_etc("media ports inside Asterisk's range", &folder, "", wanted).await;
}

#[tokio::test]
async fn more_calls_than_asterisk_has_ports() {
    let narrow = "[general]\nrtpstart = 10000\nrtpend = 10099\n";
    let folder = etc(narrow, "[a]\nexten => 1,1,Stasis(ai)\n");
    let words = &["max_media is 200", "Asterisk crashes", "lower max_media to 25"];
    let wanted = Wanted::fault("pbx.main.rtp_range", words).logged("max_media is too high");
    with_etc("max_media above the RTP range", &folder, "", wanted).await;
}
