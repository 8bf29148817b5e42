"""The one-use code that lets a device into a mesh: a slot and two words, as people say them.

Sixteen bits are enough because a guess costs a try: SPAKE2 gives who listens or asks nothing to
test guesses with, and there are three tries.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS: Final = tuple(
    """
acorn album alder amber anchor apple apron arrow atlas autumn badge bagel baker bamboo banjo
barley basil basket beacon beaver berry birch biscuit bison blanket blossom bonfire bottle
boulder bramble bread brick bridge bronze bucket button cactus camel candle canoe canyon carpet
carrot castle cedar cello chalk cherry chess chimney cider cinnamon circus clover cobalt cocoa
comet copper coral cotton cradle crayon cricket crimson crystal cushion daisy desert diamond
dolphin domino donkey dragon drum eagle easel echo elbow ember emerald engine falcon feather
fennel ferry fiddle flute forest fossil fountain fox galaxy garden garlic geyser ginger giraffe
glacier glove goblet granite grape gravel guitar hammer harbor harvest hazel hedge helmet heron
hollow honey horizon hornet husky iceberg igloo indigo island ivory jacket jaguar jasmine jelly
jigsaw jungle juniper kayak kettle kitten koala ladder lagoon lantern laurel lavender leather
lemon lentil lilac lily lizard lobster locket lotus magnet mango maple marble meadow melon
meteor mint mirror mitten monkey mosaic muffin mushroom mustard napkin nectar needle nickel
noodle nutmeg oasis ocean olive onion opal orbit orchid otter oyster paddle palace panda paper
parrot peach peanut pebble pelican pencil pepper piano pickle pigeon pillow planet plum pocket
pond poppy potato prairie puffin pumpkin puzzle quartz quilt rabbit radish raisin raven ribbon
river robin rocket rooster ruby saddle saffron salmon sandal satin scarf shadow silver sparrow
spinach spruce squirrel starling sugar summer sunset swan teapot temple thimble thunder tiger
timber tomato tulip tunnel turtle umbrella valley vanilla velvet violet walnut walrus willow
window winter wizard wombat yarrow yogurt zebra zephyr
""".split()  # noqa: SIM905 - a list of strings would fill the screen
)
"""256 words that differ within their first four letters, so those are enough to type."""

SLOTS: Final = 9
PREFIX_LETTERS: Final = 4

_BY_PREFIX: Final = {word[:PREFIX_LETTERS]: word for word in WORDS}
assert len(_BY_PREFIX) == len(WORDS) == 256


class JoinCode(NamedTuple):
    """``slot`` tells a device's invitations apart and is no secret; the words are."""

    slot: int
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.slot}-{self.first}-{self.second}"

    @property
    def password(self) -> bytes:
        """The secret that both sides put into SPAKE2."""
        return str(self).encode()


def make_code(entropy: Callable[[int], bytes]) -> JoinCode:
    """Return a new code: 16 random bits and a slot."""
    slot, first, second = entropy(3)
    return JoinCode(1 + slot % SLOTS, WORDS[first], WORDS[second])


def parse_code(text: str) -> JoinCode:
    """Return the code that a person typed; MisuseError for what cannot be one.

    Case does not matter, spaces do for hyphens, and four letters of a word are enough.
    """
    parts = re.split(r"[\s-]+", text.strip().lower())
    if len(parts) != 3 or not re.fullmatch("[1-9]", parts[0]):
        raise MisuseError(f"{text[:40]!r} is no join code: it looks like 7-amber-otter")
    words = []
    for part in parts[1:]:
        word = _BY_PREFIX.get(part[:PREFIX_LETTERS])
        if word is None or not word.startswith(part):
            raise MisuseError(f"{text[:40]!r} is no join code: no code has the word {part[:20]!r}")
        words.append(word)
    return JoinCode(int(parts[0]), *words)
