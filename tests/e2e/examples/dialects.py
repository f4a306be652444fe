"""An AI behind the serializers of Pipecat for other carriers than Twilio, and behind the SDK of Plivo.
The path of the URL is the dialect. It plays the caller's audio back. On key 1 it clears what is queued,
on key 2 it sets a mark, on key 9 it closes the WebSocket."""

import asyncio
import json

import websockets
from pipecat.frames.frames import (
    InputAudioRawFrame,
    InputDTMFFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputTransportMessageUrgentFrame,
    StartFrame,
)
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.exotel import ExotelFrameSerializer
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.serializers.telnyx import TelnyxFrameSerializer
from pipecat.serializers.vonage import VonageFrameSerializer
from plivo_stream import types as plivo

PLIVO_EVENTS = {
    "start": plivo.StartEvent,
    "media": plivo.MediaEvent,
    "dtmf": plivo.DtmfEvent,
    "playedStream": plivo.PlayedStreamEvent,
    "clearedAudio": plivo.ClearedAudioEvent,
}


class Texts:
    """The socket as Pipecat's runner reads it."""

    def __init__(self, socket):
        self.socket = socket

    async def iter_text(self):
        async for text in self.socket:
            yield text


async def serializer_for(dialect, socket):
    """Has Pipecat find out the carrier by the first messages, as its runner does."""
    if dialect == "l16":
        return VonageFrameSerializer(VonageFrameSerializer.InputParams(vonage_sample_rate=8000))
    kind, call = await parse_telephony_websocket(Texts(socket))
    print("detected", dialect, kind, call.get("from"), call.get("to"), flush=True)
    stream = call["stream_id"]
    if kind == "telnyx":
        encoding = call["outbound_encoding"]
        params = TelnyxFrameSerializer.InputParams(auto_hang_up=False)
        return TelnyxFrameSerializer(stream, encoding, encoding, params=params)
    if kind == "plivo":
        params = PlivoFrameSerializer.InputParams(auto_hang_up=False)
        return PlivoFrameSerializer(stream, params=params)
    return ExotelFrameSerializer(stream)


def mark(dialect, serializer):
    """The message that sets a mark, which Pipecat passes on as it is."""
    return {
        "l16": {"action": "notify", "payload": {"name": "m"}},
        "telnyx": {"event": "mark", "mark": {"name": "m"}},
        "plivo": {"event": "checkpoint", "streamId": getattr(serializer, "_stream_id", ""), "name": "m"},
        "exotel": {"event": "mark", "stream_sid": getattr(serializer, "_stream_sid", ""), "mark": {"name": "m"}},
    }[dialect]


def note(dialect, message):
    """Prints the messages that Pipecat only logs, and has Plivo's SDK check its own."""
    if isinstance(message, bytes):
        return
    value = json.loads(message)
    if dialect == "plivo":
        PLIVO_EVENTS[value["event"]](**value)
    if value.get("event") not in ("media", "dtmf", "websocket:dtmf"):
        print(dialect, "got", json.dumps(value), flush=True)


async def handle(socket):
    dialect = socket.request.path.split("?")[0].strip("/")
    try:
        serializer = await serializer_for(dialect, socket)
        await serializer.setup(StartFrame(audio_in_sample_rate=8000, audio_out_sample_rate=8000))
        async for message in socket:
            note(dialect, message)
            frame = await serializer.deserialize(message)
            if isinstance(frame, InputAudioRawFrame):
                audio = OutputAudioRawFrame(frame.audio, frame.sample_rate, 1)
                await socket.send(await serializer.serialize(audio))
            elif isinstance(frame, InputDTMFFrame):
                key = frame.button.value
                print(dialect, "key", key, flush=True)
                if key == "1":
                    await socket.send(await serializer.serialize(InterruptionFrame()))
                elif key == "2":
                    frame = OutputTransportMessageUrgentFrame(message=mark(dialect, serializer))
                    await socket.send(await serializer.serialize(frame))
                elif key == "9":
                    await socket.close()
                    break
    except Exception as error:
        print(dialect, "error", repr(error), flush=True)
        raise
    print(dialect, "closed", socket.close_code, flush=True)


async def main():
    async with websockets.serve(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"listening on ws://127.0.0.1:{port}", flush=True)
        await asyncio.Future()


asyncio.run(main())
