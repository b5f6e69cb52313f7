"""A wheel and an sdist hold the whole package and nothing else, and work outside the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("jaxmoe", "kernels", "meshes")

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of the checkout, built in a copy: a build folder left over would hide missing files."""
  return build_wheel(copy_of_checkout(tmp_path_factory.mktemp("checkout")), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """A folder that holds what the wheel installs."""
  target = tmp_path_factory.mktemp("installed")
  run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
  return target


def copy_of_checkout(folder):
  for name in FOLDERS:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
  for source in ROOT.iterdir():
    if source.is_file():
      shutil.copy(source, folder)
  return folder


def build_wheel(project, folder):
  options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
  run("-m", "pip", "wheel", *options, project, cwd=project)
  return next(folder.glob("*.whl"))


def run(*arguments, cwd, **environment):
  """Standard output of this Python, started in `cwd` without the checkout on its path."""
  inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  done = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout


def contents(wheel):
  with zipfile.ZipFile(wheel) as archive:
    return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def package_files():
  for folder, _, names in os.walk(ROOT / "jaxmoe", followlinks=True):
    if "__pycache__" not in folder:
      yield from (str((pathlib.Path(folder) / name).relative_to(ROOT)) for name in names)


def test_wheel_holds_every_file_of_the_package(wheel):
  held = {name for name in contents(wheel) if ".dist-info/" not in name}
  assert held == set(package_files())


def test_wheel_has_one_top_level_package(wheel):
  top = {name.partition("/")[0] for name in contents(wheel)}
  assert {name for name in top if not name.endswith(".dist-info")} == {"jaxmoe"}


@pytest.mark.parametrize(
  "pattern",
  ["meshes/clusters/*.yaml", "meshes/deployments/*.yaml", "meshes/models/*.json", "report/templates/*.jinja"],
)
def test_wheel_holds_the_catalogue_and_templates(wheel, pattern):
  assert any(pathlib.PurePath(name).match(f"jaxmoe/{pattern}") for name in contents(wheel))


def test_sdist_builds_the_same_wheel(wheel, tmp_path):
  project, sdists = tmp_path / "project", tmp_path / "sdist"
  project.mkdir()
  sdists.mkdir()
  build = f"from setuptools.build_meta import build_sdist; build_sdist({str(sdists)!r})"
  run("-c", build, cwd=copy_of_checkout(project))
  with tarfile.open(next(sdists.glob("*.tar.gz"))) as archive:
    archive.extractall(tmp_path, filter="data")
  rebuilt = build_wheel(next(tmp_path.glob("jaxmoe-*")), tmp_path)
  assert contents(rebuilt) == contents(wheel)


def test_installed_package_runs_outside_the_checkout(installed, tmp_path):
  code = "import jaxmoe.cli.main, jaxmoe.meshes.strategy as s; print(s.__file__, s.Strategy(data=4).devices)"
  file, devices = run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
  assert pathlib.Path(file) == installed / "jaxmoe/meshes/strategy.py"
  assert devices == "4"


@pytest.mark.parametrize("name", ["kernels", "meshes"])
def test_bare_names_stay_free(installed, tmp_path, name):
  code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
  assert run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).strip() == "None"


def test_wheel_brings_the_command(wheel):
  entry_points = next(text for name, text in contents(wheel).items() if name.endswith("entry_points.txt"))
  assert entry_points.decode().split() == ["[console_scripts]", "jaxmoe", "=", "jaxmoe.cli.main:main"]
