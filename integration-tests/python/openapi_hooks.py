"""Told to schemathesis through SCHEMATHESIS_HOOKS: what the schema of a stream in our OpenAPI file means.

Our file describes an event as an object whose `data` is JSON in a string; the streams of OpenAI's calls end with an event
whose data is the word `[DONE]`, for which OpenAPI has no description.
"""

import schemathesis


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for operation in (item for path in raw_schema["paths"].values() for item in path.values() if isinstance(item, dict)):
        for response in operation.get("responses", {}).values():
            media = response.get("content", {}).get("text/event-stream")
            if media and "schema" in media:
                properties = media["schema"]["properties"]
                properties["data"] = {"if": {"const": "[DONE]"}, "else": properties["data"]}
