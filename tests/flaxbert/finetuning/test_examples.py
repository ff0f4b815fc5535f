"""Each reader on files that are wrong in one way: one sentence, with the file and the line."""

import json

import pytest

from flaxbert.finetuning.examples import Answer, Columns, read_examples, read_labels, sample, write_labels
from flaxbert.finetuning.tasks import TASKS

CONTEXT = "The quick brown fox jumps over the lazy dog."


def questions(count, wrong=0, **answer):
    """SQuAD's JSON of `count` questions, the first `wrong` of them with an answer beside its place."""
    qas = [
        {"id": f"q{n}", "question": "Who?", "answers": [{"text": "fox", "answer_start": 16 + (n < wrong)} | answer]}
        for n in range(count)
    ]
    return json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]})


BAD = [
    ("sst2", "a.tsv", "", "is empty"),
    ("sst2", "a.tsv", "\n \n", "is empty"),
    ("sst2", "a.tsv", "good\t1\nb\xe9d\t0\n".encode("latin-1"), "a.tsv is not UTF-8 at byte 8"),
    ("sst2", "a.tsv", "good\t1\n".encode("utf-16"), "a.tsv is not UTF-8 at byte 0"),
    ("sst2", "a.parquet", "x", r"a.parquet is of no form known for task sst2: expected \.tsv, \.csv"),
    ("sst2", "a.tsv", "good\t1\n\nbad\t0\n", "a.tsv, line 2 is empty or not parted into columns: expected 2"),
    ("sst2", "a.tsv", "good\t1\nbad\t0\textra\n", "a.tsv, line 2 has 3 columns, expected 2: sentence, label"),
    ("sst2", "a.tsv", "good\t1\n \t0\n", "a.tsv, line 2, column 'sentence' is empty"),
    ("sst2", "a.tsv", "good\t1\nbad\t\n", "a.tsv, line 2, column 'label' is '', expected a label"),
    ("sst2", "a.tsv", "good\t1\nbad\tnan\n", "a.tsv, line 2, column 'label' is 'nan', expected a label"),
    ("sst2", "a.tsv", "good\t1\nbad\t2\n", "a.tsv, line 2: label '2' is none of those of task sst2: '0', '1'"),
    ("sst2", "a.tsv", "sentence\tstars\ngood\t1\n", "a.tsv has no column for the label: expected 'label'; "
     "those there are sentence, stars"),
    ("sst2", "a.tsv", "id\tphrase\tstars\n1\tgood\t1\n", "a.tsv has no column 'sentence' or 'label'; those of line 1 "
     "are 'id', 'phrase', 'stars': name yours by --first"),
    ("qnli", "a.tsv", "index\tquestion\tlabel\n1\tWho\tentailment\n", "no column for the second text: expected "
     "'sentence'"),
    ("sst2", "a.jsonl", '{"sentence": "good", "label": 1}\n{"sentence": "bad"}\n', "a.jsonl, line 2 has no column "
     "'label'"),
    ("sst2", "a.jsonl", '{"sentence": "good", "label": NaN}\n', "a.jsonl, line 1, column 'label' is nan, expected a "
     "label"),
    ("sst2", "a.jsonl", '{"sentence": 3, "label": 1}\n', "a.jsonl, line 1, column 'sentence' is 3, expected text"),
    ("sst2", "a.jsonl", '{"sentence": "\\ud83d", "label": 1}\n', "line 1, column 'sentence' is not valid Unicode"),
    ("sst2", "a.jsonl", '{"sentence": "good", "label": 1}\n{"sentence"\n', "a.jsonl, line 2 is not JSON"),
    ("sst2", "a.jsonl", "[1]\n", r"a.jsonl, line 1 is '\[1\]', expected a JSON object"),
    ("sst2", "a.csv", 'sentence,label\n"good,1\nbad,0\n', "a.csv, line 2 is not CSV"),
    ("sst2", "a.csv", 'sentence,label\n"two\nlines",1\nbad\n', "a.csv, line 4 is empty or not parted"),
    ("classification", "a.tsv", "good\t1\nfine\t1\n", "a.tsv has one label alone, '1'"),
    ("classification", "a.tsv", "review\tstars\na\t1\nb\t2\nc\t1\nd\t2\n", "line 1 looks like a header: its label "
     "'stars'"),
    ("classification", "a.tsv", "review\tstars\na\t1\nb\t2\nc\t1\n", "line 1 looks like a header: its label 'stars'"),
    ("classification", "a.tsv", "review\tmood\na\tsad\nb\tglad\nc\tsad\n", "looks like a header: its label 'mood'"),
    ("sst2", "a.tsv", "review\tstars\ngood\t1\nbad\t0\n", "line 1 looks like a header: its label 'stars'"),
    ("pair", "a.tsv", "q1\tq2\tdup\na\tb\t1\nc\td\t0\n", "line 1 looks like a header: its label 'dup'"),
    ("regression", "a.tsv", "review\tstars\na\t1\nb\t2\n", "a.tsv, line 1, column 'score' is 'stars', expected a"),
    ("sst2", "a.csv", "sentence,label,sentence\na,1,b\nc,0,d\n", "a.csv has the column 'sentence' twice"),
    ("sst2", "a.jsonl", '{"sentence": "good", "label": "\\ud83d"}\n', "line 1, column 'label' is not valid Unicode"),
    ("stsb", "a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": NaN}\n', "line 1, column 'score' is nan, "
     "expected a finite number"),
    ("regression", "a.tsv", "good\t1.5\nbad\tinf\n", "a.tsv, line 2, column 'score' is 'inf', expected a finite "
     "number"),
    ("regression", "a.tsv", "good\t1.5\nbad\thigh\n", "a.tsv, line 2, column 'score' is 'high', expected a finite "
     "number"),
    ("qqp", "a.jsonl", '{"question1": 5, "question2": "b", "is_duplicate": 1}\n', "line 1, column 'question1' is 5, "
     "expected text"),
    ("regression", "a.jsonl", json.dumps({"text": "good", "score": 10 ** 400}), "a.jsonl, line 1, column 'score' is "
     "10{39}, expected a finite number"),
    ("ner", "a.conll", "EU\tB-ORG\nsays\n", "a.conll, line 2 has 1 columns, expected 2 as on line 1"),
    ("ner", "a.conll", "EU NNP B-ORG\n\nIt O\n", "a.conll, line 3 has 2 columns, expected 3 as on line 1"),
    ("ner", "a.conll", "It O\n\nEU NNP\n", "a.conll, sentence on line 3: tag 'NNP' is none of an entity: expected O, "
     "B-TYPE or I-TYPE, or task tagging in place of ner"),
    ("ner", "a.conll", "\n-DOCSTART- O\n\n", "a.conll has no sentence"),
    ("pos", "a.conllu", "1\tDogs\tdog\tNOUN\n", "a.conllu, line 1 has 4 columns, expected 10 in CoNLL-U"),
    ("pos", "a.conll", "Dogs\n", "a.conll has no column 2 or upos or .*; those there are 1 to 1"),
    ("tagging", "a.jsonl", '{"tokens": ["a", "b"], "tags": ["X"]}\n', "a.jsonl, line 1 has 2 words and 1 tags"),
    ("tagging", "a.jsonl", '{"tokens": [], "tags": []}\n', r"line 1: column 'tokens' is \[\], expected a list"),
    ("squad", "a.json", "{", "a.json is not JSON"),
    ("squad", "a.json", '{"version": "1.1"}', "a.json has no 'data'; there is version"),
    ("squad", "a.json", '{"data": [{"paragraphs": [{"qas": [{"id": 1, "question": "W?"}]}]}]}',
     r"a.json: data\[0\].paragraphs\[0\] has no 'context'"),
    ("squad", "a.json", questions(2).replace("q1", "q0"), "a.json has the id 'q0' twice"),
    ("squad", "a.json", questions(2, answer_start="16"), "an answer is 'fox' at '16', expected text and the number"),
    ("squad", "a.json", questions(39, wrong=2), "in 2 of 39 questions an answer is not at its offset, more than 5%; "
     "offsets count characters of the context, from 0; ids: q0, q1$"),
    ("squad", "a.json", questions(60, wrong=30), "ids: q0, .*q19, …$"),
    ("squad", "a.json", '{"data": [{"paragraphs": [{"context": "A.", "qas": [{"id": "x", "question": "W?", '
     '"answers": []}]}]}]}', "question 'x' has no answer, and task squad asks for one"),
    ("swag", "a.csv", "startphrase,ending0,ending1,label\nHe,a,b,2\n", "a.csv, line 2, column 'label' is '2', expected "
     "the number of a choice, from 0 to 1"),
    ("swag", "a.csv", "startphrase,label\nHe,2\n", "has no column for the choices: expected 'endings' or 'ending0'; "
     "those there are startphrase, label"),
    ("multiple_choice", "a.jsonl", '{"context": "a", "endings": ["b", "c"], "label": 0}\n'
     '{"context": "a", "endings": ["b"], "label": 0}\n', "line 2 has 1 choices, expected 2 as on the first line"),
]  # fmt: skip


