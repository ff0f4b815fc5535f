"""The launch files do what their tools take, and every command in them and in the documentation is one of ours."""

import importlib
import os
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from flaxbert import cli
from flaxbert.commands import Peers
from flaxbert.training import distributed

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
JOBSETS = sorted(LAUNCH.glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Of `man sbatch`, those that a launch file may need.
SBATCH_OPTIONS = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue", "open-mode",
    "output", "partition", "account", "mem", "exclusive",
}  # fmt: skip


def with_values(text, values):
    """The text with `$NAME`, `${NAME}` and `${NAME:-default}` replaced; what is not known stays."""
    def value(match):
        return values.get(match["a"] or match["b"], match[0])

    return re.sub(r"\$(?:(?P<a>[A-Z_]+)|\{(?P<b>[A-Z_]+)\})", value, text)


def settings(script):
    """The variables that a script sets at its top, by their defaults."""
    found = re.findall(r"^([A-Z_]+)=(?:\$\{\1:-([^}]*)\}|(\S+))", script, re.MULTILINE)
    return {name: default or plain for name, default, plain in found}


def commands_of_script(path):
    """The arguments of each `flaxbert` that a script runs."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    for line in with_values(text, settings(text)).splitlines():
        found = re.search(r"/flaxbert\"? (pretrain .*?)(?:&&|$)", line)
        if found and not line.startswith("#"):
            yield shlex.split(found[1])


def manifest(path):
    """A JobSet as kubectl gets it: with the values of the `export` in its head."""
    text = path.read_text(encoding="utf-8")
    head = re.sub(r"\\\n#", " ", text.partition("apiVersion")[0])
    values = dict(re.findall(r"([A-Z]+)=(\S+)", re.search(r"export (.*)", head)[1]))
    listed = set(re.findall(r"\$([A-Z]+)", re.search(r"envsubst '(.*?)'", head)[1]))
    assert listed == set(values) == set(re.findall(r"\$\{([A-Z]+)\}", text))
    return yaml.safe_load(with_values(text, values))


def commands_of_page(path):
    """The arguments of each `flaxbert` in a page's blocks of code, of which a comment is no part."""
    fenced = False
    for line in re.sub(r"\\\n", " ", path.read_text(encoding="utf-8")).splitlines():
        fenced ^= line.startswith("```")
        if (fenced or line.startswith("    ")) and line.strip().startswith("flaxbert "):
            yield shlex.split(line, comments=True)[1:]


def parsed(argv):
    """What our own parser makes of a command; ValueError for a flag that does not exist."""
    return cli._parse(cli.COMMANDS[argv[0]][0], argv[0], argv[1:])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_and_its_commands_are_ours(path):
    subprocess.run(["bash", "-n", path], check=True)
    found = list(commands_of_script(path))
    assert len(found) == 1
    for argv in found:
        arguments = parsed(argv)
        assert importlib.import_module(f"experiments.{arguments.experiment}")
        assert arguments.corpus.startswith("/shared/") and arguments.workdir.startswith("/shared/")
        assert arguments.peers.coordinator is None, "here the launcher says who the others are"


def test_the_options_of_sbatch_are_among_those_it_has():
    text = (LAUNCH / "slurm_gpu.sbatch").read_text(encoding="utf-8")
    directives = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    options = {name: value for name, value in re.findall(r"^--([a-z-]+)(?:=(\S+))?$", "\n".join(directives), re.M)}
    assert len(options) == len(directives) and options.keys() <= SBATCH_OPTIONS
    assert text.index("\nEXPERIMENT=") > text.rindex("#SBATCH"), "sbatch reads none after the first command"
    assert options["ntasks-per-node"] == options["gpus-per-node"], "a task for each GPU"
    assert re.fullmatch(r"TERM@\d+", options["signal"]), "to the tasks, and not to the batch shell alone"
    assert "status == 75" in text and 'scontrol requeue "$SLURM_JOB_ID"' in text


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a program of the cluster's, which is not here, first in the path: a script in bash."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def put(name, script):
        path = tmp_path / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    return put


