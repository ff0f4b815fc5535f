"""The text of the tasks, as input of `prepare`."""

import collections
import json

from benchmarks.task_text import LINES_OF_A_DOCUMENT, documents, main, written

TRAIN = {
    "sst2/train.tsv": "a fine film\t1\na dull film\t0\na fine film\t1\n",
    "qnli-small/train.tsv": "index\tquestion\tsentence\tlabel\n0\tWho rose?\tThe river rose.\tentailment\n",
    "wnut17/train.conll": "in\tO\nRome\tB-location\n\n",
    "qa-newwiki/train.json": json.dumps({"data": [{"title": "t", "paragraphs": [{
        "context": "It rained.\nThe river rose.",
        "qas": [{"id": "0", "question": "What rose?", "answers": [{"text": "The river", "answer_start": 11}]}],
    }]}]}),
}  # fmt: skip


def test_each_text_is_there_as_often_as_was_asked_for_and_no_label(tmp_path):
    for name, text in TRAIN.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
        (tmp_path / name.replace("train", "dev")).write_text(text.replace("f", "g"))
    main(["--data", str(tmp_path), "--output", str(tmp_path / "text.txt"), "--copies", "2"])
    found = collections.Counter((tmp_path / "text.txt").read_text().splitlines())
    del found[""]
    lines = ["a fine film", "a dull film", "The river rose.", "in Rome", "It rained. The river rose."]
    assert found == dict.fromkeys(lines, 2)


def test_each_copy_has_another_order_and_whole_documents():
    lines = [str(number) for number in range(2 * LINES_OF_A_DOCUMENT + 1)]
    found = [text.splitlines() for text in written(documents(list(lines), 2)).split("\n\n")]
    assert list(map(len, found)) == 2 * [LINES_OF_A_DOCUMENT, LINES_OF_A_DOCUMENT, 1]
    first, second = (sum(found[begin:begin + 3], []) for begin in (0, 3))
    assert sorted(first) == sorted(second) == sorted(lines) and first != second != lines