@pytest.mark.parametrize("task, name, content, message", BAD)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(task, name, content, message, write, refuses):
    refuses(message, read_examples, write(name, content), TASKS[task])


def test_a_label_that_training_never_had_is_refused_with_its_line(write, refuses):
    train = read_examples(write("train.tsv", "a\tx\nb\ty\nc\tx\n"), TASKS["classification"])
    dev = write("dev.tsv", "a\tx\nb\tz\n")
    refuses(r"dev.tsv, line 2: label 'z' is none of those of the training file: 'x', 'y'", read_examples, dev,
            TASKS["classification"], labels=train.labels)  # fmt: skip
    train = read_examples(write("train.conll", "EU B-ORG\nis O\n"), TASKS["ner"])
    dev = write("dev.conll", "It O\n\nIt O\nPeter B-PER\n")
    refuses("dev.conll, line 3: label 'B-PER' is none", read_examples, dev, TASKS["ner"], labels=train.labels)
    train = read_examples(write("t.csv", "startphrase,ending0,ending1,label\nHe,a,b,0\n"), TASKS["swag"])
    dev = write("d.csv", "startphrase,ending0,ending1,ending2,label\nHe,a,b,c,0\n")
    refuses("3 choices a row, and the training file 2", read_examples, dev, TASKS["swag"], labels=train.labels)


