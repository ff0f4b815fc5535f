"""Models as they go from command to command: trained, exported, imported, evaluated and trained on."""

import json
import random
import shutil

import pytest

from flaxbert import cli, joins

SIZES = (
    "--model.num-layers", "1", "--model.hidden-size", "16", "--model.num-heads", "2", "--model.max-length", "32",
    "--data.sequence-length", "32", "--optimizer.warmup-steps", "2", "--optimizer.learning-rate", "1e-2",
    "--train.steps", "12", "--train.batch-size", "8", "--train.log-every", "4", "--train.eval-every", "6",
    "--train.checkpoint-every", "6",
)  # fmt: skip


def write_text(path, seed):
    """Documents of a few sentences over a small vocabulary; another seed is another text in the same words."""
    generator = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("n", "l", "")]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(60):
            for _ in range(generator.randint(3, 8)):
                file.write(" ".join(generator.choices(words, k=generator.randint(3, 12))).capitalize() + ".\n")
            file.write("\n")


def flaxbert(*arguments):
    """Runs a command in this process; it must succeed."""
    assert cli.main([str(argument) for argument in arguments]) == cli.DONE


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """`run` on the corpus `one`, its `export`, and a corpus `two` of other text with the export's tokenizer."""
    home = tmp_path_factory.mktemp("models")
    shared = ("--validation-fraction", "0.3", "--workers", "1")
    write_text(home / "one.txt", 1)
    write_text(home / "two.txt", 2)
    trained = ("--tokenizer", "wordpiece", "--vocab-size", "60")
    flaxbert("prepare", home / "one.txt", "--output", home / "one", *trained, *shared)
    flaxbert("pretrain", "bert_tiny", "--corpus", home / "one", "--workdir", home / "run", *SIZES)
    flaxbert("export", home / "run", home / "export")
    flaxbert("prepare", home / "two.txt", "--output", home / "two", "--tokenizer", home / "export", *shared)
    return home


def validation(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "validation"]


