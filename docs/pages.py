"""What `generate` makes beside command output: a page for each deployment of the catalogue, and tables from the code.

Between `<!-- table of: NAME -->` and `<!-- end of table -->` stands what the function of that name in `TABLES` returns.
"""

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from jaxmoe.config.catalogue import deployment_names, document_names, load_deployment
from jaxmoe.report import units
from jaxmoe.report.rules import FAULTS, REWRITES, RULES, allowed

FOLDER = "docs/deployments"
TARGETS = ("cpu", "tpu", "cuda")
TABLE = re.compile(r"<!-- table of: (?P<name>\w+) -->\n(?P<old>.*?)<!-- end of table -->", re.DOTALL)
OUTLINE = """\
# {name}

{title}. Its document is `{document}`.

Made by `make docs`. Every number has its source: a formula, the traced program, the compiler, a clock or the document.
With figures, for a browser: [{name}.html]({name}.html).

## Plan

<!-- output of: jaxmoe estimate {name} -->
<!-- end of output -->

## Placement, the first ranks

<!-- output of: jaxmoe place {name} --ranks :{ranks} -->
<!-- end of output -->

## Compiled for {devices} fake CPU devices, and compared

<!-- output of: jaxmoe verify {name} --target cpu --html {folder}/{name}.html -->
<!-- end of output -->

## What the document claims

<!-- output of: jaxmoe audit {name} --summary -->
<!-- end of output -->
"""


def names(suffix: str = "md") -> list[str]:
  """The pages, from the root of the repository."""
  return [f"{FOLDER}/{name}.{suffix}" for name in document_names()]


def write_outlines(root: pathlib.Path) -> None:
  """Every page without its output."""
  (root / FOLDER).mkdir(exist_ok=True)
  for name in document_names():
    d = load_deployment(name)
    devices = d.strategy.devices
    (root / FOLDER / f"{name}.md").write_text(
      OUTLINE.format(
        name=name, title=d.title, document=d.document, devices=devices, ranks=min(16, devices), folder=FOLDER
      )
    )


def with_tables(text: str) -> str:
  return TABLE.sub(lambda block: f"<!-- table of: {block['name']} -->\n{TABLES[block['name']]()}{END}", text)


END = "<!-- end of table -->"


def _rules() -> str:
  return _markdown(["compared", "allowed", "why"], [(rule.what, allowed(rule), rule.reason) for rule in RULES])


def _faults() -> str:
  return _markdown(["lies in", "because"], list(FAULTS.items()))


def _rewrites() -> str:
  return _markdown(["rewrite", "meaning"], [(f"`{name}`", meaning) for name, meaning in REWRITES.items()])


def _results() -> str:
  headers = ["deployment", "devices", "checks that hold", "largest error", "unplanned collectives"]
  headers += ["without temporaries", "verdict"]
  return _markdown(headers, [_result(name) for name in deployment_names()])


def _result(name: str) -> tuple[str, ...]:
  found = _document("verify", name, "--target", "cpu")
  checks, needed = found["checks"], found["memory_bytes"]["needed_bytes"]
  return (
    f"[{name}](deployments/{name}.md)" if name in document_names() else name,
    str(found["devices"]),
    f"{sum(check['ok'] for check in checks)} of {len(checks)}",
    units.percent(max(abs(check["relative_error"]) for check in checks)),
    str(sum(not rewrite["ok"] for rewrite in found["rewrites"])),
    f"{units.bytes_(needed)} of {units.bytes_(found['capacity_bytes'])}",
    "agrees" if found["ok"] else "DISAGREES",
  )


def _verified() -> str:
  """Every deployment of the catalogue by every compiler; `make docs` has the extras that this needs."""
  by_target = [_verify_all(target) for target in TARGETS]
  rows = [
    (f"`{row[0]['deployment']}`", str(row[0]["devices"]), *(_cell(entry) for entry in row))
    for row in zip(*by_target, strict=True)
  ]
  return _markdown(["deployment", "devices", *(f"`--target {target}`" for target in TARGETS)], rows)


def _verify_all(target: str) -> list[dict[str, Any]]:
  return _document("verify", "all", "--target", target)["deployments"]


def _cell(entry: dict[str, Any]) -> str:
  held = f", {entry['checks_held']} of {entry['checks']}" if "checks" in entry else ""
  slices = entry["target"].partition(":")[2]
  return f"{entry['verdict']}{held}" + (f" ({slices})" if slices else "")


def _document(*words: str) -> dict[str, Any]:
  """What a command with `--json` prints, also where it ends with another code than 0."""
  print(f"running jaxmoe {' '.join(words)} --json", file=sys.stderr)
  command = [sys.executable, "-m", "jaxmoe", *words, "--json"]
  return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout)


def _markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [headers, ["---"] * len(headers), *rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES = {"rules": _rules, "faults": _faults, "rewrites": _rewrites, "results": _results, "verified": _verified}
