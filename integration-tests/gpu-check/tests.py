"""Of the parts that need neither a GPU nor torch: `python3 integration-tests/gpu-check/tests.py`."""

import contextlib
import io
import json
import struct
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))

import checkpoint  # noqa: E402
import correct  # noqa: E402
import peers  # noqa: E402
import processes  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import sanitize  # noqa: E402
import shapes  # noqa: E402
from engines import Failure  # noqa: E402
from goals import GOALS, Goal  # noqa: E402
from models import Shape  # noqa: E402
from programs import Programs, Skipped, find, pack  # noqa: E402
from results import Origin, Results  # noqa: E402
from rows import rows  # noqa: E402
from unit import Cut, Plan, Unit  # noqa: E402

ORIGIN = Origin({"name": "a GPU", "driver": "1", "id": "here"}, "abc", False)

# A device that reads 4 TB/s and multiplies 800 TFLOP/s, and a model that reads 16 GB a step, 12 of them weights.
FIGURES = {
    "ceiling/read": {"per_second": 4e12},
    "ceiling/copy": {"per_second": 3.8e12},
    "ceiling/gemm_bf16": {"per_second": 8e14},
    "ours/8b/bfloat16/decode/128/64": {"seconds": 4.1e-3, "seconds_of_ten": 4e-3, "bytes": 12.8e9, "flops": 1e12},
    "ours/8b/bfloat16/decode/128/1024": {"seconds": 5.05e-3, "seconds_of_ten": 5e-3, "bytes": 16e9, "flops": 1e12},
    "ours/8b/bfloat16/prefill/4096": {"seconds": 0.1, "bytes": 2e10, "flops": 6.8e13},
    "torch/8b/decode/128/1024/eager": {"seconds": 8e-3},
    "torch/8b/decode/128/1024/compiled": {"seconds": 6e-3},
    "torch/8b/attention/128/1024": {"seconds": 1e-4, "bytes": 1e8, "how": "flash"},
    "ours/8b/served/128/1000+128": {"tokens_per_second": 9000.0},
    "transformers/8b/served/128/1000+128": {"tokens_per_second": 3000.0},
    "test/cuda/one": {"is_skipped": False, "said": []},
    "test/cuda/two": {"is_skipped": True, "said": ["skipped: two GPUs"]},
    "failed/cuda/three": {"why": "it is wrong"},
}


class RowsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.rows = {row.name: row for row in rows(FIGURES, {"sanitize/memcheck/a": {"state": "failed"}})}

    def test_a_decode_step_is_held_against_reading_and_against_the_faster_torch(self) -> None:
        row = self.rows["8b/bfloat16/decode/128/1024"]
        self.assertAlmostEqual(row.share, 0.8)
        self.assertEqual((row.ceiling, row.peer), ("read", "torch, compiled"))
        self.assertAlmostEqual(row.ratio, 1.2)
        self.assertAlmostEqual(row.value, 128 / 5e-3)

    def test_attention_is_what_a_long_context_takes_beyond_a_short_one(self) -> None:
        row = self.rows["8b/bfloat16/attention/128/1024"]
        self.assertAlmostEqual(row.share, 3.2e9 / 1e-3 / 4e12)
        self.assertAlmostEqual(row.ratio, 3.2)
        self.assertNotIn("8b/bfloat16/attention/128/64", self.rows)

    def test_a_prompt_is_held_against_products(self) -> None:
        row = self.rows["8b/bfloat16/prefill/4096"]
        self.assertAlmostEqual(row.share, 0.85)
        self.assertEqual(row.ceiling, "product")

    def test_the_rest_of_the_rows(self) -> None:
        self.assertAlmostEqual(self.rows["8b/bfloat16/host/128/1024"].value, 50)
        self.assertAlmostEqual(self.rows["8b/served/128/1000+128"].ratio, 3)
        counts = [self.rows[f"tests/{name}"].value for name in ("passed", "skipped", "failed")]
        self.assertEqual(counts, [1, 1, 1])
        self.assertEqual(self.rows["sanitizer/failed"].value, 1)

    def test_that_no_test_failed_is_not_said_before_all_have_run(self) -> None:
        passed = {name: figure for name, figure in FIGURES.items() if name.startswith("test/")}
        for states, expected in ((["done", "cut"], False), (["done", "skipped"], False), (["done", "done"], True)):
            made = rows(passed, {f"correct/{index}": {"state": state} for index, state in enumerate(states)})
            self.assertEqual(any(row.name == "tests/failed" for row in made), expected, states)

    def test_a_torch_loop_that_was_not_compiled_says_so(self) -> None:
        figures = {name: figure for name, figure in FIGURES.items() if not name.endswith("/compiled")}
        row = next(row for row in rows(figures, {}) if row.name == "8b/bfloat16/decode/128/1024")
        self.assertEqual(row.peer, "torch, eager only")

    def test_without_ceilings_there_are_no_shares(self) -> None:
        figures = {name: figure for name, figure in FIGURES.items() if not name.startswith("ceiling/")}
        self.assertTrue(all(row.share is None for row in rows(figures, {})))


