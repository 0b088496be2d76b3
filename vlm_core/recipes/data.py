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
    """Small tars, so that order and resume have several to cross."""
    return Shard(samples_per_shard=500)


def web_shard() -> Shard:
    """For large crawls: 10,000 samples or 256 MB a tar, one held-out group in a hundred."""
    return Shard(held_out=0.01)


def demo_eval_sets() -> EvalSets:
    return EvalSets()
