"""`flaxbert finetune` and `predict`: each kind of task is learnt, an interrupted search ends as one left alone."""

import contextlib
import dataclasses
import io
import json
import logging
import random
import shutil

import jax
import numpy as np
import pytest
from toy_tasks import KINDS, classification, pair, question, tagging, write_data, write_model

from flaxbert import cli
from flaxbert.commands import Finetune
from flaxbert.config import PRESETS, OptimizerConfig
from flaxbert.finetuning.batching import batches, make_batch
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.grid import Stopped
from flaxbert.finetuning.launch import launch
from flaxbert.finetuning.saved import TASK, settle_model
from flaxbert.finetuning.step import build_functions
from flaxbert.finetuning.tasks import TASKS
from flaxbert.finetuning.tuning import begin, predict, read_split
from flaxbert.interop import huggingface
from flaxbert.interop.architectures import narrowed
from flaxbert.model.finetuning import BiLstm, initialize_bilstm
from flaxbert.tools.load import load

QUICK = ("--learning-rates", "2e-3", "--batch-sizes", "16", "--epochs", "10", "--max-length", "16")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("pretrained"))


def finetune(task, model, data, workdir, *flags):
    return cli.main(["finetune", task, "--init", str(model), "--data", str(data), "--workdir", str(workdir), *flags])


def evaluated(model, file):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["evaluate", str(model), "--examples", str(file), "--json", "True"]) == cli.DONE
    return json.loads(printed.getvalue())


def tags(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_task_is_learnt_and_predicted_as_it_was_scored(model, tmp_path, kind, monkeypatch, capsys):
    draw, metric = KINDS[kind]
    data = write_data(tmp_path / "data", draw)
    assert finetune(kind, model, data, tmp_path / "run", *QUICK) == cli.DONE
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["best"]["dev"][metric] > 0.8, found["best"]
    assert evaluated(tmp_path / "run", data / "dev.jsonl") == pytest.approx(found["best"]["dev"], rel=1e-4)
    scored = [json.loads(line) for line in (tmp_path / "run" / "cells").glob("*-dev.jsonl").__next__().open()]
    for name in scored[0].keys() - {"id", "tokens", "prediction", "reference"}:  # what each example adds to a mean
        assert np.mean([each[name] for each in scored]) == pytest.approx(found["best"]["dev"][name])
    assert (metric in scored[0]) == (kind not in ("regression", "ner"))
    assert cli.main([
        "predict", str(tmp_path / "run"), str(data / "dev.jsonl"), "--output", str(tmp_path / "said.jsonl")
    ]) == cli.DONE  # fmt: skip
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").open()]
    for one, other in zip(said, scored, strict=True):
        assert one["id"] == other["id"]
        if kind == "regression":
            assert one["prediction"] == pytest.approx(other["prediction"], rel=1e-4)
        else:
            assert one["prediction"] == other["prediction"]
        if kind == "ner":
            assert one["tokens"] == other["tokens"] and len(one["entities"]) == sum(
                tag.startswith("B-") for tag in one["prediction"]
            )
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((data / "dev.jsonl").read_bytes())))
    assert cli.main(["predict", str(tmp_path / "run")]) == cli.DONE
    assert capsys.readouterr().out == (tmp_path / "said.jsonl").read_text()
    if kind == "squad2":
        threshold = json.loads((tmp_path / "run" / "best" / TASK).read_text())["threshold"]
        for each in said:
            assert each["threshold"] == threshold
            assert (each["prediction"] == "") == (each["no_answer_score"] > threshold)
        assert 0 < sum(each["prediction"] == "" for each in said) < len(said)


