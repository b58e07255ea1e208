"""Made-up texts with personal data in five languages, and texts that look alike without any.

    texts = personal_texts(seed=0, per_family=20)      # the same for a seed
    python -m benchmarks.probes.personal --seed 0 --per-family 20 > personal.jsonl

Half the texts have none: every place of their template is filled with what only looks like it (a product for a name, a gate
for an address, an order for a phone number, a package with its version for an e-mail address). In the others most places are
personal data from Faker, the rest look-alikes, so that a text's other words say nothing. Nobody in them exists.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.probes.personal_templates import LOCALES, ROOMS, TEMPLATES, THINGS

REAL = 0.7  # of the places of a text that holds personal data
_PLACE = re.compile(r"{(name|address|phone|email)}")
_PACKAGES = ("numpy", "torch", "left-pad", "openssl", "react", "pandas", "requests", "zlib")
_SITES = ("docs.example.org/install", "status.example.com/eu", "intranet.example.net/wiki")


@dataclass(frozen=True)
class Personal:
    """A text; spans (start, end, kind) in characters of what is personal."""

    text: str
    spans: tuple[tuple[int, int, str], ...]
    family: str
    language: str

    @property
    def label(self) -> bool:
        """Whether anything in it is personal."""
        return bool(self.spans)

    def to_json(self, group: str = "family") -> dict[str, Any]:
        """A line of examples (docs/how-to/probe.md), grouped by template family or by language."""
        spans = [[start, end] for start, end, _ in self.spans]
        return {"text": self.text, "label": int(self.label), "spans": spans, "group": getattr(self, group)}


def personal_texts(seed: int, per_family: int, languages: tuple[str, ...] = tuple(LOCALES)) -> list[Personal]:
    """So many texts of each family in each language, half of them without personal data, in an order that is drawn."""
    chance, found = random.Random(seed), []
    for number, language in enumerate(languages):
        real = _real(language, seed * 1000 + number)
        for family, by_language in TEMPLATES.items():
            for at in range(per_family):
                template = by_language[language][at // 2 % len(by_language[language])]
                found.append(
                    _filled(template, real if at % 2 else {}, _alike(language, chance), family, language, chance)
                )
    chance.shuffle(found)
    return found


def _filled(
    template: str,
    real: dict[str, Callable[[], str]],
    alike: dict[str, Callable[[], str]],
    family: str,
    language: str,
    chance: random.Random,
) -> Personal:
    kinds = _PLACE.findall(template)
    personal = [bool(real) and chance.random() < REAL for _ in kinds]
    if real and not any(personal):
        personal[chance.randrange(len(kinds))] = True
    text, end, spans = "", 0, []
    for match, is_real in zip(_PLACE.finditer(template), personal, strict=True):
        kind = match[1]
        value = (real if is_real else alike)[kind]()
        text += template[end : match.start()]
        if is_real:
            spans.append((len(text), len(text) + len(value), kind))
        text, end = text + value, match.end()
    return Personal(text + template[end:], tuple(spans), family, language)


def _real(language: str, seed: int) -> dict[str, Callable[[], str]]:
    """Makers of personal data, of a generator of their own."""
    from faker import Faker

    made = Faker(LOCALES[language])
    made.seed_instance(seed)
    return {
        "name": made.name,
        "address": lambda: made.address().replace("\n", ", "),
        "phone": made.phone_number,
        "email": made.email,
    }


def _alike(language: str, chance: random.Random) -> dict[str, Callable[[], str]]:
    """Makers of what only looks like personal data."""

    def number(digits: int) -> str:
        return str(chance.randrange(10 ** (digits - 1), 10**digits))

    def package() -> str:
        version = ".".join(str(chance.randrange(20)) for _ in range(3))
        return chance.choice(
            [f"{chance.choice(_PACKAGES)}@{version}", f"@{chance.choice(_PACKAGES)}-team", chance.choice(_SITES)]
        )

    def order() -> str:
        forms = (f"{number(3)}-{number(4)}-{number(4)}", f"SN{number(9)}", f"{number(5)}/{number(3)}-{number(2)}")
        return chance.choice(forms)

    def room() -> str:
        return ROOMS[language].format(
            a=chance.randrange(1, 9), b=chance.randrange(1, 12), c=f"{chance.choice('ABCD')}{number(2)}"
        )

    return {
        "name": lambda: chance.choice(THINGS[language]).format(n=number(3)),
        "address": room,
        "phone": order,
        "email": package,
    }


def main() -> None:
    """Print examples, one a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-family", type=int, default=20)
    parser.add_argument("--group", choices=["family", "language"], default="family")
    args = parser.parse_args()
    for one in personal_texts(args.seed, args.per_family):
        print(json.dumps(one.to_json(args.group), ensure_ascii=False))


if __name__ == "__main__":
    main()
