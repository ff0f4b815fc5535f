"""`flaxbert export`: a run's directory as a Hugging Face directory, its card filled in with what the run recorded."""

import json
import math
from pathlib import Path
from typing import Any


def export(run: str, output: str, step: int | None = None) -> None:
    """Writes the model of a run's checkpoint, the newest unless `step` names one, for transformers to load."""
    # Imported here: --help must not wait for JAX.
    import jax

    from data_pipeline.tokenizer import load
    from flaxbert.interop import huggingface
    from flaxbert.interop.model_card import Facts, model_card
    from flaxbert.tools.load import is_run, load_run
    from flaxbert.training.run import read_run

    folder = Path(run)
    if not is_run(folder):
        raise ValueError(f"{run} is not a run's directory: it has no config.json with an experiment")
    huggingface.check_output(output)
    settings = read_run(run)
    model, found = load_run(folder, step)
    facts = Facts(
        name=Path(output).name,
        experiment=settings.experiment,
        step=found,
        parameters=_parameters(jax.tree.leaves(model.params), settings.experiment.model),
        corpus=_corpus(settings.corpus),
        tokenizer=_tokenizer(folder / "tokenizer"),
        differences=load(folder / "tokenizer").differences(model.tokenizer),
        results=held_out_results(folder / "metrics.jsonl", found),
        changes=tuple(settings.changes),
    )
    huggingface.export(model.params, model.config, folder / "tokenizer", output, model_card(facts))
    _report(output, found)


def _parameters(leaves: list[Any], config: Any) -> int:
    """Parameters in the export: without the rows that pad the vocabulary and their biases."""
    padding = config.padded_vocab_size - config.vocab_size
    return sum(math.prod(leaf.shape) for leaf in leaves) - padding * (config.hidden_size + 1)


def _corpus(recorded: dict[str, Any]) -> dict[str, Any]:
    """What a stranger may know of the corpus: the last part of its path for a name, and the rest as it stands."""
    rest = {key: value for key, value in recorded.items() if key not in ("path", "tokenizer_fingerprint")}
    return {"name": Path(recorded.get("path", "unknown")).name} | rest


def _tokenizer(folder: Path) -> dict[str, Any]:
    from flaxbert.interop.huggingface_config import read_json

    path = folder / "tokenizer_info.json"
    found = read_json(path) if path.is_file() else {}
    return {key: found[key] for key in ("kind", "vocab_size", "lowercase", "fingerprint") if key in found}


def held_out_results(path: Path, step: int) -> dict[str, Any]:
    """The last validation line of metrics.jsonl up to `step`; empty where there is none."""
    last: dict[str, Any] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
                if values["split"] == "validation" and values["step"] <= step:
                    last = values
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a kill, or edited
    return last


def _report(output: str, step: int) -> None:
    folder = Path(output)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"Step {step:,} written to {folder} ({size:.1f} MB): {', '.join(sorted(p.name for p in folder.iterdir()))}")
    print("Load it with:")
    print(f"    model = transformers.AutoModelForPreTraining.from_pretrained({str(folder)!r})")
    print(f"    tokenizer = transformers.AutoTokenizer.from_pretrained({str(folder)!r})")
