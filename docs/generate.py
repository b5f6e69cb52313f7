"""Puts the real output of commands into the documents that show it: `make docs`.

Between `<!-- output of: COMMAND -->` and `<!-- end of output -->` stands what COMMAND printed; tables and the pages of
the catalogue's deployments are made by `pages`. `--check` changes nothing and fails if a document is missing or a block
is empty.
"""

import argparse
import pathlib
import re
import shlex
import subprocess
import sys

import pages

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/verification.md", *pages.names())
BLOCK = re.compile(r"<!-- output of: (?P<command>[^>]+) -->\n(?P<old>.*?)<!-- end of output -->", re.DOTALL)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something is not there")
  if parser.parse_args().check:
    faults = [fault for name in (*DOCUMENTS, *pages.names("html")) for fault in _faults(ROOT / name)]
    print("".join(f"{fault}; run `make docs`\n" for fault in faults), end="", file=sys.stderr)
    return bool(faults)
  pages.write_outlines(ROOT)
  for name in DOCUMENTS:
    path = ROOT / name
    path.write_text(pages.with_tables(BLOCK.sub(_filled, path.read_text())))
  return 0


def _faults(path: pathlib.Path) -> list[str]:
  if not path.exists():
    return [f"{path.relative_to(ROOT)} is missing"]
  text = path.read_text()
  blocks = [*BLOCK.finditer(text), *pages.TABLE.finditer(text)]
  return [f"{path.relative_to(ROOT)}: a block is empty" for block in blocks if not block["old"].strip()]


def _filled(block: re.Match[str]) -> str:
  command = block["command"]
  print(f"running {command}", file=sys.stderr)
  arguments = shlex.split(command)
  assert arguments[0] == "jaxmoe"
  done = subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
  return f"<!-- output of: {command} -->\n```\n{done.stdout.rstrip()}\n```\n<!-- end of output -->"


if __name__ == "__main__":
  sys.exit(main())
