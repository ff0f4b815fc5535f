"""The card of an exported model: README.md with the header that the hub reads. It states what is recorded, no more."""

import dataclasses
from typing import Any, NamedTuple

from data_pipeline.tokenizer import Difference
from flaxbert.config import Experiment, flatten
from flaxbert.interop.architectures import ARCHITECTURES, PRETRAINING, describe
from flaxbert.phases import part_of

# Held-out results in the order of the card: the key in metrics.jsonl, its name, how it is written.
_RESULTS = (
    ("mlm_loss", "masked-token loss (nat)", ".4f"),
    ("perplexity", "masked-token perplexity", ".2f"),
    ("mlm_accuracy", "masked-token accuracy", ".4f"),
    ("nsp_loss", "{pairs} loss (nat)", ".4f"),
    ("nsp_accuracy", "{pairs} accuracy", ".4f"),
)
_SMALL = 50_000_000


class Facts(NamedTuple):
    """What a card is made of."""

    name: str
    experiment: Experiment
    step: int
    parameters: int
    corpus: dict[str, Any]
    """Names and values to show, nested or not; `name` and `language` enter the header where they are known."""
    tokenizer: dict[str, Any]
    """Names and values to show."""
    differences: list[Difference]
    """How often tokenizer.json gives other ids than the corpus holds."""
    results: dict[str, Any]
    """A validation line of metrics.jsonl; empty where the run was never evaluated."""
    architecture: str = PRETRAINING
    """The class that the weights are those of."""
    dtype: str = "float32"
    """The precision that they are stored in."""
    init: str | None = None
    """The name of the model that the run began with."""
    changes: tuple[dict[str, Any], ...] = ()
    """`RunConfig.changes`: what later launches changed, each with the `step` from which on."""


def model_card(facts: Facts) -> str:
    """The text of README.md."""
    sections = (
        _introduction(facts),
        "## Corpus\n\n" + _table("corpus", flatten(facts.corpus)),
        "## Tokenizer\n\n" + _table("tokenizer", facts.tokenizer | _compared(facts)),
        _recipe(facts),
        _results(facts),
        _use(facts),
        _limitations(facts),
    )
    return f"---\n{_header(facts)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _header(facts: Facts) -> str:
    """YAML. No licence is stated: it is not ours to choose."""
    from huggingface_hub import EvalResult, ModelCardData

    corpus = str(facts.corpus.get("name", "held-out documents"))
    measured = [
        EvalResult(
            task_type="fill-mask",
            task_name="pretraining",
            dataset_type=corpus,
            dataset_name=f"{corpus} (held-out documents)",
            dataset_split="validation",
            metric_type=key,
            metric_name=name.format(pairs=_pairs(facts)),
            metric_value=round(float(facts.results[key]), 6),
        )
        for key, name, _ in _RESULTS
        if _is_measured(facts, key)
    ]
    data = ModelCardData(
        language=facts.corpus.get("language"),
        library_name="transformers",
        pipeline_tag="fill-mask" if _guesses(facts) else "feature-extraction",
        tags=["bert", "pretraining", "flaxbert"],
        model_name=facts.name if measured else None,
        eval_results=measured or None,
    )
    return data.to_yaml()


def _pairs(facts: Facts) -> str:
    """What the labels of the pairs tell: the keys of metrics.jsonl say `nsp` of both."""
    return "sentence-order" if facts.experiment.data.pairing == "sop" else "next-sentence"


def _is_measured(facts: Facts, key: str) -> bool:
    head = "nsp" if key.startswith("nsp") else "mlm"
    written = head in ARCHITECTURES[facts.architecture].parts
    return written and isinstance(facts.results.get(key), (int, float))


def _introduction(facts: Facts) -> str:
    model = facts.experiment.model
    return (
        f"# {facts.name}\n\n"
        f"A BERT encoder with {_heads(facts)}: {model.num_layers} layers, "
        f"hidden size {model.hidden_size}, {model.num_heads} heads, {facts.parameters:,} parameters, "
        f"up to {model.max_length} tokens. It was pretrained with flaxbert, in JAX{_origin(facts)}; the weights are "
        f"those of `{facts.architecture}` in {facts.dtype}.\n\n"
        "No licence is stated here: whoever publishes this model chooses one, with an eye to that of the corpus."
    )


def _origin(facts: Facts) -> str:
    return f", from the parameters of `{facts.init}`" if facts.init else ""


def _heads(facts: Facts) -> str:
    return describe(ARCHITECTURES[facts.architecture].parts[1:])


def _guesses(facts: Facts) -> bool:
    return "mlm" in ARCHITECTURES[facts.architecture].parts


