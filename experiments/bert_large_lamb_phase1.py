"""BERT-large in batches of 65,536 with LAMB: phase 1, at sequence length 128, of NVIDIA's two-phase recipe.

flaxbert pretrain bert_large_lamb_phase1 --corpus CORPUS --workdir RUN

7,038 steps with the peak rate 6e-3, warm-up for 28.43 % of them and a decay with the power 0.5, measured from step 0
(NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/BERT, scripts/configs/pretrain_config.sh and schedulers.py).
Theirs counts its first step as 1, so each rate comes one step later here, and its matrix products are float16. The
whole batch is one step on all devices: as many rows a device as 65,536 divided by their number.
"""

from flaxbert.config import PRESETS, Experiment, OptimizerConfig, TrainConfig

EXPERIMENT = Experiment(
    model=PRESETS["large"],
    optimizer=OptimizerConfig(name="lamb", learning_rate=6e-3, warmup_steps=2001, decay_power=0.5),
    train=TrainConfig(
        steps=7038, batch_size=65_536, compute_dtype="bfloat16", log_every=10, eval_every=200, checkpoint_every=200,
    ),
)  # fmt: skip
