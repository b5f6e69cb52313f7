"""Sizes and docstrings of source files; CONTRIBUTING.md gives the reasons."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FILES = {
  str(file.relative_to(ROOT)): file.read_text()
  for folder in ("jaxmoe", "kernels", "meshes", "tests", "examples", "benchmarks")
  for file in (ROOT / folder).rglob("*.py")
}

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60  # a kernel may be longer: splitting would hide its flow


def test_files_are_short():
  lengths = {file: len(text.splitlines()) for file, text in FILES.items()}
  assert {file: lines for file, lines in lengths.items() if lines > MOST_FILE_LINES} == {}


def test_functions_are_short():
  lengths = {
    f"{file}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
    for file, text in FILES.items()
    if not file.startswith("kernels/")
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  }
  assert {function: lines for function, lines in lengths.items() if lines > MOST_FUNCTION_LINES} == {}


def test_modules_say_what_they_hold():
  trees = {file: ast.parse(text) for file, text in FILES.items()}
  assert [file for file, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []
