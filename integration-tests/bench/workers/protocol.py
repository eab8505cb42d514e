"""A worker: a peer in a process of its own. One JSON object a line: requests on stdin, answers on stdout.

    {"do": "hello"}                                        -> {"about": "name and versions"}
    {"do": "generate", "prompts": [[ids]..], "steps": n}   -> {"prefill_seconds", "decode_seconds", "ids": [[n + 1 ids]..]}
    {"do": "gemm"}                                         -> {"flops_per_second"}; of torch only

Greedy: prefill makes the first token of every row, each of `steps` steps another one of every row. Between requests a worker
waits for its next line; whatever it prints besides goes to stderr.
"""

import json
import os
import sys


def serve(engine) -> None:
    """Answers until stdin ends. Each request is a method of `engine`; what it raises is an answer too."""
    # Libraries print to stdout, C libraries without asking Python.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(engine, request.pop("do"))(**request)
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
