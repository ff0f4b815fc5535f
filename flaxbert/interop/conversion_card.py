"""The card of a model that was trained elsewhere and only changed its form here."""

from flaxbert.interop.architectures import Checkpoint, describe, parameter_count


def conversion_card(name: str, source: str, model: Checkpoint, added: tuple[str, ...]) -> str:
    """The text of README.md. `source` is what was converted, `added` are the parts that it lacked."""
    from huggingface_hub import ModelCardData

    config = model.config
    header = ModelCardData(library_name="transformers", tags=["bert", "flaxbert"]).to_yaml()
    text = (
        f"---\n{header}\n---\n\n# {name}\n\n"
        f"The weights of `{source}`, converted by flaxbert: a {model.architecture} of {config.num_layers} layers, "
        f"hidden size {config.hidden_size}, {config.num_heads} heads, {parameter_count(model):,} parameters, up to "
        f"{config.max_length} tokens.\n\n"
        "What it was trained on, what it is good for and under which licence it may be used is told by its source: "
        "nothing is known of it here.\n"
    )
    if added:
        text += (
            f"\n## Limitations\n\n- Not in the source, and therefore newly initialised: {describe(added)}. What it "
            "says means nothing until it is trained.\n"
        )
    return text
