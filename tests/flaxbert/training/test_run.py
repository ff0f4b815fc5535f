"""A run's directory goes on with the run that it holds, and with no other."""

import dataclasses
import errno
import fcntl
import json
import os
import threading

import pytest

from data_pipeline import tokenizer_training
from flaxbert.config import Experiment, from_dict
from flaxbert.phases import Phase
from flaxbert.training import recovery, run
from flaxbert.training.files import KEPT_ATTENTION, STUDY
from flaxbert.training.lock import LOCK, check_no_launch, only_launch
from flaxbert.training.recovery import SAVED, mark_saved
from flaxbert.training.run import MAY_CHANGE, begin_or_resume, check_run, check_same, describe_changes, read_run

SENTENCES = ["the quick brown fox jumps over the lazy dog", "a function takes arguments and returns a value"] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    trained = tokenizer_training.train("wordpiece", SENTENCES, 60, lowercase=True)
    trained.save(folder)
    return str(folder), trained.fingerprint


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return {"path": "/corpora/tales", "fingerprint": "c0ffee", "tokenizer_fingerprint": tokenizer[1]}


@pytest.fixture
def begun(tmp_path, experiment, corpus, tokenizer, monkeypatch):
    """A run that has saved a checkpoint, if it is to be believed."""
    begin_or_resume(str(tmp_path / "run"), experiment, corpus, tokenizer[0])
    mark_saved(tmp_path / "run" / "checkpoints")
    monkeypatch.setattr(run, "newest_whole", lambda folder, contents: (6, []))
    return tmp_path / "run"


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fields(config, prefix=""):
    """`train.steps` and so on, each with its value."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def with_field(experiment, name, value):
    values = dataclasses.asdict(experiment)
    section, _, field = name.partition(".")
    if field:
        values[section][field] = value
    else:
        values[section] = [dataclasses.asdict(phase) for phase in value]
    return from_dict(Experiment, values)


# A value that each kind of setting may take and that no setting of the test's experiment has.
OTHERS = {
    "model.vocab_size": 91, "model.hidden_size": 32, "model.num_layers": 3, "model.num_heads": 4,
    "model.feed_forward_size": 48, "model.max_length": 20, "model.segment_types": 3, "model.dropout": 0.2,
    "model.attention_dropout": 0.3, "model.activation": "gelu", "model.initializer_range": 0.01,
    "model.layer_norm_epsilon": 1e-6, "data.sequence_length": 12, "data.pairing": "sop", "data.masking": "span",
    "data.mask_replacement": (1.0, 0.0, 0.0), "data.packing": 4,
    "data.short_sequence_probability": 0.5, "data.mask_rate": 0.3, "data.max_predictions": 5, "data.window_tokens": 999,
    "data.workers": 3, "data.read_ahead": 4, "optimizer.learning_rate": 0.5, "optimizer.warmup_steps": 1,
    "optimizer.weight_decay": 0.5, "optimizer.b1": 0.5, "optimizer.b2": 0.5, "optimizer.epsilon": 0.5,
    "optimizer.clip_norm": 0.5, "optimizer.name": "lamb", "optimizer.decay_from": "warmup",
    "optimizer.decay_power": 0.5, "optimizer.final_fraction": 0.5,
    "mesh.data": 4, "mesh.fsdp": 4, "mesh.tensor": 4, "train.steps": 99,
    "train.batch_size": 16, "train.seed": 5, "train.compute_dtype": "bfloat16", "train.log_every": 7,
    "train.eval_every": 7, "train.eval_batches": 7, "train.checkpoint_every": 7, "train.keep_checkpoints": 7,
    "train.microbatches": 2, "train.rematerialization": "layers", "train.attention": "xla",
    "train.skip_spikes": True, "train.profile_steps": "3:5", "phases": (Phase(steps=5), Phase(sequence_length=12)),
}  # fmt: skip


def test_only_length_rhythm_and_machine_may_change():
    """What a batch, an update or a parameter depends on may not, but for the curve that follows `train.steps`, and the
    guard against spikes, which is switched on when they come.
    """
    assert set(MAY_CHANGE) == {
        "train.steps", "train.log_every", "train.eval_every", "train.eval_batches", "train.checkpoint_every",
        "train.keep_checkpoints", "train.microbatches", "train.rematerialization", "train.attention",
        "train.skip_spikes", "train.profile_steps", "data.workers", "data.read_ahead", "mesh.data", "mesh.fsdp",
        "mesh.tensor",
    }  # fmt: skip


def test_every_setting_has_another_value_to_try(experiment):
    """A new setting enters here: may it change in a run that has begun?"""
    assert {name for name, _ in fields(experiment)} == OTHERS.keys()
    assert all(OTHERS[name] != value for name, value in fields(experiment))


def test_what_a_run_is_made_of_is_recorded(begun, experiment, corpus, tokenizer):
    recorded = json.loads((begun / "config.json").read_text())
    assert from_dict(Experiment, recorded["experiment"]) == experiment
    assert recorded["corpus"] == corpus
    assert recorded["format_version"] == 1
    assert {"flaxbert", "jax", "flax", "optax", "orbax-checkpoint"} <= recorded["versions"].keys()
    assert read_run(str(begun)).experiment == experiment
    assert {path.name for path in begun.iterdir()} == {"config.json", "tokenizer", SAVED}
    assert (begun / "tokenizer" / "vocab.txt").read_bytes() == open(f"{tokenizer[0]}/vocab.txt", "rb").read()


def test_the_same_command_again_changes_nothing(begun, experiment, corpus, tokenizer):
    before = snapshot(begun)
    assert begin_or_resume(str(begun), experiment, corpus, tokenizer[0]) == read_run(str(begun))
    assert snapshot(begun) == before


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in MAY_CHANGE and name != "phases"])
def test_a_setting_that_may_not_change_is_refused_with_both_values(begun, experiment, corpus, tokenizer, name):
    before, old = snapshot(begun), dict(fields(experiment))[name]
    with pytest.raises(ValueError) as refusal:
        begin_or_resume(str(begun), with_field(experiment, name, OTHERS[name]), corpus, tokenizer[0])
    assert f"{name} was {old} and is now {OTHERS[name]}" in str(refusal.value)
    assert str(begun) in str(refusal.value)
    assert snapshot(begun) == before


def test_a_launch_is_not_refused_because_another_one_asks_whether_it_trains(begun):
    """Asking holds the lock for a moment."""
    with only_launch(str(begun)):
        pass
    with open(begun / LOCK, "rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        later = threading.Timer(0.2, lambda: fcntl.flock(asking, fcntl.LOCK_UN))
        later.start()
        with only_launch(str(begun)):
            later.join()


def test_a_launch_that_saved_nothing_may_be_followed_by_one_with_other_settings(
    begun, experiment, corpus, tokenizer
):  # fmt: skip
    """As where the first step exhausts the devices' memory: nothing is lost, and no other folder is needed."""
    (begun / SAVED).unlink()
    (begun / "metrics.jsonl").write_text('{"step": 0, "split": "validation", "loss": 9.0}\n')
    (begun / KEPT_ATTENTION).write_text("{}")
    for name in ("tensorboard", STUDY):
        (begun / name).mkdir()
    changed = with_field(experiment, "train.batch_size", 16)
    assert check_run(str(begun), changed, corpus) is None
    assert begin_or_resume(str(begun), changed, corpus, tokenizer[0]).experiment.train.batch_size == 16
    assert read_run(str(begun)).changes == []
    assert not (begun / "metrics.jsonl").exists(), "the loss that another model began with is not this one's"
    assert not any((begun / name).exists() for name in ("tensorboard", STUDY, KEPT_ATTENTION))


