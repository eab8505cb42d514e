"""huggingface_hub: `InferenceClient` and `AsyncInferenceClient`."""

import json
import re

from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import GenerationError, ValidationError

from clients.promises import (
    BASE_URL,
    END,
    MESSAGES,
    NAMED_WEATHER,
    PERSON,
    PROMPT,
    TOOLS,
    check_call,
    check_person,
    keep,
    promise,
    raises,
)

hub = InferenceClient(model=BASE_URL)
GREEDY = {"max_new_tokens": 12}


@promise
def text_generation():
    text = hub.text_generation(PROMPT, **GREEDY)
    assert isinstance(text, str) and text, repr(text)
    full = hub.text_generation(PROMPT, **GREEDY, return_full_text=True)
    assert full == PROMPT + hub.text_generation(PROMPT, **GREEDY, return_full_text=False), full


@promise
def text_generation_details():
    answer = hub.text_generation(PROMPT, **GREEDY, details=True, top_n_tokens=2, do_sample=True, seed=3)
    details = answer.details
    assert details.generated_tokens == len(details.tokens) > 0, details
    assert details.finish_reason in ("length", "eos_token", "stop_sequence"), details
    assert details.seed == 3, details
    assert all(len(tokens) >= 2 for tokens in details.top_tokens), details
    assert all(token.logprob <= 0 for token in details.tokens), details


@promise
def text_generation_prefill():
    details = hub.text_generation(PROMPT, **GREEDY, details=True, decoder_input_details=True).details
    assert "".join(token.text for token in details.prefill).endswith(PROMPT), details.prefill
    assert details.prefill[0].logprob is None, details.prefill[0]
    assert all(token.logprob <= 0 for token in details.prefill[1:]), details.prefill


@promise
def text_generation_best_of():
    answer = hub.text_generation(
        PROMPT, max_new_tokens=16, details=True, best_of=2, do_sample=True, temperature=1.5, return_full_text=False
    )
    mean = lambda sequence: sum(t.logprob for t in sequence.tokens) / len(sequence.tokens)  # noqa: E731
    others = answer.details.best_of_sequences
    assert len(others) == 1, answer
    assert all(mean(answer.details) >= mean(other) for other in others), answer


@promise
def text_generation_sampling():
    knobs = dict(
        max_new_tokens=12, do_sample=True, seed=7, temperature=0.8, top_k=20, top_p=0.9, typical_p=0.95,
        repetition_penalty=1.1, frequency_penalty=0.1, truncate=64, return_full_text=False,
    )  # fmt: skip
    assert hub.text_generation(PROMPT, **knobs) == hub.text_generation(PROMPT, **knobs), "a seed makes it repeatable"


@promise
def text_generation_watermark():
    texts = []
    for watermark in (False, True, True):
        # Where the model is sure of its answer a watermark changes nothing: it begins in the middle of nowhere.
        knobs = dict(max_new_tokens=24, do_sample=True, temperature=1.5, return_full_text=False, watermark=watermark)
        texts.append([hub.text_generation("The", **knobs, seed=seed) for seed in range(4)])
    plain, marked, again = texts
    assert marked == again and marked != plain, texts


@promise
def text_generation_stream():
    whole = hub.text_generation(PROMPT, **GREEDY, return_full_text=False)
    pieces = list(hub.text_generation(PROMPT, **GREEDY, return_full_text=False, stream=True))
    assert len(pieces) > 1, pieces
    # As with TGI, a stream shows the end token and the whole text does not.
    assert "".join(pieces).removesuffix(END) == whole, (pieces, whole)


@promise
def text_generation_stream_details():
    events = list(hub.text_generation(PROMPT, **GREEDY, stream=True, details=True))
    assert [event.index for event in events] == list(range(1, len(events) + 1)), events
    assert all(event.generated_text is None for event in events[:-1]), events
    last = events[-1]
    assert last.generated_text is not None and last.details.generated_tokens == len(events), last
    assert last.details.input_length > 0, last


