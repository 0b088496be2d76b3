"""How well a written caption keeps to its sources and to its picture, by models: MiniLM between texts, the scorer of the embeddings between text and picture."""

# T captions, W words, D joint width

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from vlm_core.data.captions import alip
from vlm_core.data.captions import gates as rules
from vlm_core.data.captions.config import Gates
from vlm_core.data.captions.plan import Row, Task
from vlm_core.data.captions.report import Measured
from vlm_core.data.filter.pool import load_embeddings
from vlm_core.errors import SchemaMismatch
from vlm_core.models.scorer import Scorer, load, sentences

WEIGHTS = pa.schema([
    ("uid", pa.string()), ("caption_id", pa.string()), ("weight_sample", pa.float64()), ("weight_raw", pa.float64()), ("weight_caption", pa.float64()),
    ("model_id", pa.string()),
])  # fmt: skip
Vectors = NDArray[np.float32]


class Judge:
    """Verdicts on written captions: scores, accepted or not, and why not. Models are loaded at the first question."""

    def __init__(self, embeddings: Path, gates: Gates) -> None:
        self.embeddings, self.gates = embeddings, gates

    @functools.cached_property
    def scorer(self) -> Scorer:
        return load(self.embeddings)

    @functools.cached_property
    def stored(self) -> tuple[Vectors, dict[str, int]]:
        image_ND, _, uids, _ = load_embeddings(self.embeddings)
        return image_ND, {uid: row for row, uid in enumerate(uids)}

    def images(self, uids: Sequence[str]) -> Vectors:
        """Stored image vectors. Raises SchemaMismatch for a sample that has none."""
        image_ND, row = self.stored
        if missing := [uid for uid in uids if uid not in row]:
            raise SchemaMismatch(
                f"Found no embedding of {missing[0]} ({len(missing)} samples) in {self.embeddings}, expected one for every kept sample; run 'vlm embed' again."
            )
        return np.asarray(image_ND[[row[uid] for uid in uids]], np.float32)

    def __call__(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[Row]:
        if not tasks:
            return []
        raw = [task.caption for task in tasks]
        similarity = (sentences()(raw) * sentences()(texts)).sum(1).tolist()
        fit, raw_fit = self.fits([task.uid for task in tasks], texts, raw)
        added = added_shares(texts, [[task.caption, *task.prompt.sources] for task in tasks], self.gates.same_meaning)
        return [self._verdict(*item) for item in zip(tasks, texts, similarity, fit, raw_fit, added, strict=True)]

    def fits(self, uids: Sequence[str], *texts: Sequence[str]) -> list[list[float]]:
        """Image-text scores of each list of texts with the stored pictures."""
        image_TD = self.images(uids)
        return [(image_TD * self.scorer.encode_texts(lines)).sum(1).tolist() for lines in texts]

    def measure(self, rows: Sequence[Row], raw: Sequence[str]) -> Measured:
        """What the comparison of origins shows of some captions."""
        if not rows:
            return Measured((), (), ())
        texts = [row["text"] for row in rows]
        added = added_shares(texts, [[text] for text in raw], self.gates.same_meaning)
        fit, raw_fit = self.fits([row["uid"] for row in rows], texts, raw)
        return Measured(fit, raw_fit, added)

    def _verdict(self, task: Task, text: str, similarity: float, fit: float, raw_fit: float, added: float) -> Row:
        gates = self.gates
        reason = rules.judge_text(text, task.prompt, gates)
        if not reason and task.origin != "synthetic":
            reason = rules.judge_language(text, (task.lang or "").split("-")[0]) if task.lang else ""
        if not reason and task.origin != "translated":  # MiniLM and the offline scorer read English: nothing is known about the meaning of a translation
            least = gates.min_agreement if task.origin == "synthetic" else gates.min_text_similarity
            reason = rules.judge_scores(similarity, fit, raw_fit, least, gates)
            reason = reason or ("added_facts" if task.origin != "synthetic" and added > gates.max_added else "")
        scores = {"text_score": round(similarity, 6), "image_score": round(fit, 6), "added": round(added, 6)}
        return {**scores, "accepted": not reason, "reason": reason}

    def weights(self, synthetic: Sequence[Row], kept: Sequence[Row]) -> pa.Table | None:
        """ALIP's weights of the accepted synthetic captions, under the means over all of them (where the running means of a frozen model end); None without any."""
        rows = [row for row in synthetic if row["accepted"]]
        if not rows:
            return None
        raw = {row["uid"]: row["caption"] for row in kept}
        image, text, caption = (
            torch.from_numpy(np.ascontiguousarray(part))
            for part in (self.images([row["uid"] for row in rows]), self.scorer.encode_texts([raw[row["uid"]] for row in rows]), self.scorer.encode_texts([row["text"] for row in rows]))
        )  # fmt: skip
        means = alip.renewed(alip.Means(*torch.ones(3)), image, text, caption, momentum=0.0)
        columns = zip(*(part.double().tolist() for part in alip.weights_at(means, image, text, caption)), strict=True)
        table = [
            {"uid": row["uid"], "caption_id": row["caption_id"], "weight_sample": round(s, 6), "weight_raw": round(t, 6), "weight_caption": round(c, 6), "model_id": self.scorer.version}
            for row, (s, t, c) in zip(rows, columns, strict=True)
        ]  # fmt: skip
        return pa.Table.from_pylist(table, WEIGHTS)


def added_shares(texts: Sequence[str], sources: Sequence[Sequence[str]], same: float) -> list[float]:
    """Share of each text's longer words that no word of its sources says: MiniLM cosine of the two words below `same`. 0 for a text without longer words."""
    said = [sorted(rules.longer_words(text)) for text in texts]
    given = [sorted({word for source in group for word in rules.words(source)}) for group in sources]
    index = {word: row for row, word in enumerate(sorted({word for group in (*said, *given) for word in group}))}
    if not index:
        return [0.0] * len(texts)
    vectors_WD = sentences()(list(index)).numpy()
    shares = []
    for words, known in zip(said, given, strict=True):
        if not words or not known:
            shares.append(float(bool(words)))
            continue
        cosines = vectors_WD[[index[word] for word in words]] @ vectors_WD[[index[word] for word in known]].T
        shares.append(float((cosines.max(1) < same).mean()))
    return shares
