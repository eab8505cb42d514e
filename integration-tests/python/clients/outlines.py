"""outlines: its TGI model (native grammars) and its OpenAI model (response_format)."""

import re
from typing import Literal

import openai
import outlines
from huggingface_hub import AsyncInferenceClient, InferenceClient
from outlines.types import Regex
from pydantic import BaseModel

from clients.promises import ANSWER, BASE_URL, END, MODEL, PROMPT, QUESTION, keep, promise

tgi = outlines.from_tgi(InferenceClient(BASE_URL))
ASK = dict(max_new_tokens=64, return_full_text=False)


class Person(BaseModel):
    name: Literal["Ada", "Bob"]
    age: Literal[20, 30, 40]


@promise
def tgi_text():
    assert tgi(PROMPT, **ASK) == ANSWER
    assert "".join(tgi.stream(PROMPT, **ASK)).removesuffix(END) == ANSWER


@promise
def tgi_choice():
    assert tgi(PROMPT, Literal["yes", "no", "maybe"], **ASK) in ("yes", "no", "maybe")


@promise
def tgi_regex():
    text = tgi(PROMPT, Regex(r"[A-Z][a-z]{2,5} [0-9]{1,2}"), **ASK)
    assert re.fullmatch(r"[A-Z][a-z]{2,5} [0-9]{1,2}", text), text


@promise
def tgi_types():
    assert re.fullmatch(r"[+-]?\d+", tgi(PROMPT, int, **ASK | {"do_sample": True, "seed": 1}))
    assert tgi(PROMPT, bool, **ASK) in ("True", "False")


@promise
def tgi_json_schema():
    Person.model_validate_json(tgi(PROMPT, Person, **ASK))
    Person.model_validate_json("".join(tgi.stream(PROMPT, Person, **ASK)).removesuffix(END))


@promise
async def tgi_asynchronous():
    async with AsyncInferenceClient(BASE_URL) as client:
        Person.model_validate_json(await outlines.from_tgi(client)(PROMPT, Person, **ASK))


@promise
def openai_json_schema():
    client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="unused", max_retries=0)
    Person.model_validate_json(outlines.from_openai(client, MODEL)(QUESTION, Person, max_tokens=64))


if __name__ == "__main__":
    keep("outlines")
