#!/usr/bin/env python3
"""Checks events of the Realtime API against the types of OpenAI's SDK.

    realtime_events.py FILE

FILE has one JSON array per line, ["client" or "server", event], as tests/wire/openai writes it with
REALTIME_EVENTS=FILE. The types are made strict first: a member that they do not know is an error, and
so is a value of another type. The last line counts the events by type.
"""

import collections
import inspect
import json
import sys
import typing

import pydantic
from openai import BaseModel
from openai.types import realtime
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent


def make_strict():
    """Forbids unknown members in every type of the SDK."""
    models, open_models = [], [BaseModel]
    while open_models:
        model = open_models.pop()
        for sub in model.__subclasses__():
            if sub not in models:
                models.append(sub)
                open_models.append(sub)
    for model in models:
        model.model_config = {**model.model_config, "extra": "forbid", "defer_build": False}
    for model in models:
        model.model_rebuild(force=True, raise_errors=False)
    return len(models)


def types_by_name(union):
    """The types of a union by the value of their member `type`."""
    found = {}
    for model in typing.get_args(typing.get_args(union)[0]):
        if inspect.isclass(model) and issubclass(model, pydantic.BaseModel):
            (name,) = typing.get_args(model.model_fields["type"].annotation)
            found[name] = model
    return found


def self_test(client):
    """The types must refuse what the API refuses, or this script proves nothing."""
    pcm = {"type": "audio/pcmu", "rate": 8000}
    for bad in [
        {"type": "session.update", "session": {"type": "realtime", "voice": "marin"}},
        {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"format": pcm}}}},
        {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 1.5},
        {"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "c"}},
        {"type": "response.create", "response": {"instruction": "x"}},
    ]:
        try:
            client[bad["type"]].model_validate(bad)
        except pydantic.ValidationError:
            continue
        sys.exit(f"the types accept {bad}")


def main():
    strict = make_strict()
    types = {"client": types_by_name(RealtimeClientEvent), "server": types_by_name(RealtimeServerEvent)}
    self_test(types["client"])
    seen, faults = collections.Counter(), []
    for line in open(sys.argv[1], encoding="utf-8"):
        side, event = json.loads(line)
        name = event.get("type")
        model = types[side].get(name)
        if model is None:
            faults.append(f"{side}: no such event: {name}")
            continue
        try:
            model.model_validate(event)
        except pydantic.ValidationError as error:
            faults.append(f"{side}: {error}\n  in {json.dumps(event)[:500]}")
        seen[f"{side} {name}"] += 1
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    needed = ["session.update", "input_audio_buffer.append", "conversation.item.create",
              "conversation.item.truncate", "response.create"]
    missing = [name for name in needed if not seen[f"client {name}"]]
    if faults or missing:
        sys.exit(f"{len(faults)} faults; missing: {missing}")
    version = __import__("importlib.metadata", fromlist=["version"]).version("openai")
    counts = ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))
    print(f"openai {version}, {strict} strict types: {sum(seen.values())} events are valid: {counts}")


if __name__ == "__main__":
    main()
