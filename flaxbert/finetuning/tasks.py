"""The tasks that a pretrained encoder is fine-tuned for: the form of their data, their metrics, the paper's settings.

Settings are those of BERT (Devlin et al. 2018): appendix A.3 for all, sections 4.2 to 4.4 for SQuAD 1.1, SQuAD 2.0 and
SWAG, run_squad.py for the lengths of questions, windows and answers. Data: GLUE (Wang et al. 2018) with CoLA (Warstadt
et al. 2018), SST-2 (Socher et al. 2013), MRPC (Dolan and Brockett 2005), STS-B (Cer et al. 2017), QQP (Iyer et al.
2017), MNLI (Williams et al. 2018), QNLI (from SQuAD), RTE (Bentivogli et al. 2009), WNLI (Levesque et al. 2011); SQuAD
(Rajpurkar et al. 2016, 2018); CoNLL-2003 (Tjong Kim Sang and De Meulder 2003); Universal Dependencies (Nivre et al.
2020); SWAG (Zellers et al. 2018).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

Kind = Literal["classification", "regression", "tagging", "qa", "multiple_choice"]

_TABLES = ("tsv", "csv", "jsonl")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task. Of each tuple of settings, the first is the default and all are the paper's grid."""

    name: str
    kind: Kind
    first: tuple[str, ...] = ()
    """Names that the column of the (first) text, or of the words, may have: the first one that is there is read."""
    second: tuple[str, ...] = ()
    """The same of the second text; empty where the task has one text. For multiple choice, of a list of choices; in a
    table each choice has a column, `ending0`, `ending1`, … (or `choice`, `option`)."""
    label: tuple[str, ...] = ()
    """The same of the label. In CoNLL files, a number from 1, or -1 for the last column."""
    labels: tuple[str, ...] | None = None
    """The label set; None: learnt from the training file and sorted."""
    metrics: tuple[str, ...] = ("accuracy",)
    """The first one chooses among runs on the development set."""
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    """Split (`train`, `dev`, `test`, MNLI's `dev_mismatched` too) → patterns of file names, the first match counts."""
    headerless: tuple[str, ...] = ()
    """The columns of a file without a header."""
    lowest: float = -math.inf
    """The least number that is a label in regression: less stands where labels are kept back."""
    skips_cut_rows: bool = False
    """Labelled rows with too few columns or an empty text are counted and passed over: the published file has some."""
    copies_labels: bool = False
    """Labels are not learnt from: they are taken as they stand, numbers among them."""
    has_no_answer: bool = False
    """Questions may have no answer (SQuAD 2.0)."""
    batch_sizes: tuple[int, ...] = (32, 16)
    learning_rates: tuple[float, ...] = (5e-5, 3e-5, 2e-5)
    epochs: tuple[int, ...] = (3, 2, 4)
    warmup_share: float = 0.1
    """Of all updates."""
    max_length: int = 128
    """Tokens of a row, special ones included."""
    max_question_length: int = 64
    """Tokens; the rest of a question is cut off."""
    doc_stride: int = 128
    """Tokens between the starts of two windows of one context, at most: half a window where that is less."""
    max_answer_length: int = 30
    """Tokens."""
    n_best: int = 20
    """Starts, and ends, considered in a window; and answers kept."""

    @property
    def has_entities(self) -> bool:
        """Whether its tags are those of entities: O, B-TYPE and I-TYPE."""
        return "entity_f1" in self.metrics


def _splits(*extensions: str) -> dict[str, tuple[str, ...]]:
    """The names that files of one's own have: train.tsv, dev.csv, validation.jsonl, …"""
    names = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
    return {
        split: tuple(f"{stem}.{extension}" for stem in stems for extension in extensions)
        for split, stems in names.items()
    }


def _squad_files(version: str) -> dict[str, tuple[str, ...]]:
    """The names as published, and those of files of one's own."""
    published = {"train": (f"train-v{version}.json",), "dev": (f"dev-v{version}.json",), "test": ()}
    return {split: (*published[split], *own) for split, own in _splits("json", "jsonl").items()}


_GLUE_FILES = _splits(*_TABLES)
_MNLI_FILES = {
    "train": _GLUE_FILES["train"],
    "dev": ("dev_matched.tsv", *_GLUE_FILES["dev"]),
    "dev_mismatched": ("dev_mismatched.tsv",),
    "test": ("test_matched.tsv", *_GLUE_FILES["test"]),
    "test_mismatched": ("test_mismatched.tsv",),
}
_SENTENCES = ("sentence1",), ("sentence2",), ("label",)
_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")

