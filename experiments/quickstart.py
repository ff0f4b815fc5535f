"""A tiny BERT that learns something in minutes on two CPU cores: the recipe of `flaxbert quickstart`.

flaxbert pretrain quickstart --corpus CORPUS --workdir RUN

A masked-language model first learns frequencies, then which words share a text, and then, at a sudden bend of the
curve, to look at the neighbours of a masked word. All here serves to pass that bend early: a small vocabulary, short
rows, more masks than the paper's 15 %, no dropout, a high rate, initial weights wide enough for 128 dimensions, and an
epsilon below the gradients of queries and keys, which fall under the reference's 1e-6 before the bend. With all of
these the bend came near step 900; with the reference's b2 and epsilon, and a rate of 1.5e-3, near step 1,900.
"""

from flaxbert.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, TrainConfig

EXPERIMENT = Experiment(
    model=ModelConfig(
        num_layers=2, hidden_size=128, num_heads=4, max_length=64, dropout=0.0, attention_dropout=0.0,
        initializer_range=0.04,
    ),
    data=DataConfig(sequence_length=64, mask_rate=0.25),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=400, b2=0.99, epsilon=1e-9),
    train=TrainConfig(
        steps=3000, batch_size=32, log_every=100, eval_every=500, eval_batches=None, checkpoint_every=500,
    ),
)  # fmt: skip
