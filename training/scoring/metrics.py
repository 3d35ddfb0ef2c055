"""How good captions are: the coco-caption scores, how sure they are, and how varied the captions.

The scores come from pycocoevalcap, which needs Java for its tokenizer (Stanford's PTB) and METEOR. The tokenizer is
made for English and knows no words of Chinese, Hindi or Thai: captions that are not in Latin letters are compared by
`model.vocabulary.words_of` instead, by the character where a script has no spaces.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.vocabulary import words_of

log = logging.getLogger(__name__)

SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


class MetricError(RuntimeError):
    """The scores cannot be computed here; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Report:
    """The scores of one caption a picture.

    scores: percent, by the names in `SCORES`. intervals: 95 % bootstrap intervals over pictures, of
        BLEU-4 and CIDEr, percent (document frequencies are held fixed).
    distinct: different captions. mean_length: words a caption. vocabulary: different words used.
    repeated_bigrams: percent of captions that hold a pair of words twice.
    per_picture: (N,) CIDEr, ROUGE-L and METEOR of each picture, percent.
    tokens, reference_tokens: what was compared.
    """

    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    distinct: int
    mean_length: float
    vocabulary: int
    repeated_bigrams: float
    per_picture: Mapping[str, NDArray[np.float64]]
    tokens: Sequence[Sequence[str]]
    reference_tokens: Sequence[Sequence[Sequence[str]]]


def require_java() -> None:
    """Raise `MetricError` unless a working Java is on the path; call it before long work, not after."""
    java = shutil.which("java")
    # macOS ships a `java` that only says where to get one, so it must be run.
    if java is None or subprocess.run([java, "-version"], capture_output=True).returncode != 0:
        raise MetricError(
            "scoring needs Java 8 or newer (for METEOR and the PTB tokenizer), and there is no working `java` on "
            "the PATH; install one, for example with: apt-get install default-jre-headless, or: brew install openjdk"
        )


def score(captions: Sequence[str], references: Sequence[Sequence[str]], resamples: int = 1000) -> Report:
    """Score one caption a picture against its references, raw text both.

    Raises `MetricError` without Java, `ValueError` where a picture has no reference.
    """
    if len(captions) != len(references) or not captions or not all(references):
        raise ValueError("score needs at least one caption, and for each caption at least one reference")
    require_java()
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    texts = [*captions, *(text for texts in references for text in texts)]
    if foreign := not in_latin_letters(texts):
        log.warning(
            "these captions are not in Latin letters: scored by words, or by characters where a script has no spaces, "
            "not by PTB tokens; METEOR compares them as they stand, without stems or synonyms"
        )
    lines = [" ".join(words_of(text)) for text in texts] if foreign else tokenize(texts)
    found, rest = lines[: len(captions)], iter(lines[len(captions) :])
    truth = [[next(rest) for _ in texts] for texts in references]
    results = {i: [line] for i, line in enumerate(found)}
    ground_truth = dict(enumerate(truth))

    bleu_scorer = BleuScorer(n=4)
    for line, texts in zip(found, truth, strict=True):
        bleu_scorer += (line, texts)
    bleu, _ = bleu_scorer.compute_score(option="closest")
    counts = np.array([_bleu_counts(entry) for entry in bleu_scorer.ctest], np.float64)
    cider, ciders = Cider().compute_score(ground_truth, results)
    rouge, rouges = Rouge().compute_score(ground_truth, results)
    scorer = _meteor(Meteor)
    try:
        meteor, meteors = scorer.compute_score(ground_truth, results)
    finally:
        scorer.meteor_p.stdout.close()  # left open by its own clean-up
        scorer.meteor_p.stderr.close()

    draws = bootstrap(len(captions), resamples)
    tokens = [line.split() for line in found]
    return Report(
        scores={name: 100 * float(value) for name, value in zip(SCORES, (*bleu, meteor, rouge, cider), strict=True)},
        intervals={
            "BLEU-4": interval(100 * bleu_of(draws @ counts)),
            "CIDEr": interval(100 * (draws @ ciders) / len(captions)),
        },
        distinct=len(set(found)),
        mean_length=sum(map(len, tokens)) / len(tokens),
        vocabulary=len({word for words in tokens for word in words}),
        repeated_bigrams=100 * sum(map(repeats_bigram, tokens)) / len(tokens),
        per_picture={
            name: 100 * np.asarray(values, np.float64)
            for name, values in (("CIDEr", ciders), ("ROUGE-L", rouges), ("METEOR", meteors))
        },
        tokens=tokens,
        reference_tokens=[[line.split() for line in texts] for texts in truth],
    )


