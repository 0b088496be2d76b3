"""Named settings of the data verbs. A function's return type says which verb it belongs to; the first is the verb's default."""

from vlm_core.data.captions.config import Gates, OpenAiWriter, Recaption, Rewrite
from vlm_core.data.config import CatalogCompact, Embed, EvalSets, ExportData, Fingerprint, ModelScorer, OfflineScorer, OpenClipScorer, Shard, TakedownProof
from vlm_core.data.crawl.config import CommonCrawl, Crawl, Download, Extract, Fetch, Folder, Network, OptOuts, Site, Table, Warc, WebDataset
from vlm_core.data.filter.config import (
    Balance,
    ExactDuplicates,
    Filter,
    ImageRules,
    LanguageRule,
    NearDuplicates,
    Personal,
    Quality,
    Rights,
    Safety,
    SemanticDuplicates,
    Targets,
    TextRules,
    Titles,
    Vocabulary,
)
from vlm_core.data.filter.cut_config import Cut, MaskedClipScore, NegClipLoss, NormSim
from vlm_core.data.report.config import DatasetPage

# ---- crawl, extract, download

_DEMO = Network(rate_per_s=2_000.0, burst=100, connections_per_host=16, optouts=OptOuts(tdmrep=False, ai_txt=False))  # loopback bears it


def demo_crawl() -> Crawl:
    """The embedded web on loopback."""
    return Crawl(network=_DEMO, delay_s=0.0)


def site_crawl() -> Crawl:
    """Sites on the web: set source.start_urls and network.contact."""
    return Crawl(source=Site())


def warc_crawl() -> Crawl:
    """A web archive: set source.path."""
    return Crawl(source=Warc())


def common_crawl() -> Crawl:
    """Archives of Common Crawl from one of its lists: set source.paths and source.max_files."""
    return Crawl(source=CommonCrawl())


def table_crawl() -> Crawl:
    """Lists of addresses and captions, or WAT files: set source.path."""
    return Crawl(source=Table())


def folder_crawl() -> Crawl:
    """A folder of pictures with texts, on this machine: set source.path."""
    return Crawl(source=Folder())


def webdataset_crawl() -> Crawl:
    """Tars of pictures with texts, on this machine: set source.path."""
    return Crawl(source=WebDataset())


def demo_extract() -> Extract:
    return Extract()


def demo_download() -> Download:
    """The pictures of the embedded web."""
    return Download(demo="infra/demo/corpus.tar", network=_DEMO, fetch=Fetch(retries=1, retry_wait_s=0.2, deadline_s=20.0), shard_size=500)


def web_download() -> Download:
    """Pictures on the web: set network.contact."""
    return Download(processes=4, threads=64, shard_size=10_000)


# ---- embed, recaption


def offline_embed() -> Embed:
    """Packaged towers; heads fitted on the sites of the embedded web, without the mirror that only copies."""
    return Embed(scorer=OfflineScorer(trusted=["emoji.demo.test", "clipart.demo.test", "photos.demo.test"]))


def open_clip_embed() -> Embed:
    """Any open_clip model: set scorer.model and scorer.checkpoint."""
    return Embed(scorer=OpenClipScorer())


def tmars_embed() -> Embed:
    """The packaged towers, on every picture also without its lettering."""
    return offline_embed().merged({"text_mask": {}})


def dfn_embed() -> Embed:
    """A data filtering network of ours: --in scorer=MODEL, or set scorer.model to a folder or a registered one. The asset embeddings takes data/network."""
    return Embed(scorer=ModelScorer())


def offline_recaption() -> Recaption:
    """SmolLM2 within a budget, greedy: so small a model invents when it samples. About half of its rewrites pass."""
    return Recaption(temperature=0.0, max_tokens=20, gates=Gates(max_image_drop=0.08))


def offline_alip() -> Recaption:
    """All origins without a server: rewrites, names that the image tower sees, and both fused."""
    return offline_recaption().but("synthetic={}", "fusion={captions: 60}", "rewrite.captions=60")


def openai_recaption() -> Recaption:
    """LaCLIP's four rewrites of every caption by your own server: set writer.base_url and writer.model."""
    return Recaption(writer=OpenAiWriter(), rewrite=Rewrite(captions=0, per_caption=4), max_tokens=77)


