"""The four mesh axes. No other file spells their names."""

DATA = "data"
STAGE = "stage"
EXPERT = "expert"
TENSOR = "tensor"

# Outermost first: device rank = ((data * stages + stage) * experts + expert) * tensors + tensor.
AXES = (DATA, STAGE, EXPERT, TENSOR)


def label(axes: tuple[str, ...]) -> str:
  """`("stage", "tensor")` -> `"stage+tensor"`, in mesh order; how tables name a group of axes."""
  return "+".join(axis for axis in AXES if axis in axes)
