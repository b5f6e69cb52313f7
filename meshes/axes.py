"""The four mesh axes, and the part of one that shares sequences. No other file spells their names."""

DATA = "data"
STAGE = "stage"
EXPERT = "expert"
TENSOR = "tensor"

# Not an axis of the mesh: neighbours along `data` that share each sequence, in context parallelism.
CONTEXT = "context"

# Outermost first: device rank = ((data * stages + stage) * experts + expert) * tensors + tensor.
AXES = (DATA, STAGE, EXPERT, TENSOR)


def label(axes: tuple[str, ...]) -> str:
  """`("stage", "tensor")` -> `"stage+tensor"`, in mesh order; how tables name a group of axes."""
  return "+".join(axis for axis in (*AXES, CONTEXT) if axis in axes)
