"""The dataset page as HTML: one template, everything escaped by default, no script, no address loaded.

A caption is what a stranger wrote: Jinja escapes every value, addresses are shown as text, and the page forbids scripts by its own policy.
"""

from collections.abc import Mapping
from typing import Any

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--ground:#fff;--card:#f6f8fa;--kept:#1a7f37;--dropped:#bc4c00;--accent:#0969da}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa5b1;--line:#30363d;--ground:#0d1117;--card:#161b22;--kept:#3fb950;--dropped:#f0883e;--accent:#58a6ff}}
*{box-sizing:border-box}body{margin:0 auto;max-width:72rem;padding:1rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground)}
h1{font-size:1.6rem;margin:.5rem 0 0}h2{font-size:1.2rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--line)}h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.3rem 0;max-width:60rem}a{color:var(--accent)}code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}.soft{color:var(--soft);font-size:.85rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.8rem 0;font-size:.9rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}.tiles b{display:block;font-size:1.4rem}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.2rem,1fr));gap:.7rem;margin:.6rem 0}
figure{margin:0;font-size:.78rem;line-height:1.3;overflow-wrap:anywhere}figure .frame{aspect-ratio:1}
.frame{display:flex;align-items:center;justify-content:center;background:#fff;border:1px solid var(--line);border-radius:.4rem;overflow:hidden;color:#59636e;font-size:.75rem;text-align:center}
.frame img{max-width:100%;max-height:100%}.clip{display:-webkit-box;-webkit-line-clamp:4;-webkit-box-orient:vertical;overflow:hidden}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;min-width:min(100%,30rem)}th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.bar{width:40%;min-width:7rem}.bar i{display:block;height:.8rem;border-radius:.2rem;background:var(--dropped);min-width:1px}.bar i.kept{background:var(--kept)}.bar i.plain{background:var(--accent)}
svg{width:100%;height:auto;max-width:52rem;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}.k{fill:var(--kept)}.d{fill:var(--dropped)}.cut{stroke:var(--ink);stroke-width:1;stroke-dasharray:4 3}.axis{stroke:var(--line)}
.key::before{content:"";display:inline-block;width:.8em;height:.8em;border-radius:.2em;margin:0 .35em 0 .8em;background:var(--kept)}.key.d::before{background:var(--dropped)}
.pair{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:.8rem}.pair>div{border:1px solid var(--line);border-radius:.5rem;padding:.6rem;background:var(--card)}
.two{display:grid;grid-template-columns:1fr 1fr;gap:.6rem}.beside{display:grid;grid-template-columns:6rem 1fr;gap:.7rem}.beside .frame{height:6rem}
dl{margin:0;font-size:.85rem}dt{color:var(--soft)}dd{margin:0 0 .35rem;overflow-wrap:anywhere}.no{text-decoration:line-through;text-decoration-color:var(--dropped)}
details{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .8rem;margin:.5rem 0}summary{cursor:pointer}pre{overflow-x:auto;font-size:.78rem;white-space:pre-wrap;overflow-wrap:anywhere}
"""

TEMPLATE = """
{%- macro frame(uid, missing="") -%}
<div class="frame">{% if not missing and pictures.get(uid) %}<img alt="" loading="lazy" src="{{ pictures[uid] }}">{% else %}{{ missing or "left out" }}{% endif %}</div>
{%- endmacro -%}
{%- macro sheet(rows) -%}
<div class="sheet">{% for row in rows %}<figure title="{{ row.uid }}">{{ frame(row.uid, row.get("missing", "")) }}
<figcaption><span class="clip" lang="{{ row.lang or '' }}" dir="auto">{{ row.caption }}</span>{% if row.get("score") is number %}<span class="soft">{{ "%.3f"|format(row.score) }}</span>{% endif %}
{%- if row.get("note") %}<span class="soft"> {{ row.note }}</span>{% endif %}</figcaption></figure>{% endfor %}</div>
{%- endmacro -%}
{%- macro bars(rows, kind="plain") -%}
{% set most = rows|map(attribute="n")|max %}<div class="scroll"><table>{% for row in rows %}<tr><td>{{ row.name }}</td><td class="n">{{ "{:,}".format(row.n) }}</td>
<td class="bar"><i class="{{ kind }}" style="width:{{ "%.1f"|format(100 * row.n / most) }}%"></i></td></tr>{% endfor %}</table></div>
{%- endmacro -%}
{%- macro shares(rows, word) -%}
<div class="scroll"><table><tr><th>{{ word }}</th><th class="n">candidates</th><th class="n">fetched</th><th class="n">kept</th><th>share kept</th></tr>
{% for row in rows %}<tr><td>{{ row.name }}</td><td class="n">{{ "{:,}".format(row.candidates) }}</td><td class="n">{{ "{:,}".format(row.fetched) }}</td><td class="n">{{ "{:,}".format(row.kept) }}</td>
<td class="bar"><i class="kept" style="width:{{ "%.1f"|format(100 * row.kept / row.candidates) }}%" title="{{ "%.1f"|format(100 * row.kept / row.candidates) }} %"></i></td></tr>
{% endfor %}</table></div>
{%- endmacro -%}
{%- macro histogram(found) -%}
{% set high = found.tallest %}<svg viewBox="0 0 800 220" role="img" aria-label="Histogram of the scores of the rule {{ found.rule }}">
{% for bin in found.bins %}{% set x = 20 + loop.index0 * 19 %}{% set k = 170 * bin.kept / high %}{% set d = 170 * bin.dropped / high %}<g><title>{{ "%.4g"|format(bin.low) }} to {{ "%.4g"|format(bin.high) }}: {{ "{:,}".format(bin.kept) }} kept, {{ "{:,}".format(bin.dropped) }} dropped</title>
<rect class="k" x="{{ x }}" width="17" y="{{ "%.1f"|format(190 - k) }}" height="{{ "%.1f"|format(k) }}"/><rect class="d" x="{{ x }}" width="17" y="{{ "%.1f"|format(190 - k - d) }}" height="{{ "%.1f"|format(d) }}"/></g>
{% endfor %}<line class="axis" x1="20" x2="780" y1="190" y2="190"/><text x="20" y="206">{{ "%.4g"|format(found.low) }}</text><text x="780" y="206" text-anchor="end">{{ "%.4g"|format(found.high) }}</text>
{% for cut in found.cuts %}{% set x = 20 + 760 * (cut.at - found.low) / (found.high - found.low) %}<line class="cut" x1="{{ "%.1f"|format(x) }}" x2="{{ "%.1f"|format(x) }}" y1="14" y2="190"/><text x="{{ "%.1f"|format(x + 4) }}" y="{{ 22 + 13 * loop.index0 }}">{{ cut.label }} {{ "%.4g"|format(cut.at) }}</text>{% endfor %}</svg>
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"><meta name="referrer" content="no-referrer">
<title>{{ title }}</title><style>{{ style|safe }}</style></head><body>
<h1>{{ title }}</h1><p>Snapshot <code>{{ snapshot }}</code></p>
<nav><a href="#kept">Kept</a><a href="#dropped">Dropped, by reason</a><a href="#scores">Scores</a><a href="#languages">Languages</a><a href="#domains">Domains</a><a href="#licences">Licences</a><a href="#duplicates">Duplicates</a><a href="#captions">Captions</a><a href="#pictures">Pictures</a><a href="#made">How it was made</a></nav>
<div class="tiles">{% for row in funnel %}<div><b>{{ "{:,}".format(row.n) }}</b>{{ row.name }}</div>{% endfor %}</div>

