"""Settings: the published sizes, refusals that name field, value and expectation, and the way through JSON."""

import dataclasses
import json

import pytest

from data_pipeline.config import DataConfig
from flaxbert.config import (
    PRESETS, Experiment, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig, from_dict, with_vocabulary
)


def test_the_defaults_are_bert_base_as_the_paper_trains_it():
    default = Experiment()
    assert default.model == PRESETS["base"]
    assert (default.train.batch_size, default.train.steps) == (256, 1_000_000)
    assert (default.optimizer.learning_rate, default.optimizer.warmup_steps) == (1e-4, 10_000)
    assert (default.model.dropout, default.model.attention_dropout) == (0.1, 0.1)
    assert default.data.sequence_length == 128


@pytest.mark.parametrize("name, layers, hidden, heads", [
    ("tiny", 2, 128, 2), ("mini", 4, 256, 4), ("small", 4, 512, 8), ("medium", 8, 512, 8),
    ("base", 12, 768, 12), ("large", 24, 1024, 16),
])  # fmt: skip
def test_presets_have_the_published_sizes(name, layers, hidden, heads):
    model = PRESETS[name]
    assert (model.num_layers, model.hidden_size, model.num_heads) == (layers, hidden, heads)
    assert model.mlp_size == 4 * hidden
    assert model.head_size == 64
    assert model.max_length == 512


NOT_NUMBERS = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize("kind, section, names", [
    (ModelConfig, "model", ["initializer_range", "layer_norm_epsilon"]),
    (OptimizerConfig, "optimizer", [
        "learning_rate", "decay_power", "weight_decay", "epsilon", "clip_norm", "b1", "b2",
    ]),
])  # fmt: skip
def test_a_number_that_is_none_is_refused(kind, section, names, value):
    for name in names:
        with pytest.raises(ValueError, match=rf"^{section}\.{name} {value} is not a finite number$"):
            kind(**{name: value})


