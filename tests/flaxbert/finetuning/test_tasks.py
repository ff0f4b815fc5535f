"""Every preset reads its files in the form they are published in, and holds the settings of the paper."""

import json

import pytest

from flaxbert.finetuning.encoding import encode
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.files import find_files
from flaxbert.finetuning.metrics import references, score
from flaxbert.finetuning.tasks import TASKS, find_task

MNLI = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t" \
    "sentence2_parse\tsentence1\tsentence2\tlabel1"
MNLI_ROW = "{0}\t31193\t31193n\tgovernment\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tHe \"ran\tHe moved\t{1}"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
SWAG = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
SWAG_ROW = '{0},anetv_1,3416,"The dog, a fox. He","The dog, a fox.",He,gold,runs.,sleeps.,"sings, and eats.",flies.,{1}'
CONLL_2003 = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP I-MISC\n\n" \
    "Peter NNP I-NP I-PER\nBlackburn NNP I-NP I-PER\n"
CONLLU = "# sent_id = 1\n# text = Dogs don't run\n1\tDogs\tdog\tNOUN\tNNS\t_\t4\tnsubj\t_\t_\n" \
    "2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n2\tdo\tdo\tAUX\tVB\t_\t4\taux\t_\t_\n" \
    "3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_\n" \
    "4\trun\trun\tVERB\tVB\t_\t0\troot\t_\t_\n4.1\tfast\tfast\tADV\tRB\t_\t_\t_\t_\t_\n\n"
CONTEXT = "The quick brown fox jumps over the lazy dog."


