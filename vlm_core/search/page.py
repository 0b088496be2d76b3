"""The pages in front of the search service: results, and why a sample is in. Plain forms, no script; Jinja escapes every value."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--ground:#fff;--card:#f6f8fa;--accent:#0969da;--bad:#bc4c00}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa5b1;--line:#30363d;--ground:#0d1117;--card:#161b22;--accent:#58a6ff;--bad:#f0883e}}
*{box-sizing:border-box}body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:76rem;padding:1rem;color:var(--ink);background:var(--ground)}a{color:var(--accent)}
form{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin:.5rem 0}input,select,button{font:inherit;padding:.4rem .5rem;border:1px solid var(--line);border-radius:.4rem;background:var(--card);color:inherit;max-width:100%}
input[name=q]{flex:1 1 16rem}button{cursor:pointer}.soft{color:var(--soft);font-size:.85rem}.bad{color:var(--bad)}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1rem;margin-top:1.2rem}
figure{margin:0;border:1px solid var(--line);border-radius:.5rem;overflow:hidden;background:var(--card)}figure img{width:100%;aspect-ratio:1;object-fit:contain;background:#fff;display:block}
figcaption{font-size:.8rem;padding:.4rem .5rem;overflow-wrap:anywhere}figcaption code{font-size:.7rem;color:var(--soft);display:block}
h2{font-size:1.1rem;margin:1.5rem 0 .3rem}.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}th,td{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere;max-width:30rem}
"""

ICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><g fill="none" stroke="#0969da" stroke-width="2"><circle cx="6.5" cy="6.5" r="4.5"/><path d="M10 10l5 5"/></g></svg>'
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="/icon.svg"><title>{{ title }}</title><style>{{ style|safe }}</style></head><body>
"""

SEARCH = """
{%- macro choice(name, word, counts) -%}<select name="{{ name }}" aria-label="{{ word }}"><option value="">{{ word }}: any</option>{% for value, n in counts.items() %}<option value="{{ value }}"{% if asked.get(name) == value %} selected{% endif %}>{{ value }}{% if n %} ({{ "{:,}".format(n) }}){% endif %}</option>{% endfor %}</select>{%- endmacro -%}
{%- macro filters() -%}{{ choice("lang", "language", langs) }} {{ choice("domain", "domain", domains) }} {{ choice("split", "split", splits) }}{% if snapshots %} {{ choice("snapshot", "snapshot", snapshots) }}{% endif %}{%- endmacro -%}
<form action="/" method="get" role="search"><input name="q" value="{{ asked.get("q", "") }}" placeholder="what should be in the picture?" aria-label="search" autofocus>{{ filters() }}<button>Search</button></form>
<form action="/" method="post" enctype="multipart/form-data"><label class="soft">or with a picture: <input type="file" name="image" accept="image/*" required></label>{% for name in ("lang", "domain", "split", "snapshot") if asked.get(name) %}<input type="hidden" name="{{ name }}" value="{{ asked[name] }}">{% endfor %}<button>Find alike</button></form>
<p class="soft">{{ "{:,}".format(samples) }} samples that passed the filter; scores by {{ scorer }}; try <a href="/?{{ example }}">red fruit</a></p>
{% if said %}<p class="bad" role="alert">{{ said }}</p>{% endif %}
{% if found is not none %}<p role="status">{{ found|length }} results{% if asked.get("uid") %} like <code>{{ asked["uid"] }}</code>{% endif %}</p><main>
{% for row in found %}<figure id="{{ row.uid }}">{% if row.link %}<a href="{{ row.link }}" rel="noreferrer noopener"><img src="{{ row.image_path }}" alt="{{ row.caption }}" loading="lazy"></a>{% else %}<img src="{{ row.image_path }}" alt="{{ row.caption }}" loading="lazy">{% endif %}
<figcaption><b>{{ "%.2f"|format(row.similarity) }}</b> <span lang="{{ row.lang or '' }}" dir="auto">{{ row.caption }}</span> <span class="soft">{{ row.lang or "" }} {{ row.split }}</span><br><a href="{{ row.why_path }}">why</a> · <a href="/?{{ row.more }}">more like this</a><code>{{ row.uid }}</code></figcaption></figure>
{% endfor %}</main>{% endif %}
</body></html>
"""

WHY = """
<p><a href="/">back to search</a></p><h1>Why is it in?</h1>{% if uid %}<p><code>{{ uid }}</code></p>{% endif %}
{% if said %}<p class="bad" role="alert">{{ said }}</p>{% endif %}
{% if uid and trail %}<p><img src="/thumbnail/{{ uid }}.jpg" alt="the picture" style="max-width:16rem;background:#fff"></p>{% endif %}
{% for title, rows in trail.items() %}<h2>{{ title }}</h2>{% if rows %}<div class="scroll"><table>
{% if rows|length == 1 %}{% for name, value in rows[0].items() if value is not none %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}
{% else %}<tr>{% for name in rows[0] %}<th>{{ name }}</th>{% endfor %}</tr>{% for row in rows %}<tr>{% for value in row.values() %}<td>{{ "" if value is none else value }}</td>{% endfor %}</tr>{% endfor %}{% endif %}
</table></div>{% else %}<p class="soft">none</p>{% endif %}{% endfor %}
</body></html>
"""


def search(asked: Mapping[str, str], found: Sequence[Mapping[str, Any]] | None, said: str, shelf: Mapping[str, Any]) -> str:
    """The search page. `found` is None when nothing was asked."""
    filters = {name: asked[name] for name in ("lang", "domain", "split", "snapshot") if asked.get(name)}
    rows = None if found is None else [{**row, "link": _link(row["url"]), "more": urlencode({"uid": row["uid"], **filters})} for row in found]
    return _template(SEARCH).render(
        title="Search the filtered set", style=STYLE, asked=asked, found=rows, said=said, example=urlencode({"q": "red fruit"}), **shelf
    )


def why(uid: str, trail: Mapping[str, Sequence[Mapping[str, Any]]], said: str = "") -> str:
    """What the catalog tells of a sample, table by table."""
    return _template(WHY).render(title="Why is it in?", style=STYLE, uid=uid, trail=trail, said=said)


@functools.cache
def _template(body: str) -> Any:
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined).from_string(HEAD + body.lstrip())


def _link(url: str) -> str:
    """The address, if a browser may follow it; '' for javascript:, data: and the like."""
    try:
        return url if urlsplit(url).scheme in {"http", "https"} else ""
    except ValueError:
        return ""