def openai_captions() -> Recaption:
    """Rewrites, descriptions by a vision model and both fused: set writer.model, synthetic.captioner.model, their base_url and their prices."""
    return openai_recaption().merged({"synthetic": {"captioner": OpenAiWriter().model_dump()}, "fusion": {}})


# ---- filter


def demo_filter() -> Filter:
    """The embedded web: short captions in four languages, small pictures, much that is copied."""
    return Filter(
        rights=Rights(refused_licences=[r"\bA?GPL\b", r"NC\b", "noncommercial"]),
        text=TextRules(),
        titles=Titles(max_pictures=30),
        personal=Personal(),
        image=ImageRules(min_side=32, max_aspect=3.0),
        language=LanguageRule(wanted=["en", "ko", "ja", "fr"]),
        exact_duplicates=ExactDuplicates(),
        near_duplicates=NearDuplicates(),
        safety=Safety(),
        cuts={"clip": Cut(fraction=0.9)},
        truth="infra/demo/truth.jsonl",
    )


def web_filter() -> Filter:
    """A crawled web in any language: every rule that needs no file of yours, 30 % by the scorer as DataComp does, and at most 10,000 samples of a domain."""
    changes = ("titles.max_pictures=20", "image.min_side=200", "language.wanted=[]", "cuts.clip.fraction=0.3", "truth=''")
    return demo_filter().but(*changes, "quality={}", "semantic_duplicates={}", "faces={}", "domain_cap={}")


def decontaminated_filter() -> Filter:
    """The embedded web without what test sets hold: 'vlm fingerprint' writes data/fingerprints first (set decontaminate.prints for others)."""
    return demo_filter().merged({"decontaminate": {"prints": "data/fingerprints/prints.parquet"}})


_FASTTEXT = LanguageRule(who="fasttext", wanted=["en"])
_BEST = Cut(fraction=0.3, within="all", over="pool", mode="reference")  # DataComp ranks the whole pool
TARGETS = "data/targets/image_emb.npy"


def datacomp_filter() -> Filter:
    """DataComp's basic rules and its best 30 % of the pool by CLIP score, intersected; fastText names the language, and the dearest rule comes last."""
    return Filter(
        text=TextRules(min_words=3, min_chars=6, max_words=None, by_script=False),
        image=ImageRules(min_side=200, max_aspect=3.0),
        language=_FASTTEXT,
        cuts={"clip": _BEST},
        order=["cuts.clip", "image", "text", "language"],
    )


def datacomp_image_filter() -> Filter:
    """DataComp-1B: clusters with a training image of the target task (set targets.targets), intersected with the best 30 % of the pool by CLIP score."""
    return Filter(
        text=TextRules(min_words=2, min_chars=6, max_words=None, by_script=False),
        language=_FASTTEXT,
        targets=Targets(targets=TARGETS, clusters=100_000),
        cuts={"clip": _BEST},
    )


def negcliploss_filter() -> Filter:
    """negCLIPLoss and NormSim (arXiv 2405.19547): the best 30 % by the first, of these the 20 % of all nearest to target images (set cuts.norm_sim.score.targets)."""
    loss, near = NegClipLoss(), NormSim(targets=TARGETS)
    return Filter(cuts={"neg_clip_loss": Cut(score=loss, fraction=0.3, within="all"), "norm_sim": Cut(score=near, fraction=2 / 3, within="all")})


def semdedup_filter() -> Filter:
    """SemDeDup as for LAION-440M (arXiv 2303.09540): 50,000 clusters, a cosine above 0.93 inside a cluster is a duplicate; that left half of it."""
    return Filter(semantic_duplicates=SemanticDuplicates(eps=0.07, clusters=50_000, iterations=100, neighbours=1, seed=1234))


def metaclip_filter() -> Filter:
    """MetaCLIP (arXiv 2309.16671): copies and unsafe pictures go, then captions are balanced over your entries (balance.entries), in each language for itself."""
    return Filter(language=LanguageRule(), exact_duplicates=ExactDuplicates(), safety=Safety(), balance=Balance(entries="data/entries.txt", per_language=True))


def no_filter() -> Filter:
    """Everything that has a picture: the crawl as it is, to compare filters with."""
    return Filter()


