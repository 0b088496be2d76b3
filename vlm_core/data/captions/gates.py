"""What a caption must not be: an attack on a language model, or an answer that carries more than a caption. Pure functions on text.

Two lines of defence (PLATFORM A5). `suspicious` looks at captions before they are put into a prompt, and at answers; `judge_text` and `judge_scores`
decide whether an answer may be learnt from. Texts from the web are data: nothing here, and nothing in the prompts, depends on what they ask for.
"""

import codecs
import html
import re
import unicodedata

import regex

from vlm_core.data.captions.config import Gates
from vlm_core.data.filter.language import SCRIPTS, by_script, identify
from vlm_core.data.filter.personal import EMAIL, PHONE, URL
from vlm_core.data.captions.recaption import CANARY, Prompt

_FILLERS = frozenset(
    [
        "with",
        "from",
        "that",
        "this",
        "have",
        "into",
        "over",
        "under",
        "there",
        "their",
        "they",
        "them",
        "these",
        "those",
        "which",
        "while",
        "where",
        "what",
        "some",
        "very",
        "image",
        "picture",
        "photo",
        "shows",
        "being",
    ]
)
SHINGLE = 5  # words in a row that an answer may not share with the instructions

# How one asks a model to drop its instructions: (verbs, what is dropped), in either order within a few words.
_DROP: tuple[tuple[str, str], ...] = (
    (r"ignor\w*|disregard\w*|forget|overrid\w+|bypass\w*|do not follow|don't follow", r"instruction\w*|rules?|prompts?|guidelines|directives?|commands?|(?:all|everything|what|text) (?:of )?(?:the |that |was |came )?(?:above|before|previous\w*|said)|previous|prior"),
    (r"ignor[ae]\w*|olvid[ae]\w*|omit[ae]\w*|descart[ae]\w*|esque[cç]\w+|desconsider\w+|dimentica\w*|trascura\w*", r"instruc\w+|istruzion\w+|reglas|regras|regole|[oó]rdenes|ordens|ordini|indicaci\w+|indicazion\w+|anterior\w*|precedent\w+"),
    (r"ignore[rz]?|oublie[rz]?|n[ée]glige[rz]?|ne (?:tiens|tenez) pas compte", r"instructions?|consignes?|r[èe]gles?|ordres?|pr[ée]c[ée]dent\w*"),
    (r"ignorier\w*|vergiss|vergessen sie|missachte\w*|negeer|vergeet", r"anweisung\w*|instruktion\w*|regeln?|vorgaben?|befehle?|vorherig\w*|obig\w*|instructies|regels|opdracht\w*|vorige|voorgaande"),
    (r"(?:про)?игнорир\w*|забудь\w*|не обращай\w*|(?:про)?ігнору\w*", r"инструкц\w*|правил\w*|указани\w*|команд\w*|предыдущ\w*|інструкц\w*|вказів\w*|попередн\w*"),
    (r"z?ignoruj\w*|zapomnij\w*|pomiń", r"instrukcj\w*|poleceni\w*|polecen|zasad\w*|poprzedni\w*"),
    (r"yok say\w*|görmezden gel\w*|unut\w*|dikkate alma\w*", r"talimat\w*|kural\w*|komut\w*|önceki\w*"),
    (r"تجاهل\w*|انس\b|انسى|تجاوز", r"\w*تعليمات\w*|\w*قواعد\w*|\w*أوامر\w*|السابق\w*"),
    (r"अनदेखा|नज़रअंदाज़|नजरअंदाज|भूल जा\S*", r"निर्देश\S*|नियम\S*|आदेश\S*"),
    (r"bỏ qua|phớt lờ|quên", r"hướng dẫn|chỉ dẫn|chỉ thị|mệnh lệnh|quy tắc"),
    (r"abaikan|lupakan", r"instruksi|perintah|aturan|petunjuk"),
    (r"忽略|无视|無視|忘记|忘記|忘掉|不要理会|忽視", r"指令|指示|说明|說明|规则|規則|提示|命令|以上|之前|先前"),
    (r"無視|忘れ|従わない", r"指示|命令|ルール|規則|プロンプト|上記|以前"),
    (r"무시|잊어|따르지", r"지시|명령|규칙|프롬프트|이전|위의|지침"),
)  # fmt: skip
_NEAR = r".{0,40}?"
_DROPS = "|".join(f"(?:{verb}){_NEAR}(?:{noun})|(?:{noun}){_NEAR}(?:{verb})" for verb, noun in _DROP)
# The prompt itself, another role, an order to say something, marks of chat formats, secrets: words that no caption of a picture needs.
_OTHER = r"""
    (?:system|developer)[ -]?(?:prompt|message) | prompt (?:du|de|del|do|di) (?:syst|sist)\w+ | systemprompt | системн\w+ (?:промпт|запрос|подсказк)\w* | 系统提示 | 系統提示 | システムプロンプト | 시스템 프롬프트 | موجه النظام | تعليمات النظام | sistem (?:istem|talimat)\w*
  | (?:reveal|repeat|print|output|leak) (?:\w+ ){0,4}(?:prompts?|instructions?|canary|secrets?)\b | (?:show|tell|give) (?:me|us) (?:\w+ ){0,3}(?:prompts?|instructions?)\b | canary (?:word|phrase|token)
  | </?\s*(?:system|assistant|user|caption|script|img|iframe|inst)\b | <\|[^|>]*\|> | \[/?inst\] | \#\#\#\s*\w+ | (?:^|\s)(?:system|assistant|user)\s*:
  | you are (?:now|no longer|an? (?:ai|assistant|language model)) | as an ai\b | act as (?:an? )?(?:\w+ )?(?:assistant|language model|ai|terminal|shell)\b | pretend (?:to be|you are) | tu es maintenant | vous êtes maintenant | du bist (?:jetzt|nun) | (?:ahora eres|eres ahora) | ora sei\b | (?:agora você é|você agora é) | ты теперь | теперь ты | 你现在是 | 你現在是 | 今からあなたは | あなたは今から | (?:너는|당신은|넌) 이제 | أنت الآن | अब (?:तुम|आप)\b
  | (?:answer|reply|respond|output)\s(?:only|just|exactly|with)\b | (?:write|print|say|repeat)\s(?:only|exactly|verbatim|the (?:word|phrase|text|following))\b | (?:antworte|schreibe?|gib)\s(?:nur|nun|stattdessen|genau)\b | (?:réponds|répondez|écris|écrivez)\s(?:uniquement|seulement|simplement|plutôt|exactement|«|") | (?:responde|escribe|di)\s(?:solo|sólo|únicamente|exactamente|en su lugar) | (?:rispondi|scrivi)\s(?:solo|soltanto|esattamente|invece) | (?:responda|escreva)\s(?:apenas|somente|exatamente) | (?:ответь|напиши|выведи|скажи)\s(?:только|вместо|слово|фразу) | odpowiedz tylko | napisz tylko | (?:请|只|仅)(?:输出|回答|回复|写出?) | (?:だけ|のみ)を?(?:出力|答え|返答|書) | と(?:出力|だけ答え)\w* | (?:만|라고) (?:출력|대답)\w* | (?:اكتب|أجب|اطبع|قل) (?:فقط|كلمة|بدلا) | (?:सिर्फ|केवल) .{0,30}(?:लिख|जवाब)\S* | (?:sadece|yalnızca) .{0,30}(?:yaz|cevap|yanıt)\w*
  | instead of (?:a|the|your) (?:caption|description|answer) | (?:captioning|language|ai|vision) model\b.{0,20}[:,] | from now on\b | hidden (?:rules|prompts?|instructions) | (?:written|said|told|stands) (?:above|before this) | whatever (?:the|this) (?:picture|image|photo) (?:shows|says|is) | (?:captions?|descriptions?) (?:must|should|have to) | (?:shell|bash|terminal) command | 代わりに.{0,30}(?:書|出力|答え) | 대신.{0,30}(?:써|출력|답)
  | (?:api|secret|access)[ _-]?key | (?:my|your|the|server|admin\w*) password | password\s*(?:is\b|:|=) | contraseña | mot de passe | passwort | пароль | 密码 | パスワード | 비밀번호 | jailbreak | do anything now | developer mode
"""
_VERBS = re.compile("|".join(verb for verb, _ in _DROP), re.IGNORECASE)  # looked for first: the windows of _DROPPED are slow
_DROPPED, _ASKED = re.compile(_DROPS, re.IGNORECASE), re.compile(" ".join(_OTHER.split()).replace(" | ", "|"), re.IGNORECASE)
_JOINED = re.compile(
    r"ignore(?:all|the|any|your|my|these|of)*(?:previous|prior|above|instructions?|rules)|disregard(?:all|the)*(?:previous|above|instructions)|systemprompt|sayexactly"
)
_ADDRESS = re.compile(
    r"https?:|www\.|\b[\w.+-]+@[\w-]+\.\w|\b[\w-]+\.(?:com|org|net|io|test|jpe?g|png|gif|html?)\b|!?\[[^\]]*\]\(|\bjavascript:|\bdata:\w+/", re.IGNORECASE
)
_MARKUP = re.compile(r"<[^>\s][^>]*>|&(?:[a-z]+|#\d+);|[{}`]|=>|\\x|\\u", re.IGNORECASE)
_CODE = re.compile(
    r"\b(?:def \w+|eval|exec|system|alert|console\.log|print)\(|\bimport (?:os|sys|re|subprocess)\b|\bselect\b.+\bfrom\b.+(?:\bwhere\b|;)|\bdrop table\b"
    r"|\b(?:curl|bash)\s+(?:-|http)|\b(?:sudo|wget)\s+\w|\bchmod\s+[0-7+]|\brm\s+-\w|\$\(|\w\(\);?$|;\s*--",
    re.IGNORECASE,
)  # fmt: skip
_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{28,}|(?:\b[0-9a-f]{2}[ :]){7,}|(?:\b[01]{8}\b ?){4,}|(?:[.-]{1,5} ){8,}", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^(?:sorry\b|i'?m sorry\b|i can(?:no|')?t\b|i am unable\b|sure\s*[,!:]|(?:of course|certainly|okay|ok)\s*[,!:]|here(?:'s| is) (?:(?:a|the|your) )?(?:reword|rewrit|caption|translat|descri)"
    r"|rewritten caption|translation\s*:|caption\s*:|voici\b|hier ist (?:die|eine)\b|aquí (?:está|tienes)\b|claro\s*[,!:])",
    re.IGNORECASE,
)  # fmt: skip
_MIXED = regex.compile(r"(?=\w*\p{Script=Latin})(?=\w*[\p{Script=Cyrillic}\p{Script=Greek}])\w{4,}")
_LONG_NUMBER = re.compile(r"\d(?:[ .-]?\d){6,}")
_LEET = str.maketrans("013457@$", "oieastas")


