"""`ModelConfig` from a Hugging Face `config.json`; what it cannot express is refused, never approximated.

Keys that describe neither shape nor function (token ids, dropout, initialisation, dtype) are passed over. A
`quantization_config` says how the checkpoint is stored and changes no parameter: what a deployment stores is for
`job.precision` to say.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxmoe.config.files import closest, got
from jaxmoe.config.huggingface_base import FamilyConfig
from jaxmoe.config.huggingface_families import FAMILIES
from jaxmoe.config.model import ModelConfig
from jaxmoe.config.schema import checked
from jaxmoe.meshes.errors import UsageError

_MARKS = {"model_type", "architectures", "hidden_size", "num_hidden_layers", "text_config"}


def is_huggingface(data: Mapping[str, Any]) -> bool:
  """Whether a mapping is a `config.json` rather than a model in this project's own words."""
  return not _MARKS.isdisjoint(data)


def model_from_huggingface(data: Mapping[str, Any], *, name: str, mtp: bool = False) -> ModelConfig:
  """The model of one `config.json`, also when a wrapper nests it under `text_config`.

  Args:
    mtp: keep the multi-token-prediction layers that the checkpoint holds beside the model; most users drop them.

  Raises:
    UsageError: an unknown family, a missing or mistyped field, or a feature that `ModelConfig` lacks.
  """
  data = _text_config(data)
  config = checked(_family(data), data)
  for refusal in config.refusals():
    raise UsageError(refusal)
  model = config.model(name)
  return dataclasses.replace(model, mtp_layers=config.prediction_layers) if mtp else model


def _family(data: Mapping[str, Any]) -> type[FamilyConfig]:
  model_type = data.get("model_type")
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise UsageError(
      f"model_type: expected a known Mixture-of-Experts family, one of {', '.join(FAMILIES)},"
      f" got {got(model_type)}{_typo(model_type)}; {_other_family(data)}"
    )
  return FAMILIES[model_type]


def _typo(model_type: Any) -> str:
  """The family that this may misspell: nearly as long, so `llama` is not taken for `llama4_text`."""
  if not isinstance(model_type, str):
    return ""
  return closest(model_type, [name for name in FAMILIES if abs(len(name) - len(model_type)) <= 2], cutoff=0.8)


def _other_family(data: Mapping[str, Any]) -> str:
  """What to do about a family that is not known; most name their experts in some key, dense ones in none."""
  if any("expert" in key or "moe" in key for key in data):
    return "write other Mixture-of-Experts models as a model YAML"
  return "no key names experts, so this is no Mixture-of-Experts model; dense models are not planned here"


def _text_config(data: Mapping[str, Any]) -> Mapping[str, Any]:
  """The language model's part; a wrapper's `tie_word_embeddings` stands in where that part has none."""
  text = data.get("text_config")
  if text is None:
    return data
  if not isinstance(text, dict):
    raise UsageError(f"text_config: expected a mapping, got {got(text)}")
  kept = {key: data[key] for key in ("tie_word_embeddings", "quantization_config") if key in data}
  return {**kept, **text}
