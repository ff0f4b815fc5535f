"""torch's step: transformers' `BertForPreTraining` in its strongest form, the same compiled, and as it comes.

The strongest form computes logits at the masked positions alone, which transformers' own forward pass does not, over a
vocabulary padded as ours; takes the fastest attention kernel that will do, and no mask where no row has padding; and
updates with the fused AdamW. All forms have their batches on the device before they begin.
"""

import contextlib
import time
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, pad

from benchmarks.train_step.batch_file import Batch
from benchmarks.train_step.case import PRODUCT_SIZE, PRODUCTS, Case, batches_of, product_factors
from data_pipeline.memory import keep_memory_of_steps
from flaxbert.config import ModelConfig
from flaxbert.interop.architectures import Checkpoint
from flaxbert.interop.huggingface_config import to_config

IGNORED = -100  # the label that torch's cross-entropy leaves out
IMPOSSIBLE = -1e4  # a bias that no logit outweighs, in bfloat16 too
KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FORMS = ("eager", "compiled", "stock")


class Peer:
    """One form of torch's step."""

    def __init__(self, case: Case, weights: str, form: str):
        """Begins with the parameters in the file `weights`."""
        self.device = {"cpu": "cpu", "gpu": "cuda"}[case.device]
        if self.device == "cpu":
            keep_memory_of_steps()
            torch.set_num_threads(case.cores)
        self.case, self.form, self.steps = case, form, 0
        self.loss_of = stock_loss if form == "stock" else gathered_loss
        self.model = load_model(case.experiment.model, weights, padded=form != "stock").to(self.device)
        prepare = stock_batch if form == "stock" else gathered_batch
        self.batches = [prepare(batch, self.device) for batch in batches_of(case)]
        self.optimizer = make_optimizer(self.model, case)
        self.training_loss = self.loss_of
        if form == "compiled":
            self.training_loss = torch.compile(self.loss_of, mode=case.compile_mode, dynamic=False)

    def loss(self) -> float:
        """Of the first batch, without dropout. Never compiled: nothing is timed here."""
        self.model.eval()
        with torch.no_grad():
            found = float(self._forward(self.loss_of, self.batches[0]))
        self.model.train()
        return found

    def block(self, lead_in: int, steps: int) -> float:
        """Seconds of one step: `steps` of them are timed, after `lead_in` that are not."""
        self._run(lead_in)
        begin = time.perf_counter()
        self._run(steps)
        seconds = (time.perf_counter() - begin) / steps
        if self.device == "cuda":
            torch.cuda.empty_cache()  # the next contender needs it
        return seconds

    def product(self) -> float:
        """FLOP/s of a large matrix product in the step's number format, as ours measures it."""
        dtype = getattr(torch, self.case.experiment.train.compute_dtype)
        first, second = (torch.tensor(x, dtype=dtype, device=self.device) for x in product_factors(self.case))
        count, size = PRODUCTS[self.case.device], PRODUCT_SIZE[self.case.device]
        first @ second
        self._wait()
        begin = time.perf_counter()
        for _ in range(count):
            first @ second
        self._wait()
        return 2 * size**3 * count / (time.perf_counter() - begin)

    def peak_memory(self) -> int | None:
        """Bytes on the device at most; None where it is not told."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self._forward(self.training_loss, self.batches[self.steps % len(self.batches)]).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.case.experiment.optimizer.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.steps += 1
        self._wait()

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _forward(self, loss_of: Any, batch: dict[str, Any]) -> torch.Tensor:
        """The loss, its products in the case's number format and its attention by the fastest kernel that will do."""
        mixed = self.case.experiment.train.compute_dtype == "bfloat16"
        chosen = self.device == "cuda" and self.form != "stock"
        kernels = sdpa_kernel(KERNELS, set_priority=True) if chosen else contextlib.nullcontext()
        with torch.autocast(self.device, torch.bfloat16, enabled=mixed), kernels:
            loss: torch.Tensor = loss_of(self.model, batch)
            return loss


