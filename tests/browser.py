"""Headless Chromium over the DevTools protocol, by a pair of pipes; and its screenshots as arrays."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
  "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands from descriptor 3 and writes answers to 4.
LAUNCH = (
  "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
TIMEOUT_S = 60.0


class Browser:
  """One tab; `events` are those that came while waiting for answers."""

  def __init__(self, profile):
    commands, self.write_end = os.pipe()
    self.read_end, answers = os.pipe()
    high = [os.dup(fd) if fd > 4 else _above_4(fd) for fd in (commands, answers)]
    command = [sys.executable, "-c", LAUNCH, *map(str, high), CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    self.process = subprocess.Popen(
      [*command, "about:blank"],
      pass_fds=high,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    for fd in (commands, answers, *high):
      os.close(fd)
    self.number, self.buffer, self.events, self.session = 0, b"", [], None
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method, **parameters):
    """The answer to one command."""
    self.number += 1
    message = {"id": self.number, "method": method, "params": parameters}
    if self.session:
      message["sessionId"] = self.session
    os.write(self.write_end, json.dumps(message).encode() + b"\0")
    answer = self._until(lambda got: got.get("id") == self.number)
    assert "error" not in answer, (method, answer["error"])
    return answer["result"]

  def open(self, url, *, width, height=900, scheme="light"):
    """Loads a page, and waits until it is there."""
    self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    self.events.clear()
    self.call("Page.navigate", url=url)
    if not any(event["method"] == "Page.loadEventFired" for event in self.events):
      self._until(lambda got: got.get("method") == "Page.loadEventFired")

  def evaluate(self, expression):
    """The value of a JavaScript expression."""
    answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")

  def complaints(self):
    """Errors and warnings that the console got."""
    names = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event for event in self.events if event["method"] in names]

  def requests(self):
    """URLs that the page asked for."""
    sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]

  def screenshot(self, *, whole=False):
    """PNG bytes of the view, or of the whole page."""
    return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

  def close(self):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()
    os.close(self.write_end)
    os.close(self.read_end)

  def _until(self, wanted):
    end = time.monotonic() + TIMEOUT_S
    while True:
      while b"\0" not in self.buffer:
        ready, _, _ = select.select([self.read_end], [], [], max(0.0, end - time.monotonic()))
        assert ready, "Chromium does not answer"
        more = os.read(self.read_end, 1 << 20)
        assert more, f"Chromium ended with code {self.process.wait()}"
        self.buffer += more
      message, _, self.buffer = self.buffer.partition(b"\0")
      got = json.loads(message)
      if "method" in got:
        self.events.append(got)
      if wanted(got):
        return got


def _above_4(fd):
  """A copy whose number is free for the launcher's `dup2`."""
  import fcntl

  return fcntl.fcntl(fd, fcntl.F_DUPFD, 10)


def pixels(png):
  """Array of (height, width, 3) of a PNG of 8 bits a channel, as Chromium writes it."""
  chunks, at = {}, 8
  while at < len(png):
    (length,) = struct.unpack_from(">I", png, at)
    name = png[at + 4 : at + 8]
    chunks[name] = chunks.get(name, b"") + png[at + 8 : at + 8 + length]
    at += 12 + length
  width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
  assert (depth, interlaced) == (8, 0) and colours in (2, 6), "expected 8 bits a channel, RGB or RGBA"
  channels = 3 if colours == 2 else 4
  raw = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
  lines = np.zeros((height + 1, width * channels), np.uint8)
  for row in range(height):
    lines[row + 1] = _unfiltered(raw[row, 0], raw[row, 1:], lines[row], channels)
  return lines[1:].reshape(height, width, channels)[:, :, :3]


def _unfiltered(kind, line, above, channels):
  """PNG's filters: 0 none, 1 left, 2 above, 3 their mean, 4 Paeth's choice of left, above and above left."""
  if kind == 0:
    return line
  if kind == 1:
    return np.cumsum(line.reshape(-1, channels), axis=0, dtype=np.uint32).astype(np.uint8).ravel()
  if kind == 2:
    return line + above
  found, upper = [0] * channels, [0] * channels + above.tolist()
  for place, value in enumerate(line.tolist()):
    left, up, corner = found[place], upper[place + channels], upper[place]
    found.append((value + ((left + up) // 2 if kind == 3 else _paeth(left, up, corner))) % 256)
  return np.array(found[channels:], np.uint8)


def _paeth(left, up, corner):
  guess = left + up - corner
  return min((left, up, corner), key=lambda value: abs(guess - value))
