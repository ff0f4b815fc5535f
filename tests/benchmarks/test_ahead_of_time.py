"""A compilation takes minutes: what has ended is kept, in the order of the cases, by several processes at once."""

import json
import shutil

from benchmarks import ahead_of_time, attention_tpu, plan_tpu

PAGE = ahead_of_time.Page("A title", "some_tpu", "What it says.\n", "| name | rows |\n|---|---|",
                          lambda name, found: f"| {name} | {found['rows']} |")  # fmt: skip


def refused():
    raise AssertionError("compiled again")


def test_what_the_file_holds_is_kept_and_the_rest_added_in_order(tmp_path):
    output = tmp_path / "found.json"
    cases = {"first": refused, "last": lambda: {"rows": 2}}
    ahead_of_time.compile_all(output, cases, ["last"], PAGE)
    cases = {"first": lambda: {"rows": 1}, "last": refused}
    ahead_of_time.compile_all(output, cases, list(cases), PAGE)
    cases = json.loads(output.read_text())["cases"]
    assert [(name, found["rows"]) for name, found in cases.items()] == [("first", 1), ("last", 2)]
    assert all(found["seconds"] >= 0 and found["versions"]["jax"] for found in cases.values())
    page = output.with_suffix(".md").read_text()
    assert page.startswith("# A title\n\n`python -m benchmarks.some_tpu`") and "What it says.\n\n| name" in page
    assert page.endswith("|---|---|\n| first | 1 |\n| last | 2 |\n")


def test_what_is_kept_is_told_and_compiled_again_where_that_is_asked_for(tmp_path, capsys):
    output = tmp_path / "found.json"
    for rows in (1, 2):
        ahead_of_time.compile_all(output, {"one": lambda rows=rows: {"rows": rows}}, ["one"], PAGE)
    assert "one: " in capsys.readouterr().out.splitlines()[-1]
    ahead_of_time.compile_all(output, {"one": lambda: {"rows": 3}}, ["one"], PAGE, again=True)
    assert json.loads(output.read_text())["cases"]["one"]["rows"] == 3


def test_what_another_process_wrote_meanwhile_stays(tmp_path):
    output = tmp_path / "found.json"

    def slow():
        ahead_of_time.compile_all(output, {"other": lambda: {"rows": 3}}, ["other"], PAGE)
        return {"rows": 4}

    ahead_of_time.compile_all(output, {"mine": slow}, ["mine"], PAGE)
    assert sorted(json.loads(output.read_text())["cases"]) == ["mine", "other"]


def test_the_recorded_pages_are_those_of_the_recorded_results(tmp_path):
    for page in (attention_tpu.PAGE, plan_tpu.PAGE):
        source = ahead_of_time.RESULTS / f"{page.module}.json"
        output = tmp_path / source.name
        shutil.copy(source, output)
        ahead_of_time.write_page(output, page)
        assert output.with_suffix(".md").read_text() == source.with_suffix(".md").read_text()
