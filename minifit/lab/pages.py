"""A page, as Markdown, as HTML and as text for a terminal.

It is a list of blocks: ("heading", text), ("text", text), ("code", text), ("table", header, rows) and
("picture", path, caption), a path being relative to the page's own folder.
"""

import base64
from html import escape

from minifit.lab.files import read_bytes
from minifit.lab.report import table

STYLE = """
body { max-width: 74rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222;
  overflow-wrap: anywhere }
h1 { line-height: 1.2 } h2 { margin-top: 3rem; border-bottom: 1px solid #ddd } h3 { margin-top: 2rem }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
p, figure { max-width: 60rem } div { overflow-x: auto; margin: 1.5rem 0 }
th, td { padding: 0.25rem 0.6rem; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: bottom }
.n { text-align: right } td + td { white-space: nowrap } th { max-width: 8rem }
code { background: #f4f4f4; padding: 0.1rem 0.3rem } code span { display: inline-block }
figure { margin: 2rem 0 } img { max-width: 100% } figcaption { font-size: 0.9rem; color: #555 }
@media (max-width: 45rem) { figure { overflow-x: auto } img { max-width: none; width: 45rem } }
"""


def markdown(title, blocks):
    lines = [f"# {title}"]
    for kind, *content in blocks:
        if kind == "heading":
            lines.append(f"## {content[0]}")
        elif kind == "heading 3":
            lines.append(f"### {content[0]}")
        elif kind == "code":
            lines.append(f"```\n{content[0]}\n```")
        elif kind == "table":
            header, rows = content
            lines.append(table(rows, header, markdown=True))
        elif kind == "picture":
            path, caption = content
            lines.append(f"![{caption}]({path})")
        else:
            lines.append(content[0])
    return "\n\n".join(lines) + "\n"


def html(title, blocks, folder):
    """One file that needs no other: the pictures lie inside it."""
    lines = [f"<h1>{escape(title)}</h1>"]
    for kind, *content in blocks:
        if kind.startswith("heading"):
            level = 3 if kind.endswith("3") else 2
            lines.append(f"<h{level}>{escape(content[0])}</h{level}>")
        elif kind == "code":
            words = " ".join(f"<span>{escape(word)}</span>" for word in content[0].split(" "))  # break between words
            lines.append(f"<p><code>{words}</code></p>")
        elif kind == "table":
            lines.append(_html_table(*content))
        elif kind == "picture":
            path, caption = content
            data = base64.b64encode(read_bytes(folder / path)).decode()
            image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            lines.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
        else:
            lines.append(f"<p>{escape(content[0])}</p>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join(lines)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def _html_table(header, rows):
    """Numbers to the right, as Markdown's table has them."""
    rule = table(rows, header, markdown=True).splitlines()[1].strip("| ").split(" | ")
    kinds = [' class="n"' if r.endswith(":") else "" for r in rule]

    def line(cells, tag):
        cells = ["-" if cell is None else escape(str(cell)) for cell in cells]
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    return "<div><table>" + "\n".join([line(header, "th"), *(line(row, "td") for row in rows)]) + "</table></div>"


def as_printed(blocks):
    """Blocks as a terminal shows them."""
    texts = [table(block[2], block[1]) if block[0] == "table" else block[1] for block in blocks]
    return "\n\n".join(texts)
