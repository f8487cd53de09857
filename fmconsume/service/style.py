"""The style sheet and the script of the status page, and the policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib

__all__ = ["POLICY", "REFRESH", "SCRIPT", "STYLE"]

#: Seconds between two refreshes.
REFRESH = 3

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #667079; --line: #dfe3e7; --paper: #fff;
  --ground: #f4f6f8; --good: #1a7f4b; --care: #a35200; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #98a2ab; --line: #343b42;
  --paper: #1d2226; --ground: #14181b; --good: #4cc38a; --care: #f0a04b; --bad: #f2776d; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { margin: 0; font-size: 1.7rem; }
h1 small { padding: .15em .6em; border-radius: 1em; color: var(--paper); font-size: .9rem;
  vertical-align: middle; white-space: nowrap; }
.good small { background: var(--good); } .care small { background: var(--care); }
.bad small { background: var(--bad); }
h2 { margin: 0 0 .5rem; font-size: 1rem; }
section { margin-top: 1rem; padding: 1rem 1.2rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: .5rem; overflow-x: auto; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
.dim, th, dt { color: var(--dim); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .9rem;
  margin: 0; }
dt { font-size: .85rem; } dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.bad, .bad dd { color: var(--bad); }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .3rem 1.2rem .3rem 0; text-align: left; vertical-align: top;
  white-space: nowrap; unicode-bidi: isolate; }
th { font-weight: normal; font-size: .85rem; vertical-align: bottom; white-space: normal; }
th:last-child, td:last-child { padding-right: 0; }
tr + tr td { border-top: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.text { min-width: 8rem; white-space: normal; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--dim); font-size: 11px; dominant-baseline: hanging; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
.grid { stroke: var(--line); } .curve { fill: none; stroke: var(--good); stroke-width: 1.5; }
pre { margin: .3rem 0; white-space: pre-wrap; font-size: .8rem; }
#stale { display: none; } .stale #stale { display: block; } .stale main { opacity: .4; }
@media (max-width: 45rem) {
  svg { margin-bottom: .7rem; } svg text { font-size: 22px; }
  tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .4rem .9rem;
    padding: .6rem 0; }
  tr:first-child { display: none; } tr + tr + tr { border-top: 1px solid var(--line); }
  tr + tr td { padding: 0; border: 0; white-space: normal; overflow-wrap: anywhere; }
  td.number { text-align: left; }
  td::before { content: attr(data-head); display: block; color: var(--dim); font-size: .85rem; }
  .text { grid-column: 1 / -1; } }
"""

SCRIPT = f"""
setInterval(async () => {{
  if (document.hidden || document.querySelector("details[open]")) return;
  try {{
    const answer = await fetch("/", {{cache: "no-store", signal: AbortSignal.timeout(10000)}});
    if (!answer.ok) throw answer.status;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
    document.body.className = "";
  }} catch {{
    document.body.className = "stale";
  }}
}}, {REFRESH * 1000});
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


#: The Content-Security-Policy of the page: its own style and script, nothing else.
POLICY = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
