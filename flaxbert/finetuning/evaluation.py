"""What a fine-tuned model scores on a labelled file."""

from collections.abc import Callable

from flaxbert.finetuning.encoding import count_cut, cut_remark, encode
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.metrics import references, score
from flaxbert.finetuning.predict import functions_of
from flaxbert.finetuning.predictions import predictions
from flaxbert.finetuning.saved import read_model
from flaxbert.finetuning.tuning import PREDICTION_ROWS, predict


def evaluate_file(
    model: str, source: str, say: Callable[[str], None] = lambda sentence: None
) -> dict[str, float]:
    """The metrics of the task of a fine-tuned model's folder, over the examples of `source`. `say` hears what a user
    should know of them.

    Raises ValueError for a folder without such a model, and for a file without labels or with ones that are not the
    model's, naming file and line.
    """
    loaded, facts = read_model(model)
    examples = read_examples(source, facts.task, facts.labels, facts.columns)
    right = references(examples)
    features = encode(examples, facts.task, loaded.tokenizer, facts.max_length)
    for sentence in examples.remarks:
        say(sentence)
    if cut := count_cut(features):
        say(cut_remark(source, cut, len(examples.items), facts.task))
    logits = predict(features, loaded.params, functions_of(loaded, facts, PREDICTION_ROWS))
    return score(facts.task, predictions(examples, features, logits, facts.task, facts.threshold), right)
