"""100 JSON schemas and 60 regular expressions against a running server: `python -m structured.run BASE_URL`.

The demo model writes at temperature 1.5 under each of them, with several seeds, on the native route and through chat. It
knows nothing of JSON: whatever is valid here, the masks made it so. Judges are `jsonschema` with its format checker and
`re.fullmatch`.

Every answer is exactly one of: complete, and then it must be valid; cut by the limit, and then it must say `length`;
refused, which only schemas may be that list the keyword as `refusable`, and then the refusal must name it.

A line for each violation, `FAIL what: why`; at the end one with the counts. Exits 1 on a violation, or if so little was
completed that the rest would prove nothing.
"""

import json
import re
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import jsonschema

BASE_URL = sys.argv[1].rstrip("/")
SEEDS = (1, 2, 3)
TEMPERATURE = 1.5
MAX_TOKENS = 160
CONCURRENCY = 16
QUESTION = "What is two plus three?"
PROMPT = f"<|user|>{QUESTION}<|end|><|assistant|>"
# An answer can be cut: recursion and open strings may go on for as long as dice fall badly. Most must not be.
MIN_COMPLETE = 0.85

# Of a defect that breaks everything, so many lines say enough.
SHOWN = 60

# What no mask can fulfil, or no engine of finite automata can express.
BAD_REGEXES = ("(unclosed", "[z-a]", "a{2,1}", "(?=a)b", r"(a)\1", "*a")
BAD_SCHEMAS = (
    {"type": "no-such-type"},
    {"$ref": "#/$defs/nowhere"},
    {"type": "string", "pattern": "(unclosed"},
    {"type": "object", "properties": {"a": {"type": 7}}},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "integer", "minimum": 5, "maximum": 4},
)


@dataclass(frozen=True)
class Case:
    name: str
    grammar: dict
    refusable: list | bool

    @staticmethod
    def read() -> list["Case"]:
        folder = Path(__file__).parent
        lines = lambda name: map(json.loads, (folder / name).read_text("utf-8").splitlines())  # noqa: E731
        schemas = [
            Case(f"schema {line['name']!r}", {"type": "json", "value": line["schema"]}, line.get("refusable", False))
            for line in lines("schemas.jsonl")
        ]
        regexes = [
            Case(f"regex {line['regex']!r}", {"type": "regex", "value": line["regex"]}, line.get("refusable", False))
            for line in lines("regexes.jsonl")
        ]
        assert (len(schemas), len(regexes)) == (100, 60), (len(schemas), len(regexes))
        return schemas + regexes

    def wrong(self, text: str) -> str | None:
        """Why `text` is no valid answer."""
        if self.grammar["type"] == "regex":
            return None if re.fullmatch(self.grammar["value"], text) else "does not match"
        try:
            instance = json.loads(text, parse_constant=_no_constant)
        except ValueError as error:
            return f"is not JSON ({error})"
        validator = jsonschema.Draft202012Validator(self.grammar["value"], format_checker=_FORMATS)
        error = jsonschema.exceptions.best_match(validator.iter_errors(instance))
        return error and f"is invalid at {error.json_path}: {error.message}"

    def may_be_refused(self, message: str) -> bool:
        return self.refusable if isinstance(self.refusable, bool) else any(f"`{word}` at `" in message for word in self.refusable)


_FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
# The checks behind these need a package each, and are skipped without a word where it is missing.
assert {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "json-pointer"} <= set(
    _FORMATS.checkers
)


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


