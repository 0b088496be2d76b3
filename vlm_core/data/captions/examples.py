"""Examples that show a language model what is wanted: our own, in the manner of LaCLIP's four sources (Fan et al., arXiv 2305.20088, section 3.1).

LaCLIP asks ChatGPT, Bard and people for 16 rewordings each, and pairs captions that COCO's annotators gave one picture. Sources are short, as alt texts
are; targets say nothing that the source does not, apart from the colour of the words.

`rewrite.examples_file` replaces them (`read_examples`): a JSON object, style -> list of [source, target], or for `mscoco` of captions of one picture.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlm_core.data.captions.config import Rewrite, Style
from vlm_core.errors import ConfigError, MissingInput, did_you_mean

ARROW = "=>"
Pair = tuple[str, str]


class Examples(NamedTuple):
    """What prompts draw from."""

    pairs: Mapping[Style, Sequence[Pair]]  # (source, target)
    groups: Sequence[Sequence[str]]  # of mscoco: captions that several people wrote for one picture

_PAIRS: Mapping[Style, Sequence[Pair]] = {
    # whole sentences, plain and correct
    "chatgpt": (
        ("bike on wall", "A bicycle leans against a wall."), ("two cats", "A pair of cats side by side."), ("storm over sea", "Dark clouds gather above the sea."),
        ("old stone bridge", "A bridge built of old stone."), ("kids flying kites", "Children are flying kites."), ("cup of tea", "Tea is served in a cup."),
        ("train station at night", "A railway station after dark."), ("wooden chair", "A chair made of wood."), ("bread on table", "A loaf of bread rests on a table."),
        ("woman with guitar", "A woman is holding a guitar."), ("empty street", "A street without a single person."), ("flag in wind", "A flag flutters in the breeze."),
        ("deer by river", "A deer stands at the edge of a river."), ("glass of milk", "Milk fills a clear glass."), ("broken window", "A window with a shattered pane."),
        ("boy reading", "A boy is absorbed in a book."),
    ),
    # vivid
    "bard": (
        ("snowy mountain", "A mountain towers under a blanket of snow."), ("street musician", "A musician fills the street with sound."), ("ripe tomatoes", "Plump tomatoes glow in deep red."),
        ("lighthouse", "A lighthouse stands tall above the coast."), ("sleeping puppy", "A little puppy is lost in sleep."), ("autumn forest", "The forest blazes in the colours of autumn."),
        ("sailing boat", "A boat glides along under full sail."), ("fireworks", "Fireworks burst across the sky."), ("waterfall", "Water thunders down over the rocks."),
        ("old clock", "An ancient clock keeps its patient time."), ("desert at noon", "The desert shimmers in the heat of midday."), ("rose", "A rose unfolds its velvet petals."),
        ("rush hour", "The city surges home in an endless stream."), ("campfire", "A campfire crackles in the dark."), ("kitten", "A tiny kitten gazes with wide eyes."),
        ("snowman", "A cheerful snowman braves the cold."),
    ),
    # as people talk
    "human": (
        ("market stall", "Someone set up a stall at the market."), ("bowl of soup", "This is a bowl full of soup."), ("red umbrella", "An umbrella, and it is red."),
        ("farm tractor", "Here is a tractor from a farm."), ("chess board", "A board for a game of chess."), ("school bus", "The kind of bus that goes to school."),
        ("open window", "Looks like the window was left open."), ("pair of shoes", "Two shoes that go together."), ("birthday cake", "A cake for somebody's birthday."),
        ("dog on sofa", "The dog has made itself at home on the sofa."), ("rainy day", "One of those days when it just rains."), ("garden gnome", "A gnome like people put in gardens."),
        ("map on wall", "They hung a map on the wall."), ("empty bottle", "There is nothing left in the bottle."), ("green door", "A door somebody painted green."),
        ("bus stop", "The place where you wait for the bus."),
    ),
}  # fmt: skip

# Captions that several people might write for one picture, in the manner of COCO.
GROUPS: Sequence[Sequence[str]] = (
    ("A man riding a wave on a surfboard.", "A surfer balances on top of a wave.", "A person surfing in the ocean.", "Someone on a board rides the surf.", "A man surfs near the shore."),
    ("A plate of pasta with tomato sauce.", "Pasta in red sauce on a white plate.", "A dish of noodles topped with tomatoes.", "A serving of pasta on a plate.", "Some spaghetti with sauce on a dish."),
    ("A brown horse stands in a field.", "A horse grazing on green grass.", "One horse alone in a pasture.", "A brown horse in a grassy meadow.", "The horse is standing on the grass."),
    ("A kitchen with a stove and a refrigerator.", "A small kitchen with white appliances.", "A refrigerator next to a stove in a kitchen.", "The kitchen is clean and tidy.", "White appliances line a kitchen wall."),
    ("Two people skiing down a slope.", "A pair of skiers on a snowy hill.", "Skiers make their way down the mountain.", "Two skiers in the snow.", "People on skis go downhill."),
    ("A bus driving down a city street.", "A large bus on the road in town.", "A city bus passes some buildings.", "A public bus in traffic.", "The bus is travelling along the street."),
    ("A child holding a teddy bear.", "A little girl hugs her stuffed bear.", "A kid with a soft toy in the arms.", "A young child and a teddy bear.", "The girl is holding a toy bear."),
    ("A bird sitting on a tree branch.", "A small bird perched on a twig.", "One bird rests on a branch.", "A bird up in a tree.", "The little bird sits among the leaves."),
    ("A laptop on a wooden desk.", "A computer sits open on a table.", "A desk with a laptop on it.", "An open laptop beside a cup.", "The workspace holds a computer."),
    ("A group of people playing football.", "Players chase a ball across a field.", "Several people in a football match.", "A football game on the grass.", "Men running after a ball."),
    ("A vase of tulips on a windowsill.", "Yellow flowers stand in a glass vase.", "Some tulips near a sunny window.", "A bouquet in water by the window.", "Cut flowers brighten the sill."),
    ("An elephant walks through tall grass.", "A large grey elephant in the savanna.", "One elephant crosses a dry plain.", "The elephant lifts its trunk.", "A wild animal with long tusks."),
    ("A woman cuts a pizza with a knife.", "Someone slices a pizza into pieces.", "A lady shares out a hot pizza.", "Hands and a knife above a pizza.", "The pizza is being divided at dinner."),
    ("Several sheep rest on a hillside.", "A flock lies in the meadow.", "White sheep beneath a cloudy sky.", "Woolly animals gather on a slope.", "The flock has found some shade."),
    ("A motorcycle parked beside a wall.", "A black motorbike by the pavement.", "The bike waits in a narrow alley.", "An old motorcycle with a leather seat.", "Somebody left a motorbike outside."),
    ("A bathroom with a round mirror.", "A white sink under a mirror.", "Towels hang next to the bathtub.", "The bathroom has blue tiles.", "A tidy washroom with a shower."),
    ("A boy throws a frisbee in the park.", "A frisbee flies over the lawn.", "Children play with a flying disc.", "Someone reaches up for a frisbee.", "An afternoon game among the trees."),
    ("A giraffe eats leaves from a tall tree.", "A giraffe stretches its long neck.", "One spotted giraffe at feeding time.", "The giraffe stands behind a fence.", "A very tall animal nibbles at twigs."),
)  # fmt: skip

STYLES: tuple[Style, ...] = (*_PAIRS, "mscoco")
OWN = Examples(_PAIRS, GROUPS)

# (raw, synthetic) -> fused: what the alt text names, where the picture shows it.
FUSIONS: Sequence[tuple[str, str, str]] = (
    ("Eiffel Tower", "a picture of a tower", "A picture of the Eiffel Tower."),
    ("summer sale shoes", "a running shoe", "A running shoe from the summer sale."),
    ("Bella at the beach", "a picture of a dog", "A dog called Bella at the beach."),
    ("vintage 1960s", "a teapot", "A vintage teapot of the 1960s."),
    ("for my grandmother", "a picture of a daisy", "A daisy for a grandmother."),
    ("the old harbour", "a picture of a dock with a boat", "A boat at a dock in the old harbour."),
    ("breakfast", "a bagel with a cup", "A breakfast of a bagel and a cup."),
    ("winner 2019", "a sports car", "The sports car that won in 2019."),
)


def draw_pairs(style: Style, count: int, draw: random.Random, examples: Examples = OWN) -> tuple[Pair, ...]:
    """`count` examples of a style without replacement; of COCO, two captions of one picture each."""
    if style == "mscoco":
        first = [draw.sample(group, 2) for group in draw.sample(examples.groups, count)]
        return tuple((source.rstrip(".").lower(), target) for source, target in first)
    return tuple(draw.sample(examples.pairs[style], count))


def draw_fusions(count: int, draw: random.Random) -> tuple[Pair, ...]:
    """Examples of fusing: (raw + synthetic, fused)."""
    return tuple((f"{raw} + {seen}", fused) for raw, seen, fused in draw.sample(FUSIONS, count))


# ---------------------------------------------------------------- examples of a user's own


def read_examples(part: Rewrite) -> Examples:
    """The examples that the settings name; no style is filled up from ours. Raises MissingInput, ConfigError."""
    if not part.examples_file:
        return OWN
    file = Path(part.examples_file)
    if not file.is_file():
        raise MissingInput(f"Found no file {file}, expected the JSON of example pairs by style; correct rewrite.examples_file.")
    try:
        told = json.loads(file.read_bytes())
    except ValueError as error:
        raise _wrong(file, f"no JSON ({' '.join(str(error).split())})", "an object") from None
    if not isinstance(told, dict):
        raise _wrong(file, f"a JSON {type(told).__name__}", "an object")
    if unknown := [style for style in told if style not in STYLES]:
        raise ConfigError(f"Found the style {unknown[0]!r} in {file}, expected a known one; {did_you_mean(unknown[0], STYLES)}")
    if flat := [style for style, items in told.items() if not isinstance(items, list)]:
        raise _wrong(file, f"a JSON {type(told[flat[0]]).__name__} under the style {flat[0]!r}", "a list of examples")
    if few := [style for style in part.styles if len(told.get(style, ())) < part.examples]:
        raise ConfigError(
            f"Found {len(told.get(few[0], ()))} examples of the style {few[0]!r} in {file}, expected at least {part.examples}, which a prompt shows; "
            "add some, lower rewrite.examples or leave the style out of rewrite.styles."
        )
    read = {style: [_example(file, style, place, item) for place, item in enumerate(items, 1)] for style, items in told.items()}
    return Examples({style: [(first, second) for first, second in items] for style, items in read.items() if style != "mscoco"}, read.get("mscoco", ()))


def _example(file: Path, style: Style, place: int, item: Any) -> tuple[str, ...]:
    """One example, checked. A text with an arrow or a line break would end its line of the prompt too early."""
    where = f"as example {place} of the style {style!r}"
    wanted = "a list of at least two captions of one picture" if style == "mscoco" else "a list of a source and a target"
    if not isinstance(item, list) or not all(isinstance(text, str) for text in item) or (len(item) < 2 if style == "mscoco" else len(item) != 2):
        raise _wrong(file, f"{json.dumps(item, ensure_ascii=False)[:80]} {where}", wanted)
    for text in item:
        if not text.strip() or text.strip() != text or len(text.splitlines()) > 1 or ARROW in text:
            raise _wrong(file, f"{text[:80]!r} {where}", f"one line of text without spaces around it and without {ARROW!r}")
    return tuple(item)


def _wrong(file: Path, found: str, expected: str) -> ConfigError:
    return ConfigError(f"Found {found} in {file}, expected {expected}; correct the file as docs/captions.md shows it.")
