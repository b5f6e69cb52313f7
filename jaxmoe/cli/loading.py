"""Deployments that the command line names: found, and their warnings said, in one place."""

import os
from typing import Annotated

import typer

from jaxmoe.cli.output import log
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.files import shown
from jaxmoe.meshes.errors import UsageError

DeploymentArgument = Annotated[
  str, typer.Argument(metavar="DEPLOYMENT", help="A deployment of the catalogue, or a YAML file.")
]


def deployment_of(name_or_path: str) -> Deployment:
  """The deployment, after its warnings have gone to stderr."""
  from jaxmoe.config.catalogue import load_deployment

  deployment = load_deployment(with_home(name_or_path))
  for warning in deployment.warnings:
    log(f"warning: {warning}")
  return deployment


def with_home(name_or_path: str) -> str:
  """The same with `~` and `~user` written out."""
  path = os.path.expanduser(name_or_path)
  if path.startswith("~"):
    user = shown(path.partition("/")[0])
    raise UsageError(f"{shown(path)}: expected a path, got {user}, which is nobody's home here; write the path out")
  return path