class Client:
    def __init__(self) -> None:
        self.http = httpx.Client(base_url=BASE_URL, timeout=120)

    def native(self, grammar: dict, seed: int) -> tuple[int, str, str]:
        """Status, text or message, reason for the end."""
        knobs = dict(temperature=TEMPERATURE, do_sample=True, seed=seed, max_new_tokens=MAX_TOKENS, details=True)
        reply = self.http.post("/generate", json={"inputs": PROMPT, "parameters": knobs | {"grammar": grammar}})
        if reply.status_code != 200:
            return reply.status_code, reply.text, ""
        answer = reply.json()
        return 200, answer["generated_text"], answer["details"]["finish_reason"]

    def chat(self, grammar: dict, seed: int) -> tuple[int, str, str]:
        if grammar["type"] == "json":
            grammar = {"type": "json_schema", "json_schema": {"name": "reply", "schema": grammar["value"]}}
        knobs = dict(temperature=TEMPERATURE, seed=seed, max_tokens=MAX_TOKENS, response_format=grammar)
        body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], **knobs}
        reply = self.http.post("/v1/chat/completions", json=body)
        if reply.status_code != 200:
            return reply.status_code, reply.text, ""
        choice = reply.json()["choices"][0]
        return 200, choice["message"]["content"], choice["finish_reason"]


_clients = threading.local()


def ask(route: str, grammar: dict, seed: int) -> tuple[int, str, str]:
    if not hasattr(_clients, "mine"):
        _clients.mine = Client()
    return getattr(_clients.mine, route)(grammar, seed)


def judge(case: Case, route: str, seed: int) -> tuple[str, str]:
    """complete, cut, refused or FAIL; and what to say about it."""
    status, text, finish = ask(route, case.grammar, seed)
    where = f"{case.name} ({route}, seed {seed})"
    if 400 <= status < 500:
        return ("refused", f"{case.name}: {text}") if case.may_be_refused(text) else ("FAIL", f"{where}: {status} {text}")
    if status != 200:
        return "FAIL", f"{where}: {status} {text}"
    if finish == "length":
        return "cut", case.name
    if finish not in ("eos_token", "stop"):
        return "FAIL", f"{where}: ended with {finish!r}: {text!r}"
    wrong = case.wrong(text)
    return ("FAIL", f"{where}: {text!r} {wrong}") if wrong else ("complete", case.name)


def judge_bad(grammar: dict, route: str) -> tuple[str, str]:
    """What nothing can fulfil is refused with a reason, whatever the route."""
    status, text, _ = ask(route, grammar, 1)
    refused = status in (400, 422) and len(text) > 40
    return ("refused", "") if refused else ("FAIL", f"{grammar} ({route}) is not refused: {status} {text}")


def main() -> None:
    cases = Case.read()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        asked = [(case, route, seed) for seed in SEEDS for case in cases for route in ("native", "chat")]
        verdicts = list(pool.map(lambda each: judge(*each), asked))
        bad = [{"type": "regex", "value": regex} for regex in BAD_REGEXES]
        bad += [{"type": "json", "value": schema} for schema in BAD_SCHEMAS]
        asked_bad = [(grammar, route) for grammar in bad for route in ("native", "chat")]
        bad_verdicts = list(pool.map(lambda each: judge_bad(*each), asked_bad))

    counts = Counter(kind for kind, _ in verdicts)
    failures = [text for kind, text in verdicts + bad_verdicts if kind == "FAIL"]
    never = {case.name for case in cases} - {text for kind, text in verdicts if kind == "complete"}
    for text in sorted({text for kind, text in verdicts if kind == "refused"}):
        print(f"REFUSED {text}")
    refused = {text.split(": {")[0] for kind, text in verdicts if kind == "refused"}
    for name in sorted(never - refused):
        print(f"NEVER COMPLETE {name}")
    for failure in failures[:SHOWN]:
        print(f"FAIL {failure}")
    share = counts["complete"] / (len(asked) - counts["refused"] or 1)
    if share < MIN_COMPLETE:
        failures.append("completed")
        print(f"FAIL only {share:.0%} of the answers that were not refused were completed")
    print(
        f"STRUCTURED {len(asked)} answers at temperature {TEMPERATURE}: {counts['complete']} complete, {counts['cut']} cut, "
        f"{counts['refused']} refused, {counts['FAIL']} wrong; {len(bad_verdicts)} impossible grammars"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
