"""`flaxbert export`: a model as a Hugging Face directory; a run's card is filled in with what the run recorded."""

import json
from pathlib import Path
from typing import Any, Literal


def export(
    model: str, output: str, step: int | None = None, architecture: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32", batch: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes a model for transformers to load: that of a run's checkpoint, the newest unless `step` names one, or that
    of a directory in another precision or class.

    `architecture` is the class to write it as, by default the one that holds all its parts. What is written is read
    back and must say the same of `batch`, as the stream gives it, or of random tokens; else nothing appears.
    """
    # Imported here: --help must not wait for JAX.
    import jax.numpy as jnp

    from flaxbert.interop import huggingface
    from flaxbert.interop.architectures import narrowed
    from flaxbert.tools.folders import is_run, model_folder
    from flaxbert.tools.load import load, load_run
    from flaxbert.tools.written import check_written

    folder = model_folder(Path(model))
    huggingface.check_output(output)
    if is_run(folder):
        loaded, found = load_run(folder, step)
    else:
        loaded, found = load(model, step), None
    checkpoint = narrowed(loaded.checkpoint, architecture or loaded.architecture)
    if found is not None:
        card = _run_card(folder, Path(output).name, checkpoint, loaded.tokenizer, found, dtype)
        tokenizer = folder / "tokenizer"
    else:
        card, tokenizer = _kept_card(folder, Path(output).name, checkpoint, dtype), folder
    moved: list[float] = []
    check = check_written(checkpoint, jnp.dtype(dtype), batch, moved)
    huggingface.export(checkpoint, tokenizer, output, card, jnp.dtype(dtype), check)
    text = "random tokens" if batch is None else "held-out text"
    _report(output, checkpoint.architecture, found, dtype, moved[0], text)


def _kept_card(folder: Path, name: str, checkpoint: Any, dtype: str) -> str:
    """The card of a directory, if it has one, and how it was written here."""
    from flaxbert.interop.conversion_card import conversion_card
    from flaxbert.interop.huggingface import CARD

    if not (folder / CARD).is_file():
        return conversion_card(name, folder.resolve().name, checkpoint, ())
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace").rstrip()
    return f"{text}\n\n---\nWritten by flaxbert as {checkpoint.architecture} in {dtype}; all above is the card of " \
           f"`{folder.resolve().name}`.\n"


def _run_card(folder: Path, name: str, checkpoint: Any, tokenizer: Any, step: int, dtype: str) -> str:
    from data_pipeline.tokenizer import load as load_own
    from flaxbert.interop.architectures import parameter_count
    from flaxbert.interop.model_card import Facts, model_card
    from flaxbert.training.run import read_run

    settings = read_run(str(folder))
    return model_card(Facts(
        name=name,
        experiment=settings.experiment,
        step=step,
        parameters=parameter_count(checkpoint),
        architecture=checkpoint.architecture,
        dtype=dtype,
        init=Path(settings.init).name if settings.init else None,
        corpus=_corpus(settings.corpus),
        tokenizer=_tokenizer(folder / "tokenizer"),
        differences=load_own(folder / "tokenizer").differences(tokenizer),
        results=held_out_results(folder / "metrics.jsonl", step),
        changes=tuple(settings.changes),
    ))  # fmt: skip


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


def _report(output: str, architecture: str, step: int | None, dtype: str, moved: float, text: str) -> None:
    from flaxbert.interop.architectures import ARCHITECTURES

    folder = Path(output)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    what = f"Step {step:,}" if step is not None else "The model"
    print(f"{what} written to {folder} ({size:.1f} MB): {', '.join(sorted(p.name for p in folder.iterdir()))}")
    precision = "" if dtype == "float32" else f"; {dtype} moves no output by more than {moved:.2g}"
    print(f"Read back: its outputs on {text} are those of what was written{precision}.")
    auto = ARCHITECTURES[architecture].auto_class
    print("Load it with:")
    print(f"    model = transformers.{auto}.from_pretrained({str(folder)!r})")
    print(f"    tokenizer = transformers.AutoTokenizer.from_pretrained({str(folder)!r})")
