//! One call from the PBX to the bridge: raw SIP text, and RTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use trunkless::sip::message::Message;

use crate::media::{Media, Talker};
use crate::pbx::{Shared, Wire, take};

/// The call number in the caller's numbered audio.
pub const CALLER: u32 = 1;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// An SDP with one audio stream at `address`; `formats` is written as in the m= line.
pub fn sdp(address: SocketAddr, formats: &str, direction: &str) -> String {
    let (ip, port) = (address.ip(), address.port());
    let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
    let names = [("0", "PCMU"), ("8", "PCMA"), ("101", "telephone-event")];
    let offered = names.iter().filter(|(pt, _)| formats.split(' ').any(|f| f == *pt));
    let maps: String = offered.map(|(pt, n)| format!("a=rtpmap:{pt} {n}/8000\r\n")).collect();
    format!(
        "v=0\r\no=- 1 1 IN {family} {ip}\r\ns=pbx\r\nc=IN {family} {ip}\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP {formats}\r\n{maps}a=ptime:20\r\na={direction}\r\n"
    )
}

/// The media address in an SDP.
pub fn media_address(sdp: &[u8]) -> SocketAddr {
    let text = std::str::from_utf8(sdp).unwrap();
    let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).expect(name);
    let ip = value("c=IN ").split(' ').nth(1).unwrap().parse().unwrap();
    let port = value("m=audio ").split(' ').next().unwrap().parse().unwrap();
    SocketAddr::new(ip, port)
}

/// One call from the PBX to the bridge.
pub struct Call {
    wire: Wire,
    shared: Arc<Shared>,
    pub bridge: SocketAddr,
    /// The PBX's SIP address.
    local: SocketAddr,
    pub id: String,
    /// The PBX's tag.
    tag: String,
    /// The bridge's tag; empty until known.
    pub to_tag: String,
    /// The Request-URI: the bridge's Contact, once known.
    pub target: String,
    /// CSeq number of the last request.
    pub cseq: u32,
    /// Via branch of the last INVITE; its CANCEL and the ACK of a refusal repeat it.
    invite_branch: String,
    /// Extra header lines of the INVITE.
    pub headers: String,
    /// A text in each request and its replacement.
    pub replace: Option<(String, String)>,
    /// SDP of the INVITE; without it, the bridge makes the offer.
    pub offer: Option<String>,
    /// The bridge's RTP address, once the call is answered.
    pub rtp: Option<SocketAddr>,
    pub talker: Talker,
    pub media: Media,
}

impl Call {
    pub async fn new(
        wire: Wire,
        shared: Arc<Shared>,
        local: SocketAddr,
        bridge: SocketAddr,
    ) -> Call {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let media = Media::open(local.ip()).await;
        Call {
            wire,
            shared,
            bridge,
            local,
            id: format!("call-{number}-{}@pbx", std::process::id()),
            tag: format!("tag{number}"),
            to_tag: String::new(),
            target: format!("sip:ai@{bridge}"),
            cseq: 0,
            invite_branch: String::new(),
            headers: String::new(),
            replace: None,
            offer: Some(sdp(media.address(), "0 8 101", "sendrecv")),
            rtp: None,
            talker: Talker::new(number),
            media,
        }
    }

    /// Takes on the identity of another call in order to forge requests in it.
    pub fn take_names(&mut self, of: &Call) {
        self.id = of.id.clone();
        self.tag = of.tag.clone();
        self.to_tag = of.to_tag.clone();
        self.target = of.target.clone();
        self.cseq = of.cseq + 10;
    }

    /// Takes on the identity of the call that the bridge began with `invite`, which the PBX has
    /// answered with this tag.
    pub fn take_answered(&mut self, invite: &Message, tag: &str) {
        self.id = invite.call_id().to_owned();
        tag.clone_into(&mut self.tag);
        self.to_tag = invite.from().unwrap().tag().unwrap().to_owned();
        self.target = invite.contact().unwrap().uri;
        self.rtp = Some(media_address(&invite.body));
    }

