"""What each command of the command line takes: a dataclass each, whose docstrings are the help."""

from flaxbert.commands.corpus import Doctor, Prepare
from flaxbert.commands.finetuning import Finetune, Predict
from flaxbert.commands.models import Attention, Embed, Evaluate, Export, FillMask, Import
from flaxbert.commands.pretraining import Peers, Plan, Pretrain, Quickstart, Report

__all__ = [
    "Attention", "Doctor", "Embed", "Evaluate", "Export", "FillMask", "Finetune", "Import", "Peers", "Plan", "Predict",
    "Prepare", "Pretrain", "Quickstart", "Report",
]  # fmt: skip
