"""Toy tasks of each kind that a tiny model learns in seconds: whether a word is good or bad, and where it stands."""

import dataclasses
import json
import random

import jax
import numpy as np

from data_pipeline.tokenizer import load
from flaxbert.config import PRESETS
from flaxbert.interop import huggingface
from flaxbert.interop.architectures import Checkpoint
from flaxbert.model.pretraining import initialize

GOOD, BAD = ["sunny", "merry", "lovely"], ["rainy", "gloomy", "dreadful"]
OTHER = ["day", "hill", "river", "house", "road", "garden", "town", "ship"]


def write_model(folder):
    """An export of one layer with parameters as they are before pretraining, in the words of the tasks."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *GOOD, *BAD, *OTHER, "what", "is", "0", "1", "2", "3"]
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"[unused{n}]" for n in range(95 - len(words)))]) + "\n")
    load(folder / "vocab.txt").save(folder / "tokenizer")
    small = dataclasses.replace(
        PRESETS["tiny"], vocab_size=95, hidden_size=32, num_layers=1, num_heads=2, feed_forward_size=64, max_length=32
    )
    params = jax.tree.map(np.asarray, initialize(small, jax.random.key(0)))
    huggingface.export(Checkpoint(small, params), folder / "tokenizer", folder / "model", "card\n")
    return folder / "model"


def sentence(chance, words):
    """One of the words among three others, and where it stands."""
    place, found = chance.randrange(4), chance.choices(OTHER, k=4)
    found[place] = chance.choice(words)
    return found, place


def classification(chance):
    label = chance.randrange(2)
    return {"text": " ".join(sentence(chance, [BAD, GOOD][label])[0]), "label": str(label)}


def pair(chance):
    first, second = (classification(chance) for _ in range(2))
    return {"first": first["text"], "second": second["text"], "label": second["label"]}


def regression(chance):
    found = classification(chance)
    return {"text": found["text"], "score": -2.0 if found["label"] == "0" else 2.0}


def tagging(chance):
    words, place = sentence(chance, GOOD)
    return {"tokens": words, "tags": ["B-X" if index == place else "O" for index in range(4)]}


def choice(chance):
    label = chance.randrange(2)
    choices = [" ".join(sentence(chance, GOOD if index == label else BAD)[0]) for index in range(2)]
    return {"context": "what", "choices": choices, "label": label}


def question(chance):
    words, place = sentence(chance, GOOD)
    context = " ".join(words)
    answers = {"text": [words[place]], "answer_start": [context.index(words[place])]}
    return {"id": str(chance.random()), "question": "what is", "context": context, "answers": answers}


def question_or_none(chance):
    """Every third question has no answer: its context holds none of the words."""
    row = question(chance)
    if chance.randrange(3):
        return row
    return row | {"context": " ".join(chance.choices(OTHER, k=4)), "answers": {"text": [], "answer_start": []}}


KINDS = {
    "classification": (classification, "accuracy"), "pair": (pair, "accuracy"), "regression": (regression, "spearman"),
    "ner": (tagging, "entity_f1"), "multiple_choice": (choice, "accuracy"), "qa": (question, "exact_match"),
    "squad2": (question_or_none, "exact_match"),
}  # fmt: skip


def write_data(folder, draw, train=160, dev=40):
    folder.mkdir(exist_ok=True)
    chance = random.Random(0)
    for name, count in (("train", train), ("dev", dev)):
        rows = [draw(chance) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
