"""What a fine-tuned model scores on a labelled file."""

from flaxbert.finetuning.encoding import encode
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.metrics import references, score
from flaxbert.finetuning.predict import functions_of
from flaxbert.finetuning.predictions import predictions
from flaxbert.finetuning.saved import read_model
from flaxbert.finetuning.tuning import PREDICTION_ROWS, predict


def evaluate_file(model: str, source: str) -> dict[str, float]:
    """The metrics of the task of a fine-tuned model's folder, over the examples of `source`.

    Raises ValueError for a folder without such a model, and for a file without labels or with ones that are not the
    model's, naming file and line.
    """
    loaded, facts = read_model(model)
    examples = read_examples(source, facts.task, facts.labels, facts.columns)
    right = references(examples)
    features = encode(examples, facts.task, loaded.tokenizer, facts.max_length)
    logits = predict(features, loaded.params, functions_of(loaded, facts, PREDICTION_ROWS))
    return score(facts.task, predictions(examples, features, logits, facts.task, facts.threshold), right)
