"""`flaxbert predict` and its neighbours at the border to the user: pipes, files, and what is told."""

import errno
import io
import json
import logging
import os
import threading
import time

import jax
import pytest
from full_disks import files_may_grow_to
from toy_tasks import choice, classification, question, write_data, write_model

from flaxbert import cli
from flaxbert.finetuning.step import build_functions

QUICK = ("--learning-rates", "2e-3", "--batch-sizes", "16", "--epochs", "1")
LONG = " ".join(["day"] * 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("pretrained"))


def tuned(task, draw, model, folder, *flags):
    data = write_data(folder / "data", draw, train=16, dev=8)
    start = ("--init", str(model), "--data", str(data), "--workdir", str(folder / "run"))
    assert cli.main(["finetune", task, *start, *QUICK, *flags]) == cli.DONE
    return folder / "run"


@pytest.fixture(scope="module")
def classifier(model, tmp_path_factory):
    return tuned("classification", classification, model, tmp_path_factory.mktemp("classifier"), "--max-length", "16")


def given(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))


def test_a_line_of_a_slow_pipe_is_answered_before_the_next_one_comes(classifier, monkeypatch):
    """Whoever writes waits for the answer to each line: nothing would come of it if more were waited for."""
    (questions, ask), (answers, say) = os.pipe(), os.pipe()
    monkeypatch.setattr("sys.stdin", open(questions, encoding="utf-8"))
    monkeypatch.setattr("sys.stdout", open(say, "w", encoding="utf-8"))
    status = []
    worker = threading.Thread(target=lambda: status.append(cli.main(["predict", str(classifier)])), daemon=True)
    worker.start()
    with open(answers, encoding="utf-8") as heard, open(ask, "w", encoding="utf-8") as asking:
        for number, text in enumerate(["a sunny day", "rainy", "a gloomy road"], 1):
            print(text, file=asking, flush=True)
            assert json.loads(heard.readline())["id"] == str(number)
        asking.close()
        worker.join(60)
    assert status == [cli.DONE]


def test_answers_do_not_depend_on_how_many_lines_come_at_once(classifier, monkeypatch, capsys):
    lines = [f"{word} day" for word in ("sunny", "rainy", "merry", "gloomy", "lovely", "dreadful")] * 7
    found = []
    for size in (1, 4, len(lines)):
        found.append([])
        for start in range(0, 12, size):
            given(monkeypatch, "\n".join(lines[start:start + size]))
            assert cli.main(["predict", str(classifier)]) == cli.DONE
            found[-1] += [json.loads(line)["probabilities"] for line in capsys.readouterr().out.splitlines()]
    for other in found[1:]:
        for one, two in zip(found[0], other):
            assert one == pytest.approx(two, abs=1e-5)


def test_what_stands_before_a_bad_line_is_answered_and_the_line_told_of(classifier, monkeypatch, capsys):
    given(monkeypatch, "sunny\nrainy\na\tb\nmerry\n")
    assert cli.main(["predict", str(classifier)]) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["1", "2"]
    assert err == "flaxbert: standard input, line 3 has 2 texts with tabs between them, and the task has 1\n"


def test_an_output_appears_whole_or_not_at_all(classifier, tmp_path, monkeypatch, capsys):
    output = tmp_path / "said.jsonl"
    given(monkeypatch, "sunny\n\tb\n")
    assert cli.main(["predict", str(classifier), "--output", str(output)]) == cli.USER_ERROR
    assert list(tmp_path.iterdir()) == []
    given(monkeypatch, "sunny\n")
    assert cli.main(["predict", str(classifier), "--output", str(output)]) == cli.DONE
    assert [path.name for path in tmp_path.iterdir()] == ["said.jsonl"] and output.read_text().count("\n") == 1
    capsys.readouterr()
    for wrong, words in ((output, "exists already"), (tmp_path / "no" / "x", "there is no folder")):
        assert cli.main(["predict", str(classifier), "--output", str(wrong)]) == cli.USER_ERROR
        assert words in capsys.readouterr().err
    assert output.read_text().count("\n") == 1