@pytest.mark.parametrize("build, words", [
    (lambda: ModelConfig(hidden_size=100, num_heads=12), ["hidden_size 100", "num_heads 12", "multiple"]),
    (lambda: ModelConfig(hidden_size=0), ["model.hidden_size 0"]),
    (lambda: ModelConfig(num_heads=0), ["model.num_heads 0"]),
    (lambda: ModelConfig(num_layers=-1), ["model.num_layers -1"]),
    (lambda: ModelConfig(max_length=0), ["model.max_length 0"]),
    (lambda: ModelConfig(segment_types=0), ["model.segment_types 0"]),
    (lambda: ModelConfig(vocab_size=0), ["model.vocab_size 0"]),
    (lambda: ModelConfig(feed_forward_size=0), ["model.feed_forward_size 0"]),
    (lambda: ModelConfig(dropout=1.0), ["model.dropout 1.0", "[0, 1)"]),
    (lambda: ModelConfig(attention_dropout=-0.1), ["model.attention_dropout -0.1"]),
    (lambda: ModelConfig(initializer_range=-0.02), ["model.initializer_range -0.02", "negative"]),
    (lambda: ModelConfig(layer_norm_epsilon=-1e-12), ["model.layer_norm_epsilon -1e-12", "negative"]),
    (lambda: OptimizerConfig(learning_rate=0), ["optimizer.learning_rate 0"]),
    (lambda: OptimizerConfig(learning_rate=float("nan")), ["optimizer.learning_rate nan"]),
    (lambda: OptimizerConfig(clip_norm=-1.0), ["optimizer.clip_norm -1.0"]),
    (lambda: OptimizerConfig(epsilon=0), ["optimizer.epsilon 0"]),
    (lambda: OptimizerConfig(warmup_steps=-1), ["optimizer.warmup_steps -1"]),
    (lambda: OptimizerConfig(weight_decay=-0.01), ["optimizer.weight_decay -0.01"]),
    (lambda: OptimizerConfig(name="sgd"), ["optimizer.name 'sgd'", "adam, adamw, lamb"]),
    (lambda: OptimizerConfig(decay_from="peak"), ["optimizer.decay_from 'peak'", "start, warmup"]),
    (lambda: OptimizerConfig(decay_power=0.0), ["optimizer.decay_power 0.0"]),
    (lambda: OptimizerConfig(final_fraction=1.1), ["optimizer.final_fraction 1.1", "[0, 1]"]),
    (lambda: OptimizerConfig(final_fraction=float("nan")), ["optimizer.final_fraction nan"]),
    (lambda: OptimizerConfig(b1=1.0), ["optimizer.b1 1.0"]),
    (lambda: OptimizerConfig(b2=-0.5), ["optimizer.b2 -0.5"]),
    (lambda: ModelConfig(activation="relu"), ["model.activation 'relu'", "gelu, gelu_new"]),
    (lambda: TrainConfig(compute_dtype="float16"), ["train.compute_dtype 'float16'", "float32, bfloat16"]),
    (lambda: MeshConfig(data=0), ["mesh.data 0"]),
    (lambda: MeshConfig(fsdp=-2), ["mesh.fsdp -2"]),
    (lambda: MeshConfig(tensor=0), ["mesh.tensor 0"]),
    (lambda: TrainConfig(steps=0), ["train.steps 0"]),
    (lambda: TrainConfig(batch_size=0), ["train.batch_size 0"]),
    (lambda: TrainConfig(log_every=0), ["train.log_every 0"]),
    (lambda: TrainConfig(checkpoint_every=0), ["train.checkpoint_every 0"]),
    (lambda: TrainConfig(keep_checkpoints=0), ["train.keep_checkpoints 0"]),
    (lambda: TrainConfig(eval_every=-1), ["train.eval_every -1"]),
    (lambda: TrainConfig(eval_batches=0), ["train.eval_batches 0"]),
    (lambda: TrainConfig(microbatches=0), ["train.microbatches 0"]),
    (lambda: TrainConfig(rematerialization="some"), ["train.rematerialization 'some'", "none, products, layers"]),
    (lambda: TrainConfig(profile_steps="3"), ["train.profile_steps '3'", "10:13"]),
    (lambda: TrainConfig(profile_steps="5:5"), ["train.profile_steps '5:5'"]),
    (lambda: Experiment(data=DataConfig(sequence_length=600)), ["sequence_length 600", "max_length 512"]),
    (lambda: Experiment(train=TrainConfig(steps=100)), ["warmup_steps 10000", "train.steps 100"]),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_by_name_and_value(build, words):
    with pytest.raises(ValueError) as refusal:
        build()
    assert [word for word in words if word not in str(refusal.value)] == []
    assert "\n" not in str(refusal.value)


def test_what_lies_on_the_border_is_allowed():
    ModelConfig(initializer_range=0.0, layer_norm_epsilon=0.0)
    ModelConfig(dropout=0.0, attention_dropout=0.0, hidden_size=12, num_heads=12)
    OptimizerConfig(warmup_steps=0, weight_decay=0.0, b1=0.0)
    OptimizerConfig(final_fraction=1.0)
    TrainConfig(eval_every=0, eval_batches=None)
    Experiment(data=DataConfig(sequence_length=512), train=TrainConfig(steps=10_000))


@pytest.mark.parametrize("size, padded", [(1, 128), (127, 128), (128, 128), (129, 256), (30_522, 30_592)])
def test_the_vocabulary_is_padded_to_whole_tiles(size, padded):
    assert ModelConfig(vocab_size=size).padded_vocab_size == padded


def test_a_vocabulary_that_is_not_known_has_no_padded_size():
    with pytest.raises(ValueError, match="vocab_size is not set"):
        ModelConfig().padded_vocab_size


def test_the_vocabulary_comes_from_the_tokenizer_and_must_agree_with_it():
    filled = with_vocabulary(Experiment(), 5000)
    assert filled.model.vocab_size == 5000
    assert with_vocabulary(filled, 5000) == filled
    with pytest.raises(ValueError, match="vocab_size 5000 .* 6000"):
        with_vocabulary(filled, 6000)


@pytest.mark.parametrize("name", PRESETS)
def test_an_experiment_comes_back_from_json_as_it_went(name):
    experiment = Experiment(
        model=dataclasses.replace(PRESETS[name], vocab_size=99, feed_forward_size=77),
        optimizer=OptimizerConfig(learning_rate=1e-4 / 3), mesh=MeshConfig(data=2, fsdp=2),
        train=TrainConfig(eval_batches=None),
    )  # fmt: skip
    assert from_dict(Experiment, json.loads(json.dumps(dataclasses.asdict(experiment)))) == experiment


def test_a_folder_from_before_a_setting_was_added_is_read_with_what_was_done_then():
    older = dataclasses.asdict(Experiment())
    del older["train"]["attention"]
    assert from_dict(Experiment, older) == Experiment(train=TrainConfig(attention="xla"))


@pytest.mark.parametrize("spoil, words", [
    (lambda values: values["model"].update(colour="red"), ["ModelConfig", "unknown", "colour"]),
    (lambda values: values["train"].pop("steps"), ["TrainConfig", "missing", "steps"]),
    (lambda values: values.pop("mesh"), ["Experiment", "missing", "mesh"]),
    (lambda values: values.update(model=None), ["ModelConfig"]),
    (lambda values: values.update(model=[1]), ["ModelConfig"]),
    (lambda values: values["model"].update(num_heads="many"), ["ModelConfig"]),
])  # fmt: skip
def test_values_that_are_not_a_config_are_refused_by_name(spoil, words):
    values = dataclasses.asdict(Experiment())
    spoil(values)
    with pytest.raises(ValueError) as refusal:
        from_dict(Experiment, values)
    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize("kind", [ModelConfig, OptimizerConfig, MeshConfig, TrainConfig, Experiment])
def test_configs_are_frozen(kind):
    config = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(kind)[0].name, 1)
