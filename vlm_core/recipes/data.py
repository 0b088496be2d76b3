"""Named settings of the data verbs. A function's return type says which verb it belongs to; the first is the verb's default."""

from vlm_core.data.config import Crawl, Download, Embed, EvalSets, Extract, Filter, Recaption, Shard

# ---- crawl, extract, download


def demo_crawl() -> Crawl:
    """The embedded web on loopback."""
    return Crawl()


def demo_extract() -> Extract:
    return Extract()


def demo_download() -> Download:
    return Download()


# ---- embed, recaption


def offline_embed() -> Embed:
    return Embed()


def offline_recaption() -> Recaption:
    return Recaption()


# ---- filter


def demo_filter() -> Filter:
    return Filter()


# ---- shard, eval-sets


def demo_shard() -> Shard:
    return Shard()


def demo_eval_sets() -> EvalSets:
    return EvalSets()
