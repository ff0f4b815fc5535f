"""BERT-large in batches of 65,536 and then 32,768 with LAMB: NVIDIA's two-phase recipe as one run.

flaxbert pretrain bert_large_lamb --corpus CORPUS --workdir RUN

7,038 steps at sequence length 128 with the peak rate 6e-3 and a warm-up of 28.43 % of them, then 1,563 steps at 512
with the peak rate 4e-3 and a warm-up of 12.8 %; both decay with the power 0.5, measured from the phase's own step 0
(NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/BERT, scripts/configs/pretrain_config.sh and schedulers.py).
Theirs counts its first step as 1, so each rate comes one step later here; its count of updates, which corrects the
moments' bias, begins anew with phase 2, and its matrix products are float16. A batch that the devices cannot hold at
once is cut by --phases.0.microbatches and --phases.1.microbatches.
"""

from flaxbert.config import PRESETS, Experiment, OptimizerConfig, TrainConfig
from flaxbert.phases import Phase

EXPERIMENT = Experiment(
    model=PRESETS["large"],
    optimizer=OptimizerConfig(name="lamb", learning_rate=6e-3, warmup_steps=2001, decay_power=0.5),
    train=TrainConfig(
        steps=7038 + 1563, batch_size=65_536, compute_dtype="bfloat16", log_every=10, eval_every=200,
        checkpoint_every=200,
    ),
    phases=(
        Phase(steps=7038),
        Phase(sequence_length=512, max_predictions=80, batch_size=32_768, learning_rate=4e-3, warmup_steps=201),
    ),
)  # fmt: skip
