#!/usr/bin/env python3
"""Checks messages of the Gemini Live API against the types of Google's SDK.

    gemini_events.py FILE

FILE has one JSON array per line, ["client" or "server", message], as tests/wire/agents/gemini.rs
writes it with GEMINI_EVENTS=FILE. The types refuse members that they do not know. The last line counts
the messages by kind.
"""

import collections
import importlib.metadata
import json
import sys

import pydantic
from google.genai import types

TYPES = {"client": types.LiveClientMessage, "server": types.LiveServerMessage}


def aliases(model):
    """The names of a model's members in JSON."""
    return {field.alias or name for name, field in model.model_fields.items()}


def self_test():
    """The types must refuse what the API refuses, or this script proves nothing."""
    blob = {"mimeType": "audio/pcm;rate=16000", "data": "!"}
    for bad in [
        {"setup": {"model": "m", "voice": "x"}},
        {"setup": {"generationConfig": {"responseModalities": "AUDIO"}}},
        {"setup": {"tools": [{"functionDeclarations": [{"name": "f", "arguments": {}}]}]}},
        {"realtimeInput": {"audio": blob}},
        {"toolResponse": {"functionResponses": [{"id": "1", "name": "f", "response": "text"}]}},
        {"clientContent": {"turns": [{"role": "user", "text": "x"}]}},
    ]:
        try:
            types.LiveClientMessage.model_validate(bad)
        except pydantic.ValidationError:
            continue
        sys.exit(f"the types accept {bad}")


def main():
    self_test()
    seen, faults = collections.Counter(), []
    for line in open(sys.argv[1], encoding="utf-8"):
        side, message = json.loads(line)
        kinds = sorted(message)
        unknown = set(kinds) - aliases(TYPES[side])
        if unknown:
            faults.append(f"{side}: not as in JSON: {sorted(unknown)}")
        try:
            TYPES[side].model_validate(message)
        except pydantic.ValidationError as error:
            faults.append(f"{side}: {error}\n  in {json.dumps(message)[:500]}")
        for kind in kinds:
            inner = message[kind] if isinstance(message[kind], dict) else {}
            seen[" ".join([side, kind, *(["text"] if "text" in inner else [])])] += 1
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    needed = ["setup", "realtimeInput", "realtimeInput text", "toolResponse"]
    missing = [kind for kind in needed if not seen[f"client {kind}"]]
    if faults or missing:
        sys.exit(f"{len(faults)} faults; missing: {missing}")
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(seen.items()))
    version = importlib.metadata.version("google-genai")
    print(f"google-genai {version}: {sum(seen.values())} messages are valid: {counts}")


if __name__ == "__main__":
    main()