def test_a_run_whose_checkpoints_are_gone_is_refused_before_anything_is_written(
    begun, experiment, corpus, tokenizer, monkeypatch
):  # fmt: skip
    monkeypatch.setattr(run, "newest_whole", recovery.newest_whole)
    before = snapshot(begun)
    with pytest.raises(ValueError, match="held checkpoints, and holds none now"):
        begin_or_resume(str(begun), with_field(experiment, "train.steps", 99), corpus, tokenizer[0])
    assert snapshot(begun) == before


def test_phases_may_not_change(begun, experiment, corpus, tokenizer):
    changed = dataclasses.replace(experiment, phases=OTHERS["phases"])
    with pytest.raises(ValueError, match=r"phases.0.steps was None and is now 5, .*phases.1.sequence_length was None"):
        begin_or_resume(str(begun), changed, corpus, tokenizer[0])


def test_of_phases_the_microbatches_and_the_end_may_change(tmp_path, experiment, corpus, tokenizer, monkeypatch):
    def phased(steps=12, **last):
        train = dataclasses.replace(experiment.train, steps=steps)
        phases = (Phase(steps=6), Phase(**({"steps": steps - 6} | last)))
        return dataclasses.replace(experiment, train=train, phases=phases)

    begin_or_resume(str(tmp_path), phased(), corpus, tokenizer[0])
    mark_saved(tmp_path / "checkpoints")
    monkeypatch.setattr(run, "newest_whole", lambda folder, contents: (6, []))
    for change in (phased(microbatches=2), phased(steps=20)):
        assert check_run(str(tmp_path), change, corpus)
    with pytest.raises(ValueError, match="phases.1.batch_size was None and is now 4"):
        check_run(str(tmp_path), phased(batch_size=4), corpus)


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_a_setting_that_may_change_is_recorded_anew(begun, experiment, corpus, tokenizer, name):
    changed = with_field(experiment, name, OTHERS[name])
    assert begin_or_resume(str(begun), changed, corpus, tokenizer[0]).experiment == changed
    assert read_run(str(begun)).experiment == changed
    assert [path.name for path in begun.glob(".*")] == [SAVED], "no file half written"


