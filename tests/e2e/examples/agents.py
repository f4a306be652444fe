"""Agents of Deepgram and ElevenLabs that hold the bridge against the vendors' SDKs: each message of
the bridge has to be one that the SDK's types know, without unknown members, and the messages to the
bridge are made with these types. ElevenLabs' SDK has types for few of them, so its client gets the
same messages as the bridge, and both have to answer alike. The agents echo the caller."""

import asyncio
import base64
import json
import os

import pydantic
import websockets
from deepgram.agent.v1 import types as deepgram
from elevenlabs.client import ElevenLabs
from elevenlabs.conversational_ai import conversation as elevenlabs
from elevenlabs.types import ConversationInitiationClientDataRequestInput

# frames that are echoed before the agent acts
FRAMES = 50


def known(value, place):
    """Refuses members that the SDK does not know."""
    if isinstance(value, pydantic.BaseModel):
        assert not value.model_extra, f"{place}: unknown {value.model_extra}"
        for name in type(value).model_fields:
            known(getattr(value, name), f"{place}.{name}")
    elif isinstance(value, list):
        for entry in value:
            known(entry, place)


def contains(whole, part):
    """True if a message has everything of another one. The SDKs write out defaults."""
    if isinstance(part, dict):
        return whole.keys() >= part.keys() and all(contains(whole[name], part[name]) for name in part)
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    return whole == part


def strict(model, value):
    """Reads a message as the SDK does, but with validation."""
    parsed = model.model_validate(value)
    known(parsed, model.__name__)
    again = json.loads(parsed.json())
    assert contains(again, value), f"the SDK would send {again} instead of {value}"
    print(f"{model.__name__} ok")
    return parsed


class DeepgramAgent:
    def __init__(self, socket):
        self.socket = socket

    async def say(self, message):
        await self.socket.send(message.json())

    async def hears(self, model):
        """Echoes audio until there is a message of the client."""
        async for message in self.socket:
            if isinstance(message, str):
                return strict(model, json.loads(message))
            assert len(message) == 160, len(message)
            await self.socket.send(message)
        raise AssertionError("closed")

    async def call(self, name, arguments):
        item = deepgram.AgentV1FunctionCallRequestFunctionsItem
        function = item(id=f"call_{name}", name=name, arguments=json.dumps(arguments), client_side=True)
        await self.say(deepgram.AgentV1FunctionCallRequest(functions=[function]))

    async def result(self, name, arguments):
        await self.call(name, arguments)
        answer = await self.hears(deepgram.AgentV1SendFunctionCallResponse)
        assert (answer.id, answer.name) == (f"call_{name}", name), answer
        print("result", name, json.loads(answer.content)["status"])

    async def run(self):
        assert self.socket.request.headers["Authorization"] == "Token a-key"
        await self.say(deepgram.AgentV1Welcome(request_id="00000000-0000-0000-0000-000000000000"))
        text = await self.socket.recv()
        settings = strict(deepgram.AgentV1Settings, json.loads(text))
        assert settings.agent.greeting == "Hello 5551234", settings.agent.greeting
        print("functions", *[function.name for function in settings.agent.think.functions])
        await self.say(deepgram.AgentV1SettingsApplied())
        await self.say(deepgram.AgentV1ConversationText(role="assistant", content="Hello"))
        for _ in range(FRAMES):
            await self.socket.send(await self.socket.recv())
        await self.say(deepgram.AgentV1AgentAudioDone())
        await self.say(deepgram.AgentV1Warning(code="PROMPT_TOO_LONG", description="a warning"))
        await self.result("set_disposition", {"status": "SALE"})
        await self.result("look_up", {"what": "weather"})
        print("press")
        keys = await self.hears(deepgram.AgentV1InjectUserMessage)
        print("keys", keys.content)
        await self.say(deepgram.AgentV1UserStartedSpeaking())
        await self.call("hang_up", {})
        async for _ in self.socket:
            pass
        print("closed deepgram")


