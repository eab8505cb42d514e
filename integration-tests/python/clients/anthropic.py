"""anthropic: messages; plain, streamed, with tools, and the count of tokens."""

import anthropic

from clients.promises import (
    ANSWER,
    BASE_URL,
    CLOCK,
    MESSAGES,
    MODEL,
    QUESTION,
    WEATHER,
    check_call,
    keep,
    promise,
    raises,
)

client = anthropic.Anthropic(base_url=BASE_URL, api_key="unused", max_retries=0)
# The client knows no temperature any more, the API does.
GREEDY = {"temperature": 0}
ASK = dict(model=MODEL, messages=MESSAGES, max_tokens=24, extra_body=GREEDY)
TOOLS = [
    {"name": "get_weather", "description": "The weather in a city.", "input_schema": WEATHER},
    {"name": "get_time", "description": "The time in a time zone.", "input_schema": CLOCK},
]


@promise
def messages():
    answer = client.messages.create(**ASK)
    assert answer.type == "message" and answer.role == "assistant" and answer.id, answer
    assert [block.type for block in answer.content] == ["text"] and answer.content[0].text == ANSWER, answer
    assert answer.stop_reason == "end_turn" and answer.stop_sequence is None, answer
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0, answer
    cut = client.messages.create(**(ASK | {"max_tokens": 2}))
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 2, cut


@promise
def messages_system_and_blocks():
    blocks = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    answer = client.messages.create(**(ASK | {"messages": blocks}), system="Answer briefly.")
    assert answer.content[0].text, answer
    answer = client.messages.create(
        **(ASK | {"messages": blocks}), system=[{"type": "text", "text": "Answer briefly."}], metadata={"user_id": "u"}
    )
    assert answer.content[0].text, answer


@promise
def messages_stop_sequences():
    answer = client.messages.create(**ASK, stop_sequences=["plus"])
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == "plus", answer
    assert answer.content[0].text == "Two ", answer


@promise
def messages_stream():
    events = list(client.messages.create(**ASK, stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds
    assert set(kinds[2:-3]) == {"content_block_delta"}, kinds
    assert "".join(event.delta.text for event in events if event.type == "content_block_delta") == ANSWER, events
    with client.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == ANSWER and final.stop_reason == "end_turn", final
    assert final.usage.output_tokens > 0, final


@promise
def messages_tools():
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        answer = client.messages.create(**(ASK | {"max_tokens": 512}), tools=TOOLS, tool_choice=choice)
        assert answer.stop_reason == "tool_use", answer
        calls = [block for block in answer.content if block.type == "tool_use"]
        assert calls and all(call.id for call in calls), answer
        for call in calls:
            check_call(call.name, call.input)
        if choice["type"] == "tool":
            assert calls[0].name == "get_weather", answer


@promise
def messages_tools_stream():
    choice = {"type": "tool", "name": "get_weather"}
    with client.messages.stream(**(ASK | {"max_tokens": 512}), tools=TOOLS, tool_choice=choice) as stream:
        final = stream.get_final_message()
    call = next(block for block in final.content if block.type == "tool_use")
    check_call(call.name, call.input)
    assert call.name == "get_weather" and final.stop_reason == "tool_use", final


@promise
def messages_tool_results():
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo", "unit": "celsius"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}
    conversation = MESSAGES + [
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result, {"type": "text", "text": QUESTION}]},
    ]
    answer = client.messages.create(**(ASK | {"messages": conversation}), tools=TOOLS, tool_choice={"type": "none"})
    assert answer.content[0].type == "text" and answer.content[0].text, answer


@promise
def count_tokens():
    count = client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens
    usage = client.messages.create(**ASK).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0), (count, usage)
    assert client.messages.count_tokens(model=MODEL, messages=MESSAGES, system="Be brief.").input_tokens > count


@promise
def errors():
    error = raises(anthropic.APIStatusError, client.messages.create, **(ASK | {"extra_body": {"temperature": -1}}))
    assert error.status_code in (400, 422), error
    assert error.body["type"] == "error" and error.body["error"]["type"] == "invalid_request_error", error.body
    assert "temperature" in error.body["error"]["message"], error.body


@promise
async def asynchronous():
    async with anthropic.AsyncAnthropic(base_url=BASE_URL, api_key="unused", max_retries=0) as client:
        assert (await client.messages.create(**ASK)).content[0].text == ANSWER
        async with client.messages.stream(**ASK) as stream:
            assert "".join([piece async for piece in stream.text_stream]) == ANSWER


if __name__ == "__main__":
    keep("anthropic")