    /// The text of a request in this dialog.
    fn text(&self, method: &str, cseq: u32, branch: &str, headers: &str, body: &str) -> String {
        let (local, wire, id) = (self.local, self.wire.name(), &self.id);
        let (ip, tag, target, bridge) = (local.ip(), &self.tag, &self.target, self.bridge);
        let host = if ip.is_ipv4() { ip.to_string() } else { format!("[{ip}]") };
        let to_tag = match self.to_tag.as_str() {
            "" => String::new(),
            tag => format!(";tag={tag}"),
        };
        let kind = match body {
            "" => "",
            _ if headers.contains("Content-Type") => "",
            _ => "Content-Type: application/sdp\r\n",
        };
        let text = format!(
            "{method} {target} SIP/2.0\r\n\
             Via: SIP/2.0/{wire} {local};branch={branch};rport\r\n\
             Max-Forwards: 70\r\n\
             From: \"Alice\" <sip:5550100@{host}>;tag={tag}\r\n\
             To: <sip:ai@{bridge}>{to_tag}\r\n\
             Call-ID: {id}\r\n\
             CSeq: {cseq} {method}\r\n\
             Contact: <sip:pbx@{local}>\r\n\
             Allow: INVITE, ACK, CANCEL, OPTIONS, BYE, INFO, UPDATE\r\n\
             Supported: timer, replaces\r\n\
             {headers}{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let replaced = self.replace.as_ref().map(|(old, new)| text.replace(old, new));
        replaced.unwrap_or(text)
    }

    fn new_branch() -> String {
        format!("z9hG4bK{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a request in the dialog without waiting for the answer; returns its CSeq number.
    pub async fn send(&mut self, method: &str, headers: &str, body: &str) -> u32 {
        self.cseq += 1;
        let branch = Call::new_branch();
        let text = self.text(method, self.cseq, &branch, headers, body);
        if method == "INVITE" {
            self.invite_branch = branch;
        }
        self.wire.send(self.bridge, text.as_bytes()).await;
        self.cseq
    }

    /// Sends a request and waits for its final answer.
    pub async fn request(&mut self, method: &str, headers: &str, body: &str) -> Message {
        let cseq = self.send(method, headers, body).await;
        self.response(cseq, method, 200).await
    }

    /// Waits for the answer to request `cseq` with a status of at least `code`.
    pub async fn response(&self, cseq: u32, method: &str, code: u16) -> Message {
        let ours = |m: &Message| {
            m.code().is_some_and(|c| c >= code)
                && m.call_id() == self.id
                && m.cseq() == Some((cseq, method))
        };
        let what = format!("an answer to {method}");
        self.shared.inbox.wait(&what, |inbox| take(inbox, ours)).await
    }

    /// Sends the INVITE.
    pub async fn invite(&mut self) {
        let (headers, offer) = (self.headers.clone(), self.offer.clone().unwrap_or_default());
        self.send("INVITE", &headers, &offer).await;
    }

    /// Waits for the 200, takes tag, target and RTP address from it, and acknowledges it.
    pub async fn answered(&mut self) -> Message {
        let response = self.answered_without_ack().await;
        self.ack("").await;
        response
    }

    pub async fn answered_without_ack(&mut self) -> Message {
        let response = self.response(self.cseq, "INVITE", 200).await;
        assert_eq!(response.code(), Some(200), "{response:?}");
        self.to_tag = response.to().unwrap().tag().unwrap().to_owned();
        self.target = response.contact().unwrap().uri;
        self.rtp = Some(media_address(&response.body));
        response
    }

    /// Sends the ACK of a 200, which is a separate request with a new branch.
    pub async fn ack(&mut self, body: &str) {
        let text = self.text("ACK", self.cseq, &Call::new_branch(), "", body);
        self.wire.send(self.bridge, text.as_bytes()).await;
    }

    /// Waits for a refusal and acknowledges it.
    pub async fn refused(&mut self) -> Message {
        let response = self.response(self.cseq, "INVITE", 200).await;
        assert!(response.code() >= Some(300), "{response:?}");
        let before = std::mem::take(&mut self.to_tag);
        self.to_tag = response.to().unwrap().tag().unwrap().to_owned();
        let text = self.text("ACK", self.cseq, &self.invite_branch, "", "");
        self.to_tag = before;
        self.wire.send(self.bridge, text.as_bytes()).await;
        response
    }

    /// Sends a re-INVITE, which must be accepted; returns the 200.
    pub async fn reinvite(&mut self, headers: &str, sdp: &str) -> Message {
        self.send("INVITE", headers, sdp).await;
        self.answered().await
    }

    pub async fn cancel(&mut self) {
        let text = self.text("CANCEL", self.cseq, &self.invite_branch, "", "");
        self.wire.send(self.bridge, text.as_bytes()).await;
    }

    /// The caller hangs up.
    pub async fn bye(&mut self) {
        let response = self.request("BYE", "", "").await;
        assert_eq!(response.code(), Some(200), "{response:?}");
    }

    /// Waits for the bridge's BYE, which the PBX has answered, and returns its Reason.
    pub async fn hung_up(&self) -> String {
        let ours = |m: &Message| m.method() == Some("BYE") && m.call_id() == self.id;
        let bye = self.shared.inbox.wait("BYE", |inbox| take(inbox, ours)).await;
        bye.get("Reason").unwrap_or("none").to_owned()
    }

    /// Removes the messages of this call that no test took out. With many calls, each wait for
    /// a message would look at all of them.
    pub fn forget(&self) {
        self.shared.inbox.look(|inbox| inbox.retain(|message| message.call_id() != self.id));
    }

    /// Sends frames `frames` of numbered audio to the bridge.
    pub async fn say(&mut self, frames: std::ops::Range<u32>) {
        let to = self.rtp.expect("the call is answered");
        self.media.say(to, &mut self.talker, CALLER, frames).await;
    }

    /// Sends an RTP packet to the bridge.
    pub async fn send_rtp(&self, packet: &[u8]) {
        self.media.send(self.rtp.expect("the call is answered"), packet).await;
    }
}
