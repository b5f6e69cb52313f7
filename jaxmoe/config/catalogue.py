"""Models, clusters and deployments by name from the installed catalogue, or by path from a user's file."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jaxmoe.config.deployment import Deployment
from jaxmoe.config.files import closest, got, parse_mapping, read_mapping, shown
from jaxmoe.config.from_forms import cluster_from, deployment_from
from jaxmoe.config.huggingface import is_huggingface, model_from_huggingface
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.model_form import model_from
from jaxmoe.config.schema import DeploymentForm, checked
from jaxmoe.meshes.cluster import Cluster
from jaxmoe.meshes.errors import UsageError

_SUFFIXES = (".yaml", ".yml", ".json")
_PLANNED = "deployments/planned"


def deployment_names() -> tuple[str, ...]:
  """All: those that are taken from documents, then those that the planner found."""
  return (*document_names(), *sorted(_files(_PLANNED)))


def document_names() -> tuple[str, ...]:
  """Deployments that are taken from documents."""
  return tuple(sorted(_files("deployments")))


def cluster_names() -> tuple[str, ...]:
  return tuple(sorted(_entries("clusters")))


def model_names() -> tuple[str, ...]:
  return tuple(sorted(_entries("models")))


def load_deployment(name_or_path: str) -> Deployment:
  """The catalogue's deployment of this name, or the one in this file.

  Raises:
    UsageError: no such name or file, or a fault in it.
  """
  data, origin, folder = _open("deployments", name_or_path)
  with _faults_of(origin):
    return _deployment(data, folder)


def read_deployment(text: str, *, origin: str) -> Deployment:
  """The deployment that a file's text spells; `origin` opens every message."""
  with _faults_of(origin):
    return _deployment(parse_mapping(text.encode(), origin=origin), None)


def load_cluster(name_or_path: str) -> Cluster:
  """The catalogue's cluster of this name, or the one in this file; raises as `load_deployment` does."""
  data, origin, _ = _open("clusters", name_or_path)
  with _faults_of(origin):
    return cluster_from(data)


def load_model(name_or_path: str, *, mtp: bool = False) -> ModelConfig:
  """A model by its own name, a deployment's name, a YAML of either, or a `config.json`.

  Args:
    mtp: with the multi-token-prediction layers of a `config.json`.

  Raises:
    UsageError: no such name or file, or a fault in it.
  """
  if name_or_path in _entries("deployments"):
    return load_deployment(name_or_path).model
  data, origin, folder = _open("models", name_or_path)
  with _faults_of(origin):
    return _deployment(data, folder).model if _is_deployment(data) else _model(data, name=_stem(origin), mtp=mtp)


def _deployment(data: Mapping[str, Any], folder: Path | None) -> Deployment:
  form = checked(DeploymentForm, data)
  return deployment_from(form, model=_model_of(form, folder), cluster=_cluster_of(form, folder))


def _model_of(form: DeploymentForm, folder: Path | None) -> ModelConfig:
  """A deployment's model: written out, a name, or a model's file (another deployment's could be this one)."""
  if isinstance(form.model, dict):
    return _model(form.model, name=form.name, field="model")
  name = _reference("model", form.model)
  if name in _entries("deployments"):
    return load_deployment(name).model
  data, origin, _ = _open("models", name, beside=folder)
  if _is_deployment(data):
    raise UsageError(f"model: expected a model's file, got a deployment's, {shown(origin)}; write its model out")
  with _faults_of(origin):
    return _model(data, name=_stem(origin))


def _cluster_of(form: DeploymentForm, folder: Path | None) -> Cluster:
  if isinstance(form.cluster, dict):
    return cluster_from(form.cluster, prefix="cluster")
  data, origin, _ = _open("clusters", _reference("cluster", form.cluster), beside=folder)
  with _faults_of(origin):
    return cluster_from(data)


def _model(data: Mapping[str, Any], *, name: str, field: str = "", mtp: bool = False) -> ModelConfig:
  """A model in either form; `field` is where it stands in a deployment."""
  if not is_huggingface(data):
    return model_from(data, name=name, prefix=field)
  with _faults_of(field):
    return model_from_huggingface(data, name=name, mtp=mtp)


def _is_deployment(data: Mapping[str, Any]) -> bool:
  return "strategy" in data or "parallel_strategy" in data


def _reference(field: str, value: Any) -> str:
  if not isinstance(value, str):
    raise UsageError(f"{field}: expected a name, a path or a mapping, got {got(value)}")
  return value


def _entries(kind: str) -> dict[str, Traversable]:
  """Catalogue files of one kind by name."""
  return _files(kind) | (_files(_PLANNED) if kind == "deployments" else {})


def _files(folder: str) -> dict[str, Traversable]:
  files = (resources.files("jaxmoe.meshes") / folder).iterdir()
  return {_stem(file.name): file for file in files if file.name.endswith(_SUFFIXES)}


def _open(kind: str, name_or_path: str, *, beside: Path | None = None) -> tuple[dict[str, Any], str, Path | None]:
  """A file's mapping, the name that messages give it, and the folder that its own paths start from."""
  entries = _entries(kind)
  if name_or_path in entries:
    entry = entries[name_or_path]
    origin = f"{kind}/{entry.name}"
    return (
      parse_mapping(entry.read_bytes(), origin=origin, is_json=entry.name.endswith(".json")),
      origin,
      None,
    )
  if _is_path(name_or_path):
    path = _file_of(Path(beside or "") / Path(name_or_path).expanduser())
    return read_mapping(path), str(path), path.parent
  known = _known(kind)
  raise UsageError(
    f"{_unknown(kind, name_or_path, known)};"
    f" expected a path to a file ({', '.join(_SUFFIXES)}) or one of {', '.join(known)}"
  )


def _known(kind: str) -> tuple[str, ...]:
  """What `_open` takes; a deployment's name also names its model."""
  if kind == "models":
    return (*model_names(), *deployment_names())
  return cluster_names() if kind == "clusters" else deployment_names()


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
  """That this name is none of its kind; that it is one of another kind, where it is."""
  for other, verb in (("models", " (`jaxmoe model show` takes it)"), ("clusters", ""), ("deployments", "")):
    if name in _entries(other):
      return f"'{name}' is a {other[:-1]}{verb}, not a {kind[:-1]}"
  return f"unknown {kind[:-1]} '{shown(name)}'{closest(name, known)}"


def _is_path(text: str) -> bool:
  return "/" in text or "\\" in text or text.startswith("~") or text.lower().endswith(_SUFFIXES)


def _file_of(path: Path) -> Path:
  """The file itself, or the `config.json` of a checkpoint's folder."""
  config = path / "config.json"
  try:
    return config if config.is_file() else path
  except (OSError, ValueError):
    return path  # reading it will say why


def _stem(origin: str) -> str:
  """A name from a file's: `mixtral-8x7b` of `mixtral-8x7b.json`, the folder's name of `olmoe/config.json`."""
  path = Path(origin)
  return path.absolute().parent.name if path.name == "config.json" else path.stem


@contextlib.contextmanager
def _faults_of(origin: str) -> Iterator[None]:
  """Opens the message of every `UsageError` with the file that it is about."""
  try:
    yield
  except UsageError as error:
    raise UsageError(f"{shown(origin)}: {error}" if origin else str(error)) from error
