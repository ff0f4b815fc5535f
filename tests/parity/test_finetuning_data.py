"""Rows, windows, labels and scores of fine-tuning beside those of transformers' tokenizers and metrics."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.tokenizer import load
from data_pipeline.tokenizer_training import train
from flaxbert.finetuning.encoding import encode
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.metrics import score
from flaxbert.finetuning.tasks import TASKS

transformers = pytest.importorskip("transformers", reason="parity needs transformers: install the extra `parity`")

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["wordpiece", "sentencepiece"])
def tokenizers(request, shared_data, tmp_path_factory):
    """(ours as a model holds it, what AutoTokenizer makes of its folder)."""
    if request.param == "wordpiece":
        own = load(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    else:
        text = (shared_data / "tasks" / "qnli-small" / "train.tsv").read_text(encoding="utf-8").splitlines()
        own = train("sentencepiece", text, 2000, lowercase=True)
    folder = tmp_path_factory.mktemp("tokenizer")
    own.save(folder)
    return own.to_rust(), transformers.AutoTokenizer.from_pretrained(folder)


def differing(found, expected):
    return sum(a != b for a, b in zip(found, expected, strict=True))


def test_rows_of_pairs_are_those_of_transformers(tokenizers, shared_data, assert_parity):
    rust, auto = tokenizers
    examples = read_examples(shared_data / "tasks" / "qnli-small" / "dev.tsv", TASKS["qnli"])
    # An even number of tokens for the pair: of an odd one, transformers gives the longer text the last, and the
    # reference the first text.
    features = encode(examples, TASKS["qnli"], rust, max_length=43)
    pairs = [(item.first, item.second) for item in examples.items]
    expected = auto(pairs, truncation="longest_first", max_length=43)
    assert max(map(len, expected["input_ids"])) == 43
    found = [feature.rows[0].input_ids.tolist() for feature in features]
    assert_parity("fine-tuning rows of QNLI that differ", "transformers AutoTokenizer",
                  differing(found, expected["input_ids"]), 0)  # fmt: skip
    rows = [feature.rows[0] for feature in features]
    segments = [[int(n >= row.first_length) for n in range(len(row.input_ids))] for row in rows]
    assert segments == expected["token_type_ids"]


def test_windows_and_answers_are_those_of_transformers(tokenizers, shared_data, assert_parity):
    rust, auto = tokenizers
    examples = read_examples(shared_data / "tasks" / "qa-newwiki" / "dev.json", TASKS["squad"])
    task = dataclasses.replace(TASKS["squad"], doc_stride=48)
    features = encode(examples, task, rust, max_length=160)
    found, expected, spans, theirs = [], [], [], []
    for number, item in enumerate(examples.items):
        own = [feature for feature in features if feature.example == number]
        asked = len(auto(item.question, add_special_tokens=False)["input_ids"])
        if asked > task.max_question_length:
            continue
        room = 160 - asked - 3
        encoding = auto(
            item.question, item.context, truncation="only_second", max_length=160, stride=room - 48,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        found += [feature.rows[0].input_ids.tolist() for feature in own]
        expected += encoding["input_ids"]
        spans += [feature.label for feature in own]
        theirs += [
            span_of(item.answers[0], encoding["offset_mapping"][n], encoding.sequence_ids(n), item.context)
            for n in range(len(encoding["input_ids"]))
        ]
    assert len(found) > 1.2 * len(examples.items)
    assert_parity("windows of questions that differ", "transformers AutoTokenizer", differing(found, expected), 0)
    assert_parity("answers' tokens that differ", "transformers' offsets", differing(spans, theirs), 0)


def span_of(answer, offsets, sequences, context):
    """The tokens that the answer touches, as transformers' examples find them; (0, 0) where not all of it is there."""
    end = answer.start + len(answer.text)
    inside = [n for n, sequence in enumerate(sequences) if sequence == 1]
    # A piece of SentencePiece holds the space before a word, which is no part of the answer.
    touched = [n for n in inside if context[max(offsets[n][0], answer.start):min(offsets[n][1], end)].strip()]
    if not touched or offsets[inside[0]][0] > answer.start or offsets[inside[-1]][1] < end:
        return 0, 0
    return touched[0], touched[-1]


def test_words_bear_their_labels_where_transformers_word_ids_begin(tokenizers, shared_data, assert_parity):
    rust, auto = tokenizers
    examples = read_examples(shared_data / "tasks" / "wnut17" / "dev.conll", TASKS["ner"])
    features = encode(examples, TASKS["ner"], rust, max_length=512)
    ids, labels = [], []
    numbers = {label: number for number, label in enumerate(examples.labels)}
    kept = [n for n, item in enumerate(examples.items) if all(auto.tokenize(word) for word in item.words)]
    assert len(kept) > 0.95 * len(examples.items), "transformers drops words of which nothing is left; we do not"
    for number in kept:
        item = examples.items[number]
        encoding = auto(list(item.words), is_split_into_words=True)
        words = encoding.word_ids()
        first = [n for n, word in enumerate(words) if word is not None and word != words[n - 1]]
        ids.append(encoding["input_ids"])
        labels.append([numbers[item.tags[words[n]]] if n in first else -1 for n in range(len(words))])
    by_example = {feature.example: feature for feature in features}
    found = [by_example[number] for number in kept]
    rows = differing([feature.rows[0].input_ids.tolist() for feature in found], ids)
    assert_parity("rows of words that differ", "transformers AutoTokenizer", rows, 0)
    assert_parity("labels of words that differ", "transformers' word_ids",
                  differing([feature.label.tolist() for feature in found], labels), 0)  # fmt: skip


def test_scores_of_answers_are_those_of_transformers_port_of_the_official_script(assert_parity):
    squad_metrics = pytest.importorskip("transformers.data.metrics.squad_metrics", reason="transformers 5 dropped it")
    squad = pytest.importorskip("transformers.data.processors.squad", reason="transformers 5 dropped it")
    draw = np.random.default_rng(0)
    words = np.array("The the a An fox Fox! fox's d.o.g dog (1895) - \u00fcber \u2014the\u2014".split())

    def text(least):
        return " ".join(draw.choice(words, size=draw.integers(least, 5)))

    truth = [tuple(text(1) for _ in range(draw.integers(0, 4))) for _ in range(200)]
    found = [text(0) if draw.random() < 0.5 or not right else str(draw.choice(right)) for right in truth]
    examples = [
        squad.SquadExample(str(n), "", "", None, None, "", [{"text": text} for text in right], not right)
        for n, right in enumerate(truth)
    ]
    expected = squad_metrics.squad_evaluate(examples, {str(n): text for n, text in enumerate(found)})
    scores = score(TASKS["squad2"], found, truth)
    names = {"exact_match": "exact", "f1": "f1", "has_answer_exact_match": "HasAns_exact", "has_answer_f1": "HasAns_f1",
             "no_answer_exact_match": "NoAns_exact", "no_answer_f1": "NoAns_f1"}  # fmt: skip
    worst = max(abs(100 * scores[name] - expected[theirs]) for name, theirs in names.items())
    # Percent; the same sums in another order.
    assert_parity("scores of answers, percent", "transformers squad_evaluate", worst, 1e-9)
