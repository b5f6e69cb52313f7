"""Every example runs, in under a minute, and prints what its docstring says; `...` there stands for anything."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("*.py"))
HEADING = re.compile(r"Expected output[^\n]*:\n")
LIMIT_S = 60


def expected_lines(example: pathlib.Path) -> list[str]:
  docstring = ast.get_docstring(ast.parse(example.read_text())) or ""
  heading = HEADING.search(docstring)
  assert heading, f"{example.name}: no expected output in its docstring"
  return docstring[heading.end() :].strip().splitlines()


def matches(line: str, pattern: str) -> bool:
  return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("...")), line) is not None


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_it_says(example, tmp_path):
  environment = {name: value for name, value in os.environ.items() if name != "JAX_NUMPY_RANK_PROMOTION"}
  environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
  environment["JAX_PLATFORMS"] = "tpu"  # on a machine with an accelerator jax would take that: they name the CPU
  start = time.perf_counter()
  done = subprocess.run(
    [sys.executable, str(example)], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert time.perf_counter() - start < LIMIT_S
  lines, patterns = done.stdout.strip().splitlines(), expected_lines(example)
  assert len(lines) == len(patterns), done.stdout
  for line, pattern in zip(lines, patterns, strict=True):
    assert matches(line, pattern), f"expected {pattern!r}, got {line!r}"


def test_there_are_examples_and_the_wildcard_can_fail():
  assert len(EXAMPLES) >= 3
  assert matches("step 3: loss 5.91", "step 3: loss ...")
  assert not matches("step 4: loss 5.91", "step 3: loss ...")