def squad(version, **fields):
    question = {"id": "a", "question": "Who jumps?", "answers": [{"text": "The quick brown fox", "answer_start": 0}]}
    impossible = {"id": "b", "question": "Who sings?", "answers": [], **fields}
    questions = [question | {name: False for name in fields if name == "is_impossible"}] + [impossible] * bool(fields)
    paragraphs = [{"context": CONTEXT, "qas": questions}]
    return json.dumps({"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]})


IMPOSSIBLE = {"is_impossible": True, "plausible_answers": [{"text": "fox", "answer_start": 16}]}

# Task → (names of train and dev, content of both, what the first example is, the labels).
PUBLISHED = {
    "cola": ("train.tsv dev.tsv", "gj04\t1\t\tThe fox runs.\nks08\t0\t*\tFox the runs.\n",
             ("The fox runs.", None, "1"), ("0", "1")),
    "sst2": ("train.tsv dev.tsv", "sentence\tlabel\nhide new secretions \t0\na \"quick fox\t1\n",
             ("hide new secretions ", None, "0"), ("0", "1")),
    "mrpc": ("train.tsv dev.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
             "1\t7\t8\t\"Foxes\trun\" , he said\r\n",
             ('"Foxes', 'run" , he said', "1"), ("0", "1")),
    "stsb": ("train.tsv dev.tsv", f"{STSB}\n0\tmain\tMSR\t2012\t1\tnone\tnone\tA dog.\tA fox.\t3.800\n",
             ("A dog.", "A fox.", 3.8), ()),
    "qqp": ("train.tsv dev.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
            "1\t2\t3\tWhy?\tWhy not?\t0\n4\t5\t6\tWhere\n7\t8\t9\t\tWho?\t1\n2\t4\t5\tHow?\tHow so?\t1\n",
            ("Why?", "Why not?", "0"), ("0", "1")),
    "mnli": ("train.tsv dev_matched.tsv", f"{MNLI}\tgold_label\n{MNLI_ROW.format(0, 'neutral')}\tentailment\n",
             ('He "ran', "He moved", "entailment"), ("contradiction", "entailment", "neutral")),
    "qnli": ("train.tsv dev.tsv", "index\tquestion\tsentence\tlabel\n0\tWho?\tThe fox.\tentailment\n",
             ("Who?", "The fox.", "entailment"), ("entailment", "not_entailment")),
    "rte": ("train.tsv dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tNo.\tYes.\tnot_entailment\n",
            ("No.", "Yes.", "not_entailment"), ("entailment", "not_entailment")),
    "wnli": ("train.tsv dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tIt was small.\tThe fox was small.\t1\n",
             ("It was small.", "The fox was small.", "1"), ("0", "1")),
    "squad": ("train-v1.1.json dev-v1.1.json", squad("1.1"),
              ("Who jumps?", CONTEXT, (("The quick brown fox", 0),)), ()),
    "squad2": ("train-v2.0.json dev-v2.0.json", squad("v2.0", **IMPOSSIBLE),
               ("Who jumps?", CONTEXT, (("The quick brown fox", 0),)), ()),
    "qa": ("train.jsonl dev.jsonl", json.dumps({"id": "a", "question": "Who?", "context": CONTEXT, "answers": {
        "text": ["fox"], "answer_start": [16]}}) + "\n", ("Who?", CONTEXT, (("fox", 16),)), ()),
    "ner": ("eng.train eng.testa", CONLL_2003, (("EU", "rejects", "German"), ("B-ORG", "O", "B-MISC")),
            ("B-MISC", "B-ORG", "B-PER", "I-PER", "O")),
    "pos": ("en_ewt-ud-train.conllu en_ewt-ud-dev.conllu", CONLLU,
            (("Dogs", "do", "n't", "run"), ("NOUN", "AUX", "PART", "VERB")), ("AUX", "NOUN", "PART", "VERB")),
    "tagging": ("train.conll dev.conll", "a\tX\nb\tY\n", (("a", "b"), ("X", "Y")), ("X", "Y")),
    "swag": ("train.csv val.csv", f"{SWAG}\n{SWAG_ROW.format(0, 2)}\n{SWAG_ROW.format(1, 0)}\n",
             ("The dog, a fox. He", ("runs.", "sleeps.", "sings, and eats.", "flies."), "2"), ("0", "1", "2", "3")),
    "multiple_choice": ("train.jsonl dev.jsonl", '{"question": "Who?", "choices": ["a fox", "a dog"], "label": 1}\n',
                        ("Who?", ("a fox", "a dog"), "1"), ("0", "1")),
    "classification": ("train.csv dev.csv", 'text,label\n"A fox, a dog",b\nA dog,a\n', ("A fox, a dog", None, "b"),
                       ("a", "b")),
    "pair": ("train.tsv validation.tsv", "first\tsecond\tlabel\na fox\ta dog\tx\na\tb\ty\n", ("a fox", "a dog", "x"),
             ("x", "y")),
    "regression": ("train.jsonl dev.jsonl", '{"text": "a fox", "score": -2}\n', ("a fox", None, -2.0), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_every_preset_reads_encodes_and_scores_its_published_form(name, write, tmp_path, rust):
    names, content, first, labels = PUBLISHED[name]
    task = TASKS[name]
    for file in names.split():
        write(file, content)
    paths = find_files(tmp_path, task)
    train = read_examples(paths["train"], task)
    assert tuple(train.items[0][1:]) == first and train.labels == labels
    dev = read_examples(paths["dev"], task, labels=train.labels or None)
    assert dev.items == train.items
    assert {feature.example for feature in encode(dev, task, rust)} == set(range(len(dev.items)))
    truth = references(dev)
    right = [list(texts)[0] if texts else "" for texts in truth] if task.kind == "qa" else truth
    scores = score(task, right, truth)
    assert list(scores)[:len(task.metrics)] == list(task.metrics)
    # A correlation over one example is not defined.
    undefined = {"pearson", "spearman"} if len(truth) == 1 else set()
    assert {metric: value for metric, value in scores.items() if value != 1}.keys() == undefined & set(task.metrics)


def test_conll_2003_has_its_parts_of_speech_in_the_second_column(write):
    found = read_examples(write("eng.train", CONLL_2003), TASKS["pos"])
    assert [item.tags for item in found.items] == [("NNP", "VBZ", "JJ"), ("NNP", "NNP")]


def test_rows_that_are_cut_in_the_published_qqp_are_counted_and_passed_over(write):
    found = read_examples(write("train.tsv", PUBLISHED["qqp"][1]), TASKS["qqp"])
    assert [item.id for item in found.items] == ["2", "5"] and found.cut_rows == 2
    assert found.remarks == [f"{found.path}: 2 rows lack a column or a text, and were passed over"]


def test_mnli_has_two_development_sets(write, tmp_path):
    for name in ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"):
        write(name, "x")
    assert set(find_files(tmp_path, TASKS["mnli"])) == {"train", "dev", "dev_mismatched"}


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_settings_are_those_of_the_paper(task):
    assert set(task.learning_rates) <= {5e-5, 3e-5, 2e-5} and set(task.epochs) <= {2, 3, 4}
    assert set(task.batch_sizes) <= ({48} if task.name == "squad2" else {16, 32}) and task.warmup_share == 0.1
    assert (task.doc_stride, task.max_question_length, task.max_answer_length, task.n_best) == (128, 64, 30, 20)


def test_an_unknown_task_is_named_with_those_there_are(refuses):
    refuses("no task is named 'imdb'; there are cola, sst2, mrpc", find_task, "imdb")


def test_files_that_are_not_there_are_named_with_those_that_are(write, tmp_path, refuses):
    write("train.tsv", "x")
    write("notes.md", "x")
    refuses("has no dev file for task cola: looked for dev.tsv, .*; found notes.md, train.tsv", find_files, tmp_path,
            TASKS["cola"])  # fmt: skip
    for name in ("de_gsd-ud-train.conllu", "fr_gsd-ud-train.conllu"):
        (tmp_path / name).write_text("")
    refuses("has several train files: de_gsd-ud-train.conllu, fr_gsd-ud-train.conllu; keep each", find_files, tmp_path,
            TASKS["pos"])  # fmt: skip
    refuses("is no folder", find_files, tmp_path / "nowhere", TASKS["cola"])