def suspicious(text: str) -> str:
    """Why a text looks like an attack or carries something that captions do not need; '' if it does not.

    injection, canary, hidden_characters, disguised (letters of two scripts in a word, spelt out, read backwards, ROT13), address, markup, code, encoded.
    """
    plain = unicodedata.normalize("NFKC", html.unescape(text))
    if re.sub(r"[^a-z0-9]", "", CANARY) in re.sub(r"[^a-z0-9]", "", plain.casefold()):
        return "canary"
    if any(unicodedata.category(letter) in {"Cf", "Co", "Cn"} or (unicodedata.category(letter) == "Cc" and not letter.isspace()) for letter in text):
        return "hidden_characters"
    shown = (plain, text) if plain != text else (plain,)
    if any(map(_injected, shown)):
        return "injection"
    for reason, pattern in (("address", _ADDRESS), ("markup", _MARKUP), ("code", _CODE), ("encoded", _ENCODED)):
        if any(map(pattern.search, shown)):
            return reason
    return "disguised" if _disguised(plain) else ""


def _injected(text: str) -> bool:
    return bool(_ASKED.search(text) or (_VERBS.search(text) and _DROPPED.search(text)))


def _disguised(plain: str) -> bool:
    folded = plain.casefold()
    read_otherwise = (other for other in (folded.translate(_LEET), folded[::-1], codecs.encode(folded, "rot13")) if other != folded)
    return bool(
        _MIXED.search(plain) or _JOINED.search(re.sub(r"[^a-z]", "", folded.translate(_LEET))) or (folded.isascii() and any(map(_injected, read_otherwise)))
    )


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def overlap(first: str, second: str) -> float:
    """Jaccard of the sets of words; 0 if one of them has none."""
    one, two = set(words(first)), set(words(second))
    return len(one & two) / len(one | two) if one and two else 0.0


