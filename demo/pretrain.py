"""Stage one: the vision tower, trained alone as CLIP's are, before any language model sees it.

Light heads, thrown away afterwards: which digits are present, from the CLS token (after the last layer) and
from the mean patch token of the feature layer; which digit covers each patch, and where the patch lies,
from that patch's token. The first two make the attention of the feature layer mark the foreground, which is
what FoPru's significance lives on. The last keeps the position readable after pruning, when the place in
the sequence no longer tells it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from demo.batches import Batch, draw_batch, one_ahead
from demo.model import TOWER_WIDTH
from demo.oracle import encode
from demo.scenes import BACKGROUND, GRID, Layout
from demo.training import Options, State, autocast, learning_rate, restore, store
from runtime.counts import kept_count

__all__ = ["Significance", "measure_significance", "pretrain"]

DIGITS = 10
PEAK_RATE = 1e-3
CROWDED_STEPS = 0.6  # fraction of the steps on crowded scenes
BACKGROUND_WEIGHT = 0.25  # most patches are background
MEASURE_SCENES = 128
Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Significance:
    """How well the attention received marks the ink, on held-out scenes."""

    auc: float  # of the score against the ink mask, mean over scenes
    ink_recall: float  # fraction of the ink in the patches kept at ratio 0.3


class TowerHeads(nn.Module):
    """The heads of pretraining."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_presence = nn.Linear(TOWER_WIDTH, DIGITS)
        self.mean_presence = nn.Linear(TOWER_WIDTH, DIGITS)
        self.patch_digit = nn.Linear(TOWER_WIDTH, DIGITS + 1)
        self.patch_place = nn.Linear(TOWER_WIDTH, 2)
        self.norm = nn.LayerNorm(TOWER_WIDTH)

    def losses(self, pooled: Tensor, patches: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses from the pooled CLS [images, width] and the feature layer's patches [images, 196, width]."""
        device = pooled.device
        present = torch.zeros(len(batch.scenes), DIGITS)
        for row, scene in zip(present, batch.scenes, strict=True):
            row[list(scene.digits)] = 1.0
        present = present.to(device)
        patches = self.norm(patches)
        weight = torch.ones(DIGITS + 1, device=device)
        weight[BACKGROUND] = BACKGROUND_WEIGHT
        axis = torch.linspace(-1, 1, GRID, device=device)
        place = torch.cartesian_prod(axis, axis).expand(len(patches), -1, -1)  # [images, 196, (row, column)]
        logits = self.patch_digit(patches).float().flatten(0, 1)
        return {
            "cls": functional.binary_cross_entropy_with_logits(self.cls_presence(pooled).float(), present),
            "mean": functional.binary_cross_entropy_with_logits(
                self.mean_presence(patches.mean(dim=1)).float(), present
            ),
            "dense": functional.cross_entropy(logits, batch.patch_label.flatten().to(device), weight),
            "place": functional.mse_loss(self.patch_place(patches).float(), place),
        }


def pretrain(model: LlavaForConditionalGeneration, options: Options, report: Report) -> None:
    """Trains ``model``'s tower in place; continues from the stored state where there is one."""
    tower = model.model.vision_tower
    tower.set_attn_implementation("sdpa")
    torch.manual_seed(options.seed)
    heads = TowerHeads().to(options.device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    state = State("pretrain", {"tower": tower, "heads": heads}, optimizer)
    restore(state, options)
    layer = model.config.vision_feature_layer

    def make(step: int) -> Batch:
        return draw_batch(
            "train", _layout(step, options), options.seed * 1_000_003 + step, options.batch_size
        )

    for step, batch in one_ahead(make, range(state.step, options.pretrain_steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.pretrain_steps, PEAK_RATE)
        with autocast(options):
            output = tower(batch.pixel_values.to(options.device), output_hidden_states=True)
            losses = heads.losses(output.pooler_output, output.hidden_states[layer][:, 1:], batch)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        state.step = step + 1
        figures = {name: float(value.detach()) for name, value in losses.items()}
        if state.step % options.store_every == 0 or state.step == options.pretrain_steps:
            store(state, options)
            measured = measure_significance(model, options)
            figures |= {"auc": measured.auc, "ink": measured.ink_recall}
            figures |= _held_out_accuracy(model, heads, options)
            tower.set_attn_implementation("sdpa")
        report(state.step, figures)


def measure_significance(model: LlavaForConditionalGeneration, options: Options) -> Significance:
    """AUC and ink recall of ``col_mean`` on held-out scenes."""
    batch = draw_batch("test", Layout(), 1, MEASURE_SCENES)
    with torch.no_grad():
        scores = encode(model, batch.pixel_values.to(options.device)).scores.cpu()
    keep = kept_count(scores.shape[1], 0.3)
    kept = scores.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    recall = batch.patch_ink.gather(1, kept).sum(dim=1) / batch.patch_ink.sum(dim=1)
    auc = [_auc(scene.ink_mask, row.numpy()) for scene, row in zip(batch.scenes, scores, strict=True)]
    return Significance(auc=float(np.mean(auc)), ink_recall=float(recall.mean()))


def _auc(mask: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    return float(roc_auc_score(mask, scores))


def _held_out_accuracy(
    model: LlavaForConditionalGeneration, heads: TowerHeads, options: Options
) -> dict[str, float]:
    """Right patches among those with ink, and images whose presence vector is right in every digit."""
    batch = draw_batch("test", Layout(), 2, MEASURE_SCENES)
    with torch.no_grad():
        output = model.model.vision_tower(batch.pixel_values.to(options.device), output_hidden_states=True)
        patches = heads.norm(output.hidden_states[model.config.vision_feature_layer][:, 1:])
        digits = heads.patch_digit(patches).argmax(dim=-1).cpu()
        present = (heads.cls_presence(output.pooler_output) > 0).cpu()
    ink = batch.patch_label != BACKGROUND
    right = [
        set(row.nonzero().flatten().tolist()) == set(scene.digits)
        for row, scene in zip(present, batch.scenes, strict=True)
    ]
    return {
        "patch accuracy": float((digits == batch.patch_label)[ink].float().mean()),
        "presence": float(np.mean(right)),
    }


def _layout(step: int, options: Options) -> Layout:
    """Crowded scenes on calm photographs first: many digits per image, to learn their shapes soon."""
    progress = step / options.pretrain_steps
    if progress < CROWDED_STEPS:
        return Layout(5, 9, 20, 30, clutter=0.2 + 0.8 * progress / CROWDED_STEPS, crowded=True)
    if step % 3 == 0:
        return Layout(4, 9, 16, 28, crowded=True)
    return Layout(2, 4, 16, 28)
