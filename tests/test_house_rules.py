"""Sizes and docstrings of source files; CONTRIBUTING.md gives the reasons."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("jaxmoe", "kernels", "meshes", "tests", "examples", "benchmarks")
FILES = sorted(str(file.relative_to(ROOT)) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60  # a kernel may be longer: splitting would hide its flow


def long_functions(file):
  for node in ast.walk(ast.parse((ROOT / file).read_text())):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = node.end_lineno - node.lineno + 1
      if lines > MOST_FUNCTION_LINES:
        yield f"{node.name}: {lines} lines"


@pytest.mark.parametrize("file", FILES)
def test_file_is_short(file):
  assert len((ROOT / file).read_text().splitlines()) <= MOST_FILE_LINES


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("kernels/")])
def test_functions_are_short(file):
  assert list(long_functions(file)) == []


@pytest.mark.parametrize("file", FILES)
def test_module_says_what_it_holds(file):
  tree = ast.parse((ROOT / file).read_text())
  assert ast.get_docstring(tree) or not tree.body