<h2 id="kept">Kept</h2><p class="soft">Drawn by a hash of the uid, so the choice is not ours. Under each picture its caption and score.</p>{{ sheet(examples["kept"]) }}

<h2 id="dropped">Dropped, by reason</h2>
{% if reasons %}{{ bars(reasons, "dropped") }}
<p class="soft">Captions with personal data, and pictures that are unsafe or whose owner objects, are counted but not shown.</p>
{% for row in reasons %}<details{% if loop.index <= 4 %} open{% endif %}><summary><b>{{ row.name }}</b> {{ "{:,}".format(row.n) }} <span class="soft">by the rule {{ row.rule }}</span></summary>{{ sheet(examples["dropped " ~ row.name]) }}</details>{% endfor %}
{% else %}<p>Nothing was dropped.</p>{% endif %}

<h2 id="scores">Scores</h2>
{% for found in histograms %}<h3>{{ found.rule }}</h3><p class="soft">{{ "{:,}".format(found.n) }} samples<span class="key">kept</span><span class="key d">dropped</span>{% if found.cuts %}, dashed: the cut{% endif %}</p>{{ histogram(found) }}
{% else %}<p>No rule measured a score.</p>{% endfor %}
{% if examples["best"] %}<h3>Best scores</h3>{{ sheet(examples["best"]) }}<h3>Worst scores that were kept</h3>{{ sheet(examples["worst"]) }}{% endif %}