def test_labels_are_sorted_whatever_the_order_of_the_file_and_come_back_from_their_json(write, tmp_path, refuses):
    text = [f"text {n}\tlabel {n % 3}" for n in range(9)]
    found = {
        read_examples(write("train.tsv", "\n".join(order)), TASKS["classification"]).labels
        for order in (text, text[::-1], text[4:] + text[:4])
    }
    assert found == {("label 0", "label 1", "label 2")}
    write_labels(tmp_path, ("ü", '"'))
    assert read_labels(tmp_path) == ("ü", '"')
    write("labels.json", '{"a": 1}')
    refuses("labels.json is damaged", read_labels, tmp_path)
    refuses("has no labels.json", read_labels, tmp_path / "nowhere")


def test_columns_are_named_where_the_task_does_not_know_them(write, refuses):
    table = write("a.tsv", "id\tphrase\tstars\n1\tgood\t5\n2\tbad\t1\n")
    found = read_examples(table, TASKS["classification"], columns=Columns(first="phrase", label="stars"))
    assert [item[1:] for item in found.items] == [("good", None, "5"), ("bad", None, "1")]
    bare = write("b.tsv", "1\tgood\twell\t5\n2\tbad\till\t1\n")
    found = read_examples(bare, TASKS["regression"], columns=Columns("2", "3", "4"))
    assert [item[1:] for item in found.items] == [("good", "well", 5.0), ("bad", "ill", 1.0)]
    refuses("no column for the text: expected 'review'; those there are id, phrase, stars", read_examples, table,
            TASKS["classification"], columns=Columns("review", label="stars"))  # fmt: skip
    headed = write("c.tsv", "review\tstars\ngood\t5\nbad\t1\nfine\t5\n")
    for wished, message in (
        (Columns(label="star"), "c.tsv has no column 'star'; those of line 1 are 'review', 'stars'$"),
        (Columns("reviews", label="star"), "no column 'reviews' or 'star'; those of line 1 are 'review', 'stars'$"),
        (Columns("review", label="2"), "no column 'review' beside columns by number, 1 to 2; those of line 1 are 'rev"),
        (Columns("3", label="2"), "no column '3' beside columns by number, 1 to 2; those of line 1 are 'review'"),
        (Columns("1", label="3"), "no column '3' beside columns by number, 1 to 2; those of line 1 are 'review'"),
        (Columns("1", label="2"), "c.tsv, line 1 looks like a header: its label 'stars' occurs nowhere else"),
    ):
        refuses(message, read_examples, headed, TASKS["classification"], columns=wished)
    refuses("'phrase' cannot be both", read_examples, table, TASKS["pair"],
            columns=Columns("phrase", "phrase", "stars"))  # fmt: skip


