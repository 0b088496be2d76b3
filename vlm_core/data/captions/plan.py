"""What is to be written about which sample: pure planning, no model. A plan depends on settings, uids and captions only."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from vlm_core.data.captions.config import Fusion, Rewrite, Style, Synthetic, Translation
from vlm_core.data.captions.examples import OWN, Examples
from vlm_core.data.captions.gates import suspicious, words
from vlm_core.data.captions.recaption import (
    Asked,
    Prompt,
    caption_id,
    make_description,
    make_fusion,
    make_prompt,
    make_translation,
    row_seed,
)

Row = dict[str, Any]
_OF_A_COPY = '{"page":"of a copy"}'


class Task(NamedTuple):
    """One caption that is wanted."""

    uid: str
    caption: str  # the raw one
    origin: Asked
    lang: str  # of what is to be written
    number: int
    style: str
    seed: int
    worded: Callable[["Task"], Prompt]  # one for all tasks of a plan

    @property
    def prompt(self) -> Prompt:
        """Worded anew whenever it is looked at: it takes 8 KB, and a plan has millions of tasks."""
        return self.worded(self)


def _drawn(rows: Sequence[Row], languages: Sequence[str], captions: int, seed: int, salt: str = "") -> list[Row]:
    """Samples in the wanted languages (none: all) whose raw caption carries no attack, drawn by seed and uid, sorted by uid."""
    wanted = [row for row in rows if (not languages or _short(row["lang"]) in languages) and words(row["caption"]) and not suspicious(row["caption"])]
    drawn = sorted(wanted, key=lambda row: hashlib.sha256(f"{seed}:{row['uid']}{salt}".encode()).digest())[: captions or None]
    return sorted(drawn, key=lambda row: row["uid"])


def _short(lang: str | None) -> str:
    return (lang or "").split("-")[0]


def plan_rewrites(part: Rewrite, kept: Sequence[Row], seed: int, shown: Examples = OWN) -> list[Task]:
    """Each caption in `per_caption` styles, one after the other; with a single rewrite the style is drawn. Prompts draw from `shown`."""

    def worded(task: Task) -> Prompt:
        return make_prompt(task.caption, cast(Style, task.style), part.examples, task.seed, shown)

    tasks = []
    for row in _drawn(kept, part.languages, part.captions, seed):
        for number in range(part.per_caption):
            own = row_seed(row["uid"], seed, number)
            style = part.styles[(own if part.per_caption == 1 else number) % len(part.styles)]
            tasks.append(Task(row["uid"], row["caption"], "rewritten", row["lang"], number, style, own, worded))
    return tasks


def plan_translations(part: Translation, kept: Sequence[Row], seed: int) -> list[Task]:
    def worded(task: Task) -> Prompt:
        return make_translation(task.caption, task.lang, task.seed)

    tasks = []
    for row in _drawn(kept, (), part.captions, seed, ":translated"):
        for number, lang in enumerate(part.into):
            if row["lang"] and _short(row["lang"]) != lang:
                own = row_seed(row["uid"], seed, number, "translated")
                tasks.append(Task(row["uid"], row["caption"], "translated", lang, number, lang, own, worded))
    return tasks


def plan_descriptions(part: Synthetic, kept: Sequence[Row], sha256: Mapping[str, str], seed: int) -> list[Task]:
    def worded(task: Task) -> Prompt:
        return make_description(task.uid, sha256.get(task.uid, ""), task.caption, task.seed)

    drawn = _drawn(kept, part.languages, part.captions, seed, ":synthetic")
    return [Task(row["uid"], row["caption"], "synthetic", "en", 0, "", row_seed(row["uid"], seed, 0, "synthetic"), worded) for row in drawn]


def plan_fusions(part: Fusion, synthetic: Sequence[Row], kept: Sequence[Row], seed: int) -> list[Task]:
    """Every accepted synthetic caption with the raw caption of its sample."""
    seen = {row["uid"]: row["text"] for row in synthetic if row["accepted"]}

    def worded(task: Task) -> Prompt:
        return make_fusion(task.caption, seen[task.uid], part.examples, task.seed)

    drawn = _drawn([row for row in kept if row["uid"] in seen], (), part.captions, seed, ":fused")
    return [Task(row["uid"], row["caption"], "fused", row["lang"], 0, "", row_seed(row["uid"], seed, 0, "fused"), worded) for row in drawn]


# ---------------------------------------------------------------- captions that pages wrote


def page_captions(kept: Sequence[Row], pairs: Mapping[str, Row]) -> list[Row]:
    """The raw caption of each sample, what else its page says, and what other pages say about the same picture, each in its own language.

    A further caption that looks like an attack is kept as rejected. `merged` are the captions of exact copies, as the filter merged them.
    """
    rows = []
    for sample in kept:
        own = (pairs.get(sample["uid"]) or {}).get("captions") or []
        raw = {"text": sample["caption"], "origin": own[0]["origin"] if own else "alt", "lang": sample["lang"]}
        copies = [{**caption, "params": _OF_A_COPY} for caption in sample.get("merged") or []]
        rows += [_page_row(sample["uid"], f"p{n}", caption, bool(n)) for n, caption in enumerate(_distinct([raw, *own, *copies]))]
    return rows


def _distinct(captions: Sequence[Row]) -> list[Row]:
    return list({caption["text"]: caption for caption in reversed(captions)}.values())[::-1]


def _page_row(uid: str, name: str, caption: Row, judged: bool) -> Row:
    reason = suspicious(caption["text"]) if judged else ""
    number = f"{name}-{caption_id(uid, caption['origin'], caption['text'])}"
    return {"uid": uid, "caption_id": number, "accepted": not reason, "reason": reason, "generator": "", **caption}
