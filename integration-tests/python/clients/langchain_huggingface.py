"""langchain-huggingface: `HuggingFaceEndpoint` on the native route, `ChatHuggingFace` on the chat route."""

from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from clients.promises import ANSWER, BASE_URL, END, PROMPT, QUESTION, TOOLS, check_call, keep, promise

ENDPOINT = dict(max_new_tokens=24, temperature=0.1, seed=1, huggingfacehub_api_token="unused")
endpoint = HuggingFaceEndpoint(endpoint_url=BASE_URL, **ENDPOINT)
# It asks the hub for the model behind an `endpoint_url`; a URL as `model` keeps it from that.
chat_model = ChatHuggingFace(llm=HuggingFaceEndpoint(model=BASE_URL, **ENDPOINT), max_tokens=512, temperature=0.1)


@promise
def invoke():
    # `/` answers with the prompt in front unless told otherwise, as TGI does for a local model.
    assert endpoint.invoke(PROMPT).removeprefix(PROMPT) == ANSWER
    assert endpoint.invoke(PROMPT, return_full_text=False) == ANSWER


@promise
def stream():
    pieces = list(endpoint.stream(PROMPT))
    assert len(pieces) > 2 and "".join(pieces).removesuffix(END) == ANSWER, pieces


@promise
def stop():
    text = endpoint.invoke(PROMPT, stop=["plus"], return_full_text=False)
    assert text == "Two ", text
    assert "".join(endpoint.stream(PROMPT, stop=["plus"])).startswith("Two"), "a stop string ends a stream"


@promise
def chat():
    answer = chat_model.invoke(QUESTION)
    assert answer.content == ANSWER, answer
    assert answer.response_metadata["token_usage"]["total_tokens"] > 0, answer


@promise
def chat_stream():
    chunks = list(chat_model.stream(QUESTION))
    assert len(chunks) > 2 and "".join(chunk.content for chunk in chunks) == ANSWER, chunks


@promise
def chat_tools():
    answer = chat_model.bind_tools(TOOLS[:1], tool_choice="get_weather").invoke(QUESTION)
    assert len(answer.tool_calls) == 1, answer
    check_call(answer.tool_calls[0]["name"], answer.tool_calls[0]["args"])


@promise
async def asynchronous():
    assert (await endpoint.ainvoke(PROMPT)).removeprefix(PROMPT) == ANSWER
    pieces = [piece async for piece in endpoint.astream(PROMPT)]
    assert "".join(pieces).removesuffix(END) == ANSWER, pieces


if __name__ == "__main__":
    keep("langchain-huggingface")