def judge_text(answer: str, prompt: Prompt, gates: Gates) -> str:
    """Reason of rejection by what the text itself shows, or ''. Similarity and image score are judged elsewhere, by models."""
    if not words(answer):
        return "empty"
    if len(answer) < gates.min_chars and not by_script(answer):
        return "too_short"
    if len(words(answer)) > gates.max_words or len(answer) > 12 * gates.max_words:
        return "too_long"
    if reason := suspicious(answer):
        return reason
    if _REFUSAL.match(answer):
        return "chatter"
    if repeats_instructions(answer, prompt):
        return "prompt_leak"
    if words(answer) == words(prompt.caption):
        return "unchanged"
    leaked = any(overlap(answer, target) > gates.max_example_overlap for _, target in prompt.examples)
    return "example_leak" if leaked or borrowed(answer, prompt) > gates.max_example_overlap else ""


def judge_language(answer: str, lang: str) -> str:
    """'other_language' where the script rules the wanted language out, or two detectors agree on another one. Short texts get the benefit of the doubt."""
    script = by_script(answer)
    if script or lang in SCRIPTS.values():
        return "" if script == lang or (script == "" and lang == "ja" and regex.search(r"\p{Han}", answer)) else "other_language"
    found = identify(answer)
    return "other_language" if found.certain and found.lang != lang else ""


