"""Which stories does the demo model learn from? Little ones, told by a grammar of our own.

``python tools/demo_corpus.py [COUNT]`` prints some of them. The templates are the text files of
``demo_grammar``: ``== name | tags`` opens a section, an empty line parts one beat of a plot from
the next, each line of a beat is an alternative ("-" says nothing).

A line says ``[one|two|]`` for one of its alternatives and ``{key}`` for an entity of the story.
An entity is introduced where it is first named ("a little fox named Finn") and known from then
on ("Finn", "the fox"). Before a line, ``?tag`` or ``!tag`` asks for what was told already or was
not (a tag or a known entity), ``+tag`` tells it.
"""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his"},
    "she": {"he": "she", "him": "her", "his": "her"},
}
SHORT_FORMS = (
    ("can not", "can't"), ("do not", "don't"), ("Do not", "Don't"), ("did not", "didn't"),
    ("could not", "couldn't"), ("was not", "wasn't"), ("I am", "I'm"), ("Let us", "Let's"),
    ("I will not", "I won't"), ("I will", "I'll"), ("We will", "We'll"), ("It is ", "It's "),
)  # fmt: skip
OPENING_SHARES = {"once": 45, "day": 25, "plain": 10, "scene": 20}

Beat = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One section of the grammar: its beats, and the tags that hold from its beginning."""

    beats: tuple[Beat, ...]
    tags: frozenset[str]


def read_grammar() -> dict[str, Section]:
    """Read every section of the text files of ``demo_grammar`` under its name."""
    sections = {}
    for path in sorted((Path(__file__).parent / "demo_grammar").glob("*.txt")):
        for part in path.read_text(encoding="utf-8").split("== ")[1:]:
            head, _, body = part.partition("\n")
            name, _, tags = head.partition(" | ")
            beats = (beat.strip().split("\n") for beat in body.strip().split("\n\n"))
            sections[name] = Section(tuple(tuple(beat) for beat in beats), frozenset(tags.split()))
    return sections


GRAMMAR = read_grammar()
PLOTS = [section for name, section in GRAMMAR.items() if name.startswith("plot ")]


def words(name: str) -> list[str]:
    return " ".join(GRAMMAR[f"words {name}"].beats[0]).split()


WORDS = {name[6:]: words(name[6:]) for name in GRAMMAR if name.startswith("words ")}
HOMES: dict[str, Beat] = {}
for name, section in GRAMMAR.items():
    if name.startswith("home of "):
        HOMES |= dict.fromkeys(" ".join(section.beats[1]).split(), section.beats[0])
KINDS = [kind for kind in HOMES if kind not in ("boy", "girl")]


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass
class Entity:
    """Someone or something of one story, and how it is named first and later."""

    first: str
    later: tuple[str, ...]
    pronoun: str = "he"
    call: str = ""
    kind: str = ""
    name: str = ""
    introduction: str = ""
    known: bool = False

    def named(self, chance: random.Random) -> str:
        """Say its name, and remember that it was said."""
        if self.known:
            return chance.choice(self.later)
        self.known = True
        return self.first


def make_name(chance: random.Random, kind: str, pronoun: str) -> str:
    if chance.random() < 0.05:  # names that no list holds teach the model to repeat what it read
        return "".join(chance.choices(WORDS["syllables"], k=chance.choice((2, 2, 3)))).capitalize()
    if kind in WORDS["people"]:
        return chance.choice(WORDS["boys" if pronoun == "he" else "girls"])
    return chance.choice(WORDS[pronoun])


def make_looks(chance: random.Random, kind: str) -> str:
    share = chance.random()
    size = chance.choice(WORDS["sizes"])
    if share < 0.65:
        return f"{size} {kind}"
    trait = chance.choice(WORDS["traits"] + WORDS["coats"] * (kind not in WORDS["people"]))
    return f"{trait} {kind}" if share < 0.88 else f"{size} {trait} {kind}"


def choose_pronoun(chance: random.Random, kind: str) -> str:
    if kind in WORDS["men"] or kind in WORDS["women"]:
        return "he" if kind in WORDS["men"] else "she"
    return chance.choice(("he", "she"))


def make_character(chance: random.Random, owner: Entity | None = None) -> Entity:
    """Make the hero, or its owner's friend, who has another name and is another animal."""
    kind = chance.choice(("boy", "girl", chance.choice(KINDS)))
    pronoun = choose_pronoun(chance, kind)
    name = make_name(chance, kind, pronoun)
    if owner and (owner.name == name or (owner.kind == kind and kind in KINDS)):
        return make_character(chance, owner)
    if kind in KINDS and chance.random() < (0.5 if owner else 0.3):
        name = ""
    looks = make_looks(chance, kind)
    introduction = f"{with_article(looks)} [named|called] {name}" if name else with_article(looks)
    first, of_kind = introduction, f" the {kind}" if kind in KINDS else ""
    if owner:
        first = f"{PRONOUNS[owner.pronoun]['his']} [best |]friend {name}{of_kind}".replace(
            "  ", " "
        )
    later = (name or f"the {kind}",)
    call = name or chance.choice((f"little {kind}", f"dear {kind}", "my friend"))
    return Entity(first, later, pronoun, call, kind, name, introduction)


