"""Settings of recaption. Torch-free."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vlm_core.config import Config
from vlm_core.errors import Incompatible

Style = Literal["chatgpt", "bard", "mscoco", "human"]


class OfflineWriter(Config):
    """SmolLM2-135M from its package: a base-model prompt, no server."""

    kind: Literal["offline"] = "offline"
    batch: int = Field(16, ge=1, le=256, description="captions at once")


class OpenAiWriter(Config):
    """A chat model behind any server that speaks OpenAI's protocol (vLLM, llama.cpp, ...)."""

    kind: Literal["openai"] = "openai"
    base_url: str = Field("http://127.0.0.1:8000/v1", pattern=r"^https?://", description="address of the server")
    model: str = Field("", description="name of the model at that server")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; unset: no key is sent")
    parallel: int = Field(8, ge=1, le=256, description="requests at once")
    timeout_s: float = Field(60.0, gt=0, description="for one answer, in seconds")
    retries: int = Field(3, ge=0, le=10, description="further attempts after a failure that may pass")
    refused_share: float = Field(
        0.05, ge=0, le=1, description="share of the requests that the server may refuse as such (HTTP 400, 413, 422: too long, a picture it cannot read), each that caption's own rejection; more, beyond the first 8, stop the run"
    )
    price_in: float = Field(0.0, ge=0, description="price of 1,000 tokens sent, in your currency")
    price_out: float = Field(0.0, ge=0, description="price of 1,000 tokens answered, in your currency")
    picture_tokens: int = Field(1_500, ge=0, description="tokens that a picture costs at most, for the limits; the server's own count is what is booked")


WriterConfig = Annotated[OfflineWriter | OpenAiWriter, Field(discriminator="kind")]


class NamesCaptioner(Config):
    """The likeliest ImageNet names of the packaged EfficientNet-Lite0, worded by a template: no server."""

    kind: Literal["names"] = "names"
    min_probability: float = Field(0.3, ge=0, le=1, description="of the likeliest name at least; below it nothing is said")
    second_name: float = Field(0.25, ge=0, le=1, description="probability from which a second name is said too")
    size_px: int = Field(192, ge=64, le=512, multiple_of=32, description="side of the pictures that the tower sees, in pixels")


CaptionerConfig = Annotated[NamesCaptioner | OpenAiWriter, Field(discriminator="kind")]


class Gates(Config):
    """What a written caption must pass before training sees it."""

    min_chars: int = Field(5, ge=1, description="fewest characters")
    max_words: int = Field(40, ge=1, description="most words")
    max_example_overlap: float = Field(0.6, gt=0, le=1, description="token Jaccard with an example of the prompt at most (LaCLIP: 0.9)")
    min_text_similarity: float = Field(0.5, ge=-1, le=1, description="MiniLM cosine of a rewritten or fused caption and the raw one at least")
    min_agreement: float = Field(0.35, ge=-1, le=1, description="MiniLM cosine of a synthetic caption and the raw one at least")
    max_image_drop: float = Field(0.05, ge=0, le=2, description="how far the image-text score may fall below that of the raw caption; belongs to a scorer")
    same_meaning: float = Field(0.5, ge=-1, le=1, description="MiniLM cosine from which a word counts as said by a word of the sources")
    max_added: float = Field(1.0, ge=0, le=1, description="share of a caption's longer words that no word of its sources says, at most; 1: not judged")


class Rewrite(Config):
    """Raw captions in other words (LaCLIP, arXiv 2305.20088)."""

    captions: int = Field(120, ge=0, description="captions that are rewritten, drawn by seed and uid; 0: all")
    per_caption: int = Field(1, ge=1, le=8, description="rewrites per caption, each in the next of the styles")
    styles: list[Style] = Field(default=["chatgpt", "bard", "mscoco", "human"], min_length=1, description="example sets shown to the model, by their source")
    languages: list[str] = Field(default=["en"], description="languages whose captions are rewritten")
    examples: int = Field(3, ge=1, le=8, description="example pairs in a prompt, drawn without replacement")
    examples_file: str = Field("", description="JSON of your own example pairs by style, in place of ours (docs/captions.md); empty: ours")


