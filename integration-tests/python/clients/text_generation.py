"""text-generation, TGI's own client. Its streamed chat cannot read the `[DONE]` of TGI 3 either, so it is left out."""

import re

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from text_generation.types import Grammar

from clients.promises import BASE_URL, END, MESSAGES, PROMPT, TOOLS, check_call, keep, promise, raises

client = Client(BASE_URL)


@promise
def generate():
    answer = client.generate(PROMPT, max_new_tokens=12, do_sample=True, seed=5, top_n_tokens=2)
    assert answer.generated_text and answer.details.generated_tokens == len(answer.details.tokens), answer
    assert answer.details.seed == 5 and len(answer.details.top_tokens) == len(answer.details.tokens), answer


@promise
def generate_prefill():
    details = client.generate(PROMPT, max_new_tokens=4, decoder_input_details=True).details
    assert "".join(token.text for token in details.prefill).endswith(PROMPT), details.prefill


@promise
def generate_best_of():
    answer = client.generate(PROMPT, max_new_tokens=12, best_of=2, do_sample=True)
    assert len(answer.details.best_of_sequences) == 1, answer


@promise
def generate_grammar():
    answer = client.generate(PROMPT, max_new_tokens=16, grammar=Grammar(type="regex", value="[0-9]{4}"))
    # Every token in details; the client asks `/` and gets the prompt back in front.
    assert re.fullmatch("[0-9]{4}", answer.generated_text.removeprefix(PROMPT)), answer


@promise
def generate_stream():
    whole = client.generate(PROMPT, max_new_tokens=12, return_full_text=False).generated_text
    events = list(client.generate_stream(PROMPT, max_new_tokens=12, return_full_text=False))
    assert events[-1].generated_text == whole, events[-1]
    assert "".join(event.token.text for event in events).removesuffix(END) == whole, events
    assert events[-1].details.generated_tokens == len(events), events[-1]


@promise
def chat():
    answer = client.chat(MESSAGES, max_tokens=24, temperature=0.0)
    assert answer.choices[0].message.content and answer.usage["total_tokens"] > 0, answer


@promise
def chat_tools():
    answer = client.chat(MESSAGES, max_tokens=512, tools=TOOLS, tool_choice="get_weather", seed=1)
    call = answer.choices[0].message.tool_calls[0]
    function = call["function"] if isinstance(call, dict) else call.function
    name, arguments = (
        (function["name"], function["arguments"]) if isinstance(function, dict) else (function.name, function.arguments)
    )
    assert name == "get_weather", answer
    check_call(name, arguments)


@promise
def errors():
    raises(ValidationError, client.generate, PROMPT, top_n_tokens=1000)
    stream = client.generate_stream(PROMPT, top_n_tokens=1000)
    raises(ValidationError, list, stream)


@promise
async def async_generate():
    asynchronous = AsyncClient(BASE_URL)
    whole = (await asynchronous.generate(PROMPT, max_new_tokens=12)).generated_text
    events = [event async for event in asynchronous.generate_stream(PROMPT, max_new_tokens=12)]
    assert events[-1].generated_text == whole, (events[-1], whole)


if __name__ == "__main__":
    keep("text-generation")
