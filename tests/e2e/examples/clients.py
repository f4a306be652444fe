"""An AI that acts on its calls through released client libraries: the SDK of Twilio, and Pipecat's
serializer for Twilio. Each call carries out the next word of ACTIONS. API is the control API's URL,
TOKEN its token."""

import asyncio
import json
import os
import sys

import websockets
from pipecat.frames.frames import EndFrame, OutputTransportMessageUrgentFrame, StartFrame
from pipecat.serializers.twilio import TwilioFrameSerializer
from twilio.base.exceptions import TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

API, TOKEN = os.environ["API"], os.environ["TOKEN"]
ACTIONS = iter(os.environ["ACTIONS"].split())


class Redirected(TwilioHttpClient):
    """Sends Twilio's requests to the control API."""

    def request(self, method, url, *args, **kwargs):
        return super().request(method, url.replace("https://api.twilio.com", API), *args, **kwargs)


def log(*words):
    # in one piece: print writes the end of the line after the line, and threads mix them
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def client(account, token=TOKEN):
    return Client(account, token, http_client=Redirected(timeout=5))


def failure(call):
    """The error code of a request that has to fail."""
    try:
        return f"no error: {call()}"
    except TwilioRestException as error:
        return f"{error.status} {error.code}"


def act(action, account, sid):
    """What is done with the SDK."""
    sdk = client(account)
    call = sdk.calls(sid)
    shown = call.fetch()
    log("fetched", shown.sid == sid, shown.status, shown._from, [c.sid for c in sdk.calls.list()] == [sid])
    log("wrong token", failure(lambda: client(account, "another").calls(sid).fetch()))
    log("wrong call", failure(lambda: sdk.calls("CA" + "0" * 32).update(status="completed")))
    log("wrong TwiML", failure(lambda: call.update(twiml="<Response><Say>Hello</Say></Response>")))
    log("wrong target", failure(lambda: call.update(twiml="<Response><Dial>+19005550100</Dial></Response>")))
    if action == "hangup":
        log("updated", call.update(status="completed").status)
        log("again", call.update(status="completed").sid == sid)
        log("redirected", failure(lambda: call.update(twiml="<Response><Dial>610</Dial></Response>")))
    else:
        log("updated", call.update(twiml="<Response><Dial>610</Dial></Response>").status)


async def handle(socket):
    action, serializer, heard = next(ACTIONS), None, 0
    try:
        async for text in socket:
            message = json.loads(text)
            if message["event"] == "start":
                start = message["start"]
                account, sid = start["accountSid"], start["callSid"]
                serializer = TwilioFrameSerializer(
                    start["streamSid"], sid, account, TOKEN, base_url=API
                )
                await serializer.setup(StartFrame(audio_in_sample_rate=8000, audio_out_sample_rate=8000))
            if serializer:
                await serializer.deserialize(text)
            if message["event"] == "result":
                log("result", message["result"]["status"])
            heard += message["event"] == "media"
            if heard != 50:
                continue
            heard += 1
            if action.startswith("sdk_"):
                await asyncio.to_thread(act, action.removeprefix("sdk_"), account, sid)
            elif action == "pipecat_hangup":
                log("pipecat", await serializer.serialize(EndFrame()))
            else:
                order = {"event": "transfer", "id": "t", "transfer": {"to": "610"}}
                frame = OutputTransportMessageUrgentFrame(message=order)
                await socket.send(await serializer.serialize(frame))
    finally:
        log("closed", action)


async def main():
    async with websockets.serve(handle, "127.0.0.1", 0) as server:
        log(f"listening on ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await server.serve_forever()


asyncio.run(main())