def test_labels_of_json_are_their_numbers_whether_written_as_one_or_not(write):
    rows = [{"text": "a", "label": label} for label in (1, "1", 1.0, True, 0, False)]
    found = read_examples(write("a.jsonl", "\n".join(map(json.dumps, rows))), TASKS["classification"])
    assert found.labels == ("0", "1") and [item.label for item in found.items] == list("111100")


def test_without_labels_neither_column_nor_value_is_asked_for(write):
    cases = {
        "sst2": ("a.tsv", "a fox\na dog\n"), "qnli": ("b.tsv", "index\tquestion\tsentence\n1\tWho?\tHe.\n"),
        "cola": ("c.tsv", "index\tsentence\n0\ta fox\n"), "ner": ("d.conll", "EU\nsays\n"),
        "squad": ("e.json", '{"data": [{"paragraphs": [{"context": "A.", "qas": [{"id": "x", "question": "W?"}]}]}]}'),
        "swag": ("f.csv", "startphrase,ending0,ending1\nHe,a,b\n"),
    }  # fmt: skip
    for task, (name, content) in cases.items():
        found = read_examples(write(name, content), TASKS[task], labelled=False)
        assert found.items and all(item[-1] is None for item in found.items), task


def test_a_tag_that_does_not_go_on_with_an_entity_begins_one_and_is_counted(write):
    tags = "I-A I-A O I-B B-B I-B I-A O B-A I-A".split()
    found = read_examples(write("a.conll", "".join(f"w {tag}\n" for tag in tags)), TASKS["ner"])
    assert found.items[0].tags == tuple("B-A I-A O B-B B-B I-B B-A O B-A I-A".split())
    assert found.broken_tags == 3
    assert found.remarks == [f"{found.path}: 3 tags I-X do not go on with an entity; each was read as B-X"]


def test_in_lines_of_text_none_is_the_name_of_a_column(write):
    found = read_examples(write("a.txt", "sentence\ngood film\n"), TASKS["sst2"], labelled=False)
    assert [item.first for item in found.items] == ["sentence", "good film"] and found.remarks == []


def test_line_1_of_a_table_of_texts_that_may_be_a_name_is_told_of(write):
    found = read_examples(write("a.csv", "review\ngood film\n"), TASKS["sst2"], labelled=False)
    assert [item.first for item in found.items] == ["review", "good film"]
    said = "line 1, 'review', was read as a text; if it names the column, call it 'sentence'"
    assert found.remarks == [f"{found.path}: {said}"]
    named = read_examples(found.path, TASKS["sst2"], None, Columns("review"), labelled=False)
    assert [item.first for item in named.items] == ["good film"] and named.remarks == []