def _compared(facts: Facts) -> dict[str, str]:
    return {
        f"strings of {found.what} whose ids are not those of the corpus": f"{found.differing:,} of {found.compared:,}"
        for found in facts.differences
    }


def _recipe(facts: Facts) -> str:
    steps = f"These weights are those of step {facts.step:,} of {facts.experiment.train.steps:,}."
    changes = "".join(f"- {change}\n" for change in _changes(facts))
    steps += f"\n\n{changes}".rstrip()
    return f"## Recipe\n\n{steps}\n\n" + _table("setting", flatten(dataclasses.asdict(facts.experiment)))


def _changes(facts: Facts) -> list[str]:
    return [
        f"From step {change['step']:,} on, {name} was {_cell(new)} instead of {_cell(old)}"
        for change in facts.changes
        for name, (old, new) in change["settings"].items()
    ]


def _results(facts: Facts) -> str:
    pairs = _pairs(facts)
    rows = {
        name.format(pairs=pairs): format(facts.results[key], form)
        for key, name, form in _RESULTS
        if _is_measured(facts, key)
    }
    if not rows and facts.results:
        return "## Results\n\nWhat this run measured needs heads that are not part of these weights."
    if not rows:
        return "## Results\n\nThis run was not evaluated: nothing is known of its quality."
    step = facts.results.get("step", facts.step)
    where = f"On documents of the same corpus that were held out from training, at step {step:,}"
    batches = facts.experiment.train.eval_batches
    if facts.experiment.phases:
        where += f", in sequences of {part_of(facts.experiment, step).experiment.data.sequence_length} tokens"
    where += f", up to {batches} batches of them:" if batches else ", all of them:"
    if _is_measured(facts, "nsp_random"):
        random = facts.results["nsp_random"]
        rows[f"for comparison: always saying the commoner {pairs} label"] = format(max(random, 1 - random), ".4f")
    rounded = f"\n\nMeasured in float32, before the weights were rounded to {facts.dtype}."
    return f"## Results\n\n{where}\n\n{_table('measure', rows)}{'' if facts.dtype == 'float32' else rounded}"


_USE = """## Use

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this folder")
model = {auto}.from_pretrained("this folder")
```

or, without PyTorch:

```python
import flaxbert

model = flaxbert.load("this folder")
{call}
```"""


def _use(facts: Facts) -> str:
    guess = 'print(model.fill_mask("A sentence with one [MASK] in it."))'
    call = guess if _guesses(facts) else 'hidden, mask = model.encode(["A sentence.", "Another one."])'
    return _USE.format(auto=ARCHITECTURES[facts.architecture].auto_class, call=call)


_UNTRAINED = "Its pooler and next-sentence head were not trained: this run drew no pairs."

# What `data.pairing` makes of the next-sentence head, where it is not what the head's name says.
_OTHER_HEADS = {
    "sop": "Its next-sentence head was trained on sentence order: label 0 = in the order of the text, 1 = swapped.",
    "none": _UNTRAINED,
    "none-across": _UNTRAINED,
}


def _limitations(facts: Facts) -> str:
    seen = f", and what `{facts.init}` had seen, which is not known here" if facts.init else " and nothing else"
    points = [
        f"It has seen the corpus above{seen}. It repeats the errors and the prejudices of that text, and it "
        "knows little of other subjects, other kinds of text and other languages.",
        "What was measured stands under Results. Nothing was measured on any downstream task; expect to fine-tune it, "
        "and to evaluate it on your own data, before it serves a purpose.",
    ]
    if _guesses(facts):
        points.append(
            "It guesses words from their context. A guess with a high probability can be false as a statement."
        )
    if found := [found for found in facts.differences if found.differing]:
        shares = " and ".join(f"{part.differing / part.compared:.2%} of strings of {part.what}" for part in found)
        points.append(
            "Its tokenizer.json does not read every text as the corpus was read for training: it gives other ids to "
            f"{shares}. It cannot state SentencePiece's normalisation exactly; what differs is mostly characters "
            "followed by combining marks."
        )
    if facts.parameters < _SMALL:
        points.insert(
            0,
            f"With {facts.parameters / 1e6:.1f} million parameters it is small (BERT-base has 110 million): do not "
            "expect the quality of published models.",
        )
    if facts.experiment.data.pairing in _OTHER_HEADS and "pooler" in ARCHITECTURES[facts.architecture].parts:
        points.insert(0, _OTHER_HEADS[facts.experiment.data.pairing])
    if facts.step < facts.experiment.train.steps:
        points.insert(0, "The recipe had not run to its end when these weights were saved.")
    return "## Limitations\n\n" + "\n".join(f"- {point}" for point in points)


def _table(title: str, rows: dict[str, Any]) -> str:
    if not rows:
        return "Not recorded."
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join([f"| {title} | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")
