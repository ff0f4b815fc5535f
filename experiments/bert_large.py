"""BERT-large (24 layers, 1024 wide, 16 heads) by the paper's recipe at sequence length 128.

flaxbert pretrain bert_large --corpus CORPUS --workdir RUN

The reference trains 1,000,000 steps of 256 sequences with the peak rate 1e-4 after 10,000 steps of warm-up. Run
shorter with --train.steps and --optimizer.warmup-steps.
"""

from flaxbert.config import PRESETS, Experiment

EXPERIMENT = Experiment(model=PRESETS["large"])
