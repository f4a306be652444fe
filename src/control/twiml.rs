//! The part of TwiML that a call can be redirected with
//! (<https://www.twilio.com/docs/voice/twiml>): `Dial`, `Play digits`, `Pause`, `Hangup`, `Reject`,
//! `Enqueue` and `Connect Stream`. The rest is refused with a reason.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use roxmltree::{Document, Node};

use crate::command::{Cause, Digits, OnFail, PAUSE, Redirect, Then, Transfer, TransferKind};

/// How long a target rings, unless `timeout` says otherwise. Twilio's default.
const RING: Duration = Duration::from_secs(30);
/// The longest time that a target may ring: Twilio's limit.
const MAX_RING: u64 = 600;
/// The longest `Pause`, in seconds.
const MAX_PAUSE: usize = 30;
/// The longest document.
pub const MAX_BYTES: usize = 16 * 1024;

/// An element: its name, its attributes, its children, and true if it may have text.
type Form = (&'static str, &'static [&'static str], &'static [&'static str], bool);

/// The verbs.
const VERBS: &[Form] = &[
    ("Pause", &["length"], &[], false),
    ("Play", &["digits"], &[], false),
    ("Hangup", &[], &[], false),
    ("Reject", &["reason"], &[], false),
    ("Dial", &["timeout"], &["Number", "Sip", "Queue"], true),
    ("Enqueue", &[], &[], true),
    ("Connect", &[], &["Stream"], false),
];
/// The elements in verbs.
const NOUNS: &[Form] = &[
    ("Number", &[], &[], true),
    ("Sip", &[], &[], true),
    ("Queue", &[], &[], true),
    ("Stream", &["url"], &[], false),
];

/// Reads a document.
///
/// # Errors
/// Returns what is wrong, or not supported.
pub fn read(text: &str) -> Result<Redirect, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the TwiML is longer than {MAX_BYTES} bytes"));
    }
    let document = Document::parse(text).map_err(|why| format!("the TwiML is not XML: {why}"))?;
    let root = document.root_element();
    if root.tag_name().name() != "Response" {
        return Err("the TwiML has no <Response>".to_owned());
    }
    let mut keys = String::new();
    let mut verbs = root.children().filter(Node::is_element);
    let then = loop {
        // at the end of the document, Twilio hangs up
        let Some(verb) = verbs.next() else { break Then::Hangup(Cause::Normal) };
        check(&verb, VERBS)?;
        match verb.tag_name().name() {
            "Pause" => {
                let seconds = number(&verb, "length", 1, MAX_PAUSE as u64)? as usize;
                keys.extend(std::iter::repeat_n(PAUSE, 2 * seconds));
            }
            "Play" => {
                let digits = verb.attribute("digits");
                keys += digits.ok_or("<Play> is supported with the attribute digits only")?;
            }
            "Reject" => break Then::Hangup(reject(&verb)?),
            "Dial" => break Then::Transfer(dial(&verb)?),
            "Enqueue" => break Then::Transfer(transfer(text_of(&verb).trim(), RING)?),
            "Connect" => break Then::Ai(stream(&verb)?),
            _ => break Then::Hangup(Cause::Normal),
        }
    };
    if !matches!(then, Then::Hangup(_)) {
        nothing_else(verbs)?;
    }
    Ok(Redirect { keys: pressed(&keys)?, then })
}

/// Reads the document of a call that is to be placed: `Connect Stream` only, with its URL and its
/// parameters.
///
/// # Errors
/// Returns what is wrong, or not supported.
pub fn stream_of(text: &str) -> Result<(String, Vec<(String, String)>), String> {
    const USE: &str = "use <Response><Connect><Stream url=\"...\"><Parameter name=\"...\" \
                       value=\"...\"/></Stream></Connect></Response>";
    if text.len() > MAX_BYTES {
        return Err(format!("the TwiML is longer than {MAX_BYTES} bytes"));
    }
    let document = Document::parse(text).map_err(|why| format!("the TwiML is not XML: {why}"))?;
    let mut node = document.root_element();
    if node.tag_name().name() != "Response" {
        return Err(format!("the TwiML has no <Response>; {USE}"));
    }
    for name in ["Connect", "Stream"] {
        let mut children = node.children().filter(Node::is_element);
        let (first, second) = (children.next(), children.next());
        node = match first.filter(|first| first.tag_name().name() == name && second.is_none()) {
            Some(first) => first,
            None => return Err(format!("a call is placed for one <{name}> only; {USE}")),
        };
        let known = |attribute: &str| name == "Stream" && attribute == "url";
        if let Some(other) = node.attributes().find(|one| !known(one.name())) {
            return Err(format!("the attribute {} of <{name}> is not supported", other.name()));
        }
    }
    let url = node.attribute("url").unwrap_or_default().trim();
    if url.is_empty() {
        return Err(format!("<Stream> has no url; {USE}"));
    }
    let mut parameters = Vec::new();
    for child in node.children().filter(Node::is_element) {
        let (name, value) = (child.attribute("name"), child.attribute("value"));
        match (child.tag_name().name(), name) {
            ("Parameter", Some(name)) if !name.is_empty() => {
                parameters.push((name.to_owned(), value.unwrap_or_default().to_owned()));
            }
            ("Parameter", _) => return Err(format!("<Parameter> has no name; {USE}")),
            (other, _) => return Err(format!("<{other}> in <Stream> is not supported")),
        }
    }
    Ok((url.to_owned(), parameters))
}

/// Refuses what is not carried out: nothing of a document is left out without an error.
fn check(node: &Node<'_, '_>, forms: &[Form]) -> Result<(), String> {
    let name = node.tag_name().name();
    let Some((_, attributes, children, text)) = forms.iter().find(|(known, ..)| *known == name)
    else {
        return Err(format!(
            "<{name}> is not supported; use Dial, Play digits, Pause, Hangup, Reject, Enqueue or \
             Connect Stream"
        ));
    };
    if let Some(other) = node.attributes().find(|one| !attributes.contains(&one.name())) {
        return Err(format!("the attribute {} of <{name}> is not supported", other.name()));
    }
    for child in node.children().filter(Node::is_element) {
        let child_name = child.tag_name().name();
        if !children.contains(&child_name) {
            return Err(format!("<{child_name}> in <{name}> is not supported"));
        }
        check(&child, NOUNS)?;
    }
    let has_children = node.children().any(|child| child.is_element());
    if (!text || has_children) && !text_of(node).trim().is_empty() {
        return Err(format!("the text in <{name}> is not supported"));
    }
    Ok(())
}

/// Refuses verbs that Twilio would carry out once the caller comes back from a transfer or a
/// stream, except those that make no difference: with us, the caller does not come back.
fn nothing_else<'a>(mut verbs: impl Iterator<Item = Node<'a, 'a>>) -> Result<(), String> {
    let harmless = |verb: &Node<'_, '_>| ["Hangup", "Pause"].contains(&verb.tag_name().name());
    match verbs.find(|verb| !harmless(verb)) {
        None => Ok(()),
        Some(verb) => Err(format!(
            "<{}> after a transfer or a stream is not supported: the caller does not come back",
            verb.tag_name().name()
        )),
    }
}

