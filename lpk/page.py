"""What HTML of lpk is made of, in reports and notebooks: elements, tables, numbers, and drawings in the page's colours.

A page needs no other file, no network and no script.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# name: (light, dark). The plot is drawn in the light colours, by which the page finds and exchanges them. The
# series are close to Okabe and Ito's, which the colour-blind can tell apart.
PALETTE = {
    "page": ("#fefefe", "#16181c"),
    "ink": ("#1f2328", "#e4e6e9"),
    "soft": ("#5c6570", "#a0a8b2"),
    "rule": ("#dfe3e8", "#33383f"),
    "ticket": ("#6f7680", "#9aa2ad"),
    "series0": ("#0072b2", "#56b4e9"),
    "series1": ("#d55e00", "#ee8a3c"),
    "series2": ("#009e73", "#2bbf93"),
    "series3": ("#cc79a7", "#e09cc3"),
    "series4": ("#b58900", "#e0b84a"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}

STYLE = """
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
figure { margin: 1.5rem 0; max-width: 40rem; }
figure svg { display: block; width: 100%; height: auto; }
.note, small, dt, th { color: var(--soft); }
.note, table, dl { font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
tr > * { text-align: right; padding: .3rem 0 .3rem 1rem; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; }
th { font-weight: normal; vertical-align: bottom; line-height: 1.25; }
tr > :first-child { text-align: left; padding-left: 0; }
small { font-size: .8rem; margin-left: .3rem; }
details { border-bottom: 1px solid var(--rule); }
details > :not(summary) { margin: .5rem 0 1rem 1.6rem; }
summary { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem 1rem; padding: .45rem 0; }
summary { cursor: pointer; }
summary::before { content: "▸"; color: var(--soft); }
[open] > summary::before { content: "▾"; }
.target { min-width: 10.5rem; font-variant-numeric: tabular-nums; }
.boxes { display: flex; flex-wrap: wrap; gap: 3px; flex: 1; }
.boxes i { width: .6rem; height: .6rem; border: 1.5px solid var(--series0); border-radius: 2px; }
.boxes .accepted { background: var(--series0); }
.heat tr > * { padding: 1px 0 1px 2px; border: 0; }
.heat tr > :first-child { padding-right: .5rem; }
.heat th + th { padding-right: .4rem; }
.heat td i { display: block; padding: .1rem .4rem; font-style: normal; }
.heat td i { background: color-mix(in srgb, var(--series0) calc(.45 * var(--share)), transparent); }
dl { columns: 2 18rem; column-gap: 2rem; }
dl div { display: flex; gap: 1rem; justify-content: space-between; break-inside: avoid; }
dd { margin: 0; overflow-wrap: anywhere; text-align: right; }
@media (max-width: 40rem) {
  tr > * { padding-left: .6rem; }
  td small { display: block; }
  .target { flex: 1; }
  .boxes { flex: 0 0 100%; order: 1; margin-left: 1.6rem; }
  details > :not(summary) { margin-left: 0; }
}
"""


class Markup(str):
    """HTML. Any other string is text, and escaped on its way into an element."""


def element(name: str, *children: object, **attributes: object) -> Markup:
    """<name ...>children</name>; class_ stands for class."""
    start = "".join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    inner = "".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children)
    return Markup(f"<{name}{start}>{inner}</{name}>")


def document(title: str, *sections: Markup) -> bytes:
    """The page with this title and, in its main column, these elements."""
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in PALETTE.items()) for i in (0, 1))
    colours = f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    viewport = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    style = element("style", Markup(colours + STYLE))
    head = element("head", Markup(viewport), element("title", title), style)
    body = element("body", element("main", element("h1", title), *sections))
    whole = "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"
    # an argument that is not UTF-8 reaches the manifest as lone surrogates, which UTF-8 cannot write
    return whole.encode("utf-8", errors="xmlcharrefreplace")


def drawing(image: bytes, label: str) -> Markup:
    """An SVG as a part of the page: without its XML prologue, in the page's colours."""
    text = image.decode()
    for name, light in LIGHT.items():
        text = text.replace(light, f"var(--{name})")
    start = f'<svg role="img" aria-label="{html.escape(label)}"'
    return element("figure", Markup(start + text.partition("<svg")[2]))


def definitions(values: Mapping[str, Any]) -> Markup:
    """A nested mapping as a list of its values, each under its path."""
    pairs = (element("dt", key) + element("dd", value) for key, value in flattened(values))
    return element("dl", *(element("div", Markup(pair)) for pair in pairs))


def flattened(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def table(heads: Iterable[object], lines: Iterable[Iterable[object]]) -> Markup:
    head = element("thead", element("tr", *(element("th", cell) for cell in heads)))
    body = element("tbody", *(element("tr", *(element("td", cell) for cell in line)) for line in lines))
    return element("div", element("table", head, body), class_="scroll")


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if fraction == 0 or fraction >= 0.001 else f"{100 * fraction:.2g}"


def points(gain: float) -> str:
    return f"{round(100 * gain, 2) + 0.0:+.2f}"  # + 0.0: a gain that rounds to zero is +0.00, never -0.00


def interval(gain: Mapping[str, float], between: str) -> str:
    return f"{points(gain['low'])}{between}{points(gain['high'])}"


def typeset(text: str) -> str:
    """For the page, which has room and knows a minus sign; not every terminal does."""
    return text.replace("-", "−").replace("..", " to ")
