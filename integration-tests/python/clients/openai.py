"""openai: chat, completions, responses, models; plain, streamed, asynchronous, and through the parse helpers."""

import json
import math
from typing import Literal

import httpx
import openai
from pydantic import BaseModel, ConfigDict

from clients.promises import (
    ANSWER,
    BASE_URL,
    MESSAGES,
    MODEL,
    NAMED_WEATHER,
    PERSON,
    QUESTION,
    TOOLS,
    WEATHER,
    check_call,
    check_person,
    keep,
    promise,
    raises,
)

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="unused", max_retries=0)
create = client.chat.completions.create
ASK = dict(model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0)


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["Ada", "Bob"]
    age: Literal[20, 30, 40]


def text(chunks) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@promise
def models():
    assert [model.id for model in client.models.list()] == [MODEL]
    model = client.models.retrieve(MODEL)
    assert model.id == MODEL and model.object == "model", model
    raises(openai.NotFoundError, client.models.retrieve, "no-such-model")


@promise
def chat():
    answer = create(**ASK)
    assert answer.id and answer.object == "chat.completion" and answer.model == MODEL, answer
    assert answer.choices[0].message.content == ANSWER and answer.choices[0].finish_reason == "stop", answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0, answer
    assert answer.system_fingerprint, answer
    cut = create(**(ASK | {"max_tokens": 2}))
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2, cut


@promise
def chat_stream():
    ask = dict(model=MODEL, messages=MESSAGES, max_completion_tokens=24, temperature=0)
    whole = create(**ask).choices[0].message.content
    chunks = list(create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert text(chunks) == whole, chunks
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0, chunks[-1]
    assert all(chunk.usage is None for chunk in chunks[:-1]), chunks
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id, "one id for the whole stream"
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == ["stop"], ends


@promise
def chat_stream_helper():
    with client.chat.completions.stream(**ASK) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER, final
    assert [event.type for event in events].count("content.done") == 1, events


@promise
def chat_stop():
    whole = create(**ASK).choices[0].message.content
    for stop in (whole[3:5], [whole[3:5], "never said"]):
        answer = create(**ASK, stop=stop).choices[0]
        assert answer.finish_reason == "stop" and answer.message.content == whole[:3], answer


@promise
def chat_n():
    answer = create(**(ASK | {"temperature": 1.5}), n=3, seed=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2], answer
    assert all(choice.message.content for choice in answer.choices), answer
    chunks = list(create(**(ASK | {"temperature": 1.5}), n=3, seed=4, stream=True))
    for choice in answer.choices:
        mine = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == choice.index)
        assert mine == choice.message.content, (mine, choice)


@promise
def chat_logprobs():
    answer = create(**ASK, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1), answer
    assert all(bytes(token.bytes).decode() == token.token for token in content), content
    assert all(len(token.top_logprobs) >= 3 and token.logprob <= 0 for token in content), content
    chunks = list(create(**ASK, logprobs=True, top_logprobs=3, stream=True))
    streamed = [t for chunk in chunks for c in chunk.choices if c.logprobs for t in c.logprobs.content or []]
    assert streamed == content, (streamed, content)
    most = create(**ASK, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 20 for token in most), most


@promise
def chat_penalties_and_bias():
    first = create(**ASK, logprobs=True).choices[0].logprobs.content[0].token
    id = httpx.post(f"{BASE_URL}/tokenize", json={"inputs": first}).json()[-1]["id"]
    answer = create(**ASK, logit_bias={str(id): -100}).choices[0]
    assert not answer.message.content.startswith(first), answer
    answer = create(**(ASK | {"max_tokens": 4}), logit_bias={str(id): 100}, presence_penalty=0.0).choices[0]
    assert answer.message.content == first * 4, answer
    create(**ASK, presence_penalty=1.5, frequency_penalty=-0.5, seed=1, top_p=1)


@promise
def chat_seed():
    ask = ASK | {"temperature": 1.5, "seed": 11}
    assert create(**ask).choices[0].message.content == create(**ask).choices[0].message.content