/// Returns the keys to press.
fn pressed(keys: &str) -> Result<Option<Digits>, String> {
    let pauses = keys.chars().filter(|key| key.eq_ignore_ascii_case(&PAUSE)).count();
    if pauses > Digits::MAX_PAUSES {
        let seconds = Digits::MAX_PAUSES / 2;
        return Err(format!("the pauses are longer than {seconds} seconds together"));
    }
    let why = || format!("digits may be 0-9, *, #, A-D and w, at most {} keys", Digits::MAX);
    match keys {
        "" => Ok(None),
        keys => Digits::new(keys).map(Some).ok_or_else(why),
    }
}

fn text_of(node: &Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// Returns an attribute that is a number.
fn number(node: &Node<'_, '_>, name: &str, default: u64, max: u64) -> Result<u64, String> {
    let Some(text) = node.attribute(name) else { return Ok(default) };
    let value = text.trim().parse::<u64>().ok().filter(|value| *value <= max);
    value.ok_or_else(|| {
        let verb = node.tag_name().name();
        format!("{name} of <{verb}> is not a number from 0 to {max}")
    })
}

fn reject(verb: &Node<'_, '_>) -> Result<Cause, String> {
    match verb.attribute("reason") {
        None | Some("rejected") => Ok(Cause::Rejected),
        Some("busy") => Ok(Cause::Busy),
        Some(other) => Err(format!("reason of <Reject> is {other}, not rejected or busy")),
    }
}

fn dial(verb: &Node<'_, '_>) -> Result<Transfer, String> {
    let timeout = Duration::from_secs(number(verb, "timeout", RING.as_secs(), MAX_RING)?.max(1));
    let mut nouns = verb.children().filter(Node::is_element);
    let noun = nouns.next();
    if nouns.next().is_some() {
        return Err("<Dial> is supported with one target only".to_owned());
    }
    let to = text_of(&noun.unwrap_or(*verb));
    match noun.is_some_and(|noun| noun.has_tag_name("Sip")) {
        true => transfer(sip_user(to.trim())?, timeout),
        false => transfer(to.trim(), timeout),
    }
}

/// Returns the user of a SIP URI, whose scheme may be missing: only the PBX itself can be reached.
fn sip_user(uri: &str) -> Result<&str, String> {
    if uri.contains('?') {
        return Err("header fields in the URI of <Sip> are not supported".to_owned());
    }
    let rest = uri.split_once(':').filter(|(scheme, _)| {
        scheme.eq_ignore_ascii_case("sip") || scheme.eq_ignore_ascii_case("sips")
    });
    let rest = rest.map_or(uri, |(_, rest)| rest);
    Ok(rest.split(['@', ';']).next().unwrap_or_default())
}

fn transfer(to: &str, timeout: Duration) -> Result<Transfer, String> {
    if to.is_empty() {
        return Err("the target of the transfer is empty".to_owned());
    }
    // as on Twilio, the caller does not come back to the stream
    let (kind, on_fail) = (TransferKind::Blind, OnFail::Hangup);
    Ok(Transfer { to: to.to_owned(), kind, timeout, on_fail, status: None })
}

fn stream(verb: &Node<'_, '_>) -> Result<String, String> {
    let mut streams = verb.children().filter(Node::is_element);
    let url = streams.next().and_then(|stream| stream.attribute("url")).unwrap_or_default().trim();
    match (url, streams.next()) {
        ("", _) | (_, Some(_)) => {
            Err("<Connect> is supported with one <Stream url=\"...\"> only".to_owned())
        }
        (url, None) => Ok(url.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(body: &str) -> Result<Redirect, String> {
        read(&format!("<?xml version=\"1.0\"?><Response>{body}</Response>"))
    }

    #[test]
    fn documents_are_read() {
        let hangup = |cause| Redirect { keys: None, then: Then::Hangup(cause) };
        assert_eq!(response("<Hangup/>"), Ok(hangup(Cause::Normal)));
        assert_eq!(response(""), Ok(hangup(Cause::Normal)));
        assert_eq!(response("<Reject reason=\"busy\"/><Say>x</Say>"), Ok(hangup(Cause::Busy)));
        let keys = response("<Play digits=\"1w2\"/><Pause length=\"2\"/>").unwrap();
        assert_eq!(keys.keys.unwrap().as_str(), "1w2wwww");
        let keys = "123456".repeat(10);
        let body = format!("<Pause length=\"30\"/><Pause length=\"10\"/><Play digits=\"{keys}\"/>");
        assert_eq!(response(&body).unwrap().keys.unwrap().as_str().len(), 80 + 60);
        let dialled = |body: &str| match response(body).unwrap().then {
            Then::Transfer(Transfer { to, timeout, .. }) => (to, timeout.as_secs()),
            other => panic!("{other:?}"),
        };
        for (body, to, seconds) in [
            ("<Dial> +4930123 </Dial>", "+4930123", 30),
            ("<Dial timeout=\"9\"><Number>1001</Number></Dial>", "1001", 9),
            ("<Dial><Sip>sip:1001@pbx.example.com;transport=udp</Sip></Dial>", "1001", 30),
            ("<Dial><Sip>1001@pbx:5060</Sip></Dial>", "1001", 30),
            ("<Dial><Sip>SIPS:1001@pbx:5061</Sip></Dial>", "1001", 30),
            ("<Dial><Queue>sales</Queue></Dial>", "sales", 30),
            ("<Dial>10<!-- x -->01</Dial><Pause length=\"9\"/><Hangup/>", "1001", 30),
            ("<Enqueue>support</Enqueue>", "support", 30),
        ] {
            assert_eq!(dialled(body), (to.to_owned(), seconds), "{body}");
        }
        let stream = response("<Connect><Stream url=\"wss://b.example/x\"/></Connect>").unwrap();
        assert_eq!(stream.then, Then::Ai("wss://b.example/x".into()));
    }

    #[test]
    fn a_call_is_placed_for_a_stream_only() {
        let of = |body: &str| stream_of(&format!("<Response>{body}</Response>"));
        let body = "<Connect>\n<Stream url=\" wss://b/x \">\
                    <Parameter name=\"a\" value=\"1&amp;2\"/>\
                    <Parameter name=\"b\"/></Stream></Connect>";
        let pairs = [("a", "1&2"), ("b", "")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(of(body), Ok(("wss://b/x".to_owned(), pairs.to_vec())));
        for (body, why) in [
            ("", "one <Connect>"),
            ("<Say>x</Say>", "one <Connect>"),
            ("<Connect/>", "one <Stream>"),
            ("<Connect><Stream url=\"wss://b\"/></Connect><Hangup/>", "one <Connect>"),
            ("<Connect><Stream/></Connect>", "no url"),
            ("<Connect action=\"/x\"><Stream url=\"wss://b\"/></Connect>", "action of <Connect>"),
            ("<Connect><Stream url=\"wss://b\" track=\"x\"/></Connect>", "track of <Stream>"),
            ("<Connect><Stream url=\"wss://b\"><Parameter/></Stream></Connect>", "no name"),
            ("<Connect><Stream url=\"wss://b\"><Say/></Stream></Connect>", "<Say> in <Stream>"),
            ("<Connect>", "not XML"),
        ] {
            let error = of(body).unwrap_err();
            assert!(error.contains(why), "{body}: {error}");
        }
        assert!(stream_of("<x/>").is_err());
    }

    #[test]
    fn what_is_not_supported_has_a_reason() {
        for (body, why) in [
            ("<Say>Hello</Say>", "<Say> is not supported"),
            ("<Gather/>", "<Gather> is not supported"),
            ("<Redirect>x</Redirect>", "<Redirect> is not supported"),
            ("<Play>http://x/a.wav</Play>", "text in <Play>"),
            ("<Play/>", "digits only"),
            ("<Play digits=\"1\" loop=\"3\"/>", "loop of <Play>"),
            ("<Dial action=\"/x\">1</Dial>", "action of <Dial>"),
            ("<Dial callerId=\"1\">1</Dial>", "callerId of <Dial>"),
            ("<Dial><Number sendDigits=\"1\">1</Number></Dial>", "sendDigits of <Number>"),
            ("<Dial>1<Number>2</Number></Dial>", "text in <Dial>"),
            ("<Dial><Sip>sip:1@pbx?X-A=b</Sip></Dial>", "header fields"),
            ("<Dial>1</Dial><Say>x</Say>", "<Say> after a transfer"),
            ("<Enqueue waitUrl=\"/x\">1</Enqueue>", "waitUrl of <Enqueue>"),
            ("<Connect action=\"/x\"><Stream url=\"wss://x\"/></Connect>", "action of <Connect>"),
            (
                "<Connect><Stream url=\"wss://x\"><Parameter name=\"a\"/></Stream></Connect>",
                "<Parameter> in <Stream>",
            ),
            ("<Pause length=\"30\"/><Pause length=\"30\"/><Pause/>", "longer than 60 seconds"),
            ("<Play digits=\"1;2\"/>", "0-9"),
            ("<Dial></Dial>", "empty"),
            ("<Dial><Number>1</Number><Number>2</Number></Dial>", "one target"),
            ("<Dial timeout=\"x\">1</Dial>", "timeout of <Dial>"),
            ("<Dial><Conference>x</Conference></Dial>", "<Conference> in <Dial>"),
            ("<Connect><Room/></Connect>", "<Room> in <Connect>"),
            ("<Connect><Stream/></Connect>", "<Stream url"),
            ("<Hangup>", "not XML"),
        ] {
            let error = response(body).unwrap_err();
            assert!(error.contains(why), "{body}: {error}");
        }
        assert!(read("<x/>").unwrap_err().contains("<Response>"));
        assert!(read("").is_err());
    }
}
