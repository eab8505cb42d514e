"""instructor: typed answers by tools, by JSON schema and by JSON mode."""

from typing import Literal

import instructor
import openai
from pydantic import BaseModel

from clients.promises import BASE_URL, MESSAGES, MODEL, keep, promise

ASK = dict(model=MODEL, messages=MESSAGES, max_tokens=512, temperature=1.0, seed=2, max_retries=0)


class Person(BaseModel):
    name: Literal["Ada", "Bob"]
    age: Literal[20, 30, 40]
    friend: Literal["Cleo", "Dan"] | None


def answer_in(mode: instructor.Mode):
    client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="unused", max_retries=0)
    return instructor.from_openai(client, mode=mode).chat.completions.create(**ASK, response_model=Person)


@promise
def tools():
    assert isinstance(answer_in(instructor.Mode.TOOLS), Person)


@promise
def tools_strict():
    assert isinstance(answer_in(instructor.Mode.TOOLS_STRICT), Person)


@promise
def json_schema():
    assert isinstance(answer_in(instructor.Mode.JSON_SCHEMA), Person)


@promise
async def asynchronous():
    client = openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="unused", max_retries=0)
    create = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).chat.completions.create
    assert isinstance(await create(**ASK, response_model=Person), Person)


if __name__ == "__main__":
    keep("instructor")
