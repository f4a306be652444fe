"""Stand-ins for Deepgram, OpenAI and Cartesia: just enough for examples/pipecat_bot.py in tests.

    PORT=0 python services.py       # prints the address that it listens on

/v1/listen            hears loud audio as "hello", first interim, then final
/v1/chat/completions  answers in one sentence; calls the tool hang_up when the caller presses 9
/tts/websocket        speaks each text as a steady tone: 400 Hz, or 600 Hz where the text has the
                      word "pressed" and 800 Hz where it has "Goodbye"; 50 ms per character

It prints a line for each thing that a service is asked for.
"""
import array
import base64
import json
import math
import os
import socket

import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

LOUD = 500  # mean amplitude of 16-bit audio that counts as speech
INTERIM_AFTER = 0.2  # seconds of speech
FINAL_AFTER = 0.5  # seconds of silence

app = FastAPI()


def note(text):
    print(text, flush=True)


def results(text, final, from_finalize=False):
    alternatives = [{"transcript": text, "confidence": 0.99, "words": []}]
    return {
        "type": "Results", "channel_index": [0, 1], "duration": 1.0, "start": 0.0,
        "is_final": final, "speech_final": final, "from_finalize": from_finalize,
        "channel": {"alternatives": alternatives},
        "metadata": {
            "request_id": "1", "model_uuid": "1",
            "model_info": {"name": "stand-in", "version": "1", "arch": "none"},
        },
    }


@app.websocket("/v1/listen")
async def listen(ws: WebSocket):
    assert ws.headers["authorization"] == "Token deepgram-key", ws.headers
    assert ws.query_params["encoding"] == "linear16", ws.query_params
    rate = int(ws.query_params["sample_rate"])
    await ws.accept()
    speech = silence = 0.0
    interim = False
    while (message := await ws.receive())["type"] == "websocket.receive":
        finalize = False
        if message.get("bytes"):
            samples = array.array("h", message["bytes"])
            seconds = len(samples) / rate
            if sum(map(abs, samples)) / len(samples) > LOUD:
                speech, silence = speech + seconds, 0.0
            else:
                silence += seconds
            if speech > INTERIM_AFTER and not interim:
                interim = True
                note("stt interim hello")
                await ws.send_json(results("hello", False))
        elif message.get("text"):
            kind = json.loads(message["text"])["type"]
            if kind == "CloseStream":
                break
            finalize = kind == "Finalize"
        if interim and (finalize or silence > FINAL_AFTER):
            note("stt final hello")
            await ws.send_json(results("hello", True, finalize))
            speech, interim = 0.0, False
        elif finalize:
            await ws.send_json(results("", True, True))
        if silence > FINAL_AFTER:
            speech = 0.0


def completion(messages):
    """The deltas of an answer to the last message that is not an assistant's: what an interruption
    left of the bot's own speech may arrive after it."""
    last = [message for message in messages if message["role"] != "assistant"][-1]
    text = last["content"] if isinstance(last["content"], str) else last["content"][0]["text"]
    note(f"llm {last['role']}: {text}")
    if "pressed 9" in text:
        call = {"name": "hang_up", "arguments": "{}"}
        return [{"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": call}]}]
    if "pressed" in text:
        return [{"content": "You pressed "}, {"content": "a key, and I noticed."}]
    return [{"content": "I heard "}, {"content": "you say hello."}]


@app.post("/v1/chat/completions")
async def chat(request: Request):
    assert request.headers["authorization"] == "Bearer openai-key", request.headers
    body = await request.json()
    assert body["stream"] and body["tools"][0]["function"]["name"] == "hang_up", body
    deltas = completion(body["messages"])
    end = "tool_calls" if "tool_calls" in deltas[-1] else "stop"

    def chunk(delta, finish):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        data = {
            "id": "1", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
            "choices": [choice],
        }
        return f"data: {json.dumps(data)}\n\n"

    async def stream():
        for delta in deltas:
            yield chunk({"role": "assistant", **delta}, None)
        yield chunk({}, end)
        yield "data: [DONE]\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


def tone(text, rate):
    hz = 600 if "pressed" in text else 800 if "Goodbye" in text else 400
    count = int(0.05 * len(text) * rate)
    wave = (int(8000 * math.sin(2 * math.pi * hz * n / rate)) for n in range(count))
    return array.array("h", wave).tobytes()


@app.websocket("/tts/websocket")
async def speak(ws: WebSocket):
    assert ws.headers["x-api-key"] == "cartesia-key", ws.headers
    await ws.accept()
    try:
        while True:
            message = await ws.receive_json()
            context = message["context_id"]
            if message.get("cancel"):
                note("tts cancel")
                continue
            text = message["transcript"]
            if text:
                note(f"tts {text}")
                assert message["voice"]["id"] == "a-voice", message
                output = message["output_format"]
                assert output["encoding"] == "pcm_s16le", message
                audio = tone(text, output["sample_rate"])
                words = text.split()
                times = [0.3 * n for n in range(len(words))]
                marks = {"words": words, "start": times, "end": [t + 0.3 for t in times]}
                await ws.send_json(
                    {"type": "timestamps", "context_id": context, "word_timestamps": marks}
                )
                for at in range(0, len(audio), 8000):
                    data = base64.b64encode(audio[at : at + 8000]).decode()
                    await ws.send_json({"type": "chunk", "context_id": context, "data": data})
            if not message["continue"]:
                await ws.send_json({"type": "done", "context_id": context})
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(os.environ.get("PORT", 0))))
    note(f"listening on 127.0.0.1:{listener.getsockname()[1]}")
    config = uvicorn.Config(app, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])
