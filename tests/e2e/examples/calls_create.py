"""A program that places a call with Twilio's SDK and follows it by its status callbacks, which it
checks with the SDK's own validator. API is the control API's URL, TOKEN its token, ACCOUNT the
account, STREAM the AI's URL."""

import os
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, HTTPServer

from twilio.base.exceptions import TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.request_validator import RequestValidator
from twilio.rest import Client
from twilio.twiml.voice_response import Connect, VoiceResponse

API, TOKEN, ACCOUNT = os.environ["API"], os.environ["TOKEN"], os.environ["ACCOUNT"]


def log(*words):
    # in one piece: print writes the end of the line after the line, and threads mix them
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


class Redirected(TwilioHttpClient):
    """Sends Twilio's requests to the control API."""

    def request(self, method, url, *args, **kwargs):
        return super().request(method, url.replace("https://api.twilio.com", API), *args, **kwargs)


class Callbacks(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = dict(urllib.parse.parse_qsl(body, keep_blank_values=True))
        url = f"http://{self.headers['Host']}{self.path}"
        valid = RequestValidator(TOKEN).validate(url, form, self.headers["X-Twilio-Signature"])
        if self.path == "/twiml":
            log("asked", form["CallStatus"], valid, form["To"])
            return self.respond(str(response).encode())
        if self.path == "/amd":
            log("detected", form["AnsweredBy"], valid)
            threading.Thread(target=hang_up, args=(form["CallSid"],)).start()
            return self.respond(b"")
        log("callback", form["CallStatus"], valid, form["To"])
        self.respond(b"")
        if form["CallStatus"] == "in-progress":
            threading.Thread(target=hang_up, args=(form["CallSid"],)).start()

    def respond(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


client = Client(ACCOUNT, TOKEN, http_client=Redirected(timeout=5))


def hang_up(sid):
    log("updated", client.calls(sid).update(status="completed").status)


def refusal(**fields):
    try:
        return client.calls.create(**fields).sid
    except TwilioRestException as error:
        return f"{error.status} {error.code}"


server = HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Callbacks)
response = VoiceResponse()
connect = Connect()
connect.stream(url=os.environ["STREAM"]).parameter(name="lead", value="7")
response.append(connect)
fields = {
    "from_": "5551234",
    "twiml": str(response),
    "status_callback": f"http://127.0.0.1:{server.server_port}/status",
    "status_callback_event": ["initiated", "ringing", "answered", "completed"],
}


def place():
    log("premium", refusal(to="+19005550100", **fields))
    log("digits", refusal(to="610", send_digits="1", **fields))
    call = client.calls.create(to="610", timeout=20, **fields)
    log("created", call.status, call.direction, call.to)
    here = f"http://127.0.0.1:{server.server_port}"
    client.calls.create(
        to="614",
        from_="5551234",
        url=f"{here}/twiml",
        machine_detection="Enable",
        async_amd="true",
        async_amd_status_callback=f"{here}/amd",
        status_callback=f"{here}/status",
    )


threading.Thread(target=place).start()
log(f"listening on http://127.0.0.1:{server.server_port}")
server.serve_forever()