@promise
def chat_extra_sampling():
    extra = {"min_p": 0.05, "top_k": 20, "repetition_penalty": 1.1, "min_tokens": 4, "ignore_eos": True}
    answer = create(**(ASK | {"max_tokens": 20, "temperature": 0.7, "seed": 3}), extra_body=extra)
    assert answer.usage.completion_tokens == 20 and answer.choices[0].finish_reason == "length", answer


@promise
def chat_tools():
    for choice in ("required", NAMED_WEATHER):
        answer = create(model=MODEL, messages=MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=512, temperature=1)
        assert answer.choices[0].finish_reason in ("tool_calls", "stop"), answer
        calls = answer.choices[0].message.tool_calls
        assert calls and len({call.id for call in calls}) == len(calls), answer
        for call in calls:
            assert call.type == "function", call
            check_call(call.function.name, call.function.arguments)
        if choice == "required":
            assert answer.choices[0].finish_reason == "tool_calls", answer
        else:
            assert [call.function.name for call in calls] == ["get_weather"], calls


@promise
def chat_tools_not_parallel():
    answer = create(
        model=MODEL, messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=512
    )
    assert len(answer.choices[0].message.tool_calls) == 1, answer


@promise
def chat_tools_auto_and_none():
    for choice in ("auto", "none"):
        message = create(**(ASK | {"max_tokens": 96}), tools=TOOLS, tool_choice=choice).choices[0].message
        assert message.content or message.tool_calls, message
        for call in message.tool_calls or []:
            assert choice == "auto", message
            check_call(call.function.name, call.function.arguments)


@promise
def chat_tools_stream():
    ask = dict(model=MODEL, messages=MESSAGES, tools=TOOLS, max_tokens=512, temperature=1)
    for seed in range(8):
        calls: dict[int, dict] = {}
        finish = None
        for chunk in create(**ask, tool_choice="required", seed=seed, stream=True):
            for choice in chunk.choices:
                finish = choice.finish_reason or finish
                for call in choice.delta.tool_calls or []:
                    mine = calls.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                    mine["arguments"] += call.function.arguments or ""
        assert calls and finish == "tool_calls", (calls, finish)
        for call in calls.values():
            assert call["id"], calls
            check_call(call["name"], call["arguments"])
        whole = create(**ask, tool_choice="required", seed=seed).choices[0].message.tool_calls
        assert [(c.function.name, c.function.arguments) for c in whole] == [
            (c["name"], c["arguments"]) for c in calls.values()
        ], (whole, calls)


@promise
def chat_tool_results():
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
    messages = MESSAGES + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "user", "content": QUESTION},
    ]
    answer = create(model=MODEL, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=24, temperature=0)
    assert answer.choices[0].message.content, answer


@promise
def chat_json_schema():
    format = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    for temperature in (0, 1.5):
        answer = create(**(ASK | {"max_tokens": 64, "temperature": temperature}), response_format=format).choices[0]
        assert answer.finish_reason == "stop", answer
        check_person(answer.message.content)
    check_person(text(create(**(ASK | {"max_tokens": 64}), response_format=format, stream=True)))


@promise
def chat_json_object():
    answer = create(**(ASK | {"max_tokens": 256}), response_format={"type": "json_object"}).choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict), answer
    else:
        assert answer.finish_reason == "length" and answer.message.content.lstrip().startswith("{"), answer


@promise
def chat_parse():
    answer = client.chat.completions.parse(**(ASK | {"max_tokens": 64}), response_format=Person)
    assert isinstance(answer.choices[0].message.parsed, Person), answer
    tool = openai.pydantic_function_tool(Person, name="save_person")
    answer = client.chat.completions.parse(**(ASK | {"max_tokens": 512}), tools=[tool], tool_choice="required")
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Person), answer


@promise
def chat_parse_stream():
    with client.chat.completions.stream(**(ASK | {"max_tokens": 64}), response_format=Person) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person), final


