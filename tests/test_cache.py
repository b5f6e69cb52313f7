"""Results that are kept: found again, for the same program only."""

import dataclasses
import os
import pathlib
import time

import pytest
import tiny

from jaxmoe.meshes.strategy import Strategy
from jaxmoe.xla import cache
from jaxmoe.xla.compiled import compile_step
from jaxmoe.xla.target import Target
from jaxmoe.xla.verify import Options, verify


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXMOE_CACHE_DIR", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture(scope="module")
def compiled():
  d = tiny.deployment(Strategy(expert=2), kind="prefill")
  return d, compile_step(d)


def test_a_result_comes_back_as_it_was(compiled, folder):
  _, step = compiled
  assert cache.load("name") is None
  cache.store("name", step)
  assert cache.load("name") == step
  assert [file.name for file in folder.iterdir()] == ["name.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"platform": "cpu"}', "\x00\xff"])
def test_an_entry_that_cannot_be_read_is_none(text, compiled, folder):
  cache.store("name", compiled[1])
  (folder / "name.json").write_text(text)
  assert cache.load("name") is None


def test_a_folder_that_cannot_be_written_is_no_error(compiled, monkeypatch, tmp_path):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("JAXMOE_CACHE_DIR", str(tmp_path / "file" / "below"))
  cache.store("name", compiled[1])
  assert cache.load("name") is None


def test_where_results_are_kept(monkeypatch, tmp_path):
  monkeypatch.delenv("JAXMOE_CACHE_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert cache.folder() == tmp_path / "jaxmoe"
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert cache.folder() == pathlib.Path.home() / ".cache" / "jaxmoe"


def test_old_entries_are_forgotten(compiled, folder, monkeypatch):
  monkeypatch.setattr(cache, "_MOST_ENTRIES", 2)
  for age, name in enumerate(("newest", "newer", "oldest")):
    cache.store(name, compiled[1])
    os.utime(folder / f"{name}.json", (time.time() - 100 * age,) * 2)
  cache.store("last", compiled[1])
  assert {file.stem for file in folder.iterdir()} == {"last", "newest"}


def test_a_name_is_of_all_that_decides(monkeypatch):
  d, target = tiny.deployment(Strategy(expert=2)), Target()
  names = {
    cache.key(d, target),
    cache.key(d, Target(devices=4)),
    cache.key(dataclasses.replace(d, job=dataclasses.replace(d.job, batch=32)), target),
    cache.key(dataclasses.replace(d, strategy=Strategy(tensor=2)), target),
  }
  monkeypatch.setattr(cache, "versions", lambda target: {"jax": "99"})
  names.add(cache.key(d, target))
  monkeypatch.setattr(cache, "COMPILE_FLAGS", "--other")
  names.add(cache.key(d, target))
  monkeypatch.setattr(cache, "source_digest", lambda: "another")
  names.add(cache.key(d, target))
  assert len(names) == 7
  assert cache.key(d, target) == cache.key(dataclasses.replace(d), target)


def test_every_change_of_the_source_is_seen(monkeypatch, tmp_path):
  for name in cache._SOURCES:
    (tmp_path / name).mkdir()
    (tmp_path / name / "file.py").write_text("a = 1\n")
  monkeypatch.setattr(cache, "_ROOT", tmp_path)
  seen = {cache.source_digest.__wrapped__()}
  for name in cache._SOURCES:
    (tmp_path / name / "file.py").write_text("a = 2\n")
    seen.add(cache.source_digest.__wrapped__())
  assert len(seen) == len(cache._SOURCES) + 1


def test_a_repeat_is_five_times_faster_and_says_so():
  d = tiny.deployment(Strategy(expert=2), kind="decode")
  start = time.perf_counter()
  first = verify(d, "cpu")
  middle = time.perf_counter()
  again = verify(d, "cpu")
  end = time.perf_counter()
  assert (first.cached, again.cached) == (False, True)
  assert again.checks == first.checks and again.rewrites == first.rewrites
  assert middle - start > 5 * (end - middle)


def test_without_the_cache_nothing_is_found_or_kept(folder):
  d = tiny.deployment(Strategy(), kind="decode")
  assert not verify(d, "cpu", lambda _: None, Options(cached=False)).cached
  assert not folder.exists()
