"""200 predictions beside what is right for each kind of task, always the same: with ties, predictions of nothing and
questions without an answer. `DIGEST` tells whether they still are those that the comparisons were made on.
"""

import hashlib
import json
import random

COUNT = 200
DIGEST = "578849c36049944f"

# Articles, punctuation, case and words of which normalisation leaves nothing.
WORDS = "The the a An fox Fox! fox's d.o.g dog dog (1895) \u00fcber u.s. \u2014 - \u2014the\u2014 --".split()
TAGS = ("O", "O", "B-A", "I-A", "B-B", "I-B")


def _draws(name):
    """(a number in [0, 1), one of a sequence): from `random` alone, which Python keeps from version to version."""
    draw = random.Random(name).random
    return draw, lambda options: options[int(draw() * len(options))]


def labels(names, task):
    """(predictions, references): two in three right, half of the references of the first label."""
    draw, pick = _draws(f"labels of {task}")
    truth = [names[0] if draw() < 0.5 else pick(names) for _ in range(COUNT)]
    return [right if draw() < 0.6 else pick(names) for right in truth], truth


def numbers(task):
    """(predictions, references), with many equal values in both."""
    draw, _ = _draws(f"numbers of {task}")
    truth = [round(draw() * 5, 1) for _ in range(COUNT)]
    return [round(right + 3 * (draw() - draw()), 1) for right in truth], truth


def sentences(task):
    """(predictions, references): tags with broken sequences; in some sentences nothing is found, or is there."""
    draw, pick = _draws(f"sentences of {task}")
    truth, found = [], []
    for _ in range(COUNT):
        size, kind = 1 + int(draw() * 11), draw()
        truth.append(["O" if kind < 0.1 else pick(TAGS) for _ in range(size)])
        found.append(["O" if kind > 0.85 else tag if draw() < 0.8 else pick(TAGS) for tag in truth[-1]])
    return found, truth


def answers(task, impossible):
    """(predictions, references, scores of no answer): predictions may be empty; in `impossible` so may references, and
    the scores, log-odds of one decimal, are often equal.
    """
    draw, pick = _draws(f"answers of {task}")

    def text(least):
        return " ".join(pick(WORDS) for _ in range(least + int(draw() * (5 - least))))

    truth = [
        () if impossible and draw() < 0.4 else tuple(text(1) for _ in range(1 + int(draw() * 3))) for _ in range(COUNT)
    ]
    found = ["" if draw() < 0.08 else text(0) if draw() < 0.4 or not right else pick(right) for right in truth]
    nulls = [round(3 * (draw() - draw()) + (2 if not right else -2) * draw(), 1) - 1 for right in truth]
    return found, truth, nulls


def digest():
    """Of all that is here."""
    everything = [
        labels(("a", "b", "c"), "x"), numbers("x"), sentences("x"), answers("x", False), answers("x", True),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]