@promise
def completions():
    ask = dict(model=MODEL, prompt="The sky is", max_tokens=8, temperature=0)
    answer = client.completions.create(**ask)
    assert answer.choices[0].text and answer.choices[0].finish_reason in ("stop", "length"), answer
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True) if chunk.choices]
    assert "".join(pieces) == answer.choices[0].text, (pieces, answer)
    # langchain's completion client always sends these.
    client.completions.create(**ask, top_p=1, n=1)
    both = client.completions.create(**(ask | {"prompt": ["The sky is", "A dog is"]}))
    assert [choice.index for choice in both.choices] == [0, 1], both


@promise
def completions_echo_and_logprobs():
    ask = dict(model=MODEL, prompt="The sky is", max_tokens=4, temperature=0)
    text = client.completions.create(**ask).choices[0].text
    assert client.completions.create(**ask, echo=True).choices[0].text == "The sky is" + text
    logprobs = client.completions.create(**ask, logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) > 0, logprobs
    assert all(math.isfinite(logprob) for logprob in logprobs.token_logprobs), logprobs
    assert all(len(top) >= 2 for top in logprobs.top_logprobs), logprobs
    assert "".join(logprobs.tokens).startswith(text), (logprobs, text)


@promise
def completions_n():
    answer = client.completions.create(model=MODEL, prompt=["The", "A"], max_tokens=6, n=2, temperature=1.0)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2, 3], answer


@promise
def responses():
    ask = dict(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=24)
    answer = client.responses.create(**ask)
    assert answer.output_text == ANSWER and answer.status == "completed", answer
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens, answer
    events = list(client.responses.create(**ask, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed", events
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER, events
    assert events[-1].response.output_text == ANSWER, events[-1]
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events), events


@promise
def responses_tools():
    tool = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}
    answer = client.responses.create(
        model=MODEL, input=QUESTION, tools=[tool], tool_choice="required", max_output_tokens=512
    )
    call = next(item for item in answer.output if item.type == "function_call")
    assert call.name == "get_weather" and call.call_id, call
    check_call(call.name, call.arguments)


@promise
def responses_parse():
    answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Person, max_output_tokens=64)
    assert isinstance(answer.output_parsed, Person), answer


@promise
def errors():
    error = raises(openai.APIStatusError, create, model=MODEL, messages=MESSAGES, max_tokens=0)
    assert error.status_code in (400, 422) and error.type and "max_tokens" in str(error), error
    error = raises(openai.APIStatusError, create, model=MODEL, messages=MESSAGES, temperature=-1)
    assert error.param == "temperature", error
    error = raises(openai.APIStatusError, create, model=MODEL, messages=MESSAGES, top_logprobs=10_000, logprobs=True)
    assert error.status_code in (400, 422), error
    error = raises(openai.APIStatusError, create, model=MODEL, messages=MESSAGES, tools=TOOLS, tool_choice="nobody")
    assert "nobody" in str(error), error
    error = raises(openai.APIStatusError, client.completions.create, model=MODEL, prompt="a", suffix="b")
    assert error.status_code in (400, 422) and "uffix" in str(error), error
    unenforceable = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no-such-type"}}}
    error = raises(openai.APIStatusError, create, model=MODEL, messages=MESSAGES, response_format=unenforceable)
    assert error.status_code in (400, 422) and "type" in str(error), error


@promise
def unknown_fields():
    answer = client.chat.completions.with_raw_response.create(**ASK, extra_body={"colour": "blue"})
    assert answer.status_code == 200 and answer.parse().choices[0].message.content == ANSWER
    assert any("colour" in value for value in answer.headers.values()), answer.headers


@promise
async def asynchronous():
    async with openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="unused", max_retries=0) as client:
        whole = (await client.chat.completions.create(**ASK)).choices[0].message.content
        chunks = [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]
        assert text(chunks) == whole == ANSWER, chunks
        answer = await client.chat.completions.parse(**(ASK | {"max_tokens": 64}), response_format=Person)
        assert isinstance(answer.choices[0].message.parsed, Person), answer


if __name__ == "__main__":
    keep("openai")
