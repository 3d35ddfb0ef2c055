"""Which words captions write with capitals within a sentence: German nouns, names, "T-shirt" and "I"."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from model.vocabulary import words_of, written_of


def learn_capitals(captions: Iterable[str]) -> dict[str, str]:
    """Word -> how most captions write it where it does not begin a sentence, if at least two do and not in lower case.

    A caption with no word in lower case after its first, such as a headline, says nothing of its words.
    """
    forms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for caption in captions:
        within = [written for written, begins in written_of(caption) if not begins]
        if not any(written.islower() for written in within):
            continue
        for written in within:
            word = written.lower()
            if len(word) == len(written) and words_of(written) == [word]:
                forms[word][written] += 1
    learnt = {}
    for word, counts in forms.items():
        [(written, count)] = counts.most_common(1)
        if written != word and count >= 2 and 2 * count > counts.total():
            learnt[word] = written
    return dict(sorted(learnt.items()))
