"""A report as a browser reads it, and ways to change the run it is made from."""

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:  # void elements have no end
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def read(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def change(path, edit):
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def plant(folder, text, row=1):
    """Let one completion say ``text``."""
    path = folder / "completions.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[row] = json.dumps({**json.loads(lines[row]), "text": text}, ensure_ascii=False)
    path.write_bytes("\n".join(lines).encode())
