"""Prints the lower bound of every dependency as a pip constraint, `jax==0.11.2`."""

import pathlib
import re
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
  name, bound = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,<.*)?", requirement).groups()
  print(f"{name}=={bound}")
