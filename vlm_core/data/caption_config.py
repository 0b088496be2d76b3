"""Settings of recaption. Torch-free."""

from typing import Annotated, Literal

from pydantic import Field

from vlm_core.config import Config


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


WriterConfig = Annotated[OfflineWriter | OpenAiWriter, Field(discriminator="kind")]


class Gates(Config):
    """What a rewrite must pass before training sees it."""

    min_chars: int = Field(5, ge=1, description="fewest characters")
    max_words: int = Field(40, ge=1, description="most words")
    max_example_overlap: float = Field(0.6, gt=0, le=1, description="token Jaccard with an example of the prompt at most (LaCLIP: 0.9)")
    min_text_similarity: float = Field(0.5, ge=-1, le=1, description="MiniLM cosine of rewrite and raw caption at least")
    max_image_drop: float = Field(0.05, ge=0, le=2, description="how far the image-text score may fall below that of the raw caption; belongs to a scorer")


class Recaption(Config):
    """Rewording of raw captions by a language model (LaCLIP, arXiv 2305.20088); every answer passes the gates or is kept as rejected."""

    writer: WriterConfig = Field(default=OfflineWriter(), description="who rewrites")
    budget: int = Field(120, ge=0, description="captions that are rewritten, drawn by seed and uid; 0: all")
    rewrites: int = Field(1, ge=1, le=8, description="rewrites per caption, each in the next of the styles")
    styles: list[Literal["plain", "vivid", "short", "human"]] = Field(default=["plain", "vivid", "short", "human"], description="example sets shown to the model")
    languages: list[str] = Field(default=["en"], description="languages whose captions are rewritten")
    examples: int = Field(3, ge=1, le=8, description="example pairs in a prompt, drawn without replacement")
    temperature: float = Field(0.9, ge=0, le=2, description="of sampling; 0 takes the likeliest word")
    top_p: float = Field(0.95, gt=0, le=1, description="probability mass that is sampled from")
    max_tokens: int = Field(32, ge=4, le=512, description="length of an answer at most, in tokens (LaCLIP: 77)")
    seed: int = Field(0, ge=0, description="with the uid, seed of the draw, of the examples and of sampling")
    gates: Gates = Field(default=Gates(), description="what a rewrite must pass")
