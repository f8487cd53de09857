"""Write the manual as web pages into a folder, such as build/manual; mandoc does the work."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

MAN = Path(__file__).resolve().parents[1] / "man"
PAGES = ("fmconsume.1", "fmconsume.toml.5", "fmconsume-callbacks.7")
TITLE = "The manual of fmconsume"

FRAME = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="manual.css">
<header><a href="index.html">Manual</a> {pages}</header>
<main>
{content}
</main>
</html>
"""


def main(folder: Path) -> None:
    """Write the pages, the index and the style sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MAN / "manual.css", folder)
    index = [f"<h1>{TITLE}</h1>"]
    for name in PAGES:
        source = (MAN / name).read_text(encoding="utf-8")
        content = link(convert(source))
        contents = list_sections(name, content)
        summary = html.escape(re.findall(r"^\.SH NAME\n.* \\- (.+)$", source, re.MULTILINE)[0])
        write(folder, name, call(name), f"{contents}\n{content}")
        index.append(f"<h2>{anchor(name)}</h2>\n<p>{summary}</p>\n{contents}")
    write(folder, "index", TITLE, "\n".join(index))


def write(folder: Path, name: str, title: str, content: str) -> None:
    """Write a page into the frame that all share."""
    pages = " ".join(map(anchor, PAGES))
    text = FRAME.format(title=title, pages=pages, content=content)
    (folder / f"{name}.html").write_text(text, encoding="utf-8")


def convert(source: str) -> str:
    """Turn the source of a page into HTML, without its head and foot."""
    # mandoc drops the empty lines of a sample, and breaks where a line begins with a space.
    guarded = re.sub(r"^\.EX\n.*?^\.EE$", _guard, source, flags=re.MULTILINE | re.DOTALL)
    command = ["mandoc", "-T", "html", "-O", "fragment"]
    text = subprocess.run(command, input=guarded, capture_output=True, text=True, check=True).stdout
    body = text.partition("</table>")[2].rpartition('<table class="foot">')[0]
    return re.sub(r"\s+</pre>", "</pre>", body)


def _guard(sample: re.Match[str]) -> str:
    spaced = re.sub(r"^$", ".sp", sample[0], flags=re.MULTILINE)
    return re.sub(r"^ ", r"\\& ", spaced, flags=re.MULTILINE)


def link(content: str) -> str:
    """Make links of the references to a page of the manual, or to a section there."""
    return re.sub(r"(?:\b([A-Z]{3}[A-Z\s]*)\s+in\s+)?<b>([\w.-]+)</b>\((\d)\)", _refer, content)


def _refer(found: re.Match[str]) -> str:
    section, name = found[1], f"{found[2]}.{found[3]}"
    if name not in PAGES:
        return found[0]
    place = "#" + "_".join(section.split()) if section else ""
    return f'<a href="{name}.html{place}">{found[0]}</a>'


def list_sections(name: str, content: str) -> str:
    """List the sections of a page, as links."""
    found = re.findall(r'<h1 class="Sh" id="([^"]+)"><a [^>]*>(.*?)</a>', content, re.DOTALL)
    links = [f'<li><a href="{name}.html#{place}">{title}</a></li>' for place, title in found]
    return "\n".join(['<ul class="sections">', *links, "</ul>"])


def anchor(name: str) -> str:
    """Make a link to a page."""
    return f'<a href="{name}.html">{call(name)}</a>'


def call(name: str) -> str:
    """Give the name of a page as people write it."""
    page, _, number = name.rpartition(".")
    return f"{page}({number})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