def test_what_launches_changed_is_kept_with_the_step_it_counts_from(begun, experiment, corpus, tokenizer, monkeypatch):
    monkeypatch.setattr(run, "saved_steps", lambda workdir: [3, 6])
    for steps in (20, 30):
        begin_or_resume(str(begun), with_field(experiment, "train.steps", steps), corpus, tokenizer[0])
    assert read_run(str(begun)).changes == [
        {"step": 6, "settings": {"train.steps": [experiment.train.steps, 20]}},
        {"step": 6, "settings": {"train.steps": [20, 30]}},
    ]


def test_a_longer_run_is_told_of_its_new_curve(begun, experiment, corpus):
    longer = with_field(experiment, "train.steps", 20)
    first, second = describe_changes(check_run(str(begun), longer, corpus))
    assert first == f"train.steps was {experiment.train.steps} and is now 20"
    assert "learning-rate curve" in second
    assert describe_changes(check_run(str(begun), experiment, corpus)) == []


def test_a_run_does_not_end_before_the_step_it_has_reached(begun, experiment, corpus, tokenizer, monkeypatch):
    before = snapshot(begun)
    monkeypatch.setattr(run, "saved_steps", lambda workdir: [6, 12])
    with pytest.raises(ValueError, match="train.steps 11 lies before step 12"):
        begin_or_resume(str(begun), with_field(experiment, "train.steps", 11), corpus, tokenizer[0])
    assert snapshot(begun) == before


