"""Told to schemathesis through SCHEMATHESIS_HOOKS: what the schema of a stream in our OpenAPI file means.

TGI's file describes a stream by the JSON in its events, and so does ours; schemathesis takes it for the event itself, an
object whose `data` is a string. Rewritten, every event's JSON is held against the schema.
"""

import schemathesis


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for operation in (item for path in raw_schema["paths"].values() for item in path.values() if isinstance(item, dict)):
        for response in operation.get("responses", {}).values():
            media = response.get("content", {}).get("text/event-stream")
            if media and "schema" in media:
                json = {"type": "string", "contentMediaType": "application/json", "contentSchema": media["schema"]}
                data = {"if": {"const": "[DONE]"}, "else": json}
                media["schema"] = {"type": "object", "properties": {"data": data}, "required": ["data"]}
