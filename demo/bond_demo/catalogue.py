"""What the shop sells and the small words that questions and answers are filled with."""

import re

ITEMS: tuple[str, ...] = (
    "kettle", "desk lamp", "rain jacket", "backpack", "coffee grinder", "blender", "office chair",
    "bookshelf", "yoga mat", "bike helmet", "tent", "blanket", "alarm clock", "toaster",
    "phone case", "speaker", "keyboard", "monitor", "water bottle", "garden hose", "hammock",
    "mirror", "rug", "teapot", "frying pan", "knife", "suitcase", "umbrella", "watch", "scarf",
    "sleeping bag", "tripod", "printer", "router", "fan", "heater", "vacuum cleaner", "mixer",
    "board game", "puzzle",
)  # fmt: skip
"""Names of the items; none is a part of another."""

COLOURS: tuple[str, ...] = (
    "blue", "red", "green", "black", "white", "grey", "yellow", "small", "large", "new",
)  # fmt: skip

DAYS: tuple[str, ...] = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
)  # fmt: skip

AGENTS: tuple[str, ...] = ("Mira", "Tom", "Ines", "Paul", "Greta", "Sam")

SYSTEM_PROMPTS: tuple[str, ...] = (
    "You answer for the support desk of Alder Lane, an online shop.",
    "You are a support agent of Alder Lane. Be brief and helpful.",
    "Support desk. Answer the customer.",
)

_ITEM = re.compile(r"\b(" + "|".join(sorted(ITEMS, key=len, reverse=True)) + r")\b", re.IGNORECASE)
_ORDER = re.compile(r"\b(\d\d-\d\d)\b")


def items_named(text: str) -> frozenset[str]:
    """The catalogue items that a text names, in lower case."""
    return frozenset(match.lower() for match in _ITEM.findall(text))


def orders_named(text: str) -> frozenset[str]:
    """The order numbers (two digits, hyphen, two digits) that a text names."""
    return frozenset(_ORDER.findall(text))
