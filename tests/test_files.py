"""Reading of files: what is accepted means what YAML 1.2 says, what is not becomes one `UsageError`."""

import os
import time

import pytest

from jaxmoe.config.files import MAX_BYTES, closest, got, parse_mapping, read_mapping, shown
from jaxmoe.meshes.errors import UsageError


@pytest.mark.parametrize(
  "written, value",
  [
    ("12", 12), ("-3", -3), ("64_000_000_000", 64 * 10**9), ("400e12", 4e14), ("1.5e-6", 1.5e-6),
    (".5", 0.5), ("2.", 2.0),
    ("true", True), ("null", None), ("~", None), ("", None), ("'12'", "12"),
    ("no", "no"), ("on", "on"), ("010", "010"), ("1:30", "1:30"), ("0x1f", "0x1f"),
    ("2024-01-01", "2024-01-01"), (".nan", ".nan"), ("_1", "_1"), ("e5", "e5"), ("<<", "<<"),
  ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(written, value):
  read = parse_mapping(f"key: {written}\n".encode(), origin="f")["key"]
  assert read == value and type(read) is type(value)


def test_byte_order_mark_and_unicode_are_read():
  assert parse_mapping("\ufeffname: é\n".encode(), origin="f") == {"name": "é"}


def test_json_and_yaml_agree():
  text = b'{"a": {"b": [1, 2.5, true, null, "x"]}}'
  assert parse_mapping(text, origin="f", is_json=True) == parse_mapping(text, origin="f")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
  f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
  "content, is_json, words",
  [
    (b"", False, ["mapping", "nothing"]),
    (b"- a\n- b\n", False, ["mapping", "a list"]),
    (b"just text", False, ["mapping", "'just text'"]),
    (b"[1]", True, ["mapping", "a list"]),
    (b"a: 1\nb: [1,\n", False, ["YAML", "line 3"]),
    (b"a: 1\n b: 2\n", False, ["YAML", "line 2"]),
    (b"a: b: c\n", False, ["YAML", "line 1"]),
    (b"a: 1\n---\nb: 2\n", False, ["YAML", "document"]),
    (b"a: \x07\n", False, ["YAML", "character"]),
    (b'{"a": 1,}', True, ["JSON", "line 1"]),
    (b'{"a": NaN}', True, ["finite", "NaN"]),
    (b'{"a\\ud800": 1}', True, ["'a\\ud800'", "surrogate"]),
    (b'{"a": {"\\udfff": 1}}', True, ["'\\udfff'", "surrogate"]),
    (b'b: 1\n"a\\ud800": 1\n', False, ["line 2", "'a\\ud800'", "surrogate"]),
    (b"\x89PNG\r\n\x1a\n\x00\xff", False, ["UTF-8", "0x89"]),
    (b"a: 1\nb: 2\na: 3\n", False, ["line 3", "'a'", "twice"]),
    (b"a: {b: 1, b: 2}\n", False, ["line 1", "'b'", "twice"]),
    (b'{"a": {"b": 1, "b": 2}}', True, ["'b'", "twice"]),
    (b"1: x\n", False, ["line 1", "key of text", "1"]),
    (b"? [a]\n: x\n", False, ["line 1", "key of text", "a list"]),
    (b"a: &x 1\nb: *x\n", False, ["line 1", "anchors"]),
    (b"a: *x\n", False, ["line 1", "aliases"]),
    (BOMB.encode(), False, ["line 1", "anchors"]),
    (b"a: !!python/object/apply:os.system [true]\n", False, ["YAML", "line 1"]),
    (b"a: " + b"[" * 100_000, False, ["nested too deeply"]),
    (b'{"a": ' + b"[" * 100_000, True, ["nested too deeply"]),
  ],
)  # fmt: skip
def test_unreadable_content_is_one_usage_error(content, is_json, words):
  began = time.monotonic()
  with pytest.raises(UsageError) as caught:
    parse_mapping(content, origin="plan.yaml", is_json=is_json)
  message = str(caught.value)
  assert message.startswith("plan.yaml: ") and "\n" not in message and len(message) < 300
  assert all(word in message for word in words), message
  assert time.monotonic() - began < 5


@pytest.mark.parametrize("content, is_json", [(b'{"a": %s}', True), (b"a: %s", False), (b"a: -%s", False)])
def test_a_number_longer_than_python_reads_is_left_to_the_check_of_its_field(content, is_json):
  number = parse_mapping(content % (b"9" * 5000), origin="f", is_json=is_json)["a"]
  assert got(number) == "a number of more than 30 digits"
  with pytest.raises(OverflowError):
    float(number)


def test_missing_file_directory_pipe_and_size(tmp_path):
  huge, pipe = tmp_path / "huge.yaml", tmp_path / "pipe.yaml"
  huge.write_bytes(b"a" * (MAX_BYTES + 1))
  os.mkfifo(pipe)
  for path, word in [
    (tmp_path / "none.yaml", "no such file"), (tmp_path, "directory"), (huge, "1048576 bytes"),
    (pipe, "regular file"), (tmp_path / ("x" * 300), "cannot be read"), (tmp_path / "a\0b", "no such file"),
  ]:  # fmt: skip
    with pytest.raises(UsageError, match=word):
      read_mapping(path)


def test_a_file_of_exactly_the_limit_is_read(tmp_path):
  path = tmp_path / "full.yaml"
  path.write_bytes(b"a: " + b"x" * (MAX_BYTES - 3))
  assert len(read_mapping(path)["a"]) == MAX_BYTES - 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_permissions(tmp_path):
  path = tmp_path / "secret.yaml"
  path.write_text("a: 1")
  path.chmod(0)
  with pytest.raises(UsageError, match="permission denied"):
    read_mapping(path)


def test_messages_never_carry_control_characters():
  assert shown("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"
  assert len(shown("x" * 1000)) == 120


def test_closest_name():
  assert closest("exprt", ["expert", "tensor"]) == " (did you mean 'expert'?)"
  assert closest("zzz", ["expert", "tensor"]) == ""