_GLUE = (
    Task("cola", "classification", ("sentence",), (), ("label",), _BINARY, ("matthews", "accuracy"), _GLUE_FILES,
         headerless=("source", "label", "mark", "sentence")),
    Task("sst2", "classification", ("sentence",), (), ("label",), _BINARY, ("accuracy",), _GLUE_FILES,
         headerless=("sentence", "label")),
    Task("mrpc", "classification", ("#1 String", "sentence1"), ("#2 String", "sentence2"), ("Quality", "label"),
         _BINARY, ("f1", "accuracy"), _GLUE_FILES),
    Task("stsb", "regression", ("sentence1",), ("sentence2",), ("score", "label"), None, ("spearman", "pearson"),
         _GLUE_FILES, lowest=0.0),
    Task("qqp", "classification", ("question1",), ("question2",), ("is_duplicate", "label"), _BINARY,
         ("f1", "accuracy"), _GLUE_FILES, skips_cut_rows=True),
    Task("mnli", "classification", ("sentence1", "premise"), ("sentence2", "hypothesis"), ("gold_label", "label"),
         ("contradiction", "entailment", "neutral"), ("accuracy",), _MNLI_FILES),
    Task("qnli", "classification", ("question",), ("sentence",), ("label",), _ENTAILMENT, ("accuracy",), _GLUE_FILES),
    Task("rte", "classification", *_SENTENCES, _ENTAILMENT, files=_GLUE_FILES),
    Task("wnli", "classification", *_SENTENCES, _BINARY, files=_GLUE_FILES),
)  # fmt: skip

_QA_METRICS = ("f1", "exact_match")
_QUESTIONS = (
    Task("squad", "qa", ("question",), ("context",), ("answers",), None, _QA_METRICS,
         _squad_files("1.1"), learning_rates=(5e-5,), epochs=(3,), batch_sizes=(32,), max_length=384),
    Task("squad2", "qa", ("question",), ("context",), ("answers",), None, _QA_METRICS,
         _squad_files("2.0"), has_no_answer=True, learning_rates=(5e-5,), epochs=(2,), batch_sizes=(48,),
         max_length=384),
    Task("qa", "qa", ("question",), ("context",), ("answers",), None, _QA_METRICS, _splits("json", "jsonl"),
         max_length=384),
)  # fmt: skip

_ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall", "accuracy")
_WORDS = ("tokens", "words", "form")
_TAG_FILES = _splits("conll", "conllu", "txt", "tsv", "jsonl")
_CONLL_2003 = {"train": ("eng.train",), "dev": ("eng.testa",), "test": ("eng.testb",)}
_TREEBANK = {split: (f"*-ud-{split}.conllu",) for split in ("train", "dev", "test")}
_TAGGING = (
    Task("ner", "tagging", _WORDS, (), ("-1", "ner_tags", "ner", "tags"), None, _ENTITY_METRICS,
         {split: (*_CONLL_2003[split], *_TAG_FILES[split]) for split in _TAG_FILES}),
    # CoNLL-2003 has parts of speech in its second column; CoNLL-U names its columns itself.
    Task("pos", "tagging", _WORDS, (), ("2", "upos", "pos_tags", "pos", "tags"), None, ("accuracy", "macro_f1"),
         {split: (*_TREEBANK[split], *_CONLL_2003[split], *_TAG_FILES[split]) for split in _TAG_FILES}),
    Task("tagging", "tagging", _WORDS, (), ("-1", "tags", "labels"), None, ("accuracy", "macro_f1"), _TAG_FILES),
)  # fmt: skip

_CHOICES = (
    # The context and the beginning of what follows, as the paper joins them (section 4.4).
    Task("swag", "multiple_choice", ("startphrase",), ("endings",), ("label",), None, ("accuracy",),
         _splits("csv", "jsonl"), learning_rates=(2e-5,), epochs=(3,), batch_sizes=(16,)),
    Task("multiple_choice", "multiple_choice", ("context", "startphrase", "question"), ("endings", "choices"),
         ("label",), None, ("accuracy",), _splits(*_TABLES)),
)  # fmt: skip

_TEXT = ("text", "sentence", "first", "sentence1", "premise", "question")
_FIRST = ("first", "sentence1", "premise", "question", "text")
_SECOND = ("second", "sentence2", "hypothesis", "sentence", "answer", "context", "text_pair")
_LABEL = ("label", "gold_label", "class", "score")
_OWN = (
    Task("classification", "classification", _TEXT, (), _LABEL, None, ("accuracy", "macro_f1"), _splits(*_TABLES),
         headerless=("text", "label")),
    Task("pair", "classification", _FIRST, _SECOND, _LABEL, None, ("accuracy", "macro_f1"), _splits(*_TABLES),
         headerless=("first", "second", "label")),
    Task("regression", "regression", _TEXT, (), ("score", "label"), None, ("spearman", "pearson"), _splits(*_TABLES),
         headerless=("text", "score")),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in (*_GLUE, *_QUESTIONS, *_TAGGING, *_CHOICES, *_OWN)}


def find_task(name: str) -> Task:
    """The preset of a name. Raises ValueError naming those there are."""
    if name not in TASKS:
        raise ValueError(f"no task is named {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]
