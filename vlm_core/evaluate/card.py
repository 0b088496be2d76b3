"""The protocol card: everything that makes two numbers comparable, named by its SHA-256 (evaluation.md 0).

No metric is stored without the id of its card, and nothing ranks across ids. Lists that matter only as a whole (class names,
templates, sample keys) are on the card as digests of their canonical JSON, in order.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from vlm_core.config import Config, canonical_json
from vlm_core.errors import Incompatible
from vlm_core.stage import write_json

EVALUATOR = "1"  # raised by hand when the same inputs would give other numbers
OWN_INPUT = ("image_preprocess", "tokenizer", "context_length", "precision")  # how a model reads what it is shown


class ProtocolCard(Config):
    """An immutable description of one measurement."""

    task: str = Field(description="zero_shot, retrieval, matching, linear_probe, few_shot ...")
    dataset: str = Field(description="name of the data")
    dataset_version: str = Field(description="DVC hash of exactly the bytes that are scored")
    split: str = Field(description="name of the split that is scored")
    split_sha256: str = Field(description="digest of the ordered keys of that split")
    n: int = Field(gt=0, description="samples actually scored")
    classes_sha256: str = Field("", description="digest of the ordered class names")
    class_count: int = Field(0, ge=0, description="number of classes")
    templates_sha256: str = Field("", description="digest of the ordered templates")
    template_count: int = Field(0, ge=0, description="number of templates")
    aggregation: str = Field("", description="how several templates become one classifier")
    image_preprocess: dict[str, Any] = Field({}, description="size, interpolation, crop, mean, std, antialias")
    tokenizer: str = Field("", description="name of the tokenizer")
    context_length: int = Field(0, ge=0, description="tokens")
    precision: str = Field("float32", description="of the forward pass")
    metrics: dict[str, Any] = Field({}, description="names and parameters of what is measured")
    background: str = Field("", description="background or ignore policy")
    base_classes: list[str] = Field([], description="seen classes")
    new_classes: list[str] = Field([], description="unseen classes")
    max_detections: int | None = Field(None, description="per image")
    language: str = Field("", description="of captions or class names")
    shots: int | None = Field(None, description="labelled pictures per class that the method saw; absent: not a few-shot number")
    seeds: list[int] = Field([], description="training seeds behind the number")
    flags: list[str] = Field([], description="what else the run saw: new class names, test statistics")
    evaluator: str = Field(EVALUATOR, description="version of the evaluator's rules")

    @property
    def id(self) -> str:
        return self.digest()

    @property
    def data_id(self) -> str:
        """The id without what is the model's own: equal for all that one evaluator showed the same samples for the same task."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude=set(OWN_INPUT))).encode()).hexdigest()

    @classmethod
    def from_config(cls, *parts: Mapping[str, Any]) -> Self:
        """A checked card of several groups of fields (those of the model, of the data, of the metric)."""
        return cls.read({name: value for part in parts for name, value in part.items()})

    def write(self, folder: Path) -> str:
        """Store it as <id>.json and return the id."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.id}.json", self.model_dump(mode="json"))
        return self.id


def digest_of(values: Iterable[Any]) -> str:
    """SHA-256 of an ordered list."""
    return hashlib.sha256(canonical_json(list(values)).encode()).hexdigest()


def require_same(a: ProtocolCard, b: ProtocolCard) -> None:
    """Refuse to rank numbers of two protocols. Raises Incompatible, naming what differs."""
    if a.id != b.id:
        left, right = a.model_dump(mode="json"), b.model_dump(mode="json")
        differ = [f"{name} ({str(left[name])[:60]} and {str(right[name])[:60]})" for name in left if left[name] != right[name]]
        raise Incompatible(
            f"Found results of two protocol cards that differ in {', '.join(differ)}, expected one; evaluate both models under the same protocol."
        )


def read_cards(folder: Path) -> dict[str, ProtocolCard]:
    """id -> card of an evaluation folder."""
    import json

    cards = (ProtocolCard.read(json.loads(path.read_text())) for path in sorted(folder.glob("*.json")))
    return {card.id: card for card in cards}