<h2 id="languages">Languages</h2>{{ shares(languages, "language") }}
<h2 id="domains">Domains</h2>{{ shares(domains, "domain") }}
<h2 id="licences">Licences</h2>{{ shares(licences, "licence") }}

<h2 id="duplicates">Duplicates, side by side</h2>
{% if duplicates %}<p class="soft">Left the sample that stayed, right the one that went for it.</p><div class="pair">{% for row in duplicates %}<div><b>{{ row.reason }}</b><div class="two">
<figure title="{{ row.stays }}">{{ frame(row.stays) }}<figcaption><span class="clip" dir="auto">{{ row.caption }}</span><span class="soft">{{ row.host }}</span></figcaption></figure>
<figure title="{{ row.goes }}">{{ frame(row.goes) }}<figcaption><span class="clip" dir="auto">{{ row.other }}</span><span class="soft">{{ row.other_host }}</span></figcaption></figure></div></div>{% endfor %}</div>
{% else %}<p>No duplicates were found, or no rule looked for them.</p>{% endif %}

<h2 id="captions">Captions, by origin</h2>
<div class="scroll"><table><tr><th>origin</th><th class="n">captions</th><th class="n">accepted</th><th class="n">samples</th><th class="n">words</th><th class="n">characters</th><th class="n">distinct texts</th><th class="n">image-text score</th><th>written by</th></tr>
{% for row in origins %}<tr><td>{{ row.origin }}</td>{% for name in ("captions", "accepted", "samples") %}<td class="n">{{ "{:,}".format(row[name]) }}</td>{% endfor %}<td class="n">{{ row.words }}</td><td class="n">{{ row.characters }}</td><td class="n">{{ "{:,}".format(row.distinct_texts) }}</td><td class="n">{{ row.image_score if row.image_score is not none else "" }}</td><td>{{ row.generators or "the page" }}</td></tr>{% endfor %}</table></div>
{% if beside %}<h3>Side by side</h3><p class="soft">A caption that was not accepted is struck out, with the reason.</p><div class="pair">{% for sample in beside %}<div class="beside">{{ frame(sample.uid) }}<dl>{% for row in sample.captions %}<dt>{{ row.origin }}{% if row.lang %}, {{ row.lang }}{% endif %}{% if row.image_score is number %}, {{ "%.2f"|format(row.image_score) }}{% endif %}{% if not row.accepted %}: {{ row.reason }}{% endif %}</dt><dd dir="auto"{% if not row.accepted %} class="no"{% endif %}>{{ row.text }}</dd>{% endfor %}</dl></div>{% endfor %}</div>{% endif %}

<h2 id="pictures">Pictures</h2><h3>How fetching ended</h3>{{ bars(statuses) }}{% if sizes %}<h3>Longest side as stored</h3>{{ bars(sizes) }}{% endif %}

<h2 id="made">How it was made</h2>
<p>Every folder has the hash of its bytes for a name. <code>vlm lineage why UID</code> tells the whole story of one sample; a picture's uid shows when the pointer rests on it.</p>
<div class="scroll"><table><tr><th>input</th><th>made by</th><th>version</th></tr>{% for row in made %}<tr><td>{{ row.name }}</td><td>{{ row.by or "not recorded" }}</td><td><code>{{ row.version }}</code></td></tr>{% endfor %}</table></div>
<p class="soft">Scores by {{ scorer }}.{% if left_out %} {{ "{:,}".format(left_out) }} pictures were left out to keep the page small.{% endif %}</p>
{% for row in made if row.settings %}<details><summary>Settings of {{ row.by }}</summary><pre>{{ row.settings }}</pre></details>{% endfor %}
</body></html>
"""


def render(found: Mapping[str, Any]) -> str:
    """The page; a name that the template asks for and `found` lacks is an error."""
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True).from_string(TEMPLATE.lstrip())
    return template.render(**found, style=STYLE)