def test_a_full_disk_is_told_of_with_the_file(classifier, tmp_path, monkeypatch, capsys):
    output = tmp_path / "said.jsonl"
    given(monkeypatch, "sunny\n")
    assert cli.main(["predict", str(classifier)]) == cli.DONE  # and what is needed is compiled
    given(monkeypatch, "sunny\n")
    capsys.readouterr()
    with files_may_grow_to(20):
        assert cli.main(["predict", str(classifier), "--output", str(output)]) == cli.USER_ERROR
    refused = f"flaxbert: --output {output} cannot be written: {os.strerror(errno.EFBIG)}\n"
    assert capsys.readouterr().err == refused and list(tmp_path.iterdir()) == []


def test_texts_that_were_cut_are_counted_once(classifier, tmp_path, monkeypatch, capsys):
    rows = [{"text": text, "label": "1"} for text in ("sunny", LONG, "merry", f"{LONG} merry")]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = "2 of 4 examples have more than 16 tokens: they were cut there\n"
    file = str(tmp_path / "some.jsonl")
    assert cli.main(["predict", str(classifier), file]) == cli.DONE
    assert capsys.readouterr().err == f"{file}: {said}"
    assert cli.main(["evaluate", str(classifier), "--examples", file]) == cli.DONE
    assert capsys.readouterr().err == f"{file}: {said}"
    given(monkeypatch, (tmp_path / "some.jsonl").read_text())
    assert cli.main(["predict", str(classifier)]) == cli.DONE
    assert capsys.readouterr().err == f"standard input: {said}"
    given(monkeypatch, "sunny\n")
    assert cli.main(["predict", str(classifier)]) == cli.DONE
    assert capsys.readouterr().err == ""


def test_fine_tuning_tells_what_it_cut_of_each_file(model, tmp_path, capsys):
    tuned("classification", classification, model, tmp_path, "--max-length", "5")
    said = capsys.readouterr().err
    for name, count in (("train", 16), ("dev", 8)):
        path = tmp_path / "data" / f"{name}.jsonl"
        assert f"{path}: {count} of {count} examples have more than 5 tokens: they were cut there\n" in said


def test_of_questions_those_that_were_cut_are_counted_and_no_context_is(model, tmp_path, monkeypatch, capsys):
    run = tuned("qa", question, model, tmp_path, "--max-length", "16")
    capsys.readouterr()
    rows = [{"question": text, "context": LONG, "id": f"q{len(text)}"} for text in ("what is", LONG)]
    given(monkeypatch, "".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["predict", str(run)]) == cli.DONE
    out, err = capsys.readouterr()
    assert err == "standard input: 1 of 2 questions have more than 8 tokens: they were cut there\n"
    said = [json.loads(line) for line in out.splitlines()]
    assert [each["id"] for each in said] == ["q7", f"q{len(LONG)}"]
    assert all("threshold" not in each for each in said)


def test_another_number_of_choices_than_in_training_is_refused(model, tmp_path, monkeypatch, capsys):
    run = tuned("multiple_choice", choice, model, tmp_path, "--max-length", "16")
    capsys.readouterr()
    for content in ("what\tsunny\trainy\tmerry\n", 'what\tsunny\trainy\n{"context": "what", "choices": ["a"]}\n'):
        given(monkeypatch, content)
        assert cli.main(["predict", str(run)]) == cli.USER_ERROR
        assert "choices, expected 2 as in the training file" in capsys.readouterr().err


def test_parts_of_any_size_and_length_are_compiled_in_few_shapes(classifier, monkeypatch, capsys):
    """A pipe gives now one line and now seven: each number and each length of its own would take seconds."""
    build_functions.cache_clear()
    seen, handler = [], logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    (questions, ask) = os.pipe()
    monkeypatch.setattr("sys.stdin", open(questions, encoding="utf-8"))

    def feed():
        with open(ask, "w", encoding="utf-8") as asking:
            for count in range(1, 10):
                asking.write(f"{'sunny ' * count}\n" * count)
                asking.flush()
                time.sleep(0.3)

    worker = threading.Thread(target=feed)
    worker.start()
    try:
        with jax.log_compiles():
            assert cli.main(["predict", str(classifier)]) == cli.DONE
    finally:
        logging.getLogger("jax").removeHandler(handler)
        worker.join()
    assert len(capsys.readouterr().out.splitlines()) == sum(range(1, 10))
    assert 1 <= len([line for line in seen if line.startswith("Compiling jit(predict)")]) <= 3
