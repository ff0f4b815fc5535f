"""BERT-base as the paper trains it: 90 % of the steps at sequence length 128, the last 10 % at 512.

flaxbert pretrain bert_base_phases --corpus CORPUS --workdir RUN

The lengths are those of the paper (Devlin et al. 2018, appendix A.2), which says nothing of the rate at the border:
here its curve goes on over both phases. Run shorter with --train.steps, --phases.0.steps and --optimizer.warmup-steps:
the second phase takes what the first one leaves.
"""

from flaxbert.config import PRESETS, Experiment
from flaxbert.phases import Phase

EXPERIMENT = Experiment(model=PRESETS["base"], phases=(Phase(steps=900_000), Phase(sequence_length=512)))
