"""BERT-base by the training recipe of MosaicBERT (Portes et al. 2023): AdamW, no sentence pairs, 30 % of tokens masked.

flaxbert pretrain bert_base_mosaic --corpus CORPUS --workdir RUN

286.72 million sequences of 128 tokens in batches of 4,096, the peak rate 5e-4 after a warm-up of 6 %, then a straight
line from there to 2 % of it, without clipping (mosaicml/examples, examples/benchmarks/bert,
yamls/main/mosaic-bert-base-uncased.yaml). Their weight decay, 1e-5, is a share of the weight at the peak rate: divided
by the peak it is the one inside the rate here. They decay biases and LayerNorm too. The model is the paper's BERT, not
MosaicBERT's (ALiBi, gated linear units), and rows hold whole sentences of one document.
"""

from flaxbert.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, TrainConfig

EXPERIMENT = Experiment(
    model=ModelConfig(attention_dropout=0.0),
    data=DataConfig(pairing="none", mask_rate=0.3),
    optimizer=OptimizerConfig(
        name="adamw", learning_rate=5e-4, warmup_steps=4200, decay_from="warmup", final_fraction=0.02,
        weight_decay=1e-5 / 5e-4, b2=0.98, clip_norm=1e9,
    ),
    train=TrainConfig(
        steps=70_000, batch_size=4096, compute_dtype="bfloat16", eval_every=2000, checkpoint_every=3500,
    ),
)  # fmt: skip