class Reference:
    """What ElevenLabs' own client plays and sends."""

    def __init__(self, initiation):
        self.audio, self.sent, self.interruptions = [], [], 0
        tools = elevenlabs.ClientTools()
        for name in ["set_disposition", "hang_up"]:
            tools.register(name, lambda parameters: "done")
        data = elevenlabs.ConversationInitiationData(
            conversation_config_override=initiation["conversation_config_override"],
            dynamic_variables=initiation["dynamic_variables"],
        )
        self.client = elevenlabs.Conversation(
            ElevenLabs(api_key="a-key"), "agent_1", requires_auth=False, audio_interface=self,
            config=data, client_tools=tools,
        )
        own = json.loads(self.client._create_initiation_message())
        for name, value in initiation.items():
            assert own[name] == value, f"{name}: the SDK would send {own[name]}"
        print("initiation as the SDK's")

    # the audio interface and the socket of the client
    def output(self, audio):
        self.audio.append(audio)

    def interrupt(self):
        self.interruptions += 1

    def send(self, text):
        self.sent.append(json.loads(text))

    def handle(self, message):
        self.client._handle_message(message, self)

    def close(self):
        self.client.client_tools.stop()


class ElevenLabsAgent:
    def __init__(self, socket):
        self.socket, self.reference = socket, None

    async def say(self, kind, event, **members):
        message = {"type": kind, event: members}
        await self.socket.send(json.dumps(message))
        self.reference.handle(message)

    async def echo(self):
        """Echoes audio until there is another message of the client, and returns that."""
        async for text in self.socket:
            message = json.loads(text)
            if "user_audio_chunk" not in message:
                return message
            assert list(message) == ["user_audio_chunk"], message
            assert len(base64.b64decode(message["user_audio_chunk"], validate=True)) == 160
            await self.audio(message["user_audio_chunk"], 1)
        raise AssertionError("closed")

    async def audio(self, payload, event_id):
        await self.say("audio", "audio_event", audio_base_64=payload, event_id=event_id)

    async def run(self):
        assert self.socket.request.headers["xi-api-key"] == "a-key"
        initiation = json.loads(await self.socket.recv())
        event = elevenlabs.ClientToOrchestratorEvent
        assert initiation["type"] == event.CONVERSATION_INITIATION_CLIENT_DATA
        body = {name: value for name, value in initiation.items() if name != "type"}
        strict(ConversationInitiationClientDataRequestInput, body)
        print("greeting", body["conversation_config_override"]["agent"]["first_message"])
        self.reference = Reference(initiation)
        await self.say(
            "conversation_initiation_metadata", "conversation_initiation_metadata_event",
            conversation_id="conv_1", agent_output_audio_format="ulaw_8000",
            user_input_audio_format="ulaw_8000",
        )
        for _ in range(FRAMES):
            chunk = json.loads(await self.socket.recv())["user_audio_chunk"]
            await self.audio(chunk, 1)
        await self.say("ping", "ping_event", event_id=2, ping_ms=40)
        pong = await self.echo()
        assert self.reference.sent.pop() == pong, pong
        print("pong as the SDK's")
        await self.say(
            "client_tool_call", "client_tool_call", tool_name="set_disposition",
            tool_call_id="tool_1", parameters={"status": "SALE"}, event_id=3,
        )
        result = await self.echo()
        while not self.reference.sent:
            await asyncio.sleep(0.01)
        own = self.reference.sent.pop()
        shape = lambda message: {name: type(value) for name, value in message.items()}
        assert (shape(own), own["tool_call_id"]) == (shape(result), "tool_1"), (own, result)
        assert own["type"] == result["type"] and own["is_error"] == result["is_error"]
        print("tool result as the SDK's")
        print("press")
        keys = await self.echo()
        assert keys == elevenlabs.UserMessageClientToOrchestratorEvent(keys["text"]).to_dict(), keys
        print("keys", keys["text"])
        await self.say("interruption", "interruption_event", event_id=5)
        # audio of the time before, which neither plays
        played = len(self.reference.audio)
        for _ in range(10):
            await self.audio(base64.b64encode(b"\x11" * 160).decode(), 4)
        assert (self.reference.interruptions, len(self.reference.audio)) == (1, played)
        await self.audio(base64.b64encode(b"\x22" * 160 * 10).decode(), 6)
        assert len(self.reference.audio) == played + 1
        await self.say(
            "client_tool_call", "client_tool_call", tool_name="hang_up", tool_call_id="tool_2",
            parameters={}, event_id=7,
        )
        async for _ in self.socket:
            pass
        self.reference.close()
        print("closed elevenlabs")


AGENTS = {
    "/v1/agent/converse": DeepgramAgent,
    "/v1/convai/conversation?agent_id=agent_1": ElevenLabsAgent,
}


async def handle(socket):
    try:
        await AGENTS[socket.request.path](socket).run()
    except Exception as error:
        print("failed", repr(error))
        raise


async def main():
    async with websockets.serve(handle, "127.0.0.1", int(os.environ["PORT"])) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"listening on ws://127.0.0.1:{port}")
        await server.serve_forever()


asyncio.run(main())
