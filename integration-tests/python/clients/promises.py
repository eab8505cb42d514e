"""What the client modules share: the runner, and the conversation they have.

Every decorated function is one promise of the server. `keep` runs them all, so that one broken promise hides no other,
and prints a line for each: `PASS name`, or `FAIL name: why`. tests/clients.rs reads these lines.
"""

import asyncio
import importlib.metadata
import inspect
import json
import sys
import traceback

import jsonschema

BASE_URL = sys.argv[1].rstrip("/")
MODEL = "demo"

QUESTION = "What is two plus three?"
ANSWER = "Two plus three is five."
MESSAGES = [{"role": "user", "content": QUESTION}]
# What the demo model's chat template makes of the question: the native routes take text as it is.
END = "<|end|>"
PROMPT = f"<|user|>{QUESTION}{END}<|assistant|>"

# Masks make the demo model obey, nothing makes it wise: every value is from a list or short, so that replies end.
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Paris", "Rome"]},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
CLOCK = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Ada", "Bob"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def function_tool(name: str, description: str, parameters: dict) -> dict:
    """A tool as OpenAI's API spells it."""
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    function_tool("get_weather", "The weather in a city.", WEATHER),
    function_tool("get_time", "The time in a time zone.", CLOCK),
]
PARAMETERS = {"get_weather": WEATHER, "get_time": CLOCK}
NAMED_WEATHER = {"type": "function", "function": {"name": "get_weather"}}


def check_call(name: str, arguments: str | dict) -> None:
    """The arguments of a tool call are JSON and fit the tool's schema."""
    assert name in PARAMETERS, name
    parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    jsonschema.validate(parsed, PARAMETERS[name])


def check_person(text: str) -> None:
    jsonschema.validate(json.loads(text), PERSON)


def raises(expected: type[Exception], call, *args, **kwargs) -> Exception:
    """The exception of type `expected` that the call raises; it is an error if it does not."""
    try:
        answer = call(*args, **kwargs)
    except expected as error:
        return error
    raise AssertionError(f"{expected.__name__} expected, got {answer!r}")


_promises = []


def promise(function):
    _promises.append(function)
    return function


def keep(package: str) -> None:
    """Runs all promises of a client and ends the process: 0 if all are kept."""
    print(f"CLIENT {package} {importlib.metadata.version(package)}", flush=True)
    broken = 0
    for function in _promises:
        try:
            asyncio.run(function()) if inspect.iscoroutinefunction(function) else function()
        except Exception as error:  # noqa: BLE001 a promise is broken by whatever it raises
            broken += 1
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
            print(f"FAIL {function.__name__}: {reason}", flush=True)
            traceback.print_exc()
        else:
            print(f"PASS {function.__name__}", flush=True)
    sys.exit(1 if broken else 0)