def test_a_label_that_was_named_is_not_asked_for_in_texts_that_are_predicted(write):
    for name, content in (("a.csv", "text,id\ngood film,7\n"), ("a.tsv", "text\ngood film\n"),
                          ("b.tsv", "good film\n"), ("a.txt", "good film\n")):  # fmt: skip
        found = read_examples(write(name, content), TASKS["classification"], None, Columns(label="mood"), False)
        assert [item.first for item in found.items] == ["good film"], name


def test_lines_of_text_are_read_whatever_the_column_was_called(write):
    path = write("a.txt", "good film\r\nbad film\r\n")
    said = f"{path}: line 1, 'good film', was read as a text; if it names the column, call it 'review'"
    for columns, remarks in ((Columns("review", label="mood"), [said]), (Columns("2", label="1"), [])):
        found = read_examples(path, TASKS["classification"], None, columns, labelled=False)
        assert [item.first for item in found.items] == ["good film", "bad film"] and found.remarks == remarks
    headed = write("b.txt", "review\r\ngood film\r\n")
    found = read_examples(headed, TASKS["classification"], None, Columns("review", label="mood"), labelled=False)
    assert [item.first for item in found.items] == ["good film"]


def test_each_row_that_is_predicted_has_an_answer_where_training_passes_over_some(write, rust):
    from flaxbert.finetuning.encoding import encode

    rows = "id\tquestion1\tquestion2\tis_duplicate\n1\tWho?\t\t0\n2\tWho?\tHe?\t1\n"
    path = write("a.tsv", rows)
    trained, predicted = (read_examples(path, TASKS["qqp"], labelled=labelled) for labelled in (True, False))
    assert [item.id for item in trained.items] == ["3"] and trained.cut_rows == 1
    assert [(item.id, item.second) for item in predicted.items] == [("2", ""), ("3", "He?")] and not predicted.cut_rows
    alone, _ = encode(predicted, TASKS["qqp"], rust)
    assert alone.rows[0].input_ids.tolist() == rust.encode("Who?", "").ids


def test_a_score_that_is_kept_back_is_none(write):
    path = write("test.jsonl", '{"sentence1": "a", "sentence2": "b", "label": -1.0}\n')
    with pytest.raises(ValueError, match="line 1, column 'label' is -1, below 0: the label is kept back"):
        read_examples(path, TASKS["stsb"])
    assert read_examples(write("own.tsv", "a fox\t-1\n"), TASKS["regression"]).items[0].label == -1


def test_few_misplaced_answers_are_counted_listed_and_not_learnt(write, rust):
    from flaxbert.finetuning.encoding import encode

    found = read_examples(write("a.json", questions(40, wrong=2)), TASKS["squad"])
    assert found.misplaced == ("q0", "q1") and "2 of 40 questions" in found.remarks[0]
    features = encode(found, TASKS["squad"], rust)
    assert [feature.example for feature in features if feature.label is None] == [0, 1]


def test_of_misplaced_answers_a_sample_tells_of_its_own(write):
    whole = read_examples(write("a.json", questions(60, wrong=3)), TASKS["squad"])
    assert sample(whole, 60) == whole
    for count in (1, 20, 40):
        found = sample(whole, count)
        assert found.misplaced == tuple(item.id for item in found.items if item.answers[0].start < 0)


@pytest.mark.parametrize("text", ["quick brown  fox", "quick brown fox", "quick\tbrown   fox", " quick brown\nfox "])
def test_white_space_of_another_kind_or_width_does_not_misplace_an_answer(write, text):
    """And all of the answer is learnt, as it stands in the context."""
    (question,) = read_examples(write("a.json", asked("A quick\u00a0brown  fox.", text, 2)), TASKS["squad"]).items
    assert question.answers == (Answer("quick\u00a0brown  fox", 2),)


