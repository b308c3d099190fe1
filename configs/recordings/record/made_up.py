"""Made-up records, the same on every machine: orders of a shop, in text, numbers and blobs.

Words come from a made-up vocabulary, with the few frequent and many rare words of a real language; nothing
is about anybody.
"""

from __future__ import annotations

import random

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstv" for vowel in "aeo"]
_COLOURS = ("red", "green", "blue", "black", "white", "grey")
_STATES = ("new", "paid", "packed", "shipped", "returned")


class MadeUp:
    """An endless source of records."""

    def __init__(self, seed: int, note_words: tuple[int, int]) -> None:
        self._rng = random.Random(seed)
        self._note_words = note_words
        self._words = ["".join(self._rng.choices(_SYLLABLES, k=self._rng.randint(2, 4))) for _ in range(3000)]
        # Zipf-like: the k-th word is taken with weight 1 / (k + 3).
        self._weights = [0.0]
        for rank in range(len(self._words)):
            self._weights.append(self._weights[-1] + 1.0 / (rank + 3))

    def words(self, count: int) -> str:
        """That many words."""
        return " ".join(self._rng.choices(self._words, cum_weights=self._weights[1:], k=count))

    def record(self, number: int) -> dict[str, object]:
        """Record `number`: what a shop knows of an order."""
        rng = self._rng
        return {
            "id": number,
            "key": f"{rng.getrandbits(64):016x}",
            "customer": f"{self.words(1).title()} {self.words(1).title()}",
            "state": rng.choice(_STATES),
            "total": rng.randint(100, 99999) / 100,
            "items": [
                {"sku": rng.randint(1000, 4000), "count": rng.randint(1, 5), "colour": rng.choice(_COLOURS)}
                for _ in range(rng.randint(1, 4))
            ],
            "note": self.words(rng.randint(*self._note_words)),
        }

    def blob(self, nr_bytes: int) -> bytes:
        """Bytes that do not compress, as of a picture."""
        return self._rng.randbytes(nr_bytes)

    def hot_number(self, centre: float, spread: int, nr_records: int) -> int:
        """A record near `centre` (most of the time) or anywhere (now and then)."""
        if self._rng.random() < 0.03:
            return self._rng.randrange(nr_records)
        return int(centre + self._rng.gauss(0.0, 1.0) * spread) % nr_records

    def chance(self) -> float:
        """A number from 0 to 1."""
        return self._rng.random()
