"""A small voice bot: it greets, can be interrupted, reacts to keys and says goodbye.

It plays chimes instead of speech, so it needs no speech service. The keys 1 to 9 play that number
of beeps; 0 and # say goodbye and hang up. docs/write-your-bot.md explains the messages.
"""
import asyncio, base64, json, math, os

from websockets.asyncio.server import serve

LOUD = 30  # a frame with a higher level() counts as speech
SPEECH = 6  # this many loud frames in a row are an interruption: 120 ms


def mulaw(sample):
    """One 16-bit sample as a byte of G.711 µ-law."""
    sign, sample = (0x80 if sample < 0 else 0), abs(sample) + 132
    exponent = sample.bit_length() - 8
    return ~(sign | exponent << 4 | sample >> exponent + 3 & 15) & 0xFF


def chime(*notes, ms=300):
    """A bell for each frequency: 8,000 samples per second, one byte per sample."""
    return bytes(
        mulaw(int(9000 * math.exp(-t / 1600) * math.sin(2 * math.pi * hz * t / 8000)))
        for hz in notes for t in range(ms * 8)
    )


def level(frame):
    """Loudness from 0 to 127. µ-law bytes are logarithmic, so their average is good enough."""
    return sum(~byte & 0x7F for byte in frame) / len(frame)


GREETING = chime(523, 659, 784, 1047, 784, 659, 523, 659, 784, 1047, ms=450)  # 4.5 s
GOODBYE = chime(784, 659, 523)
BEEP = chime(880)


async def bot(socket):
    """One call. trunkless opens a WebSocket per call."""
    sid, loud, queued, leaving = None, 0, 0, False

    async def send(event, **body):
        await socket.send(json.dumps({"event": event, "streamSid": sid, **body}))

    async def play(name, audio):
        """Queues audio of any length, and a mark that comes back when it has been played."""
        nonlocal queued
        queued += 1
        await send("media", media={"payload": base64.b64encode(audio).decode()})
        await send("mark", mark={"name": name})

    async for text in socket:
        message = json.loads(text)
        match message["event"]:
            case "start":
                sid = message["streamSid"]
                print("call from", message["start"]["customParameters"].get("from_number"))
                await play("greeting", GREETING)
            case "media":  # every 20 ms, silence included
                frame = base64.b64decode(message["media"]["payload"])
                loud = loud + 1 if level(frame) > LOUD else 0
                if loud == SPEECH and queued and not leaving:
                    print("interrupted")
                    await send("clear")  # silence at once; all pending marks come back
            case "dtmf" if not leaving:
                key = message["dtmf"]["digit"]
                print("key", key)
                await send("clear")  # a key interrupts too
                leaving = key in "0#"
                if leaving:
                    await play("goodbye", GOODBYE)
                elif key in "123456789":
                    await play(f"{key} beeps", BEEP * int(key))
            case "mark":  # its audio was played, or cleared
                print("mark", message["mark"]["name"])
                queued -= 1
                if message["mark"]["name"] == "goodbye":
                    return  # closes the WebSocket, and that hangs up
            case "stop":
                print("the call has ended")


async def main():
    port = int(os.environ.get("PORT", 8080))
    async with serve(bot, "127.0.0.1", port) as server:
        print(f"listening on ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


asyncio.run(main())
