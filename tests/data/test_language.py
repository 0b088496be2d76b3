"""Language identification: long captions are recognised, short ones are never refused for their language."""

import pytest

from vlm_core.data.filter import language

LONG = {
    "en": [
        "A brown hen is eating a loaf of bread in the yard",
        "Two children play football on the beach at sunset",
        "An old map of the harbour with a red sailing ship",
    ],
    "fr": [
        "Un chat noir dort sur le mur du vieux jardin",
        "Trois enfants jouent au ballon devant la maison",
        "Une carte ancienne du port avec un bateau rouge",
    ],
    "de": [
        "Eine schwarze Katze schläft auf der alten Gartenmauer",
        "Drei Kinder spielen vor dem Haus mit einem Ball",
        "Das alte Schiff liegt seit gestern im kleinen Hafen",
    ],
    "es": [
        "Un gato negro duerme sobre el muro del viejo jardín",
        "Tres niños juegan con una pelota delante de la casa",
        "Un mapa antiguo del puerto con un barco rojo",
    ],
    "ko": ["검은 고양이 한 마리가 오래된 담 위에서 자고 있다", "세 아이가 집 앞에서 공을 가지고 놀고 있습니다"],
    "ja": ["黒い猫が古い庭の塀の上で気持ちよさそうに眠っている", "三人の子供が家の前でボールを使って遊んでいます"],
}


@pytest.mark.parametrize("lang", LONG)
def test_a_long_caption_overrules_a_page_that_says_otherwise(lang: str) -> None:
    for text in LONG[lang]:
        found = language.identify(text, declared="xx")
        assert (found.lang, found.certain) == (lang, True), (text, found)
        assert found.confidence > 0.5


@pytest.mark.parametrize(("text", "page", "lang"), [
    ("grinning face", "en", "en"),  # eld alone says Danish
    ("chat", "fr", "fr"),
    ("chat", "en-GB", "en"),
    ("웃는 얼굴", "en", "ko"),
    ("にっこり", "en", "ja"),
    ("ワイン", "", "ja"),
    ("犬", "ja", "ja"),  # Han alone is Chinese or Japanese: the page knows
    ("犬", "zh-Hant", "zh"),
    ("หมา", "", "th"),
    ("", "en", "en"),
    ("42", "", ""),
])  # fmt: skip
def test_a_short_caption_is_named_by_its_script_or_by_its_page(text: str, page: str, lang: str) -> None:
    found = language.identify(text, page)
    assert (found.lang, found.certain) == (lang, False)


def test_no_short_caption_is_refused_and_a_long_one_only_when_certain() -> None:
    short = [text[:10] for texts in LONG.values() for text in texts]
    found = language.identify_all(short, [""] * len(short))
    assert not language.refused(found, ["nl"], 0.0).any()
    texts = [text for texts in LONG.values() for text in texts]
    langs = [lang for lang, texts in LONG.items() for _ in texts]
    answers = language.identify_all(texts, [""] * len(texts))
    assert language.refused(answers, ["en", "ko"], 0.5).tolist() == [lang not in {"en", "ko"} for lang in langs]
    assert not language.refused(answers, ["en", "ko"], 1.1).any()
    assert not language.refused(answers, [], 0.0).any()


def test_mixed_words_on_which_the_detectors_disagree_are_not_certain() -> None:
    found = language.identify("Logo Radio Taxi Hotel Restaurant Bar", "en")
    assert found.lite != found.eld
    assert (found.lang, found.certain) == ("en", False)