def make_guide(chance: random.Random, taken: tuple[str, str]) -> Entity:
    """Make someone whom the hero meets on the way, of no kind that is taken."""
    pronoun = chance.choice(("he", "she"))
    guides = GRAMMAR[f"guides {pronoun}"].beats[0]
    first = chance.choice([guide for guide in guides if guide.split()[-1] not in taken])
    noun = first.split()[-1]
    return Entity(
        first, (f"the old {noun}" if noun in ("man", "woman") else f"the {noun}",), pronoun
    )


@dataclass
class Story:
    """The entities of one story, what was told of it, and the chance that tells it."""

    chance: random.Random
    tags: set[str] = field(default_factory=set)
    entities: dict[str, Entity] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chance = self.chance
        hero = make_character(chance)
        friend = make_character(chance, hero)
        self.tags.add("named" if hero.name else "nameless")
        relation = chance.choice(("he", "she"))
        relative = chance.choice(WORDS[f"parents {relation}"])
        whose = f"{PRONOUNS[hero.pronoun]['his']} {relative}"
        color, tint = chance.sample(WORDS["colors"], 2)
        thing = chance.choice(WORDS["things"])
        looks = f"{chance.choice((color, color, color, 'new', 'old', 'little', 'big'))} {thing}"
        place, elsewhere = chance.sample(GRAMMAR["places"].beats[0], 2)
        hide, other_hide = chance.sample(GRAMMAR["hides"].beats[0], 2)
        foods, other_foods = chance.sample(WORDS["foods"], 2)
        self.entities = {
            "hero": hero,
            "friend": friend,
            "guide": make_guide(chance, (hero.kind, friend.kind)),
            "parent": Entity(whose, (whose,), relation),
            "thing": Entity(looks, (thing,)),
            "at": Entity(place, ("there",)),
        }
        self.words = {
            "home": chance.choice(HOMES[hero.kind]),
            "elsewhere": elsewhere,
            "hide": hide,
            "other_hide": other_hide,
            "foods": foods,
            "other_foods": other_foods,
            "fruits": chance.choice(WORDS["fruits"]),
            "color": tint,
            "a_color": with_article(tint),
            "kind": hero.kind,
            "a_kind": with_article(hero.kind),
            "a_friend_kind": with_article(friend.kind),
            "parent_word": relative,
        }

    def value(self, key: str) -> str:
        """Say what ``key`` stands for; ``f.``, ``g.`` and ``p.`` are friend, guide and parent."""
        if key in self.words:
            return self.words[key]
        if key in self.entities:
            return self.fill(self.entities[key].named(self.chance))
        if key == "a_thing":
            return with_article(self.entities["thing"].named(self.chance))
        if key == "name":
            self.entities["hero"].known = True
            return self.entities["hero"].name
        if key == "a_friend":
            self.entities["friend"].known = True
            return self.fill(self.entities["friend"].introduction)
        role, _, form = key.rpartition(".")
        entity = self.entities[{"f": "friend", "g": "guide", "p": "parent", "": "hero"}[role]]
        return entity.call if form == "call" else PRONOUNS[entity.pronoun][form]

    def fill(self, template: str) -> str:
        """Choose and fill from left to right, so that what is named first is introduced first."""
        told, at = "", 0
        while at < len(template):
            if template[at] == "[":
                options, at = split_choice(template, at)
                told += self.fill(self.chance.choice(options))
            elif template[at] == "{":
                end = template.index("}", at)
                key = template[at + 1 : end]
                value = self.value(key[0].lower() + key[1:])
                told, at = told + (capital(value) if key[0].isupper() else value), end + 1
            else:
                told, at = told + template[at], at + 1
        return told

    def tell(self, beat: Beat) -> str:
        """Tell one of the beat's alternatives that fit what was told before."""
        fitting = []
        for line in beat:
            signs, template = split_signs(line)
            if all(self.holds(sign) for sign in signs):
                fitting.append((signs, template))
        signs, template = self.chance.choice(fitting)
        self.tags |= {sign[1:] for sign in signs if sign[0] == "+"}
        return self.fill("" if template == "-" else template)

    def holds(self, sign: str) -> bool:
        """Say whether a line with this sign may be told now."""
        if sign[0] == "+":
            return True
        entity = self.entities.get(sign[1:])
        return (sign[1:] in self.tags or (entity is not None and entity.known)) == (sign[0] == "?")


