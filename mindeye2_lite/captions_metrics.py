"""Is what a caption says true, and how like people's words is it?

    said         one mapping per caption, e.g. {"kind": "cat", "color": None, "ground": "sand"}
    truth        one list of names per attribute, in the order of the captions
    captions     one sentence per picture
    references   per picture one sentence, or several of which the most similar counts
    towers       score name -> sentences to embeddings (sentences, dim): `text_towers.towers`

Photographs have no known truth, so the paper compares sentences (its Table 2): from the brain, from
the picture, and by people. Our scenes have one (`scenes.mentioned` reads the names off a sentence).
METEOR looks synonyms up in WordNet, which is not shipped; without it the score has another name.
Read with notebook 09.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mindeye2_lite import paths
from mindeye2_lite.metrics import Score, score

ALL = "all of them"
METEOR, WITHOUT = "METEOR", "METEOR without synonyms"
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-L": "rougeL"}
BRAIN_COCO, IMAGE_COCO, BRAIN_IMAGE = "brain vs COCO", "image vs COCO", "brain vs image"
RATIO = "ratio"  # of "brain vs image" to "image vs COCO", as in the paper
WRONG_PAIRS = 2000  # about as many are compared word by word for chance: a second or two

References = Sequence[str] | Sequence[Sequence[str]]
Towers = Mapping[str, Callable[[list[str]], Tensor]]


def share(name: str, right: np.ndarray, chance: float | None = None) -> Score:
    """The share of right answers with Wilson's 95% interval (Wilson 1927).

    Unlike p ± 1.96 √(p(1−p)/n) it stays in [0, 1] and has a width at p = 1. ValueError if there is
    no answer.
    """
    from scipy.stats import binomtest  # takes a second to import

    right = np.asarray(right, dtype=bool)
    if not len(right):
        raise ValueError(f"no answers to take the share {name!r} of: give at least one")
    limits = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    value, each = float(right.mean()), right.astype(float)
    return Score(name, value, limits.low, limits.high, chance, len(right), per_image=each)


def grade(
    said: Sequence[Mapping[str, str | None]], truth: Mapping[str, Sequence[str]]
) -> dict[str, Score]:
    """Per attribute, and for all of them at once, how often the caption names it rightly.

    What is not named is wrong. Chance gives every caption to every other picture. ValueError if
    captions and pictures do not pair up or are fewer than two. Source: ours.
    """
    for name, names in truth.items():
        if len(names) != len(said) or len(said) < 2:
            raise ValueError(
                f"{len(said)} captions but {len(names)} true values of {name}: "
                "give one caption per picture, at least two"
            )
    agree = {  # row: caption, column: picture
        name: np.array([one[name] for one in said], object)[:, None] == np.array(names, object)
        for name, names in truth.items()
    }
    agree[ALL] = np.all(list(agree.values()), axis=0)
    return {name: share(name, np.diag(m), _off_diagonal(m)) for name, m in agree.items()}


def _off_diagonal(matrix: np.ndarray) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


# --- sentences against sentences


def comparisons(
    brain: Sequence[str],
    image: Sequence[str],
    written: References,
    towers: Towers | None = None,
    *,
    wordnet: Any = None,
    seed: int = 0,
) -> dict[str, dict[str, Score]]:
    """The paper's three comparisons and a ratio, each with every score of `compare`.

    Captions from the brain against people's, captions from the picture against people's, and the
    first two against each other. The ratio is (brain vs image) / (image vs COCO): how much of what
    the captioner can do survives the way through the brain. It may exceed 1, as two captions by
    one captioner are worded alike. Where image vs COCO is not above 0, there is no ratio.
    """
    how = {"towers": towers, "wordnet": wordnet, "seed": seed}
    found = {
        BRAIN_COCO: compare(brain, written, **how),
        IMAGE_COCO: compare(image, written, **how),
        BRAIN_IMAGE: compare(brain, image, **how),
    }
    pairs = {name: (top, found[IMAGE_COCO][name]) for name, top in found[BRAIN_IMAGE].items()}
    ratios = {name: _ratio(*pair, seed) for name, pair in pairs.items() if pair[1].value > 0}
    return {**found, RATIO: ratios}


def compare(
    captions: Sequence[str],
    references: References,
    towers: Towers | None = None,
    *,
    wordnet: Any = None,
    seed: int = 0,
) -> dict[str, Score]:
    """METEOR, ROUGE-1, ROUGE-L, and the cosine in each tower, per caption and averaged.

    METEOR is nltk's and ROUGE is rouge_score's F-measure without stemming, both with the defaults
    of Hugging Face's `evaluate`, which the paper calls. `wordnet` is nltk's reader; None gives
    "METEOR without synonyms". Chance pairs captions with other pictures' references: in towers with
    all of them, elsewhere each with as many as make WRONG_PAIRS, at least one. ValueError in one
    line where captions and references do not pair up, are fewer than two, or one is empty.
    """
    groups = _checked(captions, references)
    scorers = {METEOR if wordnet else WITHOUT: functools.partial(meteor, wordnet=wordnet)}
    scorers |= {name: functools.partial(rouge, kind=kind) for name, kind in ROUGE.items()}
    found = {name: _of_words(name, f, captions, groups, seed) for name, f in scorers.items()}
    for name, tower in (towers or {}).items():
        similar = _cosines(tower, list(captions), groups)
        right, chance = np.diag(similar).copy(), _off_diagonal(similar)
        found[name] = score(name, right, chance=chance, seed=seed)
    return found


def meteor(caption: str, references: Sequence[str], wordnet: Any = None) -> float:
    """nltk's METEOR of a caption, the best over its references, in [0, 1].

    Words match as they are, by stem (Porter), or as synonyms; without `wordnet` nothing is a
    synonym. Official: sentences are split first, by a model that is not shipped. That changes
    only full stops inside of a caption of several sentences.
    """
    from nltk.translate.meteor_score import meteor_score

    reader = wordnet or SimpleNamespace(synsets=lambda word: [])
    written, said = [_words(reference) for reference in references], _words(caption)
    return float(meteor_score(written, said, stemmer=_stemmer(), wordnet=reader))


def rouge(caption: str, references: Sequence[str], kind: str = "rouge1") -> float:
    """ROUGE's F-measure of a caption, the best over its references, without stemming."""
    return float(_scorer(kind).score_multi(list(references), caption)[kind].fmeasure)


