"""A deployment written out as the YAML that `load_deployment` reads back: nothing in it names another file."""

import dataclasses
import re
from decimal import Decimal
from typing import Any

import yaml

from jaxmoe.config.assumptions import NOTHING_HIDDEN
from jaxmoe.config.deployment import Deployment
from jaxmoe.config.files import shown

LINE = 118
LONG_TEXT = 40


def deployment_text(d: Deployment, *comments: str) -> str:
  """The file's text; `comments` open it, a line each."""
  head = "".join(f"# {shown(comment)}\n" for comment in comments)
  body = yaml.dump(
    deployment_mapping(d), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=LINE, allow_unicode=True
  )
  return head + body


def deployment_mapping(d: Deployment) -> dict[str, Any]:
  """Plain data with the keys of `schema.DeploymentForm`; what is absent is left out."""
  whole = {
    "schema_version": 1,
    "name": _name(d.name),
    "title": shown(d.title),
    "document": d.document,
    "model": {**dataclasses.asdict(d.model), "name": _name(d.model.name)},
    "cluster": {**dataclasses.asdict(d.cluster), "name": _name(d.cluster.name)},
    "strategy": dataclasses.asdict(d.strategy),
    "expert_numbering": d.expert_numbering,
    "job": dataclasses.asdict(d.job),
    "claims": [dataclasses.asdict(claim) for claim in d.claims] or None,
    "reading": [dataclasses.asdict(reading) for reading in d.readings] or None,
    "assumptions": dataclasses.asdict(d.assumptions) if d.assumptions != NOTHING_HIDDEN else None,
  }
  return _plain(whole)


def _name(text: str) -> str:
  """The name itself, or the nearest that a file can spell: a model may come from any folder."""
  legal = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:80].lstrip("._-")
  return legal or "unnamed"


def _plain(value: Any) -> Any:
  """Mappings and lists of YAML's own kinds, without what is None."""
  if isinstance(value, dict):
    return {key: _plain(entry) for key, entry in value.items() if entry is not None}
  if isinstance(value, list | tuple):
    return [_plain(entry) for entry in value]
  return value


class _Dumper(yaml.SafeDumper):
  """SafeDumper for a reader of YAML 1.2's numbers that takes no aliases; long texts stand on lines of their own."""

  def ignore_aliases(self, data: Any) -> bool:
    return True

  def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
    node = super().represent_mapping(tag, mapping, flow_style)
    if any(isinstance(value, yaml.ScalarNode) and len(value.value) > LONG_TEXT for _, value in node.value):
      node.flow_style = False
    return node

  def represent_number(self, number: float) -> yaml.ScalarNode:
    """Exactly the number, and a number to readers of YAML 1.1 too: `0.6`, `4.0e+14`."""
    text = repr(number)
    if not 1e-3 <= abs(number) < 1e6 and number:
      digits, _, power = f"{Decimal(text).normalize():e}".partition("e")
      text = digits + ".0" * ("." not in digits) + f"e{int(power):+}"
    return self.represent_scalar(_NUMBER_TAG, text)


# Text that the reader would take for a number (`1e5`) is quoted; its other rules are within YAML 1.1's.
_NUMBER_TAG = "tag:yaml.org,2002:number"
_NUMBER = re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_Dumper.yaml_implicit_resolvers = {
  first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:float"]
  for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
_Dumper.add_implicit_resolver(_NUMBER_TAG, _NUMBER, list("-+.0123456789"))
_Dumper.add_representer(float, _Dumper.represent_number)