def in_latin_letters(texts: Sequence[str]) -> bool:
    """Whether nine letters of ten are Latin: what the PTB tokenizer, made for English, can be given."""
    letters = [x for text in texts for x in text if x.isalpha()]
    latin = sum(x < "\u0250" or unicodedata.name(x, "").startswith("LATIN") for x in letters)
    return latin >= 0.9 * len(letters)


def _meteor(make: Callable[[], Any]) -> Any:
    """A METEOR whose Java reads UTF-8 in every locale: in some every foreign letter would be the same `?`."""
    before = os.environ.get("JAVA_TOOL_OPTIONS")
    os.environ["JAVA_TOOL_OPTIONS"] = f"{before or ''} -Dfile.encoding=UTF-8".strip()
    try:
        return make()
    finally:
        if before is None:
            del os.environ["JAVA_TOOL_OPTIONS"]
        else:
            os.environ["JAVA_TOOL_OPTIONS"] = before


def tokenize(texts: Sequence[str]) -> list[str]:
    """Raw texts -> PTB tokens, lower case, without punctuation, joined by spaces."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tokenizer works line by line: no text may hold a line break of any kind, and none may be blank.
    tidy = [" ".join(unicodedata.normalize("NFC", text).split()) or "." for text in texts]
    lines = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(tidy)})
    if len(lines) != len(texts):
        raise MetricError(f"the PTB tokenizer returned {len(lines)} lines for {len(texts)}")
    return [lines[i][0] for i in range(len(texts))]


def repeats_bigram(words: Sequence[str]) -> bool:
    """True where some pair of neighbouring words occurs twice: the mark of a word loop."""
    bigrams = list(itertools.pairwise(words))
    return len(set(bigrams)) < len(bigrams)


def expected_calibration_error(probabilities: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Mean gap between how sure and how right, over `bins` equal bins of probability (Guo et al. 2017), in [0, 1].

    probabilities: (N,) of what the model thought most likely. correct: (N,) whether it was so.
    """
    p, right = np.asarray(probabilities, np.float64), np.asarray(correct, np.float64)
    if p.shape != right.shape or p.ndim != 1 or not len(p):
        raise ValueError("expected_calibration_error needs two vectors of the same length")
    if p.min() < 0 or p.max() > 1:
        raise ValueError("probabilities must lie in [0, 1]")
    index = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=p - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


def bleu_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corpus BLEU-4 from summed counts (..., 10): correct and guessed n-grams of 1 to 4 words, lengths."""
    correct, guessed, length, reference_length = (
        counts[..., :4], counts[..., 4:8], counts[..., 8], counts[..., 9],
    )  # fmt: skip
    precision = np.prod((correct + 1e-15) / (guessed + 1e-9), axis=-1) ** 0.25  # pycocoevalcap's smoothing
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return np.asarray(precision * np.exp(np.minimum(0.0, 1 - 1 / ratio)))


def _bleu_counts(entry: Mapping[str, list[int] | int]) -> list[int]:
    """One caption's counts as pycocoevalcap keeps them; its reference length is the closest of several."""
    correct, guessed, length, lengths = entry["correct"], entry["guess"], entry["testlen"], entry["reflen"]
    assert isinstance(correct, list)
    assert isinstance(guessed, list)
    assert isinstance(length, int)
    assert isinstance(lengths, list)
    return [*correct, *guessed, length, min((abs(n - length), n) for n in lengths)[1]]


def bootstrap(pictures: int, count: int = 1000) -> NDArray[np.float64]:
    """(count, pictures): how often each picture is in each bootstrap sample; the same at every call."""
    generator = np.random.default_rng(0)
    return generator.multinomial(pictures, np.full(pictures, 1 / pictures), size=count).astype(np.float64)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of `values`."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