def split_signs(line: str) -> tuple[list[str], str]:
    signs = []
    while line[0] in "?!+":
        sign, _, line = line.partition(" ")
        signs.append(sign)
    return signs, line


def split_choice(template: str, at: int) -> tuple[list[str], int]:
    """Take the alternatives of the choice that opens at ``at``, and where the template goes on."""
    depth, start, options = 0, at + 1, []
    for here in range(at, len(template)):
        sign = template[here]
        depth += (sign == "[") - (sign == "]")
        if depth == 0 or (depth == 1 and sign == "|"):
            options.append(template[start:here])
            start = here + 1
        if depth == 0:
            return options, here + 1
    raise ValueError(f"a choice is never closed in: {template}")


def tell_opening(story: Story, first_beat: Beat) -> str:
    """Tell how the story begins, up to the plot's first beat."""
    chance = story.chance
    (manner,) = chance.choices(list(OPENING_SHARES), list(OPENING_SHARES.values()))
    if manner == "scene" and "home" in story.tags:
        manner = "day"
    opening = story.tell(GRAMMAR[f"opening {manner}"].beats[0])
    link = story.tell(GRAMMAR["links" if manner == "scene" else "days"].beats[0])
    if manner == "plain" and opening:
        link = ""
    first = story.tell(first_beat)
    if link.startswith(("One", "But one")) and chance.random() < 0.2:
        link = link.rstrip(",")
    begun = f"{link} {first}" if link else capital(first)
    return f"{capital(opening)} {capital(begun)}"


def tell_story(chance: random.Random) -> str:
    """Tell one story: how it opens, one plot beat by beat, how it ends."""
    story = Story(chance)
    plot = chance.choice(PLOTS)
    story.tags |= plot.tags
    text = tell_opening(story, plot.beats[0])
    for number, beat in enumerate(plot.beats[1:], start=1):
        apart = "\n" if number % 3 == 2 and chance.random() < 0.4 else " "
        if not plot.tags and chance.random() < 0.06:
            text += " " + story.tell(GRAMMAR["details"].beats[0])
        told = story.tell(beat)
        text += f"{apart}{capital(told)}" if told else ""
    if chance.random() < 0.8:
        text += " " + capital(story.tell(GRAMMAR["endings"].beats[0]))
    if chance.random() < 0.08:
        text = story.tell(GRAMMAR["requests"].beats[0]) + "\n" + text
    if chance.random() < 0.25:
        for long, short in SHORT_FORMS:
            text = text.replace(long, short)
    return re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text)).strip()


def tell_stories(count: int, seed: int) -> list[str]:
    """Tell ``count`` stories that all differ; the same ones for the same seed."""
    chance = random.Random(seed)
    stories: dict[str, None] = {}
    while len(stories) < count:
        stories[tell_story(chance)] = None
    return list(stories)


if __name__ == "__main__":
    print(*tell_stories(int(sys.argv[1]) if len(sys.argv) > 1 else 10, seed=1), sep="\n\n")
