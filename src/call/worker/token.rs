//! What the kernel hands back with an event: whose it is.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::call::leg::Channel;

/// Which call, and which of its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    Rtp,
    Rtcp,
    Ai,
    /// Not a socket: the call itself.
    None,
}

impl From<Channel> for Socket {
    fn from(channel: Channel) -> Socket {
        match channel {
            Channel::Rtp => Socket::Rtp,
            Channel::Rtcp => Socket::Rtcp,
        }
    }
}

impl Token {
    /// The worker's own: news and the timer.
    pub const INBOX: Token = Token(u64::MAX);
    pub const TIMER: Token = Token(u64::MAX - 1);

    /// `turn` tells the users of a place apart, one after the other.
    pub fn new(place: usize, turn: u32, socket: Socket) -> Token {
        Token(u64::from(turn) << 32 | (place as u64) << 2 | socket as u64)
    }

    pub fn place(self) -> usize {
        (self.0 as u32 >> 2) as usize
    }

    pub fn turn(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn socket(self) -> Socket {
        match self.0 & 3 {
            0 => Socket::Rtp,
            1 => Socket::Rtcp,
            2 => Socket::Ai,
            _ => Socket::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for (place, turn, socket) in
            [(0, 0, Socket::Rtp), (7, 1, Socket::Rtcp), (99_999, u32::MAX - 1, Socket::Ai)]
        {
            let token = Token::new(place, turn, socket);
            assert_eq!((token.place(), token.turn(), token.socket()), (place, turn, socket));
            assert!(token != Token::INBOX && token != Token::TIMER);
        }
    }
}