class GoalsTest(unittest.TestCase):
    def test_bounds_are_inclusive_in_both_directions(self) -> None:
        least, most = Goal("", "a", "share", 0.8, 0.9), Goal("", "a", "value", 20, 6, False)
        self.assertEqual([least.verdict(figure) for figure in (0.79, 0.8, 0.9, None)], ["no", "must", "aim", "?"])
        self.assertEqual([most.verdict(figure) for figure in (21, 20, 6, None)], ["no", "must", "aim", "?"])

    def test_every_goal_names_a_row_that_some_piece_makes(self) -> None:
        """Rows of every figure that the pieces' plans can yield, with numbers that do not matter here."""
        for is_quick in (False, True):
            with self.subTest(is_quick=is_quick):
                self.check_rows_of(Plan(Programs({}, ""), "cuda", ("1b", "8b"), is_quick, "python3"))

    def check_rows_of(self, plan: Plan) -> None:
        step = {"seconds": 2.0, "seconds_of_ten": 1.0, "bytes": 1.0, "flops": 1.0}
        figures = {"ceiling/read": {"per_second": 1.0}, "ceiling/gemm_bf16": {"per_second": 1.0}, "failed/a/b": {"why": ""}}
        for shape in plan.shapes:
            figures[f"ours/{shape}/ready"] = {"seconds": 1.0}
            for weights in shapes.WEIGHTS:
                for index, context in enumerate(plan.contexts):
                    longer = {name: value * (index + 1) for name, value in step.items()}
                    figures |= {f"ours/{shape}/{weights}/decode/{num_rows}/{context}": longer for num_rows in plan.rows}
                figures |= {f"ours/{shape}/{weights}/prefill/{length}": step for length in plan.prompts}
            for request in plan.requests:
                for streams in plan.streams(request):
                    figures[f"ours/{shape}/served/{streams}/{request[0]}+{request[1]}"] = {"tokens_per_second": 1.0}
        made = rows(figures, {"sanitize/memcheck/a": {"state": "done"}})
        for goal in GOALS:
            # What --quick leaves out, and says.
            is_left_out = plan.is_quick and goal.title.endswith("64 rows")
            if not goal.unmeasured and not is_left_out:
                self.assertTrue(any(goal.applies_to(row.name) for row in made), goal.title)


