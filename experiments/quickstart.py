"""A tiny BERT that learns something in minutes on two CPU cores: the recipe of `flaxbert quickstart`.

flaxbert pretrain quickstart --corpus CORPUS --workdir RUN
"""

from flaxbert.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, TrainConfig

EXPERIMENT = Experiment(
    model=ModelConfig(num_layers=2, hidden_size=128, num_heads=2, max_length=128, dropout=0.0, attention_dropout=0.0),
    data=DataConfig(sequence_length=64),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=200),
    train=TrainConfig(steps=2000, batch_size=128, log_every=100, eval_every=500, checkpoint_every=500),
)
