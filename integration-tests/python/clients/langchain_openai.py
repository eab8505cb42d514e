"""langchain-openai: `ChatOpenAI` and `OpenAI`, with tools and structured output by each of its methods."""

from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from clients.promises import ANSWER, BASE_URL, MODEL, QUESTION, check_call, keep, promise

ACCESS = dict(model=MODEL, base_url=f"{BASE_URL}/v1", api_key="unused", max_retries=0)
chat_model = ChatOpenAI(**ACCESS, max_tokens=512, temperature=0)


class Person(BaseModel):
    """A person."""

    name: Literal["Ada", "Bob"]
    age: Literal[20, 30, 40]


@tool
def get_weather(city: Literal["Oslo", "Paris", "Rome"], unit: Literal["celsius", "fahrenheit"]) -> str:
    """The weather in a city."""
    return f"rain in {city}, {unit}"


@promise
def invoke():
    answer = chat_model.invoke(QUESTION)
    assert answer.content == ANSWER and answer.response_metadata["finish_reason"] == "stop", answer
    assert answer.usage_metadata["total_tokens"] > 0, answer


@promise
def stream():
    chunks = list(ChatOpenAI(**ACCESS, max_tokens=128, temperature=0, stream_usage=True).stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == ANSWER and len(chunks) > 2, chunks
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["output_tokens"] > 0, whole


@promise
def batch():
    answers = chat_model.batch([QUESTION, "Say hello.", QUESTION])
    assert [answers[0].content, answers[2].content] == [ANSWER, ANSWER], answers


@promise
def bind_tools():
    for choice in ("any", "get_weather"):
        bound = chat_model.bind_tools([get_weather], tool_choice=choice, parallel_tool_calls=False)
        calls = bound.invoke(QUESTION).tool_calls
        assert len(calls) == 1, calls
        check_call(calls[0]["name"], calls[0]["args"])
        whole = None
        for chunk in bound.stream(QUESTION):
            whole = chunk if whole is None else whole + chunk
        assert [(call["name"], call["args"]) for call in whole.tool_calls] == [
            (call["name"], call["args"]) for call in calls
        ], whole


@promise
def structured_output():
    for method in ("json_schema", "function_calling"):
        answer = chat_model.with_structured_output(Person, method=method).invoke(QUESTION)
        assert isinstance(answer, Person), (method, answer)


@promise
def completion():
    model = OpenAI(**ACCESS, max_tokens=8, temperature=0)
    answer = model.invoke("The sky is")
    assert answer and "".join(model.stream("The sky is")) == answer, answer


@promise
async def asynchronous():
    assert (await chat_model.ainvoke(QUESTION)).content == ANSWER
    assert "".join([chunk.content async for chunk in chat_model.astream(QUESTION)]) == ANSWER


if __name__ == "__main__":
    keep("langchain-openai")
