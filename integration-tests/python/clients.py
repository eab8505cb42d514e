"""Talks to a running server through the clients that people use. Run by tests/clients.rs: `clients.py BASE_URL`.

Every function is one promise; the first broken one ends the script with its assertion.
"""

import sys

import huggingface_hub
import openai
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError

QUESTION = "What is two plus three?"
MESSAGES = [{"role": "user", "content": QUESTION}]
# What the demo model's chat template makes of the question: the native routes take text as it is.
END = "<|end|>"
PROMPT = f"<|user|>{QUESTION}{END}<|assistant|>"


def text_generation(hub: InferenceClient) -> None:
    text = hub.text_generation(PROMPT, max_new_tokens=12)
    assert isinstance(text, str) and text, repr(text)
    full = hub.text_generation(PROMPT, max_new_tokens=12, return_full_text=True)
    assert full == PROMPT + hub.text_generation(PROMPT, max_new_tokens=12, return_full_text=False), full


def text_generation_details(hub: InferenceClient) -> None:
    answer = hub.text_generation(PROMPT, max_new_tokens=12, details=True, top_n_tokens=2, do_sample=True, seed=3)
    details = answer.details
    assert details.generated_tokens == len(details.tokens) > 0, details
    assert details.finish_reason in ("length", "eos_token", "stop_sequence"), details
    assert details.seed == 3, details
    assert all(len(tokens) >= 2 for tokens in details.top_tokens), details
    assert all(token.logprob <= 0 for token in details.tokens), details


def text_generation_stream(hub: InferenceClient) -> None:
    whole = hub.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    pieces = list(hub.text_generation(PROMPT, max_new_tokens=12, return_full_text=False, stream=True))
    assert len(pieces) > 1, pieces
    # As with TGI, a stream shows the end token and the whole text does not.
    assert "".join(pieces).removesuffix(END) == whole, (pieces, whole)


def text_generation_stream_details(hub: InferenceClient) -> None:
    events = list(hub.text_generation(PROMPT, max_new_tokens=12, stream=True, details=True))
    assert [event.index for event in events] == list(range(1, len(events) + 1)), events
    assert all(event.generated_text is None for event in events[:-1]), events
    last = events[-1]
    assert last.generated_text is not None and last.details.generated_tokens == len(events), last
    assert last.details.input_length > 0, last


def text_generation_stop(hub: InferenceClient) -> None:
    whole = hub.text_generation(PROMPT, max_new_tokens=24, return_full_text=False)
    # Anywhere in the text, also across token borders.
    stop = whole[len(whole) // 2 :][:3]
    answer = hub.text_generation(PROMPT, max_new_tokens=24, return_full_text=False, stop=[stop], details=True)
    assert answer.details.finish_reason == "stop_sequence", answer
    assert answer.generated_text.endswith(stop) and whole.startswith(answer.generated_text), (answer, whole)


def text_generation_errors(hub: InferenceClient) -> None:
    try:
        hub.text_generation(PROMPT, temperature=-1.0)
    except ValidationError as error:
        assert "temperature" in str(error), error
    else:
        raise AssertionError("a negative temperature is refused")
    assert issubclass(OverloadedError, Exception)


def chat_completion(hub: InferenceClient) -> None:
    answer = hub.chat_completion(MESSAGES, max_tokens=24, temperature=0, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert answer.usage.completion_tokens > 0 and answer.system_fingerprint, answer
    assert len(choice.logprobs.content) == answer.usage.completion_tokens, choice.logprobs
    assert all(len(token.top_logprobs) >= 2 for token in choice.logprobs.content), choice.logprobs


def chat_completion_stream(hub: InferenceClient) -> None:
    whole = hub.chat_completion(MESSAGES, max_tokens=24, temperature=0).choices[0].message.content
    chunks = list(hub.chat_completion(MESSAGES, max_tokens=24, temperature=0, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole, chunks


def openai_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


def openai_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=24, temperature=0)
    assert answer.id and answer.object == "chat.completion", answer
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length"), answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer


def openai_chat_stream(client: openai.OpenAI) -> None:
    ask = dict(model="demo", messages=MESSAGES, max_completion_tokens=24, temperature=0)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole, chunks
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0, chunks[-1]
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id, "one id for the whole stream"


def openai_chat_stop_string(client: openai.OpenAI) -> None:
    ask = dict(model="demo", messages=MESSAGES, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    answer = client.chat.completions.create(**ask, stop=whole[3:5])
    assert answer.choices[0].finish_reason == "stop", answer
    assert len(answer.choices[0].message.content) < len(whole), answer


def openai_completions(client: openai.OpenAI) -> None:
    ask = dict(model="demo", prompt="The sky is", max_tokens=8, temperature=0)
    answer = client.completions.create(**ask)
    assert answer.choices[0].text and answer.choices[0].finish_reason in ("stop", "length"), answer
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True) if chunk.choices]
    assert "".join(pieces) == answer.choices[0].text, (pieces, answer)
    # langchain's completion client always sends these.
    client.completions.create(**ask, top_p=1, n=1)
    both = client.completions.create(**(ask | {"prompt": ["The sky is", "A dog is"]}))
    assert [choice.index for choice in both.choices] == [0, 1], both


def openai_errors(client: openai.OpenAI) -> None:
    try:
        client.chat.completions.create(model="demo", messages=MESSAGES, n=2)
    except openai.UnprocessableEntityError as error:
        assert "n" in str(error), error
    else:
        raise AssertionError("n=2 is refused, not ignored")
    try:
        client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=0)
    except openai.APIStatusError as error:
        assert error.status_code in (400, 422), error
    else:
        raise AssertionError("max_tokens=0 is refused")


def main(base_url: str) -> None:
    print(f"huggingface_hub {huggingface_hub.__version__}, openai {openai.__version__}")
    hub = InferenceClient(model=base_url)
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0)
    for promise in (
        text_generation,
        text_generation_details,
        text_generation_stream,
        text_generation_stream_details,
        text_generation_stop,
        text_generation_errors,
        chat_completion,
        chat_completion_stream,
    ):
        promise(hub)
        print(f"ok {promise.__name__}")
    for promise in (
        openai_models,
        openai_chat,
        openai_chat_stream,
        openai_chat_stop_string,
        openai_completions,
        openai_errors,
    ):
        promise(client)
        print(f"ok {promise.__name__}")


if __name__ == "__main__":
    main(sys.argv[1])