def gathered_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The masked-language-model loss from the masked positions alone, and the next-sentence loss."""
    encoded = model.bert(
        batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], batch["position_ids"]
    )
    hidden = encoded.last_hidden_state.flatten(0, 1)  # [B S, D]
    masked = hidden.index_select(0, batch["places"])  # [B P, D]
    mlm = cross_entropy(model.cls.predictions(masked).float(), batch["labels"], ignore_index=IGNORED)
    pooled = model.bert.pooler(hidden.index_select(0, batch["cls_places"])[:, None])  # [B N, D]
    logits = model.cls.seq_relationship(pooled).float()
    return mlm + cross_entropy(logits, batch["next_sentence_label"], ignore_index=IGNORED)


def stock_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """transformers' own loss, its logits at every position."""
    loss: torch.Tensor = model(**batch).loss
    return loss


def gathered_batch(batch: Batch, device: str) -> dict[str, Any]:
    """What `gathered_loss` takes. The mask is made here, [B, 1, S, S]: a token sees those of its own sequence, and of
    one sequence to a row padding sees it too, which changes nothing; None where all see all.
    """
    rows, length = batch["input_ids"].shape
    sequences = torch.tensor(batch["sequence_ids"], device=device)
    begins = length * np.arange(rows)[:, None]
    arrays = {
        "places": batch["masked_positions"] + begins, "cls_places": batch["cls_positions"] + begins,
        "labels": np.where(batch["masked_weights"] > 0, batch["masked_ids"], IGNORED),
        "next_sentence_label": np.where(batch["next_sentence_weights"], batch["next_sentence_labels"], IGNORED),
    }  # fmt: skip
    if batch["cls_positions"].shape[1] > 1:
        mask = sequences[:, None, :, None] == sequences[:, None, None, :]
    else:
        mask = (sequences > 0)[:, None, None].expand(rows, 1, length, length)
    return {
        "attention_mask": None if bool(mask.all()) else mask,
        **_tensors(device, **{name: array.reshape(-1) for name, array in arrays.items()}),
        **_tensors(device, position_ids=batch["position_ids"], **_tokens(batch)),
    }


def stock_batch(batch: Batch, device: str) -> dict[str, Any]:
    """What the forward pass of `BertForPreTraining` takes, labels [B, S] included: one pair to a row."""
    if batch["cls_positions"].shape[1] > 1:
        raise ValueError("rows of several sequences: BertForPreTraining's own loss knows one pair to a row")
    next_sentence_label = np.where(batch["next_sentence_weights"], batch["next_sentence_labels"], IGNORED)[:, 0]
    labels = np.full(batch["input_ids"].shape, IGNORED)
    row, column = np.nonzero(batch["masked_weights"])
    labels[row, batch["masked_positions"][row, column]] = batch["masked_ids"][row, column]
    return _tensors(
        device, labels=labels, attention_mask=batch["sequence_ids"] > 0, next_sentence_label=next_sentence_label,
        **_tokens(batch),
    )  # fmt: skip


def _tokens(batch: Batch) -> dict[str, np.ndarray]:
    return {"input_ids": batch["input_ids"], "token_type_ids": batch["segment_ids"]}


def _tensors(device: str, **arrays: np.ndarray) -> dict[str, Any]:
    return {name: torch.tensor(array, dtype=torch.long, device=device) for name, array in arrays.items()}


def load_model(config: ModelConfig, weights: str, padded: bool) -> Any:
    """The model in training mode with these parameters; `padded`: its vocabulary is a whole number of tiles, as ours.

    The padding is ruled out by its bias, gets no gradient and is not decayed.
    """
    tensors = load_file(weights)
    bias, words = "cls.predictions.bias", "bert.embeddings.word_embeddings.weight"
    rows = config.padded_vocab_size if padded else len(tensors[bias])
    settings = transformers.BertConfig(**to_config(Checkpoint(config, None)) | {"vocab_size": rows})
    model = transformers.BertForPreTraining(settings)
    padding = rows - len(tensors[bias])
    tensors[bias] = pad(tensors[bias], (0, padding), value=IMPOSSIBLE)
    tensors[words] = pad(tensors[words], (0, 0, 0, padding))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or not set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}:
        raise ValueError(f"{weights}: tensors {missing} are missing, {unexpected} left over")
    return model.train()


def make_optimizer(model: Any, case: Case) -> torch.optim.Optimizer:
    """The fused AdamW with our settings: no decay of biases and LayerNorm."""
    config = case.experiment.optimizer
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[not name.endswith("bias") and "LayerNorm" not in name].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": config.weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=config.learning_rate, betas=(config.b1, config.b2), eps=config.epsilon, fused=True,
    )  # fmt: skip