def wordnet(folder: str | Path | None = None) -> Any:
    """nltk's reader of WordNet, from where nltk looks, then from `folder`.

    `folder` holds corpora/wordnet.zip or what is in it; by default it is "nltk_data" among the
    assets. It joins nltk's search path. FileNotFoundError in one line where there is none.
    """
    import warnings

    import nltk
    from nltk.corpus import LazyCorpusLoader, WordNetCorpusReader

    folder = Path(folder or paths.assets("nltk_data")).resolve()
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    try:
        with warnings.catch_warnings():  # it warns that there are no other languages
            warnings.simplefilter("ignore")
            reader = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
            reader.ensure_loaded()
    except LookupError as error:
        raise FileNotFoundError(
            f"no WordNet in {folder / 'corpora'}: copy NLTK's wordnet.zip there, or run "
            "nltk.download('wordnet'), or leave `wordnet` out for METEOR without synonyms"
        ) from error
    return reader


def table(found: Mapping[str, Mapping[str, Score]]) -> pd.DataFrame:
    """One row per comparison and metric: value, 95% interval, chance, n."""
    rows = [
        (comparison, s.name, s.value, s.low, s.high, s.chance, s.n)
        for comparison, scores in found.items()
        for s in scores.values()
    ]
    names = ["comparison", "metric", "value", "95% low", "95% high", "chance", "n"]
    return pd.DataFrame(rows, columns=names).set_index(["comparison", "metric"])


def _of_words(
    name: str,
    scorer: Callable[[str, tuple[str, ...]], float],
    captions: Sequence[str],
    groups: list[tuple[str, ...]],
    seed: int,
) -> Score:
    once = functools.cache(scorer)  # captions are often the same
    right = np.array([once(one, group) for one, group in zip(captions, groups, strict=True)])
    wrong = [once(captions[i], groups[j]) for i, j in _wrong_pairs(len(captions), seed)]
    return score(name, right, chance=float(np.mean(wrong)), seed=seed)


def _wrong_pairs(n: int, seed: int) -> list[tuple[int, int]]:
    """Captions and other pictures: all pairs if these are few, else as many of each caption."""
    order = np.random.default_rng(seed).permutation(n)
    steps = min(n - 1, max(1, WRONG_PAIRS // n))
    rolled = [np.roll(order, step) for step in range(1, steps + 1)]
    return [pair for other in rolled for pair in zip(order.tolist(), other.tolist(), strict=True)]


def _cosines(
    tower: Callable[[list[str]], Tensor], captions: list[str], groups: list[tuple[str, ...]]
) -> Float[np.ndarray, "captions pictures"]:
    """Of each caption with the most similar reference of each picture."""
    flat = [reference for group in groups for reference in group]
    said, known = (F.normalize(tower(x).double().cpu(), dim=1) for x in (captions, flat))
    if not bool(torch.isfinite(said).all() and torch.isfinite(known).all()):
        raise ValueError("a text tower gave embeddings that are no finite numbers")
    first = np.cumsum([0, *map(len, groups)])[:-1]
    return np.maximum.reduceat((said @ known.T).numpy(), first, axis=1)


def _ratio(top: Score, ground: Score, seed: int, draws: int = 2000) -> Score:
    """Of two means over the same pictures; both are drawn again with the same pictures."""
    n, rng = top.n, np.random.default_rng(seed)
    often = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (often @ top.per_image) / (often @ ground.per_image)
    low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
    chance = None if top.chance is None else top.chance / ground.value
    each = top.per_image / ground.value
    value = top.value / ground.value
    return Score(top.name, value, float(low), float(high), chance, n, per_image=each)


def _checked(captions: Sequence[str], references: References) -> list[tuple[str, ...]]:
    """References as a tuple per picture."""
    if len(captions) != len(references) or len(captions) < 2:
        raise ValueError(
            f"{len(captions)} captions but references of {len(references)} pictures: "
            "give one caption per picture, at least two"
        )
    groups = [(one,) if isinstance(one, str) else tuple(one) for one in references]
    for i, (caption, group) in enumerate(zip(captions, groups, strict=True)):
        if not caption.strip():
            raise ValueError(f"caption {i} is empty: give a sentence for each picture")
        if not group or not all(reference.strip() for reference in group):
            raise ValueError(f"a reference of picture {i} is empty: leave it or the picture out")
    return groups


@functools.cache
def _words(sentence: str) -> list[str]:
    from nltk.tokenize import word_tokenize

    return word_tokenize(sentence, preserve_line=True)  # its sentence splitter is not shipped


@functools.cache
def _stemmer() -> Any:
    """nltk's Porter, which computes every stem anew, with a memory: four times as fast here."""
    from nltk.stem.porter import PorterStemmer

    return SimpleNamespace(stem=functools.cache(PorterStemmer().stem))


@functools.cache
def _scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False)
