//! The packet capture of a call: its worker copies what passes. Owns no I/O of its own.

use std::net::SocketAddr;

use crate::call::SourceRequest;
use crate::call::leg::Channel;
use crate::call::worker::task::Running;
use crate::capture::tap::Tap;
use crate::capture::{Direction, Kind};
use crate::command::RecordCommand;
use crate::media::g711::Law;

impl Running {
    /// Carries out a command to a recording. A capture leaves out the audio while it is paused.
    pub(super) fn record(&mut self, command: RecordCommand, index: u64, law: Law) {
        self.recordings.command(command, index, law);
        let is_paused = self.recordings.is_paused();
        self.tap.iter().for_each(|tap| tap.set_private(is_paused));
    }

    /// Starts a capture.
    pub(super) fn capture(&mut self, tap: Tap) {
        tap.set_private(self.recordings.is_paused());
        self.ai.iter_mut().for_each(|ai| ai.capture(tap.clone()));
        (self.offer.requests)(SourceRequest::Capture(tap.clone()));
        self.tap = Some(tap);
    }

    pub(super) fn send_packet(&mut self, channel: Channel, to: SocketAddr, packet: &[u8]) {
        self.offer.leg.send(channel, to, packet);
        if self.tap.is_some() {
            self.tap_packet(channel, Direction::Sent, to, packet);
        }
    }

    /// Copies a packet to the capture.
    pub(super) fn tap_packet(
        &mut self,
        channel: Channel,
        direction: Direction,
        peer: SocketAddr,
        data: &[u8],
    ) {
        let kind = if channel == Channel::Rtp { Kind::Rtp } else { Kind::Rtcp };
        let between = (self.offer.leg.address_of(channel), peer);
        self.tap = self.tap.take().filter(|tap| tap.packet(kind, direction, between, data));
    }
}
