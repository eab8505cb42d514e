"""litellm: its routes to OpenAI-compatible servers and to Hugging Face endpoints."""

import os

# Its table of prices otherwise comes from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

from clients.promises import (  # noqa: E402
    ANSWER,
    BASE_URL,
    MESSAGES,
    MODEL,
    NAMED_WEATHER,
    PERSON,
    TOOLS,
    check_call,
    check_person,
    keep,
    promise,
    raises,
)

litellm.suppress_debug_info = True
OPENAI = dict(model=f"openai/{MODEL}", api_base=f"{BASE_URL}/v1", api_key="unused", messages=MESSAGES)
HUGGING_FACE = dict(model=f"huggingface/{MODEL}", api_base=BASE_URL, api_key="unused", messages=MESSAGES)
ASK = dict(max_tokens=512, temperature=0, num_retries=0)


def stream_of(request: dict) -> str:
    chunks = litellm.completion(**request, **ASK, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@promise
def openai_completion():
    answer = litellm.completion(**OPENAI, **ASK)
    assert answer.choices[0].message.content == ANSWER and answer.usage.total_tokens > 0, answer
    assert stream_of(OPENAI) == ANSWER


@promise
def openai_tools():
    answer = litellm.completion(**OPENAI, **ASK, tools=TOOLS, tool_choice=NAMED_WEATHER)
    function = answer.choices[0].message.tool_calls[0].function
    assert function.name == "get_weather", answer
    check_call(function.name, function.arguments)


@promise
def openai_response_format():
    format = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    check_person(litellm.completion(**OPENAI, **ASK, response_format=format).choices[0].message.content)


@promise
def openai_text_completion():
    model = f"text-completion-openai/{MODEL}"
    ask = dict(model=model, api_base=f"{BASE_URL}/v1", api_key="unused", prompt="The sky is", max_tokens=8)
    answer = litellm.text_completion(**ask, temperature=0)
    assert answer.choices[0].text, answer


@promise
def huggingface_completion():
    answer = litellm.completion(**HUGGING_FACE, **ASK)
    assert answer.choices[0].message.content == ANSWER, answer
    assert stream_of(HUGGING_FACE) == ANSWER


@promise
def errors():
    bad = OPENAI | {"temperature": -1, "max_tokens": 8}
    raises((litellm.BadRequestError, litellm.UnprocessableEntityError), litellm.completion, **bad)


@promise
async def asynchronous():
    answer = await litellm.acompletion(**OPENAI, **ASK)
    assert answer.choices[0].message.content == ANSWER, answer


if __name__ == "__main__":
    keep("litellm")