def repeats_instructions(answer: str, prompt: Prompt) -> bool:
    """Five words in a row of an instruction, or the first line of the base model's prompt."""
    told = words(prompt.system.partition("\nExamples:")[0])
    shingles = {tuple(told[i : i + SHINGLE]) for i in range(len(told) - SHINGLE + 1)} | {("write", "image", "captions", "differently")}
    said = words(answer)
    return any(tuple(said[i : i + size]) in shingles for size in (SHINGLE, 4) for i in range(len(said) - size + 1))


def borrowed(answer: str, prompt: Prompt) -> float:
    """Share of an answer's longer words that the examples have and the sources have not."""
    longer = longer_words(answer)
    shown = {word for pair in prompt.examples for text in pair for word in words(text)} - {w for text in (prompt.caption, *prompt.sources) for w in words(text)}
    return len(longer & shown) / len(longer) if longer else 0.0


def longer_words(text: str) -> set[str]:
    """The words that carry the content, roughly: those of more than three letters."""
    return {word for word in words(text) if len(word) > 3 and word not in _FILLERS}


def judge_scores(text_score: float, image_score: float, raw_image_score: float, min_text: float, gates: Gates) -> str:
    """Reason of rejection by meaning: too far from the raw caption, or a worse fit to the picture; ''."""
    if text_score < min_text:
        return "other_meaning"
    return "worse_image_fit" if image_score < raw_image_score - gates.max_image_drop else ""


def masked(text: str) -> str:
    """A text as logs may show it: e-mail addresses, web addresses, telephone and other long numbers are replaced by what they are."""
    for pattern, word in ((EMAIL, "[email]"), (URL, "[address]"), (PHONE, "[number]"), (_LONG_NUMBER, "[number]")):
        text = pattern.sub(word, text)
    return text
