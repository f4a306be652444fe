"""A Pipecat bot for trunkless, with Deepgram, OpenAI and Cartesia.

It greets, can be interrupted, reacts to keys, says goodbye and hangs up: when the caller presses
0, or when the model decides that the conversation is over. trunkless speaks Twilio Media Streams,
so this is Pipecat's Twilio setup without Twilio: no account, no REST API.

Environment: DEEPGRAM_API_KEY, OPENAI_API_KEY, CARTESIA_API_KEY, CARTESIA_VOICE_ID, and optionally
OPENAI_MODEL, PORT, and DEEPGRAM_URL, OPENAI_BASE_URL, CARTESIA_URL for servers of your own.
"""
import os
import sys

import uvicorn
from fastapi import FastAPI, WebSocket
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    EndWorkerFrame, FunctionCallResultProperties, InputDTMFFrame, LLMMessagesAppendFrame,
    TTSSpeakFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair, LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.services.cartesia.tts import CartesiaTTSService
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner

KEYS = ["DEEPGRAM_API_KEY", "OPENAI_API_KEY", "CARTESIA_API_KEY", "CARTESIA_VOICE_ID"]
GREETING = "Hello! How can I help you? You can interrupt me at any time, or press zero to hang up."
GOODBYE = "Thank you for calling. Goodbye!"
INSTRUCTIONS = """You answer the phone. Keep every answer to one or two short sentences. They are
spoken aloud, so avoid lists, emojis and other formatting. Call hang_up when the caller says
goodbye or needs nothing else; it says goodbye for you."""

app = FastAPI()


async def say_goodbye(processor):
    """Says goodbye, which the caller cannot interrupt, then ends the pipeline. That hangs up."""
    goodbye = TTSSpeakFrame(GOODBYE)
    goodbye.interruptible = False
    await processor.push_frame(goodbye)
    await processor.push_frame(EndWorkerFrame())


async def hang_up(params: FunctionCallParams):
    """Say goodbye and end the call."""
    await params.result_callback("done", properties=FunctionCallResultProperties(run_llm=False))
    await say_goodbye(params.llm)


class Keys(FrameProcessor):
    """0 says goodbye and hangs up. Any other key is reported to the model, which responds to it."""

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if not isinstance(frame, InputDTMFFrame):
            return
        await self.broadcast_interruption()  # sends clear: a key interrupts, as speech does
        if frame.button.value == "0":
            await say_goodbye(self)
        else:
            text = f"The caller pressed {frame.button.value} on the phone. Tell them so, and react."
            message = {"role": "developer", "content": text}
            await self.push_frame(LLMMessagesAppendFrame([message], run_llm=True))


@app.websocket("/")
async def call(websocket: WebSocket):
    """One call. trunkless opens a WebSocket per call."""
    await websocket.accept()
    _, data = await parse_telephony_websocket(websocket)  # reads connected and start
    logger.info(f"call from {data.from_number} to {data.to_number}: {data.body}")

    serializer = TwilioFrameSerializer(
        stream_sid=data.stream_id,
        # closing the WebSocket hangs up; there is no REST API to do it with
        params=TwilioFrameSerializer.InputParams(auto_hang_up=False),
    )
    transport = FastAPIWebsocketTransport(
        websocket=websocket,
        params=FastAPIWebsocketParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            audio_out_end_silence_secs=1,
            serializer=serializer,
        ),
    )
    stt = DeepgramSTTService(
        api_key=os.environ["DEEPGRAM_API_KEY"], base_url=os.getenv("DEEPGRAM_URL", "")
    )
    llm = OpenAILLMService(
        api_key=os.environ["OPENAI_API_KEY"],
        base_url=os.getenv("OPENAI_BASE_URL"),
        settings=OpenAILLMService.Settings(
            model=os.getenv("OPENAI_MODEL", "gpt-4.1"), system_instruction=INSTRUCTIONS
        ),
    )
    tts = CartesiaTTSService(
        api_key=os.environ["CARTESIA_API_KEY"],
        url=os.getenv("CARTESIA_URL", "wss://api.cartesia.ai/tts/websocket"),
        settings=CartesiaTTSService.Settings(voice=os.environ["CARTESIA_VOICE_ID"]),
    )
    context = LLMContext(tools=[hang_up])
    user, assistant = LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    pipeline = Pipeline(
        [transport.input(), Keys(), stt, user, llm, tts, transport.output(), assistant]
    )
    worker = PipelineWorker(
        pipeline,
        params=PipelineParams(audio_in_sample_rate=8000, audio_out_sample_rate=8000),
    )
    runner = WorkerRunner(handle_sigint=False)

    @transport.event_handler("on_client_connected")
    async def greet(transport, client):
        await worker.queue_frame(TTSSpeakFrame(GREETING))

    @transport.event_handler("on_client_disconnected")
    async def caller_hung_up(transport, client):
        await runner.cancel()

    await runner.add_workers(worker)
    await runner.run()
    logger.info("call ended")


if __name__ == "__main__":
    missing = [key for key in KEYS if not os.getenv(key)]
    if missing:
        sys.exit(f"set {', '.join(missing)} in the environment first")
    uvicorn.run(app, host="127.0.0.1", port=int(os.getenv("PORT", "8080")))