def evaluated(capsys, *arguments):
    capsys.readouterr()
    flaxbert("evaluate", *arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_an_older_checkpoint_is_evaluated(home, capsys):
    first, last = validation(home / "run")
    arguments = home / "run", "--corpus", home / "one", "--batch-size", "8"
    found = evaluated(capsys, *arguments, "--step", "6")
    assert found == pytest.approx({name: first[name] for name in found}, rel=1e-5)
    assert found["mlm_loss"] != pytest.approx(last["mlm_loss"], rel=1e-4)
    assert "step 7" in refused(capsys, "evaluate", *arguments, "--step", "7")
    export = "evaluate", home / "export", "--corpus", home / "one", "--step", "6"
    assert "step 6 is given, and" in refused(capsys, *export)


def refused(capsys, *arguments):
    """The one sentence of a command that must fail."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == cli.USER_ERROR
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flaxbert: ")]
    assert len(said) == 1
    return said[0]


def test_evaluation_of_a_run_and_of_its_export_equals_that_of_its_training(home, capsys):
    last = validation(home / "run")[-1]
    for model, settings in ((home / "run", ()), (home / "export", ("--data.sequence-length", "32"))):
        found = evaluated(capsys, model, "--corpus", home / "one", "--batch-size", "8", *settings)
        # Four devices against one: float32 sums in another order.
        assert found == pytest.approx({name: last[name] for name in found}, rel=1e-5)
        assert set(found) >= {"mlm_loss", "perplexity", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}


def test_any_text_is_evaluated_whole_with_the_models_own_tokenizer(home, capsys):
    """As a corpus that holds out nothing would be, by the sequences of its training split."""
    wanted = None
    for model in (home / "run", home / "export"):
        settings = ("--data.sequence-length", "32", "--pseudo-perplexity", "3", "--batch-size", "8")
        found = evaluated(capsys, model, "--text", home / "two.txt", *settings)
        assert found["pseudo_perplexity_tokens"] in range(30, 3 * 30 + 1)
        assert found["pseudo_perplexity"] < 60 and found["nsp_loss"] > 0, "better than guessing, after twelve steps"
        wanted = wanted or found
        assert found == pytest.approx(wanted, rel=1e-5)
    assert wanted["mlm_loss"] != validation(home / "run")[-1]["mlm_loss"]


def test_text_is_prepared_with_the_cased_vocabulary_of_another_tool(home, tmp_path, capsys):
    """As its tokenizer_config.json says; a tokenizer that is no WordPiece is refused."""
    other = tmp_path / "other"
    shutil.copytree(home / "export", other)
    for name in ("tokenizer.json", "tokenizer_info.json"):
        (other / name).unlink()
    words = (other / "vocab.txt").read_text().split("\n")
    words[-2] = "Cat"  # the last one
    (other / "vocab.txt").write_text("\n".join(words))
    (other / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    found = evaluated(capsys, other, "--text", home / "two.txt", "--data.sequence-length", "32", "--batch-size", "8")
    assert found["mlm_loss"] > 0
    assert "is no directory" in refused(capsys, "evaluate", tmp_path / "none", "--text", home / "two.txt")


@pytest.mark.parametrize("flags, words", [
    ((), "nothing to evaluate on: name a --corpus, files of --text, or --examples"),
    (("--corpus", "c", "--text", "t"), "--corpus and --text exclude each other"),
    (("--text", "nowhere.txt"), "nowhere.txt"), (("--pseudo-perplexity", "-1", "--corpus", "c"), "-1 is negative"),
    (("--examples", "e", "--batches", "3"), "--batches is of no use with --examples"),
    (("--examples", "e", "--batch-size", "3"), "--batch-size is of no use with --examples"),
    (("--examples", "e", "--data.pairing", "sop"), "flags of --data are of no use with --examples"),
    (("--examples", "e"), "has no task.json"),
])  # fmt: skip
def test_an_evaluation_of_nothing_or_of_two_things_is_refused(home, capsys, flags, words):
    assert words in refused(capsys, "evaluate", home / "export", *flags)


def test_a_model_meets_only_a_corpus_of_its_own_tokenizer(home, capsys, tmp_path):
    write_text(tmp_path / "three.txt", 3)
    settings = ("--tokenizer", "sentencepiece", "--vocab-size", "60", "--validation-fraction", "0.3")
    flaxbert("prepare", tmp_path / "three.txt", "--output", tmp_path / "three", *settings)
    for command in (
        ("evaluate", home / "export", "--corpus", tmp_path / "three"),
        ("pretrain", "bert_tiny", "--corpus", tmp_path / "three", "--workdir", tmp_path / "run", *SIZES,
         "--init", home / "export"),
    ):  # fmt: skip
        said = refused(capsys, *command)
        assert "its tokenizer is not that of the corpus" in said and f"--tokenizer {home / 'export'}" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["export", "run"])
def test_a_run_that_begins_with_a_model_begins_with_its_loss_and_falls(home, capsys, tmp_path, model):
    settings = ("--batch-size", "8", "--data.sequence-length", "32")
    begun = evaluated(capsys, home / model, "--corpus", home / "two", *settings)
    launch = ("pretrain", "bert_tiny", "--corpus", home / "two", "--workdir", tmp_path / "run", *SIZES)
    flaxbert(*launch, "--init", home / model, "--train.steps", "24")
    lines = validation(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 6, 12, 18, 24]
    assert lines[0]["mlm_loss"] == pytest.approx(begun["mlm_loss"], rel=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init"] == str(home / model)


def test_a_run_that_has_begun_keeps_what_it_began_with(home, capsys, tmp_path, monkeypatch):
    launch = ("pretrain", "bert_tiny", "--corpus", home / "two", "--workdir", tmp_path / "run", *SIZES)
    flaxbert(*launch, "--init", home / "export")
    assert "init was" in refused(capsys, *launch)
    assert "init was" in refused(capsys, *launch, "--init", home / "run")
    monkeypatch.setattr("flaxbert.tools.load.load", lambda model: pytest.fail("the model is read by the first launch"))
    flaxbert(*launch, "--init", home / "export")
    assert [line["step"] for line in validation(tmp_path / "run")] == [0, 6, 12]


def test_a_model_of_another_shape_is_refused_before_a_run_is_made(home, capsys, tmp_path):
    launch = ("pretrain", "bert_tiny", "--corpus", home / "two", "--workdir", tmp_path / "run", *SIZES)
    said = refused(capsys, *launch, "--init", home / "export", "--model.hidden-size", "32")
    assert "model.hidden_size is 16 there and 32 in the experiment" in said and not (tmp_path / "run").exists()


def test_an_export_is_checked_on_the_runs_own_held_out_text(home, tmp_path, monkeypatch):
    seen = []
    batch_of = joins.held_out_batch
    monkeypatch.setattr(joins, "held_out_batch", lambda model: seen.append(batch_of(model)) or seen[-1])
    flaxbert("export", home / "run", tmp_path / "model")
    assert seen[0]["input_ids"].shape == (4, 32) and seen[0]["sequence_ids"].any()
    shutil.copytree(home / "run", tmp_path / "moved")
    config = (tmp_path / "moved" / "config.json").read_text().replace(str(home / "one"), str(tmp_path / "nowhere"))
    (tmp_path / "moved" / "config.json").write_text(config)
    flaxbert("export", tmp_path / "moved", tmp_path / "again")
    assert seen[1] is None
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "again")]
    assert written[0] == written[1]


def test_a_run_with_too_little_held_out_text_is_exported_all_the_same(home, tmp_path, capsys):
    write_text(tmp_path / "few.txt", 5)
    settings = ("--tokenizer", home / "export", "--validation-fraction", "0")
    flaxbert("prepare", tmp_path / "few.txt", "--output", tmp_path / "few", *settings)
    launch = ("pretrain", "bert_tiny", "--corpus", tmp_path / "few", "--workdir", tmp_path / "run", *SIZES)
    flaxbert(*launch, "--train.steps", "2", "--train.eval-every", "0")
    flaxbert("export", tmp_path / "run", tmp_path / "model")
    assert "its outputs on random tokens are those of what was written" in capsys.readouterr().out


def test_cards_tell_where_a_model_began_and_stay_with_it(home, tmp_path):
    launch = ("pretrain", "bert_tiny", "--corpus", home / "two", "--workdir", tmp_path / "run", *SIZES)
    flaxbert(*launch, "--init", home / "export")
    flaxbert("export", tmp_path / "run", tmp_path / "model", "--dtype", "bfloat16")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "from the parameters of `export`" in card and "and what `export` had seen" in card
    assert "`BertForPreTraining` in bfloat16" in card and "before the weights were rounded to bfloat16" in card
    flaxbert("export", tmp_path / "model", tmp_path / "encoder", "--architecture", "BertModel")
    kept = (tmp_path / "encoder" / "README.md").read_text()
    assert kept.startswith(card.rstrip()) and "Written by flaxbert as BertModel in float32" in kept


@pytest.mark.parametrize("count", ["0", "-1"])
def test_an_evaluation_of_no_batches_is_refused(home, capsys, count):
    said = refused(capsys, "evaluate", home / "run", "--corpus", home / "one", "--batches", count)
    assert f"batches {count} is not positive" in said


def test_a_round_trip_of_the_checkpoint_of_google_is_bit_equal(shared_data, tmp_path):
    flaxbert("import", shared_data / "tf1-toy-ckpt", tmp_path / "one")
    flaxbert("export", tmp_path / "one", tmp_path / "two")
    flaxbert("import", tmp_path / "two", tmp_path / "three")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")]
    assert weights[0] == weights[1] == weights[2]
    flaxbert("import", shared_data / "tf1-toy-ckpt" / "bert_model.ckpt", tmp_path / "named")
    assert (tmp_path / "named" / "model.safetensors").read_bytes() == weights[0]


@pytest.mark.parametrize("file, message", [
    ("bert_model.ckpt.data-00000-of-00001", "cannot be read|is no TensorFlow checkpoint, or damaged"),
    ("bert_model.ckpt.index", "is no TensorFlow checkpoint, or damaged"),
    ("bert_config.json", "cannot be read as JSON"),
    ("vocab.txt", "vocab.txt holds 5 pieces"),
])  # fmt: skip
def test_a_truncated_checkpoint_of_google_is_refused(shared_data, tmp_path, capsys, file, message):
    folder = tmp_path / "toy"
    shutil.copytree(shared_data / "tf1-toy-ckpt", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (folder / file).write_bytes((folder / file).read_bytes()[:30])
    said = refused(capsys, "import", folder, tmp_path / "model")
    assert any(word in said for word in message.split("|")) and not (tmp_path / "model").exists()


def test_an_index_without_its_weights_is_refused(shared_data, tmp_path, capsys):
    said = refused(capsys, "import", shared_data / "tf1-bert-chinese-index", tmp_path / "model")
    assert "bert_model.ckpt is damaged: variable" in said and not (tmp_path / "model").exists()
