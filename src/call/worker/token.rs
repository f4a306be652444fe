//! The token that the kernel returns with an event, which identifies the call and its socket.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::call::leg::Channel;

/// Identifies a slot of a worker, its occupant, and one of the occupant's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// The socket of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    Rtp,
    Rtcp,
    Ai,
    /// Not a socket, but the call itself.
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
    /// The worker's inbox.
    pub const INBOX: Token = Token(u64::MAX);
    /// The worker's timer.
    pub const TIMER: Token = Token(u64::MAX - 1);

    /// `generation` distinguishes the successive occupants of a slot.
    pub fn new(slot: usize, generation: u32, socket: Socket) -> Token {
        Token(u64::from(generation) << 32 | (slot as u64) << 2 | socket as u64)
    }

    /// The index of the slot.
    pub fn slot(self) -> usize {
        (self.0 as u32 >> 2) as usize
    }

    /// The generation of the slot's occupant.
    pub fn generation(self) -> u32 {
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
    fn tokens_return_their_parts() {
        for (slot, generation, socket) in
            [(0, 0, Socket::Rtp), (7, 1, Socket::Rtcp), (99_999, u32::MAX - 1, Socket::Ai)]
        {
            let token = Token::new(slot, generation, socket);
            assert_eq!(
                (token.slot(), token.generation(), token.socket()),
                (slot, generation, socket)
            );
            assert!(token != Token::INBOX && token != Token::TIMER);
        }
    }
}
