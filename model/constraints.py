"""What a caption is made to say and not to say, from words to the tokens that a search works with."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import SearchConfig
from model.errors import ConfigError
from model.vocabulary import CONTINUES, UNKNOWN, Vocabulary, is_spaceless, runs_of, words_of


@dataclass(frozen=True, slots=True)
class Constraints:
    """Token ids: how every caption starts, what stands in none, and what must not go on with the start's last word."""

    start: tuple[int, ...] = ()
    avoid: tuple[tuple[int, ...], ...] = ()
    no_continuing: tuple[int, ...] = ()

    @classmethod
    def of(cls, search_config: SearchConfig, vocabulary: Vocabulary) -> Constraints:
        """Those of a search; raises `ConfigError` for words that the vocabulary has not, and for what none can do."""
        start = _ids(search_config.start_with, vocabulary, "start_with") if search_config.start_with else ()
        avoid = tuple(_ids(words, vocabulary, "avoid") for words in search_config.avoid)
        if len(start) > search_config.max_length:
            raise ConfigError(
                f"start_with has {len(start)} tokens, and captions have {search_config.max_length} at most"
            )
        for words, ids in zip(search_config.avoid, avoid, strict=True):
            if any(start[i : i + len(ids)] == ids for i in range(len(start))):
                raise ConfigError(f"start_with says {words!r}, which is to be avoided")
        # The word after 'a skate' is another one, no 'a skateboard'; a script without spaces just goes on.
        whole = bool(start) and not is_spaceless(search_config.start_with.rstrip()[-1:])
        pieces = (i for i, word in enumerate(vocabulary.words) if word.startswith(CONTINUES)) if whole else ()
        return cls(start, avoid, tuple(pieces))


FREE = Constraints()


def _ids(text: str, vocabulary: Vocabulary, name: str) -> tuple[int, ...]:
    """The tokens of words as people write them; every one has to be known."""
    words = (runs_of if vocabulary.in_pieces else words_of)(text)
    if not words:
        raise ConfigError(f"{name} has no word in {text!r}")
    for word in words:
        ids = vocabulary.encode(word)
        if not ids or UNKNOWN in ids:
            raise ConfigError(f"{name}: the model does not know the word {word!r}")
    return tuple(vocabulary.encode(text))