@pytest.mark.parametrize("status, restarts, again", [
    (0, 0, False), (cli.USER_ERROR, 0, False), (cli.STOPPED, 0, True), (cli.STOPPED, 500, True), (134, 0, True),
    (134, 500, False),
])  # fmt: skip
def test_slurm_starts_again_what_was_stopped_or_killed_and_nothing_else(
    stand_in, tmp_path, monkeypatch, status, restarts, again
):
    stand_in("srun", f"exit {status}")
    stand_in("scontrol", f'echo "$@" > {tmp_path}/said')
    for name, value in {"SLURM_JOB_ID": 77, "SLURM_CPUS_PER_TASK": 8, "SLURM_RESTART_COUNT": restarts}.items():
        monkeypatch.setenv(name, str(value))
    assert subprocess.run(["bash", LAUNCH / "slurm_gpu.sbatch"], check=False).returncode == status
    assert (tmp_path / "said").exists() == again
    assert not again or (tmp_path / "said").read_text() == "requeue 77\n"


@pytest.mark.parametrize("status", [cli.DONE, cli.USER_ERROR, cli.STOPPED])
def test_training_on_tpu_hosts_marks_the_end_of_a_run_and_no_other(stand_in, tmp_path, monkeypatch, status):
    """The command that is sent to the hosts, run here."""
    stand_in("gcloud", f"""cd {tmp_path}; for argument; do
      case "$argument" in --command=*) exec bash -c "${{argument#--command=}}" ;; esac
    done""")
    stand_in("../venv/bin/flaxbert", f'sleep 0.2; echo "trains $@"; exit {status}')
    monkeypatch.setenv("WORKDIR", f"{tmp_path}/the run")
    command = ["bash", LAUNCH / "tpu_vm.sh", "train"]
    script = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert script.returncode == status
    assert "trains pretrain bert_large --corpus /shared/corpus --workdir" in script.stdout, script.stderr
    assert (tmp_path / "the run.finished").exists() == (status == cli.DONE)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_a_jobset_holds_what_its_controller_and_our_processes_need(path):
    jobset = manifest(path)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"].keys() == {"network", "failurePolicy", "replicatedJobs"}
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert rule.keys() == {"name", "action", "onJobFailureReasons"}
    [workers] = jobset["spec"]["replicatedJobs"]
    assert workers.keys() == {"name", "replicas", "template"} and workers["replicas"] == 1
    job = workers["template"]["spec"]
    assert job["parallelism"] == job["completions"] > 1
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    stopped, driven_out = job["podFailurePolicy"]["rules"]
    assert stopped["onExitCodes"]["values"] == [cli.STOPPED] and stopped["action"] == "FailJob"
    assert driven_out["onPodConditions"] == [{"type": "DisruptionTarget"}]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "podFailurePolicy is refused with any other"
    [container] = pod["containers"]
    assert stopped["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_the_command_of_a_jobset_is_ours_and_tells_the_processes_of_each_other(path):
    jobset = manifest(path)
    [workers] = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    name = container["command"][0]
    peers = parsed(container["command"][1:]).peers
    assert name == "flaxbert"
    assert peers == Peers(start_seconds=peers.start_seconds), "the environment says who the others are"
    environment = {entry["name"]: entry["value"] for entry in container.get("env", [])}
    assert all(isinstance(value, str) for value in environment.values()), "Kubernetes refuses numbers"
    environment["JOB_COMPLETION_INDEX"] = "1"  # Kubernetes' own
    if "google.com/tpu" in container["resources"]["limits"]:
        assert distributed.found(peers, environment | {"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "a,b"}) == {}
    else:
        told = distributed.found(peers, environment)
        jobset_name, port = jobset["metadata"]["name"], container["ports"][0]["containerPort"]
        assert told["coordinator_address"] == f"{jobset_name}-{workers['name']}-0-0.{jobset_name}:{port}"
        assert (told["num_processes"], told["process_id"]) == (job["completions"], 1)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_in_the_documentation_is_one_of_ours(path):
    for argv in commands_of_page(path):
        assert parsed(argv)


def test_the_pages_are_found_to_hold_commands():
    assert len(list(commands_of_page(ROOT / "docs" / "launch.md"))) == 3
    assert len(list(commands_of_page(ROOT / "README.md"))) > 5