def test_an_interrupted_search_goes_on_and_ends_as_one_left_alone(model, tmp_path):
    """Stopped in the second of three runs: the first is not trained again, and nothing differs but times."""
    data = write_data(tmp_path / "data", classification, train=48)
    flags = Finetune(
        "classification", str(model), str(data), "", seeds=3, learning_rates="5e-3", batch_sizes="16", epochs="2",
        max_length=16,
    )
    asked = []

    def stop():
        asked.append(None)
        return len(asked) == 9  # each run has six steps

    broken, whole = (dataclasses.replace(flags, workdir=str(tmp_path / name)) for name in ("broken", "whole"))
    with pytest.raises(Stopped):
        launch(broken, stop, lambda sentence: None)
    assert len(list((tmp_path / "broken" / "cells").glob("*.json"))) == 1
    told = []
    launch(broken, lambda: False, told.append)
    assert [line for line in told if "of 3" in line][0].startswith("2 of 3")
    launch(whole, lambda: False, lambda sentence: None)
    ended, wanted = tags(tmp_path / "broken"), tags(tmp_path / "whole")
    assert ended.keys() == wanted.keys()
    timed = {"results.json", *(name for name in wanted if name.startswith("lr") and name.endswith(".json"))}
    for name in wanted.keys() - timed - {"README.md"}:
        assert ended[name] == wanted[name], name


def test_a_search_goes_on_only_with_its_own_settings_and_may_grow(model, tmp_path, capsys):
    data = write_data(tmp_path / "data", classification, train=32)
    small = ("--epochs", "1", "--learning-rates", "5e-3", "--batch-sizes", "16", "--max-length", "16")
    assert finetune("classification", model, data, tmp_path / "run", *small) == cli.DONE
    assert finetune("classification", model, data, tmp_path / "run", *small, "--frozen") == cli.USER_ERROR
    assert "frozen was False and is now True" in capsys.readouterr().err
    moved = shutil.copytree(model, tmp_path / "moved")  # the weights are the same
    assert finetune("classification", moved, data, tmp_path / "run", *small, "--seeds", "2") == cli.DONE
    assert "2 of 2" in (said := capsys.readouterr().err) and "1 of 2" not in said
    write_data(data, pair)
    assert finetune("classification", model, data, tmp_path / "run", *small, "--first", "first") == cli.USER_ERROR
    said = capsys.readouterr().err
    assert "train.jsonl has changed" in said and said.count("dev.jsonl has changed") == 1


