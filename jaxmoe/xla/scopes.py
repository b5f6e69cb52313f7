"""User scopes (`jax.named_scope`) out of the op names that jax writes."""

import functools
import itertools
import re
from collections.abc import Iterable, Mapping

OTHER = "other"

_TRANSFORM = re.compile(r"\b(?:jvp|transpose|vmap|checkpoint|remat|custom_jvp|custom_vjp)\(([^()]*)\)")
_FUNCTION = re.compile(r"\b(?:jit|pjit|closed_call|custom_jvp_call|custom_vjp_call)\([^()]*\)")
_STRUCTURE = frozenset(
  {
    "body", "checkpoint", "closed_call", "cond", "core_call", "custom_jvp_call", "custom_vjp_call",
    "eval_jaxpr", "jit", "pjit", "remat", "remat2", "rematted_computation", "scan", "shard_map", "while",
  }
)  # fmt: skip
_INSIDE = re.compile(r"body|cond|scan|while|branch_\d+_fun")  # of a loop or a branch


@functools.lru_cache(maxsize=65536)
def path(op_name: str) -> tuple[str, ...]:
  """`jit(f)/transpose(jvp(layer))/while/body/attention/bd,de->be/dot_general` -> `("layer", "attention")`.

  Drops the primitive at the end, transforms, functions, einsum equations, parts of loops and branches, and a
  scope's repetition (recomputed under `jax.checkpoint`, `attention` stands inside `attention`). A user scope
  therefore cannot be named `body`, `cond`, `scan` or `while`.
  """
  return tuple(part for part, _ in itertools.groupby(filter(_is_user_scope, _parts(op_name))))


@functools.lru_cache(maxsize=65536)
def own(op_name: str) -> tuple[str, ...]:
  """Of `path`, the scopes inside the innermost loop or branch around the operation: others are around that one."""
  inside = list(itertools.takewhile(lambda part: not _INSIDE.fullmatch(part), reversed(_parts(op_name))))
  return tuple(filter(_is_user_scope, reversed(inside)))


def joined_path(op_name: str) -> str:
  """`path` as one text, `layer/attention`; empty without scopes."""
  return "/".join(path(op_name))


def total_within(by_path: Mapping[str, float], scope: str) -> float:
  """Sum over the joined paths that have `scope` anywhere in them."""
  return sum(number for joined, number in by_path.items() if scope in joined.split("/"))


def innermost(op_name: str) -> str:
  """The last of `path`; empty without scopes."""
  return (path(op_name) or ("",))[-1]


def innermost_own(op_name: str) -> str:
  """The last of `own`; empty without."""
  return (own(op_name) or ("",))[-1]


def part(op_name: str, parts: Iterable[str]) -> str:
  """The first of `parts` that is a scope around an operation; `OTHER` if none is."""
  around = path(op_name)
  return next((one for one in parts if one in around), OTHER)


def join(outer: str, inner: str) -> str:
  """The op name of an instruction inside a call: jax gives it relative to the call."""
  if not outer or inner == outer or inner.startswith(outer + "/"):
    return inner or outer
  return f"{outer}/{inner}"


def _parts(op_name: str) -> list[str]:
  """Without the primitive at the end, transforms and functions."""
  scopes = op_name.rpartition("/")[0]
  while True:
    bare = _TRANSFORM.sub(r"\1", scopes)
    if bare == scopes:
      return _FUNCTION.sub("", scopes).split("/")
    scopes = bare


def _is_user_scope(part: str) -> bool:
  is_structure = part in _STRUCTURE or "->" in part or re.fullmatch(r"branch_\d+_fun", part)
  return bool(part) and not is_structure
