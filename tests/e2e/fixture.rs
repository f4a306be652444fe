//! A PBX for one test, at addresses that no other running test uses.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::asterisk::Asterisk;
use crate::bridge::{Bridge, Setup};
use crate::caller::Caller;
use crate::{Pbx, ai::Ai};

/// Numbers from here to 250 are handed out; tests with a number of their own use lower ones.
const FIRST: u8 = 150;
const COUNT: u8 = 100;
/// Port of the socket that holds a number.
const CLAIM_PORT: u16 = 9900;

/// A number N that belongs to one test, of all processes, until it is dropped: the addresses
/// `127.0.N.*` are free for its Asterisk and its bridge.
pub struct Number {
    pub n: u8,
    /// Keeps other tests from using the number.
    _claim: TcpListener,
}

impl Number {
    pub fn claim() -> Number {
        // each number is used again as late as possible, when its sockets are long closed
        static NEXT: AtomicU8 = AtomicU8::new(0);
        for _ in 0..COUNT {
            let n = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
            // Asterisks with this remainder share their RTP range with the test that uses it up
            if n % 8 == 7 {
                continue;
            }
            if let Ok(claim) = TcpListener::bind((Ipv4Addr::new(127, 0, n, 250), CLAIM_PORT)) {
                return Number { n, _claim: claim };
            }
        }
        panic!("no number is free");
    }
}

/// An Asterisk in SIP mode. The bridge registers at it, and callers dial through it.
pub struct Lab {
    pub pbx: Pbx,
    pub asterisk: Asterisk,
    pub number: Number,
}

impl Lab {
    pub fn start(pbx: Pbx) -> Lab {
        let number = Number::claim();
        Lab { pbx, asterisk: pbx.start(number.n), number }
    }

    /// Address `127.0.N.host` of this test. 1 is Asterisk's, 2 the bridge's.
    pub fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, self.number.n, host)
    }

    /// The setup of a bridge that registers as the usual extension.
    pub fn setup(&self, ai: &str) -> Setup {
        self.pbx.setup(&self.asterisk, self.number.n, ai)
    }

    /// A bridge that is registered and connects calls to this AI.
    pub fn bridge(&self, ai: &Ai) -> Bridge {
        Bridge::registered(&self.setup(&ai.url))
    }

    /// Dials the bridge; the caller says this many numbered frames.
    pub async fn dial(&self, frames: u32) -> Caller {
        self.dial_extension(self.pbx.extension(), frames).await
    }

    pub async fn dial_extension(&self, extension: &str, frames: u32) -> Caller {
        Caller::dial("127.0.9.1", self.asterisk.sip_addr(), extension, 1, frames).await
    }
}