@pytest.mark.parametrize("text", ["quickbrown fox", "quick brown foxes", "quick fox", "brown fox", "fox quick", " "])
def test_an_answer_of_other_words_than_those_at_its_offset_is_misplaced(write, refuses, text):
    path = write("a.json", asked("A quick\u00a0brown  fox.", text, 2))
    refuses("in 1 of 1 questions an answer is not at its offset", read_examples, path, TASKS["squad"])


def asked(context, text, start):
    """SQuAD's JSON of one question."""
    answers = [{"text": text, "answer_start": start}]
    qas = [{"id": "x", "question": "Who?", "answers": answers}]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]})


def test_lines_end_at_line_feeds_alone(write):
    text = "one\x0bof\x85several\u2028ends"
    found = read_examples(write("a.tsv", f"{text}\t1\r\nshort\t0\r\n\n\n"), TASKS["sst2"])
    assert [(item.first, item.label) for item in found.items] == [(text, "1"), ("short", "0")]


def test_words_may_hold_spaces_between_tabs_and_never_end_at_a_no_break_space(write):
    tabs = read_examples(write("a.conll", "New York\tB-LOC\nis\tO\n\t\n\nold\tO\n"), TASKS["ner"])
    assert [item.words for item in tabs.items] == [("New York", "is"), ("old",)]
    assert [item.id for item in tabs.items] == ["1", "5"]
    spaces = read_examples(write("b.conll", "10\u00a0000  B-N\nis O\n"), TASKS["ner"])
    assert spaces.items[0].words == ("10\u00a0000", "is")


def test_a_field_of_csv_may_be_longer_than_the_csv_module_allows_by_itself(write):
    long = "word " * 100_000
    found = read_examples(write("a.csv", f"text,label\n{long},1\nshort,0\n"), TASKS["classification"])
    assert found.items[0].first == long


def test_a_label_of_line_one_alone_is_no_header_where_it_is_a_number_or_known(write):
    numbers = write("a.tsv", "good\t7\nbad\t1\nfine\t5\nill\t1\n")
    assert read_examples(numbers, TASKS["classification"]).labels == ("1", "5", "7")
    dev = write("dev.tsv", "good\tglad\nbad\tsad\nill\tsad\n")
    assert len(read_examples(dev, TASKS["classification"], ("glad", "sad")).items) == 3


def test_a_header_is_told_of_in_a_file_without_labels_too(write, refuses):
    """Where a column that would hold labels is there; the label set is then that of the model."""
    headed = write("a.tsv", "review\tmood\ngood\tglad\nbad\tsad\nill\tsad\n")
    refuses("line 1 looks like a header", read_examples, headed, TASKS["classification"], labels=("glad", "sad"),
            labelled=False)  # fmt: skip
    texts = read_examples(write("c.tsv", "good\nbad\n"), TASKS["classification"], columns=Columns("1", label="2"),
                          labelled=False)  # fmt: skip
    assert [item.first for item in texts.items] == ["good", "bad"], "the label's column need not be there"
    bare = write("b.tsv", "good\tglad\nbad\tsad\nill\tsad\n")
    assert len(read_examples(bare, TASKS["classification"], ("glad", "sad"), labelled=False).items) == 3


def test_a_sample_of_a_file_that_is_sorted_by_label_has_both_and_keeps_the_order(write):
    text = "".join(f"text {n}\t{int(n >= 50)}\n" for n in range(100))
    whole = read_examples(write("train.tsv", text), TASKS["classification"])
    ids, more = ([int(item.id) for item in sample(whole, count).items] for count in (10, 30))
    assert ids == sorted(ids) and len(ids) == 10 and 2 <= sum(line > 50 for line in ids) <= 8
    assert set(ids) < set(more), "a larger sample holds a smaller one"
    assert sample(whole, 10) == sample(whole, 10) and sample(whole, 100) == whole