def test_a_search_goes_on_only_with_the_answers_that_it_was_scored_by(model, tmp_path, capsys):
    """Those of dev are not learnt: scores alone tell them apart. A folder that is older than this check goes on."""
    data, run = write_data(tmp_path / "data", question, train=16, dev=8), tmp_path / "run"
    small = ("--epochs", "1", "--learning-rates", "5e-3", "--batch-sizes", "16", "--max-length", "16")
    assert finetune("qa", model, data, run, *small) == cli.DONE
    rows = [json.loads(line) for line in (data / "dev.jsonl").open()]
    rows[0]["answers"] = {name: found * 2 for name, found in rows[0]["answers"].items()}
    (data / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finetune("qa", model, data, run, *small) == cli.USER_ERROR
    assert capsys.readouterr().err.endswith(f"search: {data / 'dev.jsonl'} has changed; name another --workdir\n")
    older = json.loads((run / "config.json").read_text())
    del older["search"]["scored"]
    (run / "config.json").write_text(json.dumps(older))
    assert finetune("qa", model, data, run, *small) == cli.DONE


def test_dropout_is_that_of_the_model_or_the_one_asked_for(model, tmp_path, capsys):
    data = write_data(tmp_path / "data", classification, train=32)
    flags = ("--epochs", "1", "--learning-rates", "5e-3", "--batch-sizes", "16", "--max-length", "16")
    own = json.loads((model / "config.json").read_text())["hidden_dropout_prob"]
    losses = {}
    for name, more in (("own", ()), ("same", ("--dropout", str(own))), ("other", ("--dropout", "0.4"))):
        assert finetune("classification", model, data, tmp_path / name, *flags, *more) == cli.DONE
        (cell,) = (tmp_path / name / "cells").glob("*.json")
        losses[name] = json.loads(cell.read_text())["loss"]
    assert losses["own"] == losses["same"] != losses["other"]
    assert finetune("classification", model, data, tmp_path / "own", *flags, "--dropout", str(own)) == cli.DONE
    assert finetune("classification", model, data, tmp_path / "same", *flags) == cli.DONE
    config = json.loads((tmp_path / "other" / "best" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.4
    assert finetune("classification", model, data, tmp_path / "other", *flags) == cli.USER_ERROR
    assert "dropout was 0.4 and is now None" in capsys.readouterr().err
    assert finetune("classification", model, data, tmp_path / "no", *flags, "--dropout", "1") == cli.USER_ERROR
    assert "--dropout 1.0 is not in [0, 1)" in capsys.readouterr().err


def test_a_grid_that_grows_keeps_the_best_model_of_all(model, tmp_path):
    """The first rate learns, the second one, which stands before it in the larger grid, does not."""
    data = write_data(tmp_path / "data", classification)
    small = ("--batch-sizes", "16", "--max-length", "16", "--epochs", "4")
    for rates in ("5e-3", "1e-9,5e-3"):
        assert finetune("classification", model, data, tmp_path / "run", *small, "--learning-rates", rates) == cli.DONE
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(found["rows"]) == 2 and found["best"]["cell"]["learning_rate"] == 5e-3
    task = json.loads((tmp_path / "run" / "best" / "task.json").read_text())
    assert task["cell"].startswith("lr0.005-") and task["scores"] == found["best"]["dev"]


@pytest.mark.parametrize("lost", ["the model", "its result"])
def test_a_best_model_that_is_lost_is_trained_again(model, tmp_path, capsys, lost):
    """Its result too may be deleted, as a damaged one has to be, and a launch of another grid follow."""
    data, run = write_data(tmp_path / "data", classification), tmp_path / "run"
    small = ("--batch-sizes", "16", "--max-length", "16", "--epochs", "2", "--learning-rates")
    assert finetune("classification", model, data, run, *small, "5e-3,1e-9") == cli.DONE
    kept = json.loads((run / "best" / TASK).read_text())["cell"]
    if lost == "the model":
        shutil.rmtree(run / "best")
    else:
        (run / "cells" / f"{kept}.json").unlink()
    assert finetune("classification", model, data, run, *small, "1e-9") == cli.DONE
    assert "the best model is not there: learning rate" in capsys.readouterr().err
    found = json.loads((run / "results.json").read_text())["best"]
    task = json.loads((run / "best" / TASK).read_text())
    assert task["scores"] == found["dev"]
    assert (task["cell"] == kept) == (lost == "the model")


def test_a_model_of_another_version_is_told_of(model, tmp_path, capsys):
    (tmp_path / TASK).write_text('{"format_version": 1}')
    assert cli.main(["predict", str(tmp_path)]) == cli.USER_ERROR
    assert "task.json cannot be used: it was written by another version of flaxbert" in capsys.readouterr().err


def test_a_model_that_a_kill_kept_from_its_place_is_put_there(tmp_path):
    for name, content in (("best", "old"), (".best.new", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / TASK).write_text(content)
    settle_model(tmp_path / "best")
    assert (tmp_path / "best" / TASK).read_text() == "new" and not (tmp_path / ".best.new").exists()


def test_columns_that_were_named_are_those_of_new_files_too(model, tmp_path, capsys):
    """And a test file that cannot be scored is told of."""
    rows = [classification(random.Random(number)) for number in range(32)]
    text = "".join(json.dumps({"words": row["text"], "mood": row["label"]}) + "\n" for row in rows)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "test.jsonl").write_text(json.dumps({"words": rows[0]["text"]}) + "\n")
    flags = ("--first", "words", "--label", "mood", "--epochs", "1", "--batch-sizes", "16", "--max-length", "16")
    assert finetune("classification", model, tmp_path, tmp_path / "run", *flags) == cli.DONE
    assert "test is left out: " in capsys.readouterr().err
    assert cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "test.jsonl")]) == cli.DONE
    assert json.loads(capsys.readouterr().out)["prediction"] in ("0", "1")


