"""Class names and templates of the test sets, in words that a caption might use. They are data: changing one changes the protocol card."""

EMOJI_TEMPLATES = (
    "an emoji of a {}.", "a {} emoji.", "an icon of a {}.", "a small picture of a {}.", "a cartoon {}.", "a simple drawing of a {}.", "the symbol for a {}.",
)  # fmt: skip
CLIPART_TEMPLATES = (
    "clip art of a {}.", "a drawing of a {}.", "a picture of a {}.", "a cartoon of a {}.", "an illustration of a {}.", "a simple graphic of a {}.", "a {}.",
)  # fmt: skip

GROUPS = {
    "Smileys & Emotion": "smiley face or heart", "People & Body": "person or hand", "Animals & Nature": "animal or plant", "Food & Drink": "food or drink",
    "Travel & Places": "vehicle, place or weather", "Activities": "sport, game or party", "Objects": "everyday object", "Symbols": "sign or button", "Flags": "flag",
}  # fmt: skip

SUBGROUPS = {
    "country-flag": "flag of a country", "person-role": "person at work", "animal-mammal": "mammal", "person-activity": "person doing something",
    "transport-ground": "car, train or bus", "sky & weather": "moon, sun or weather", "clothing": "piece of clothing", "person-sport": "person doing sport",
    "alphanum": "button with letters", "family": "family", "food-prepared": "prepared food", "geometric": "geometric shape", "person-fantasy": "fantasy figure",
    "time": "clock", "person-gesture": "person making a gesture", "person": "man or woman", "sport": "sports equipment", "place-building": "building",
    "tool": "tool", "face-concerned": "worried face", "av-symbol": "media control button", "heart": "heart", "household": "household object",
    "game": "game or toy", "office": "office supply", "other-symbol": "symbol", "animal-bird": "bird", "event": "celebration", "arrow": "arrow",
    "food-fruit": "fruit", "drink": "drink", "food-vegetable": "vegetable", "body-parts": "body part", "place-other": "view of a city",
    "plant-other": "plant", "food-asian": "Asian food", "book-paper": "book or paper", "animal-marine": "sea animal", "light & video": "lamp or camera",
    "animal-bug": "insect", "face-neutral-skeptical": "neutral face", "face-smiling": "smiling face", "food-sweet": "sweet food",
}  # fmt: skip

FOLDERS = {  # special and unsorted hold no class
    "animals": "animal", "buildings": "building", "computer": "computer icon", "decorations": "decoration", "education": "book or pen",
    "electronics": "electronic device", "food": "food", "geography": "map", "office": "office supply", "people": "person", "plants": "plant",
    "recreation": "game, holiday or religion", "science": "scientific instrument", "shapes": "geometric shape or arrow",
    "signs_and_symbols": "sign, symbol or flag", "tools": "tool", "transportation": "vehicle or road sign",
}  # fmt: skip