def cc3m_filter() -> Filter:
    """Conceptual Captions' image rules and repetition (ACL 2018), without its part-of-speech rules, which need a tagger; CC12M relaxes them."""
    return cc12m_filter().merged({"image": {"max_aspect": 2.0}})


def cc12m_filter() -> Filter:
    """Conceptual 12M (arXiv 2102.08981): JPEG over 400 px, aspect 2.5, 3 to 256 words, a fifth of them repeated, captions on ten pictures. Set blocked_words.file for its word list."""
    return Filter(
        text=TextRules(min_words=3, max_words=256, by_script=False),
        quality=Quality(max_repeated_words=0.2, max_repeated_ngrams=1.0),
        titles=Titles(boilerplate=[], max_pictures=10),
        image=ImageRules(min_side=401, max_aspect=2.5, formats=["jpeg"]),
        safety=Safety(),
    )


def laion_filter() -> Filter:
    """LAION-5B: 5 characters, 5,000 bytes, and OpenAI's ViT-B/32 at 0.28 for English, its multilingual twin at 0.26 for other languages; other scorers need other thresholds."""
    return Filter(
        text=TextRules(min_words=0, min_chars=5, max_words=100_000, by_script=False),
        image=ImageRules(min_side=1, max_aspect=10_000, min_bytes=5_000),
        language=LanguageRule(),
        exact_duplicates=ExactDuplicates(),
        cuts={"clip": Cut(fraction=None, threshold=0.26, thresholds={"en": 0.28})},
        safety=Safety(),
        order=["text", "image", "language", "cuts.clip", "exact_duplicates", "safety"],
    )


def datacomp_text_filter() -> Filter:
    """DataComp's text-based filter with the names of ImageNet's classes; set vocabulary.file for those of ImageNet-21k."""
    return Filter(language=_FASTTEXT, vocabulary=Vocabulary())


def tmars_filter() -> Filter:
    """T-MARS: of the best half by CLIP score the better half without lettering. The embeddings need text_mask."""
    return Filter(cuts={"clip": Cut(fraction=0.5, within="all"), "masked": Cut(score=MaskedClipScore(), fraction=0.5, within="all")})


def trusted_filter() -> Filter:
    """A small clean subset to train a data filtering network on: every rule, well-kept sites (set domains.only), and the better half by the scorer."""
    return demo_filter().merged(
        {
            "domains": {"only": ["emoji.demo.test", "photos.demo.test"]},
            "quality": {},
            "text": {"min_words": 2},
            "cuts": {"clip": {"fraction": 0.5}},
            "truth": "",
        }
    )


def dfn_filter() -> Filter:
    """The best fifth by a data filtering network: embed with dfn_embed first."""
    return demo_filter().merged({"cuts": {"clip": {"fraction": 0.2}}})


# ---- shard, eval-sets


def demo_shard() -> Shard:
    """Small tars, so that order and resume have several to cross."""
    return Shard(samples_per_shard=500)


def web_shard() -> Shard:
    """For large crawls: 10,000 samples or 256 MB a tar, one held-out group in a hundred."""
    return Shard(held_out=0.01)


def standard_fingerprint() -> Fingerprint:
    """99 % of augmented copies must be found."""
    return Fingerprint()


def demo_eval_sets() -> EvalSets:
    return EvalSets()


# ---- report


def dataset_page() -> DatasetPage:
    """A page of at most 3 MB."""
    return DatasetPage()


# ---- export-data: a recipe for each format


def croissant() -> ExportData:
    """Croissant 1.0 with the shards beside it."""
    return ExportData(format="croissant")


def datasheet() -> ExportData:
    """A datasheet in Markdown, with pictures."""
    return ExportData(format="datasheet")


def datacomp() -> ExportData:
    """Metadata and uids as DataComp lays them out."""
    return ExportData(format="datacomp")


def hf() -> ExportData:
    """An image folder with metadata.jsonl."""
    return ExportData(format="hf")


# ---- upkeep


def standard_proof() -> TakedownProof:
    """Every product, and the DVC cache of this project."""
    return TakedownProof()


def weekly_compaction() -> CatalogCompact:
    """Tables of eight small fragments and more."""
    return CatalogCompact()