def test_a_bilstm_tags_by_the_features_of_an_encoder_that_stays_as_it_was(model, tmp_path, capsys):
    """As section 5.3 of the paper. The encoder is loaded by transformers' class, the whole by flaxbert alone."""
    data, run = write_data(tmp_path / "data", tagging), tmp_path / "run"
    flags = ("--bilstm-layers", "0,-1", "--learning-rates", "1e-2", "--batch-sizes", "16", "--max-length", "16")
    assert finetune("ner", model, data, run, *flags, "--epochs", "6") == cli.DONE
    best = json.loads((run / "results.json").read_text())["best"]["dev"]
    assert best["entity_f1"] > 0.8 and evaluated(run, data / "dev.jsonl") == pytest.approx(best, rel=1e-6)
    before, after = load(model), load(run / "best")
    assert after.architecture == "BertModel"
    jax.tree.map(np.testing.assert_array_equal, after.params["encoder"], before.params["encoder"])
    capsys.readouterr()
    assert cli.main(["predict", str(run), str(data / "dev.jsonl")]) == cli.DONE
    said = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    kept = [json.loads(line)["prediction"] for line in next((run / "cells").glob("*-dev.jsonl")).open()]
    assert said == kept
    (run / "best" / "tagger" / "model.safetensors").write_bytes(b"cut off")
    assert cli.main(["predict", str(run), str(data / "dev.jsonl")]) == cli.USER_ERROR
    assert "tagger/model.safetensors is damaged or truncated" in capsys.readouterr().err


def test_a_bilstm_reads_the_tokens_of_a_row_and_nothing_of_its_padding():
    small = dataclasses.replace(PRESETS["tiny"], hidden_size=8)
    tagger, params = BiLstm(8, 3), initialize_bilstm(small, 3, 2, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 16))
    both = tagger.apply({"params": params}, x, np.array([6, 4]))
    alone = tagger.apply({"params": params}, x[1:, :4], np.array([4]))
    np.testing.assert_allclose(both[1, :4], alone[0], atol=1e-6)
    changed = tagger.apply({"params": params}, x.at[1, 3].add(1.0), np.array([6, 4]))
    assert (np.abs(changed[1, :4] - both[1, :4]) > 1e-6).any(axis=1).all(), "each token hears of the last one"


@pytest.mark.parametrize("flags, words", [
    (("--bilstm-layers", "-1"), "--bilstm-layers is for tagging, and task classification is none"),
    (("--seeds", "0"), "--seeds 0 is not positive"), (("--epochs", "1,1"), "names a value twice"),
    (("--learning-rates", "5e-5;3e-5"), "is not a list of numbers"), (("--batch-sizes", "-1"), "not positive"),
    (("--max-length", "64"), "exceeds the model's 32"), (("--train-examples", "99"), "is not in [1, 32]"),
    (("--first", "textt"), "those there are text, label"), (("--init", "nowhere"), "nowhere"),
    (("--data", "nowhere"), "nowhere is no folder"),
])  # fmt: skip
def test_a_mistake_is_answered_in_one_sentence(model, tmp_path, capsys, flags, words):
    data = write_data(tmp_path / "data", classification, train=32)
    assert finetune("classification", model, data, tmp_path / "run", *flags) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert words in said.splitlines()[-1] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("task, name, flag, words", [
    ("ner", "{}.conll", "--second", "--second x names the column of a second text, and task ner has none"),
    *(("squad", "{}-v1.1.json", flag, "name fields of JSON lines, and ") for flag in
      ("--first", "--second", "--label")),
])  # fmt: skip
def test_a_column_that_no_reader_would_look_for_is_refused(tmp_path, capsys, task, name, flag, words):
    for split in ("train", "dev"):
        (tmp_path / name.format(split)).write_text("never read")
    assert finetune(task, "no model", tmp_path, tmp_path / "run", flag, "x") == cli.USER_ERROR
    assert words in capsys.readouterr().err


def test_a_new_output_layer_has_nothing_of_the_settings_of_an_older_one(model):
    kept = {"problem_type": "multi_label_classification", "classifier_dropout": 0.3, "pad_token_id": 1}
    start = begin(load(model).checkpoint._replace(kept=kept), TASKS["regression"], (), 0, False)
    assert start.kept == {"pad_token_id": 1}


