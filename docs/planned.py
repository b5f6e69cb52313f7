"""Searches again for every deployment of the catalogue that the planner found, and writes its file: `make plans`.

A file is what its command writes as `plan.yaml`, but for two lines: the name is the file's, the title the command.
"""

import dataclasses
import pathlib
import shlex
import subprocess
import sys
import tempfile

from jaxmoe.config.catalogue import load_deployment
from jaxmoe.config.plan_form import deployment_text

FOLDER = pathlib.Path(__file__).parents[1] / "meshes/deployments/planned"


def main() -> int:
  for path in sorted(FOLDER.glob("*.yaml")):
    path.write_text(planned(path.stem, load_deployment(str(path)).title))
  return 0


def planned(name: str, command: str) -> str:
  """The file's text."""
  arguments = shlex.split(command)
  assert arguments[:2] == ["jaxmoe", "plan"]
  print(f"running {command}", file=sys.stderr)
  with tempfile.TemporaryDirectory() as folder:
    run = [sys.executable, "-m", *arguments, "--out", folder, "--force"]
    subprocess.run(run, stdout=subprocess.DEVNULL, check=True)
    found = load_deployment(f"{folder}/plan.yaml")
  return deployment_text(dataclasses.replace(found, name=name, title=command), f"Found by: {command}")


if __name__ == "__main__":
  sys.exit(main())
