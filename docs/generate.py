"""Puts the real output of commands into the documents that show it: `make docs`.

Between `<!-- output of: COMMAND -->` and `<!-- end of output -->` stands what COMMAND printed. `--check` changes
nothing and fails if a block is empty.
"""

import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ("README.md",)
BLOCK = re.compile(r"<!-- output of: (?P<command>[^>]+) -->\n(?P<old>.*?)<!-- end of output -->", re.DOTALL)


def main(check: bool) -> int:
  for name in DOCUMENTS:
    path = ROOT / name
    text = path.read_text()
    if check and any(not block["old"].strip() for block in BLOCK.finditer(text)):
      print(f"{name}: a block is empty; run `make docs`", file=sys.stderr)
      return 1
    if not check:
      path.write_text(BLOCK.sub(_filled, text))
  return 0


def _filled(block: re.Match[str]) -> str:
  command = block["command"]
  print(f"running {command}", file=sys.stderr)
  arguments = shlex.split(command)
  assert arguments[0] == "jaxmoe"
  done = subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, check=True)
  return f"<!-- output of: {command} -->\n```\n{done.stdout.rstrip()}\n```\n<!-- end of output -->"


if __name__ == "__main__":
  sys.exit(main("--check" in sys.argv))
