"""A trace as folding HTML: the lines of its text, in `<details>` that open and close.

Everything stands in one `<pre>`, aligned by spaces as in the text. Where a page strips styles and folding, as GitHub
does with notebooks, what remains is the text with everything open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Any

from lab.tracer.columns import Columns
from lab.tracer.record import FOREIGN
from lab.tracer.sizes import ORDER
from lab.tracer.source import line_at, short_file, source_of, statement_at
from lab.tracer.values import Value, numbers
from lab.tracer.view import Row, row_ends

# One colour for each letter, on light and on dark paper: hues after Okabe & Ito 2008, which the colour-blind can tell
# apart, darkened or lightened for contrast. The letter itself says the same.
COLOURS = {
    "B": ("#6a6a6a", "#a9a9a9"), "T": ("#0063a8", "#56b4e9"), "S": ("#2b84b8", "#9ad4f5"), "D": ("#b84a00", "#ff9650"),
    "H": ("#a0277f", "#ef8fcf"), "G": ("#6b3fa0", "#b99cf0"), "K": ("#00745a", "#2fcf9f"), "F": ("#866500", "#e8c33a"),
    "V": ("#a31515", "#ff8080"), "E": ("#7a4a2a", "#d2a27a"), "N": ("#3d6b1f", "#a5d66b"),
    "Tmax": ("#1d4e79", "#7fa8d9"),
}  # fmt: skip
MAX_SOURCE, MAX_TENSORS = 110, 4  # characters of source, and tensors on each side, shown on hovering

_DARK = ('body[data-jp-theme-light="false"] .lab-trace', "body.vscode-dark .lab-trace", 'html[theme="dark"] .lab-trace')
_STYLE = """
.lab-trace{font:12px/1.5 var(--jp-code-font-family,ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace)!important;
white-space:pre!important;overflow-x:auto;margin:0;padding:2px 0!important;border:0!important;
background:none!important;color:var(--jp-content-font-color1,inherit)}
.lab-trace details,.lab-trace summary,.lab-trace .r{display:block;margin:0;padding:0;width:max-content;min-width:100%}
.lab-trace summary{cursor:pointer;list-style:none}
.lab-trace summary::-webkit-details-marker{display:none}
.lab-trace summary:hover,.lab-trace .r:hover{background:rgba(128,128,128,.16)}
.lab-trace .m{display:inline-block;opacity:.6}
.lab-trace details[open]>summary .m{transform:rotate(90deg)}
.lab-trace .g{opacity:.25}
.lab-trace .q{opacity:.65}
.lab-trace i{font-style:normal;font-weight:600}
.lab-trace .w{color:#b84a00;font-weight:600}
"""


def page(trace: Any) -> str:
    """The HTML of a trace, for a notebook."""
    if not trace.calls:
        return f"<pre>{escape(str(trace))}</pre>"
    rows = trace.rows()
    columns = Columns(rows, spare=True)
    lints = [] if trace.card is not None else trace.lints  # where a call failed, its card says what matters
    painter = _Painter((name for namer in trace.namers for name in namer.vectors), lints)
    parts = [f'<span class="r">{painter.header(text)}\n</span>' for text in trace.headers(rows)]
    parts += [painter.row(columns, row, 0) for row in rows]
    remarks = trace.remarks(rows) + [f"⚠ {lint}" for lint in painter.lints]
    parts += [f'<span class="r w">{escape(text)}\n</span>' for text in remarks]
    return f'<style>{_STYLE}{painter.colours()}</style><pre class="lab-trace">{"".join(parts)}</pre>'


class _Painter:
    """Marks up lines: a colour for each letter, what to show on hovering, badges for `lints`: those not shown yet."""

    def __init__(self, letters: Iterable[str], lints: Iterable[Any] = ()):
        letters, self.lints = list(dict.fromkeys(letters)), list(lints)
        own = [letter for letter in letters if letter not in COLOURS]
        free = [letter for letter in ORDER if letter not in letters] or ORDER
        shades = {letter: free[i % len(free)] for i, letter in enumerate(own)}
        self.shade = {letter: ORDER.index(shades.get(letter, letter)) for letter in letters}

    def colours(self) -> str:
        """The style rules of the letters in use."""
        used = sorted(set(self.shade.values()))
        light, dark = (";".join(f"--d{i}:{COLOURS[ORDER[i]][paper]}" for i in used) for paper in (0, 1))
        rules = "\n".join(f".lab-trace .d{i}{{color:var(--d{i})}}" for i in used)
        return f".lab-trace{{{light}}}\n{','.join(_DARK)}{{{dark}}}\n{rules}\n"

    def row(self, columns: Columns, row: Row, depth: int) -> str:
        """A row and those inside it; the line break stands inside its element, for pages that strip the elements."""
        line = columns.line(row, depth)
        guide = f'<span class="g">{line.guide}</span>' if line.guide else ""
        left = _scope(row) if row.is_scope else escape(line.left)
        shapes = self.shapes(line.shapes)
        if row.sizes:
            shapes = shapes.replace(row.sizes, _quiet(row.sizes))
        shapes = shapes.replace("✗", '<span class="w">✗</span>')
        text = f"{guide}{left}{_quiet(line.place)}{shapes}{_quiet(line.extra)}".rstrip() + self._badges(row)
        title = escape(_title(row))
        if not row.children:
            return f'<span class="r" title="{title}">{text}\n</span>'
        inner = "".join(self.row(columns, child, depth + 1) for child in row.children)
        opened = "" if row.folded else " open"
        return f'<details{opened}><summary title="{title}">{text}\n</summary>{inner}</details>'

    def _badges(self, row: Row) -> str:
        """Of each lint about the lines of this row its kind, once."""
        file, first, last = _span(row)
        mine = [lint for lint in self.lints if lint.file == file and first <= lint.line <= last]
        self.lints = [lint for lint in self.lints if lint not in mine]
        return "".join(f'   <span class="w" title="{escape(lint.text)}">⚠ {lint.kind}</span>' for lint in mine)

    def shapes(self, text: str) -> str:
        """Letters for dimensions in their colours: the words between parentheses."""
        return self._marked(text, r"[^\W\d]\w*(?=[^()]*\))")

    def header(self, text: str) -> str:
        """The line above the rows, the letters of its sizes in their colours."""
        return self._marked(text, r"[^\W\d]\w*(?==\d)")

    def _marked(self, text: str, words: str) -> str:
        parts, end = [], 0
        for match in re.finditer(words, text):
            if match[0] in self.shade:
                parts += [escape(text[end : match.start()]), f'<i class="d{self.shade[match[0]]}">', match[0], "</i>"]
                end = match.end()
        return "".join([*parts, escape(text[end:])])


def _quiet(text: str) -> str:
    """Text that stands back; spaces around it need no mark."""
    word = text.strip()
    return text.replace(word, f'<span class="q">{escape(word)}</span>') if word else text


def _scope(row: Row) -> str:
    names, title, about = row.parts
    return f'<span class="{"m" if row.children else "g"}">▸</span> {escape(names)}<b>{escape(title)}</b>{_quiet(about)}'


def _span(row: Row) -> tuple[str, int, int]:
    """File, first and last line of the statement that a line of the trace stands for, or that makes a call."""
    item = row.items[0]
    code, statement = item.parent.code, statement_at(item.parent.code, item.lasti)
    if statement is None or hasattr(statement, "body"):  # of a loop or condition, what runs is its first line
        return code.co_filename, line_at(code, item.lasti), line_at(code, item.lasti)
    return code.co_filename, statement.lineno, statement.end_lineno


def _title(row: Row) -> str:
    """What is shown on hovering: file and line, the source there, and shapes in numbers."""
    item, lines = row.items[0], []
    if row.is_scope and not item.code.co_filename.startswith(FOREIGN):
        lines.append(f"{short_file(item.code.co_filename)}:{item.code.co_firstlineno}  def {item.function}")
    if item.parent.parent is not None:  # where it was called from
        file, first, last = _span(row)
        source = " ".join(" ".join(source_of(item.parent.code).lines[first - 1 : last]).split())
        source = source if len(source) <= MAX_SOURCE else source[: MAX_SOURCE - 1] + "…"
        lines.append(f"{short_file(file)}:{first}  {source}".rstrip())
    lines.append(" → ".join(filter(None, map(_numbers, row_ends(row)))))
    return "\n".join(filter(None, lines))


def _numbers(values: list[Value]) -> str:
    more = [f"… {len(values) - MAX_TENSORS} more"] if len(values) > MAX_TENSORS else []
    return " ".join([numbers(value) for value in values[:MAX_TENSORS]] + more)


# --------------------------------------------------------------------------------------------------------------------
# Comparisons

_TINTS = {"added": "46,160,67,.16", "removed": "248,81,73,.16", "changed": "210,153,34,.14"}


def block(lines: Iterable[tuple[str, str]], letters: Iterable[str]) -> str:
    """Lines of text as HTML. Each comes as (kind, text); the kinds of `_TINTS` have a background of their own."""
    painter = _Painter(letters)
    parts = []
    for kind, text in lines:
        tint = f' style="background:rgba({_TINTS[kind]})"' if kind in _TINTS else ""
        marked = painter.header(text) if kind == "head" else painter.shapes(text)
        marked = re.sub("(?:│ )+", r'<span class="g">\g<0></span>', marked, count=1)
        parts.append(f'<span class="r"{tint}>{marked}\n</span>')
    return f'<style>{_STYLE}{painter.colours()}</style><pre class="lab-trace">{"".join(parts)}</pre>'