class ReportTest(unittest.TestCase):
    def test_goals_show_their_worst_row_and_what_is_missing(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            results = Results(Path(folder) / "r.json", ORIGIN)
            results.begin("shapes/8b")["figures"] = dict(FIGURES)
            entry = results.begin("sanitize/racecheck/a")
            entry |= {"state": "skipped", "why": "there is none"}
            text = report.text(results)
        lines = text.splitlines()
        self.assertIn("a GPU, driver 1, commit abc", lines[0])
        line = next(line for line in lines if line.lstrip().startswith("8B bf16, decode of 128 rows"))
        self.assertRegex(line, r"75%\s+87%\s+80%\s+met$")
        line = next(line for line in lines if line.lstrip().startswith("8B bf16, prefill"))
        self.assertRegex(line, r"60%\s+80%\s+85%\s+met, and the aim$")
        self.assertRegex(next(line for line in lines if "1B bf16, decode" in line), "not measured$")
        self.assertRegex(next(line for line in lines if "failed ones" in line), "NOT MET$")
        self.assertIn("sanitize/racecheck/a: skipped: there is none", text)


class ResultsTest(unittest.TestCase):
    def test_what_another_machine_measured_counts_for_nothing_and_stays(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "r.json"
            results = Results(path, ORIGIN)
            entry = results.begin("peers/a")
            entry["figures"]["ceiling/read"] = {"per_second": 1.0}
            entry["state"] = "done"
            results.save()
            same = Results(path, ORIGIN)
            self.assertTrue(same.is_final("peers/a"))
            self.assertEqual(same.figures(), {"ceiling/read": {"per_second": 1.0}})
            # Again, it goes on with what there is.
            self.assertEqual(same.begin("peers/a")["figures"], {"ceiling/read": {"per_second": 1.0}})
            other = Results(path, Origin({"name": "", "driver": "", "id": "there"}, "abc", False))
            self.assertFalse(other.is_final("peers/a"))
            self.assertEqual((other.figures(), other.others()), ({}, 1))
            self.assertEqual(other.begin("peers/a")["figures"], {})


class UnitsTest(unittest.TestCase):
    """How units end."""

    def run_one(self, body, most_seconds: float = 60, ends_in: float = 60) -> tuple[str, dict]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            results = Results(Path(folder) / "r.json", ORIGIN)
            plan = Plan(Programs({}, "abc"), "cpu", ("tiny",), True, "python3")
            state = run.run_unit(Unit("a", 0, most_seconds, body), plan, results, time.monotonic() + ends_in)
            return state, json.loads(results.path.read_text())["units"]["a"]

    def test_figures_are_kept_as_they_come(self) -> None:
        def body(running) -> None:
            running.add("x", {"seconds": 1.0})
            raise Failure("broken")

        state, unit = self.run_one(body)
        self.assertEqual((state, unit["why"], unit["figures"]), ("failed", "broken", {"x": {"seconds": 1.0}}))

    def test_a_limit_of_the_run_cuts_and_a_units_own_limit_fails(self) -> None:
        def body(running) -> None:
            running.expect(processes.run(["sleep", "60"], running.seconds_left))

        self.assertEqual(self.run_one(body, ends_in=0.2)[0], "cut")
        state, unit = self.run_one(body, most_seconds=0.2)
        self.assertEqual((state, unit["why"]), ("failed", "took 0.2 s"))

    def test_what_cannot_run_here_says_why(self) -> None:
        def body(running) -> None:
            running.plan.programs.path("gpu_check")

        state, unit = self.run_one(body)
        self.assertEqual((state, unit["why"]), ("skipped", "gpu_check is not among the programs"))

    def test_each_piece_has_units_of_names_of_its_own(self) -> None:
        for device in ("cpu", "cuda"):
            plan = Plan(Programs({}, "abc"), device, ("1b", "8b"), False, "python3")
            for name, piece in run.PIECES.items():
                names = [unit.name for unit in piece.units(plan)]
                self.assertTrue(names and len(set(names)) == len(names), name)


class ProcessesTest(unittest.TestCase):
    def test_lines_come_as_they_are_written_and_the_code_at_the_end(self) -> None:
        lines = []
        finished = processes.run(["sh", "-c", "echo a; echo b >&2; exit 3"], 60, each_line=lines.append)
        self.assertEqual((finished.code, lines), (3, ["a\n", "b\n"]))

    def test_a_limit_ends_what_a_program_has_started_too(self) -> None:
        # The inner one holds the pipe: without its end this would wait for it.
        finished = processes.run(["sh", "-c", "echo a; sleep 600 & sleep 600"], 0.3)
        self.assertEqual((finished.code, finished.output), (None, "a\n"))


class CheckpointTest(unittest.TestCase):
    SHAPE = Shape("small", 16, 1, 2, 1, 32, 40, 64, 10000.0)

    def test_the_file_has_every_tensor_and_numbers_of_small_spread(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            checkpoint.write_weights(path, checkpoint.extents(self.SHAPE, False))
            content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header, values = json.loads(content[8 : 8 + length]), content[8 + length :]
        self.assertEqual((8 + length) % 64, 0)
        self.assertEqual(len(header), 3 + 2 + 7)
        self.assertEqual(max(entry["data_offsets"][1] for entry in header.values()), len(values))
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            numbers = [bfloat16(values[at : at + 2]) for at in range(start, end, 2)]
            if len(entry["shape"]) == 1:
                self.assertEqual(set(numbers), {1.0}, name)
                continue
            self.assertEqual(len(numbers), entry["shape"][0] * entry["shape"][1], name)
            self.assertTrue(all(1 / 128 <= abs(number) < 1 / 32 for number in numbers), name)
            self.assertLess(abs(sum(numbers) / len(numbers)), 0.005, name)

    def test_the_block_goes_on_from_its_beginning(self) -> None:
        block = memoryview(b"abcde")
        self.assertEqual(b"".join(checkpoint.parts(block, 3, 9)), b"deabcdeab")

    def test_a_folder_is_made_once_and_a_tokenizer_is_added_to_it(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            before, tempfile.tempdir = tempfile.tempdir, folder
            try:
                path = checkpoint.make("tiny")
                stamp = (path / "model.safetensors").stat().st_mtime_ns
                (path / "tokenizer.json").unlink()
                checkpoint.make("tiny")
            finally:
                tempfile.tempdir = before
            self.assertEqual((path / "model.safetensors").stat().st_mtime_ns, stamp)
            vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
            self.assertEqual(json.loads((path / "config.json").read_text())["vocab_size"], len(vocabulary) + 1)


def bfloat16(two: bytes) -> float:
    return struct.unpack("<f", b"\0\0" + two)[0]


class ProgramsTest(unittest.TestCase):
    def test_what_is_packed_here_is_found_there_with_its_commit(self) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            before, tempfile.tempdir = tempfile.tempdir, folder
            try:
                archive = Path(folder) / "programs.tar.xz"
                pack(Programs({"gpu_check": Path(sys.executable)}, "abc"), archive)
                found = find(archive, None)
                finished = processes.run([found.path("gpu_check"), "-c", "print(1)"], 60)
            finally:
                tempfile.tempdir = before
        self.assertEqual((found.commit, list(found.paths), finished.output), ("abc", ["gpu_check"], "1\n"))

    def test_a_folder_without_programs_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(Failure, "has none of"):
            find(Path(folder), None)


class PiecesTest(unittest.TestCase):
    def test_figures_of_a_report_of_gpu_check(self) -> None:
        step = {"rows": 8, "context": 1024, "seconds": 2.0, "seconds_of_ten": 1.0, "bytes": 3.0, "flops": 4.0}
        model = {"shape": "1b", "weights": "fp8", "weights_bytes": 5, "loading_seconds": 6.0, "decode": [step], "prefill": [step], "rank_of": 1}
        rank = model | {"rank_of": 8, "prefill": []}
        linear = {"shape": "1b", "layer": "qkv", "n": 1, "k": 1, "rows": 8, "seconds": 1.0, "bytes": 2.0, "flops": 3.0}
        found = shapes.figures({"device": "", "copy_bytes_per_second": 7.0, "linears": [linear], "models": [model, rank]})
        self.assertEqual(
            found,
            {
                "ceiling/copy/ours": {"per_second": 7.0},
                "ours/1b/linear/qkv/8": {"seconds": 1.0, "bytes": 2.0, "flops": 3.0},
                "ours/1b/fp8/load": {"seconds": 6.0, "bytes": 5},
                "ours/1b/fp8/decode/8/1024": {"seconds": 2.0, "seconds_of_ten": 1.0, "bytes": 3.0, "flops": 4.0},
                "ours/1b/fp8/prefill/8": {"seconds": 2.0, "bytes": 3.0, "flops": 4.0},
                "ours/1b/fp8-1of8/load": {"seconds": 6.0, "bytes": 5},
                "ours/1b/fp8-1of8/decode/8/1024": {"seconds": 2.0, "seconds_of_ten": 1.0, "bytes": 3.0, "flops": 4.0},
            },
        )

    def test_a_peers_line_is_a_figure_or_noise(self) -> None:
        self.assertEqual(peers.parsed('{"name": "a", "seconds": 1.0}'), {"name": "a", "seconds": 1.0})
        self.assertEqual(peers.parsed('{"skipped": "no GPU"}'), {"skipped": "no GPU"})
        for noise in ("AUTOTUNE mm(1x2)", "{not json", "{}"):
            self.assertIsNone(peers.parsed(noise))

    def test_what_compute_sanitizer_says(self) -> None:
        sanitize.judge(0, "========= ERROR SUMMARY: 0 errors\n")
        sanitize.judge(0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n")
        with self.assertRaisesRegex(Failure, "ERROR SUMMARY: 2.*Invalid __global__ read"):
            sanitize.judge(99, "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 2 errors\n")
        with self.assertRaisesRegex(Skipped, "Device not supported"):
            sanitize.judge(1, "========= Error: Device not supported\n========= ERROR SUMMARY: 1 error\n")
        with self.assertRaisesRegex(Failure, "no summary"):
            sanitize.judge(0, "running 0 tests\n")

    def test_tests_run_one_by_one_and_what_passed_is_not_run_again(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "cuda"
            program.write_text(FAKE_TESTS)
            program.chmod(0o755)
            programs = find(Path(folder), "abc")
            plan = Plan(programs, "cpu", ("tiny",), True, "python3")
            added = {}
            running = run.Run(plan, time.monotonic() + 60, added.__setitem__, {"test/cuda/known"})
            with self.assertRaisesRegex(Failure, "failed: bad$"):
                correct.check("cuda", running)
        self.assertEqual(added["test/cuda/good"], {"is_skipped": False, "said": ["llama: relative error 1.0e-3"]})
        self.assertEqual(added["test/cuda/lonely"], {"is_skipped": True, "said": ["skipped: two GPUs"]})
        self.assertIn("it is wrong", added["failed/cuda/bad"]["why"])
        self.assertEqual(len(added), 3)

    def test_a_test_that_outlives_the_limit_is_cut(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "cuda"
            program.write_text(FAKE_TESTS.replace("good) ", "good) sleep 60; "))
            program.chmod(0o755)
            plan = Plan(find(Path(folder), "abc"), "cpu", ("tiny",), True, "python3")
            running = run.Run(plan, time.monotonic() + 1, lambda *_: None)
            with self.assertRaises(Cut):
                correct.check("cuda", running)


# A test program as Rust makes them, with a test of every kind.
FAKE_TESTS = """#!/bin/sh
if [ "$1" = --list ]; then printf 'good: test\\nbad: test\\nlonely: test\\nknown: test\\n'; exit; fi
case "$2" in
good) echo 'llama: relative error 1.0e-3'; echo 'test result: ok. 1 passed; 0 failed';;
lonely) echo 'skipped: two GPUs'; echo 'test result: ok. 1 passed; 0 failed';;
bad) echo "thread 'bad' panicked at x.rs:1:1:"; echo 'it is wrong'; exit 101;;
*) exit 1;;
esac
"""


if __name__ == "__main__":
    unittest.main()
