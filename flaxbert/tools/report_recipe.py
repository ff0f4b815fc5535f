"""The recipe of a run in words."""

from pathlib import Path
from typing import Any

from flaxbert.config import Experiment, OptimizerConfig
from flaxbert.phases import curves
from flaxbert.tools.report_metrics import History
from flaxbert.training.run import RunConfig

_PAIRINGS = {
    "nsp": "segment pairs for next-sentence prediction, drawn as the reference draws them",
    "nsp-balanced": "segment pairs for next-sentence prediction, half of them random",
    "sop": "segment pairs for sentence order",
    "none": "full sentences of one document, without pairs",
    "none-across": "full sentences that go on in the next document, without pairs",
}
_MASKINGS = {"token": "each token by itself", "whole-word": "whole words", "span": "spans of words"}
_OPTIMIZERS = {
    "adam": "Adam as the reference has it, without bias correction", "adamw": "AdamW", "lamb": "LAMB",
}  # fmt: skip


def pairs_of(experiment: Experiment) -> str:
    """What the labels of the pairs tell: the keys of metrics.jsonl say `nsp` of both."""
    return "Sentence order" if experiment.data.pairing == "sop" else "Next sentence"


def recipe(run: RunConfig, history: History, parameters: int) -> list[tuple[str, str]]:
    """(what, a sentence or two on it)."""
    experiment = run.experiment
    found = [
        ("Model", _model(experiment, parameters)),
        ("Begun with", f"the parameters of {run.init}" if run.init else "new parameters"),
        ("Corpus", _corpus(run.corpus)),
        ("Sequences", _sequences(experiment)),
        ("Training", _training(experiment)),
        ("Optimizer", _optimizer(experiment.optimizer)),
        ("Learning rate", "; ".join(_curve(curve) for curve in curves(experiment))),
    ]
    if experiment.phases:
        found.append(("Phases", "; ".join(_phase(number, part) for number, part in enumerate(history.parts, 1))))
    return [
        *found,
        ("Devices", _mesh(experiment)),
        ("Packages", ", ".join(f"{name} {version}" for name, version in run.versions.items()) or "not recorded"),
        ("Revision of flaxbert", run.git_revision or "not recorded: installed, and not run from a checkout"),
        ("Changed on the way", "; ".join(_changes(run.changes)) or "nothing"),
    ]  # fmt: skip


def _model(experiment: Experiment, parameters: int) -> str:
    model = experiment.model
    return (
        f"BERT with {model.num_layers} layers, hidden size {model.hidden_size}, {_count(model.num_heads, 'head')} and "
        f"feed-forward size {model.mlp_size:,}: {parameters:,} parameters. Vocabulary of {model.vocab_size:,}; up to "
        f"{model.max_length:,} tokens; {model.activation}; dropout {model.dropout:g}, on attention "
        f"{model.attention_dropout:g}."
    )


def _corpus(corpus: dict[str, Any]) -> str:
    def counted(split: str) -> str:
        counts = corpus.get(split, {})
        return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "not counted"

    name, mark = Path(corpus.get("path", "unknown")).name, str(corpus.get("fingerprint", "unknown"))[:12]
    return f"{name} (fingerprint {mark}): {counted('train')} to train on; held out: {counted('validation')}."


def _sequences(experiment: Experiment) -> str:
    data = experiment.data
    rest = f", up to {data.packing} of them in a row" if data.packing > 1 else ""
    masked, kept, replaced = (f"{share:.0%}" for share in data.mask_replacement)
    return (
        f"{_PAIRINGS[data.pairing].capitalize()}; {data.sequence_length} tokens{rest}. {data.mask_rate:.0%} of the "
        f"tokens are to be predicted, {_MASKINGS[data.masking]}: {masked} become [MASK], {kept} stay, {replaced} "
        "become any token."
    )


def _training(experiment: Experiment) -> str:
    train = experiment.train
    extras = [f"seed {train.seed}", f"matrix products in {train.compute_dtype}"]
    if train.microbatches > 1:
        extras.append(f"each batch in {train.microbatches} parts")
    if train.rematerialization != "none":
        extras.append(f"{train.rematerialization} computed twice")
    if train.skip_spikes:
        extras.append("spikes skipped")
    extras.append(f"evaluated every {train.eval_every:,} steps" if train.eval_every else "not evaluated")
    extras.append(f"saved every {train.checkpoint_every:,}")
    return f"{train.steps:,} steps of {train.batch_size:,} rows; {', '.join(extras)}."


def _optimizer(optimizer: OptimizerConfig) -> str:
    return (
        f"{_OPTIMIZERS[optimizer.name]}: b1 {optimizer.b1:g}, b2 {optimizer.b2:g}, epsilon {optimizer.epsilon:g}, "
        f"weight decay {optimizer.weight_decay:g}, gradients clipped at norm {optimizer.clip_norm:g}."
    )


def _curve(curve: Any) -> str:
    optimizer = curve.optimizer
    form = "linear decay" if optimizer.decay_power == 1 else f"decay with power {optimizer.decay_power:g}"
    where = "" if curve.first_step == 0 else f"from step {curve.first_step:,} on "
    begins = f"measured from {'step 0' if optimizer.decay_from == 'start' else 'the end of warm-up'}"
    return (
        f"{where}peak {optimizer.learning_rate:g}, {optimizer.warmup_steps:,} steps of warm-up, then {form}, {begins}, "
        f"to {optimizer.final_fraction * optimizer.learning_rate:g} at step {curve.last_step:,}"
    )


def _phase(number: int, part: Any) -> str:
    train, data = part.experiment.train, part.experiment.data
    return (
        f"{number}: steps {part.first_step + 1:,} to {part.last_step:,}, {train.batch_size:,} rows of "
        f"{data.sequence_length} tokens"
    )


def _mesh(experiment: Experiment) -> str:
    mesh = experiment.mesh
    copies = "as many copies of the model as the devices allow" if mesh.data is None else _count(mesh.data, "copy")
    shards, split = _count(mesh.fsdp, "shard"), _count(mesh.tensor, "part")
    return f"{copies}; parameters in {shards}, heads and feed-forward in {split}"


def _count(number: int, what: str) -> str:
    plural = "copies" if what == "copy" else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def _changes(changes: list[dict[str, Any]]) -> list[str]:
    return [
        f"from step {change['step']:,} on {name} is {new} in place of {old}"
        for change in changes
        for name, (old, new) in change["settings"].items()
    ]