def test_a_pooler_that_the_model_lacks_is_told_of_and_never_left_at_random(model, tmp_path):
    data, masked = write_data(tmp_path / "data", classification, train=32), tmp_path / "masked"
    huggingface.export(narrowed(load(model).checkpoint, "BertForMaskedLM"), model, masked, "card\n")
    flags = Finetune("classification", str(masked), str(data), str(tmp_path / "run"), max_length=16)
    told = []
    with pytest.raises(ValueError, match=f"init {masked} lacks the pooler, and --frozen would leave a random one"):
        launch(dataclasses.replace(flags, frozen=True), lambda: True, told.append)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Stopped):
        launch(flags, lambda: True, told.append)
    assert f"init {masked}: it lacks the pooler, newly initialised" in told


@pytest.fixture(scope="module")
def labelled(model, tmp_path_factory):
    """(task, what is read of its training file, the model before its first step)."""
    data, task = write_data(tmp_path_factory.mktemp("data"), classification, train=24), TASKS["classification"]
    loaded = load(model)
    split = read_split(read_examples(data / "train.jsonl", task), task, loaded.tokenizer, 16)
    return task, split, begin(loaded.checkpoint, task, split.examples.labels, 0, False)


def steps(labelled, chosen, rows, **options):
    """Parameters after one step on the chosen features in a batch of so many rows, without dropout."""
    task, split, start = labelled
    config = dataclasses.replace(start.config, dropout=0.0, attention_dropout=0.0)
    functions = build_functions(task.kind, config, 2, rows, OptimizerConfig(), **options)
    batch = make_batch(split.features, np.array(chosen), rows, 16)
    state, loss = functions.train(functions.begin(start.params), batch, 1e-2, jax.random.key(0))
    return jax.device_get(state.params), float(loss)


def test_rows_that_fill_a_batch_up_change_nothing(labelled):
    (params, loss), (filled, other) = steps(labelled, range(8), 8), steps(labelled, range(8), 16)
    assert loss == pytest.approx(other, rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), params, filled)


def test_a_frozen_encoder_stays_as_it_is_to_the_last_bit(labelled):
    start = labelled[2].params
    frozen, whole = (steps(labelled, range(8), 8, frozen=frozen)[0] for frozen in (True, False))
    for part in ("encoder", "pooler"):
        jax.tree.map(np.testing.assert_array_equal, frozen[part], start[part])
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), whole[part], start[part])
        assert all(jax.tree.leaves(moved)) or part == "encoder" and any(jax.tree.leaves(moved))
    assert np.any(frozen["head"]["kernel"] != start["head"]["kernel"])


def test_answers_do_not_depend_on_the_batch(labelled):
    task, split, start = labelled
    found = []
    for rows in (4, 64):
        functions = build_functions(task.kind, start.config, 2, rows, OptimizerConfig())
        found.append(np.stack(predict(split.features, start.params, functions, rows)))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_one_shape_is_compiled_once_for_all_rates_and_seeds(model, tmp_path):
    build_functions.cache_clear()
    data, seen = write_data(tmp_path / "data", classification, train=32), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    try:
        with jax.log_compiles(), contextlib.redirect_stderr(io.StringIO()):
            finetune(
                "classification", model, data, tmp_path / "run", "--max-length", "16", "--batch-sizes", "16",
                "--learning-rates", "1e-3,2e-3,3e-3", "--seeds", "2", "--epochs", "1",
            )  # fmt: skip
    finally:
        logging.getLogger("jax").removeHandler(handler)
    assert len([line for line in seen if line.startswith("Compiling jit(train)")]) == 1


def test_every_example_is_seen_once_an_epoch_in_an_order_of_its_seed(labelled):
    features = labelled[1].features
    orders = [[batch["feature_indices"] for batch in batches(features, 5, *key)] for key in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sorted(index for part in order for index in part if index >= 0) == list(range(len(features)))
    assert len({np.concatenate(order).tobytes() for order in orders}) == 3