def test_a_second_launch_of_a_run_is_refused_while_the_first_one_trains(begun):
    before = snapshot(begun)
    with only_launch(str(begun)):
        with pytest.raises(ValueError, match="another launch is training in"):
            with only_launch(str(begun)):
                pytest.fail("two at once")
        with pytest.raises(ValueError, match="another launch is training in"):
            check_no_launch(str(begun))
    check_no_launch(str(begun))
    with only_launch(str(begun)):
        assert snapshot(begun).keys() - before.keys() <= {".lock"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_there_are_no_locks_a_run_goes_on_after_a_kill_and_that_is_told(begun, monkeypatch, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (begun / LOCK).write_text("12345\n")  # what a killed holder leaves
    said, before = [], snapshot(begun)
    check_no_launch(str(begun))
    with only_launch(str(begun), said.append):
        check_no_launch(str(begun))
    assert said == [f"the file system of {begun} has no locks: a second launch there would not be refused"]
    assert snapshot(begun) == before


def test_asking_whether_a_launch_is_training_leaves_no_trace(tmp_path):
    check_no_launch(str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_the_processes_of_a_launch_do_not_shut_each_other_out(begun):
    (begun / ".lock").touch()
    with open(begun / ".lock", "rb") as another:
        fcntl.flock(another, fcntl.LOCK_SH)
        check_no_launch(str(begun))


def test_a_process_that_was_started_otherwise_than_the_first_is_refused(begun, experiment, corpus, tmp_path):
    check_same(str(begun), experiment, corpus)
    with pytest.raises(ValueError, match="another command: corpus.fingerprint is c0ffee there and other here"):
        check_same(str(begun), experiment, corpus | {"fingerprint": "other"})
    with pytest.raises(ValueError, match="another command: train.log_every is .* there and 77 here"):
        check_same(str(begun), with_field(experiment, "train.log_every", 77), corpus)
    with pytest.raises(ValueError, match="one folder that all processes see"):
        check_same(str(tmp_path / "elsewhere"), experiment, corpus)


def test_a_launch_that_does_not_begin_a_run_leaves_no_trace(tmp_path):
    with pytest.raises(ValueError, match="no run"), only_launch(str(tmp_path / "run")):
        raise ValueError("no run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fingerprint", "tokenizer_fingerprint"])
def test_another_corpus_or_tokenizer_is_refused(begun, experiment, corpus, tokenizer, name):
    before = snapshot(begun)
    with pytest.raises(ValueError, match=f"corpus.{name} was {corpus[name]} and is now other"):
        begin_or_resume(str(begun), experiment, corpus | {name: "other"}, tokenizer[0])
    assert snapshot(begun) == before


def test_a_corpus_that_has_moved_is_the_same_corpus(begun, experiment, corpus, tokenizer):
    begin_or_resume(str(begun), experiment, corpus | {"path": "/elsewhere"}, tokenizer[0])


def test_a_tokenizer_that_is_not_the_corpuss_is_refused_and_nothing_written(tmp_path, experiment, corpus, tokenizer):
    with pytest.raises(ValueError, match="is not the corpus's tokenizer"):
        begin_or_resume(str(tmp_path / "run"), experiment, corpus | {"tokenizer_fingerprint": "0" * 64}, tokenizer[0])
    assert not (tmp_path / "run").exists()


def test_a_foreign_directory_is_refused_and_left_as_it_was(tmp_path, experiment, corpus, tokenizer):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and not a run's directory: it holds thesis.txt"):
        begin_or_resume(str(tmp_path), experiment, corpus, tokenizer[0])
    assert snapshot(tmp_path) == {"thesis.txt": b"years of work"}


def test_an_empty_directory_is_taken(tmp_path, experiment, corpus, tokenizer):
    begin_or_resume(str(tmp_path), experiment, corpus, tokenizer[0])
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("moment", ["copy_folder", "write_atomically"])
def test_a_launch_killed_while_it_made_the_directory_can_be_repeated(
    tmp_path, experiment, corpus, tokenizer, monkeypatch, moment
):
    """What was half done is done again: a copied tokenizer, a settings file under its temporary name."""

    def killed(*arguments, **named):
        if moment == "copy_folder":
            (tmp_path / "tokenizer").mkdir()
            (tmp_path / "tokenizer" / "vocab.txt").write_text("half a vocab")
        else:
            (tmp_path / ".config.json.tmp").write_text('{"experi')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, moment, killed)
        begin_or_resume(str(tmp_path), experiment, corpus, tokenizer[0])
    begin_or_resume(str(tmp_path), experiment, corpus, tokenizer[0])
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "tokenizer"}
    assert snapshot(tmp_path)["tokenizer/vocab.txt"] == open(f"{tokenizer[0]}/vocab.txt", "rb").read()


@pytest.mark.parametrize("content, words", [
    (b"", "damaged"), (b'{"experiment": {', "damaged"), (b"\xff\xfe\x00", "damaged"), (b"\x00" * 300, "damaged"),
    (b'{"model_type": "bert"}', "no field 'experiment'"), (b"[]", "is not a run's"), (b"3", "is not a run's"),
    (b'{"experiment": {}, "format_version": 2}', "format version 2, expected 1"),
    (b'{"experiment": {}}', "format version None, expected 1"),
    (b'{"experiment": 3, "corpus": {}, "versions": {}, "git_revision": null, "format_version": 1}', "another version"),
    (b'{"experiment": {}, "corpus": {}, "versions": {}, "git_revision": null, "format_version": 1}', "another version"),
    (b'{"experiment": {}, "format_version": 1}', "another version"),
    (b'{"experiment": {}, "corpus": 3, "format_version": 1}', "corpus is 3"),
])  # fmt: skip
def test_a_config_json_that_is_not_ours_is_refused_and_left(begun, experiment, corpus, tokenizer, content, words):
    (begun / "config.json").write_bytes(content)
    before = snapshot(begun)
    for attempt, arguments in ((read_run, ()), (begin_or_resume, (experiment, corpus, tokenizer[0]))):
        with pytest.raises(ValueError) as refusal:
            attempt(str(begun), *arguments)
        assert str(begun / "config.json") in str(refusal.value) and words in str(refusal.value)
    assert snapshot(begun) == before


def test_settings_of_another_version_are_named(begun):
    values = json.loads((begun / "config.json").read_text())
    values["experiment"]["model"]["rotary"] = True
    (begun / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="another version of flaxbert: ModelConfig: unknown fields .'rotary'."):
        read_run(str(begun))


def test_a_directory_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a run's directory: it has no config.json"):
        read_run(str(tmp_path))
