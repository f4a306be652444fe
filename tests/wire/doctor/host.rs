//! Faults of this host, of the configuration, and of the systems that recordings are sent to.

use std::net::TcpListener;

use crate::bridge::Net;
use crate::doctor::pbx::good;
use crate::doctor::{Case, Wanted, good_ai};
use crate::http::free;
use crate::pbx::Pbx;

async fn case(fault: &'static str) -> (Pbx, Case) {
    let net = Net::new();
    let (pbx, ai) = (good(net).await, good_ai(net).await);
    let case = Case::sip(fault, net, pbx.address, ai);
    (pbx, case)
}

#[tokio::test]
async fn a_placeholder_as_password() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, good_ai(net).await);
    let mut registrar =
        trunkless::peer::registrar::Registrar::new("ai", "CHANGE-ME", "nonce".to_owned());
    pbx.answer_with(move |request| registrar.answer(request));
    let words = &["pbx.main.sip.password is the placeholder of the samples", "choose one"];
    Case::sip("CHANGE-ME on both sides", net, pbx.address, ai)
        .with("[pbx.main.sip]\npassword = \"CHANGE-ME\"")
        .shows(Wanted::fault("configuration", words))
        .await;
}

#[tokio::test]
async fn a_recording_folder_that_cannot_be_written() {
    let (_pbx, case) = case("recording folder not writable").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let more = format!("[recording]\ndirectory = \"{}\"", file.path().display());
    let words = &["calls cannot be recorded", "is not a directory"];
    case.with(more).shows(Wanted::fault("recording.directory", words)).await;
}

#[tokio::test]
async fn a_disk_that_is_not_mounted() {
    let (_pbx, case) = case("recording disk not mounted").await;
    let more = "[recording]\ndirectory = \"/nonexistent/disk/recordings\"";
    let words = &["does not exist", "mount its disk"];
    case.with(more).shows(Wanted::fault("recording.directory", words)).await;
}

#[tokio::test]
async fn a_full_disk() {
    let (_pbx, case) = case("disk full").await;
    let folder = tempfile::tempdir().unwrap();
    let more =
        format!("[recording]\ndirectory = \"{}\"\nkeep_free_percent = 90", folder.path().display());
    let free = rustix::fs::statvfs(folder.path()).unwrap();
    // a disk that is nearly empty cannot show this
    if free.f_bavail * 10 < free.f_blocks * 9 {
        let words = &["of the disk of", "keep_free_percent is 90"];
        case.with(more).shows(Wanted::fault("recording.directory", words)).await;
    }
}

#[tokio::test]
async fn an_upload_folder_that_does_not_exist() {
    let (_pbx, case) = case("upload folder missing").await;
    let folder = tempfile::tempdir().unwrap();
    let more = format!(
        "[recording]\ndirectory = \"{}\"\n[recording.upload]\n\
         url = \"file:///nonexistent/archive\"",
        folder.path().display()
    );
    let words = &["no such folder", "create the folder"];
    case.with(more).shows(Wanted::fault("recording.upload", words)).await;
}

#[tokio::test]
async fn a_store_that_does_not_answer() {
    let (_pbx, case) = case("S3 store down").await;
    let folder = tempfile::tempdir().unwrap();
    let more = format!(
        "[recording]\ndirectory = \"{}\"\n[recording.upload]\nurl = \"s3://calls\"\n\
         endpoint = \"http://{}\"\naccess_key_id = \"a\"\nsecret_access_key = \"b\"",
        folder.path().display(),
        free(case.net.stranger())
    );
    let words = &["s3://calls cannot be used", "check url, endpoint, keys"];
    case.with(more).shows(Wanted::fault("recording.upload", words)).await;
}

#[tokio::test]
async fn a_webhook_that_does_not_answer() {
    let (_pbx, case) = case("webhook server down").await;
    let folder = tempfile::tempdir().unwrap();
    let more = format!(
        "[webhook]\nurl = \"http://{}/hook\"\ndirectory = \"{}\"",
        free(case.net.stranger()),
        folder.path().display()
    );
    let words = &["the webhook's server", "Connection refused"];
    case.with(more).shows(Wanted::fault("webhook", words)).await;
}

#[tokio::test]
async fn a_sip_port_in_use() {
    let (_pbx, case) = case("SIP port taken").await;
    let _other = std::net::UdpSocket::bind((case.net.bridge(), 5060)).unwrap();
    let words = &["cannot listen on 127.", "uses the port", "change [sip] listen"];
    case.shows(Wanted::fault("ports.sip", words)).await;
}

#[tokio::test]
async fn an_http_port_in_use() {
    let (_pbx, case) = case("HTTP port taken").await;
    let other = TcpListener::bind((case.net.bridge(), 0)).unwrap();
    let more = format!("[http]\nlisten = \"{}\"", other.local_addr().unwrap());
    let words = &["uses the port", "change [http] listen"];
    case.with(more).shows(Wanted::fault("ports.http", words)).await;
}

#[tokio::test]
async fn an_address_of_another_host() {
    let net = Net::new();
    let (pbx, ai) = (good(net).await, good_ai(net).await);
    let mut case = Case::ari("RTP and SIP address of another host", net, pbx.address, ai);
    case.plain = Case::sip("", net, pbx.address, ai).plain;
    let words = &["this host does not have the address", "set [sip] listen"];
    let report = case.with("[sip]\nlisten = \"203.0.113.7:5060\"").report().await;
    let found = report.findings.iter().find(|finding| finding.step == "ports.sip").unwrap();
    for words in words {
        assert!(format!("{found:?}").contains(words), "{found:?}");
    }
}

#[tokio::test]
async fn too_few_descriptors() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    // 32,000 calls need 160,500
    if limit.is_none_or(|limit| limit >= 160_500) {
        return;
    }
    let (_pbx, case) = case("too few file descriptors").await;
    let words = &["open file limit is too low for [calls] max", "LimitNOFILE"];
    let wanted = Wanted::fault("descriptors", words);
    case.with("[calls]\nmax = 32000").shows(wanted).await;
}

#[tokio::test]
async fn ports_of_another_program() {
    let (_pbx, case) = case("media ports taken").await;
    let ip = case.net.bridge();
    let taken: Vec<_> =
        (20_002..=20_021).filter_map(|port| std::net::UdpSocket::bind((ip, port)).ok()).collect();
    assert!(taken.len() > 10);
    let words = &["of the UDP ports 20002-20021 in [media] ports are in use", "move [media] ports"];
    let wanted = Wanted::fault("ports.media", words);
    case.with("[media]\nports = \"20002-20021\"\n[calls]\nmax = 5").shows(wanted).await;
}
