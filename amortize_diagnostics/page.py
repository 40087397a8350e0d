"""The page around a report: its style sheet, light and dark, and its frame."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --dim: #667085; --paper: #ffffff; --card: #f5f6f8;
  --rule: #dfe3ea; --main: #2b59c3; --faint: #a9b7d9; --band: #d9e3f7; --good: #1a7f4b;
  --bad: #b3261e; --unknown: #7a6200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --dim: #98a2b3; --paper: #12151c;
  --card: #1b2029; --rule: #2e3542; --main: #8fb0ff; --faint: #4a5c8a; --band: #25304a;
  --good: #5fd39a; --bad: #ff8a80; --unknown: #e2c55a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
.verdict { border-left: .3rem solid; padding: .4rem .8rem; background: var(--card); }
.good { border-color: var(--good); } .bad { border-color: var(--bad); }
.unknown { border-color: var(--unknown); }
.wide { overflow-x: auto; } pre { font-size: .82rem; background: var(--card); padding: .8rem;
  width: max-content; min-width: 100%; margin: 0; }
table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--rule);
  font-weight: normal; vertical-align: top; } thead th, tbody th { font-weight: 600; }
.number { white-space: nowrap; }
.rejected td, .rejected th { color: var(--bad); }
figure { margin: .8rem 0; } figcaption, p { max-width: 46rem; } figcaption { font-size: .82rem;
  color: var(--dim); } svg { max-width: 100%; height: auto; display: block; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr));
  gap: 0 1rem; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; } svg .name { font-weight: 600; }
svg .tick { fill: var(--dim); font-size: 11px; } .middle { text-anchor: middle; }
.end { text-anchor: end; } .grid { stroke: var(--rule); } .band { fill: var(--band); }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .main { stroke: var(--main); }
.faint { stroke: var(--faint); } .arc { fill: none; stroke: var(--faint); stroke-width: 1.4; }
.mark { stroke: var(--main); stroke-width: 2; fill: var(--paper); }
.mark.observed { fill: var(--main); } .mark.input { stroke: var(--dim); fill: var(--dim); }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="verdict {state}">{verdict}</p>
{sections}
</body>
</html>
"""
