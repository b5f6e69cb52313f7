"""What every record of a run says: when, on which device, with which versions; and how its files are called."""

import datetime
import importlib.metadata
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("jax", "jaxlib", "tokamax", "jax-triton", "torch", "triton", "liger-kernel", "nvidia-cudnn-cu13", "numpy")


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def query(fields: str) -> str:
  """What nvidia-smi says, without taking the device."""
  command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
  try:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError) as error:
    return f"unknown: {' '.join(str(error).split())[:200]}"


def versions() -> dict[str, str]:
  return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "absent"


def stem(kind: str, device: str, date: str) -> str:
  """A file's name without its ending: another device or minute never overwrites it."""
  named = "".join(letter if letter.isalnum() else "_" for letter in device)
  return f"{kind}_{named}_{date[:16].replace(':', '')}"