@promise
def text_generation_stop():
    whole = hub.text_generation(PROMPT, max_new_tokens=24, return_full_text=False)
    # Anywhere in the text, also across token borders.
    stop = whole[len(whole) // 2 :][:3]
    answer = hub.text_generation(PROMPT, max_new_tokens=24, return_full_text=False, stop=[stop], details=True)
    assert answer.details.finish_reason == "stop_sequence", answer
    assert answer.generated_text.endswith(stop) and whole.startswith(answer.generated_text), (answer, whole)


@promise
def text_generation_grammar_json():
    grammar = {"type": "json", "value": PERSON}
    check_person(hub.text_generation(PROMPT, max_new_tokens=64, grammar=grammar, return_full_text=False))
    pieces = hub.text_generation(PROMPT, max_new_tokens=64, grammar=grammar, return_full_text=False, stream=True)
    check_person("".join(pieces).removesuffix(END))


@promise
def text_generation_grammar_regex():
    pattern = r"\d{3}-[A-F]{2}"
    grammar = {"type": "regex", "value": pattern}
    text = hub.text_generation(PROMPT, max_new_tokens=32, grammar=grammar, return_full_text=False)
    assert re.fullmatch(pattern, text), text


@promise
def text_generation_errors():
    error = raises(ValidationError, hub.text_generation, PROMPT, temperature=-1.0)
    assert "temperature" in str(error), error
    grammar = {"type": "regex", "value": "(unclosed"}
    raises((ValidationError, GenerationError), hub.text_generation, PROMPT, grammar=grammar)
    events = hub.text_generation(PROMPT, temperature=-1.0, stream=True)
    raises(ValidationError, list, events)


@promise
def chat_completion():
    answer = hub.chat_completion(MESSAGES, max_tokens=24, temperature=0, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert answer.usage.completion_tokens > 0 and answer.system_fingerprint, answer
    assert len(choice.logprobs.content) == answer.usage.completion_tokens, choice.logprobs
    assert all(len(token.top_logprobs) >= 2 for token in choice.logprobs.content), choice.logprobs


@promise
def chat_completion_stream():
    whole = hub.chat_completion(MESSAGES, max_tokens=24, temperature=0).choices[0].message.content
    chunks = list(hub.chat_completion(MESSAGES, max_tokens=24, temperature=0, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole, chunks


@promise
def chat_completion_tools():
    for choice in ("required", NAMED_WEATHER):
        answer = hub.chat_completion(MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=512).choices[0]
        call = answer.message.tool_calls[0]
        assert call.type == "function" and call.id, call
        check_call(call.function.name, call.function.arguments)
        if choice is NAMED_WEATHER:
            assert call.function.name == "get_weather", call


@promise
def chat_completion_tools_stream():
    chunks = hub.chat_completion(MESSAGES, tools=TOOLS, tool_choice=NAMED_WEATHER, max_tokens=512, stream=True)
    calls = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == "get_weather", calls
    check_call("get_weather", "".join(call.function.arguments or "" for call in calls))


@promise
def chat_completion_response_format():
    formats = [
        {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
        # TGI's own shapes; the client takes TGI's `json_schema` for OpenAI's, and sends that as `json_object`.
        {"type": "json", "value": PERSON},
        {"type": "json_object", "value": PERSON},
    ]
    for format in formats:
        answer = hub.chat_completion(MESSAGES, response_format=format, max_tokens=64, temperature=1.0)
        check_person(answer.choices[0].message.content)


@promise
def endpoint_info():
    # Asked of Hugging Face's own kind of endpoint only.
    hub = InferenceClient(model=BASE_URL, provider="hf-inference")
    info = hub.get_endpoint_info()
    assert info["model_id"] == "demo" and info["max_total_tokens"] > 0 and info["version"], info
    assert hub.health_check()


@promise
async def async_text_generation():
    async with AsyncInferenceClient(model=BASE_URL) as client:
        whole = await client.text_generation(PROMPT, **GREEDY, return_full_text=False)
        pieces = [
            piece async for piece in await client.text_generation(PROMPT, **GREEDY, return_full_text=False, stream=True)
        ]
        assert "".join(pieces).removesuffix(END) == whole, (pieces, whole)
        details = (await client.text_generation(PROMPT, **GREEDY, details=True)).details
        assert details.generated_tokens == len(details.tokens) > 0, details


@promise
async def async_chat_completion():
    async with AsyncInferenceClient(model=BASE_URL) as client:
        ask = dict(messages=MESSAGES, max_tokens=24, temperature=0)
        whole = (await client.chat_completion(**ask)).choices[0].message.content
        chunks = [chunk async for chunk in await client.chat_completion(**ask, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole, chunks


@promise
async def async_tools_and_response_format():
    async with AsyncInferenceClient(model=BASE_URL) as client:
        answer = await client.chat_completion(MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=512)
        function = answer.choices[0].message.tool_calls[0].function
        check_call(function.name, function.arguments)
        format = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
        answer = await client.chat_completion(MESSAGES, response_format=format, max_tokens=64)
        json.loads(answer.choices[0].message.content)
        check_person(answer.choices[0].message.content)


if __name__ == "__main__":
    keep("huggingface_hub")
