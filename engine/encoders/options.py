"""The options behind an encoder's name: `...?granularities=64,128,256&query_prompt=query:%20`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from nestvec.errors import InvalidInput


@dataclass(frozen=True)
class Options:
    """Options by name. What they hold is never repeated in an error: somebody may have put a secret there."""

    given: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, allowed: tuple[str, ...]) -> Options:
        """From `a=1&b=2`, percent-encoded. Raises InvalidInput for a name that is unknown or given twice."""
        pairs = parse_qsl(text, keep_blank_values=True)
        given = dict(pairs)
        unknown = sorted(set(given) - set(allowed))
        if unknown or len(given) < len(pairs) or (text and not pairs):
            came = f"unknown {', '.join(unknown)}" if unknown else "one without a value, or given twice"
            raise InvalidInput(f"an encoder's options are {', '.join(allowed)}, each at most once; got {came}")
        return cls(given)

    def text(self, name: str) -> str | None:
        """The option as it stands."""
        return self.given.get(name)

    def number(self, name: str, default: float, most: float) -> float:
        """A number over 0 and at most `most`."""
        given = self.given.get(name)
        if given is None:
            return default
        try:
            value = float(given)
        except ValueError:
            value = 0.0
        if not 0 < value <= most:
            raise InvalidInput(f"the encoder's option {name} must be a number over 0 and at most {most:g}")
        return value

    def integer(self, name: str) -> int | None:
        """A whole number of at least 1, None if not given."""
        found = self.integers(name)
        if len(found) > 1:
            raise InvalidInput(f"the encoder's option {name} must be one whole number")
        return found[0] if found else None

    def integers(self, name: str) -> tuple[int, ...]:
        """Whole numbers of at least 1, ascending and divided by commas; empty if not given."""
        given = self.given.get(name)
        if given is None:
            return ()
        parts = given.split(",")
        numbers = [int(part) for part in parts if part.isascii() and part.isdigit() and 0 < len(part) < 10]
        if len(numbers) < len(parts) or 0 in numbers or numbers != sorted(set(numbers)):
            raise InvalidInput(f"the encoder's option {name} must be whole numbers, ascending, such as 64,128,256")
        return tuple(numbers)

    def length(self) -> int | None:
        """The length of the vectors: `dims`, or the last of `granularities`; None: as the model makes them."""
        dims, granularities = self.integer("dims"), self.integers("granularities")
        if dims is not None and granularities and dims != granularities[-1]:
            raise InvalidInput(f"the last of the encoder's granularities must be its dims, {dims}")
        return granularities[-1] if granularities else dims

    def flag(self, name: str) -> bool:
        """True for 1, False for 0 or nothing."""
        given = self.given.get(name, "0")
        if given not in ("0", "1"):
            raise InvalidInput(f"the encoder's option {name} must be 0 or 1")
        return given == "1"