class Synthetic(Config):
    """Captions written from the picture (ALIP, arXiv 2308.08428), and how far picture, raw and synthetic caption agree, as weights."""

    captioner: CaptionerConfig = Field(default=NamesCaptioner(), description="who looks at the pictures")
    captions: int = Field(0, ge=0, description="pictures that get one, drawn by seed and uid; 0: all")
    languages: list[str] = Field(default=["en"], description="languages of the raw captions whose pictures get one")


class Fusion(Config):
    """Raw and synthetic caption made into one (VeCLIP, arXiv 2310.07699; CapsFusion, arXiv 2310.20550); needs synthetic."""

    captions: int = Field(0, ge=0, description="pairs that are fused, drawn by seed and uid; 0: all that have an accepted synthetic caption")
    examples: int = Field(3, ge=1, le=8, description="examples in a prompt, drawn without replacement")


class Translation(Config):
    """Raw captions in other languages; needs a writer that knows them."""

    into: list[str] = Field(default=["en"], min_length=1, description="target languages")
    captions: int = Field(0, ge=0, description="captions that are translated, drawn by seed and uid; 0: all that are in another language")


class Limits(Config):
    """What one result may cost at most. What fits is written, what does not is counted as unwritten."""

    answers: int = Field(0, ge=0, description="captions that are asked for; 0: no limit")
    tokens: int = Field(0, ge=0, description="tokens sent and answered; 0: no limit")
    money: float = Field(0.0, ge=0, description="by the prices of the writer and the captioner; 0: no limit")


class Recaption(Config):
    """Further captions of the kept samples: rewritten, translated, synthetic, fused; what a model wrote passes the gates or is kept as rejected."""

    writer: WriterConfig = Field(default=OfflineWriter(), description="who rewrites, translates and fuses")
    rewrite: Rewrite | None = Field(default=Rewrite(), description="raw captions in other words")
    translation: Translation | None = Field(default=None, description="raw captions in other languages")
    synthetic: Synthetic | None = Field(default=None, description="captions written from the picture")
    fusion: Fusion | None = Field(default=None, description="raw and synthetic caption made into one")
    limits: Limits = Field(default=Limits(), description="what it may cost")
    temperature: float = Field(0.9, ge=0, le=2, description="of sampling; 0 takes the likeliest word")
    top_p: float = Field(0.95, gt=0, le=1, description="probability mass that is sampled from")
    max_tokens: int = Field(32, ge=4, le=512, description="length of an answer at most, in tokens (LaCLIP: 77)")
    seed: int = Field(0, ge=0, description="with the uid, seed of the draw, of the examples and of sampling")
    gates: Gates = Field(default=Gates(), description="what a written caption must pass")
    trace_share: float = Field(0.01, ge=0, le=1, description="share of the calls whose texts MLflow keeps as traces, drawn by uid; personal data is masked")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.fusion is not None and self.synthetic is None:
            raise Incompatible("Found fusion without synthetic, expected synthetic captions to fuse with; set synthetic={}, or fusion=null.")
        if self.translation is not None and isinstance(self.writer, OfflineWriter):
            raise Incompatible("Found translation with the writer 'offline', which knows English only, expected a server; set writer={kind: openai, ..}.")
        paid = [part for part in (self.writer, self.synthetic and self.synthetic.captioner) if isinstance(part, OpenAiWriter)]
        if self.limits.money and not any(part.price_in or part.price_out for part in paid):
            raise Incompatible(
                f"Found limits.money {self.limits.money} and no price, expected what 1,000 tokens cost; set writer.price_in and writer.price_out, or limits.money=0."
            )
        return self
