"""What stands in a page that jaxmoe writes, for the tests of HTML."""

import html.parser

VOID = {"meta", "br", "hr", "img", "input", "link"}
SECTIONS = (
  "deployment", "memory", "checks", "communication", "flops", "roofline",
  "pipeline", "placement", "time", "notes", "versions",
)  # fmt: skip


class Page(html.parser.HTMLParser):
  """What stands in a page: elements with their attributes, tables as rows of cells, and tags that do not match."""

  def __init__(self, text):
    super().__init__()
    self.open, self.faults, self.elements, self.tables, self.words = [], [], [], {}, []
    self.feed(text)
    self.close()
    self.faults += [f"<{tag}> stays open" for tag in self.open]

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)
    if tag == "table":
      self.rows, self.caption = [], ""
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")
    if tag == "data":
      self.rows_value(float(dict(attrs)["value"]))

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.faults.append(f"</{tag}> at {self.getpos()}")
    if tag == "table":
      self.tables[self.caption] = self.rows

  def handle_data(self, data):
    self.words.append(data)
    if "caption" in self.open:
      self.caption += data
    if self.open and self.open[-1] in ("td", "th"):
      self.rows[-1][-1] += data

  def rows_value(self, value):
    """A cell with an exact number holds that in place of its text."""
    if "td" in self.open:
      self.rows[-1][-1] = value

  @property
  def text(self):
    return "".join(self.words)
