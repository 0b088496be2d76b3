"""What no sheet, table or page shows again of a dropped sample: its picture, or its caption.

Both lists hold reasons of `decisions.REASONS`: a rule may drop for several, and not each of them is a secret.
"""

from vlm_core.data.filter.decisions import Reason
from vlm_core.data.filter.personal import KINDS

# Not ours to show, unsafe, or dropped because of the persons in it.
NO_PICTURE: frozenset[Reason | str] = frozenset({"taken_down", "opted_out", "refused_licence", "no_licence", "unsafe", "faces"})

# Personal data of every kind that is looked for, words of a list, and what was taken down.
NO_TEXT: frozenset[Reason | str] = frozenset({*KINDS, "blocked_word", "taken_down"})

INSTEAD = "(withheld)"
