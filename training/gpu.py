"""Training in minutes on a GPU that is at hand for minutes, on a machine that has neither the pictures nor a network.

`python -m training.gpu pack` makes parts of at most 60 MiB of caption sets, small JPEGs with their captions, and the
checkpoint to begin with. `train`, on the other machine, takes the parts that are there; it needs torch, NumPy, Pillow,
safetensors, array-api-compat, pi-heif and tqdm. All pictures lie on the device as uint8 and are changed there, a batch
at a time; the schedule follows the clock; losses are read now and then. What comes back is float16 weights in pieces of
at most 16 MiB, which `join` makes a checkpoint of.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.captioner import Captioner
from model.checkpoint import METRICS, load_captioner, save_captioner, write_json
from model.errors import CaptionModelError
from model.runtime.torch_engine import TorchStepper
from model.search import Stepper
from model.vocabulary import PAD
from training import batching, objectives, optimisation, validation
from training.augment import AugmentConfig
from training.batching import mirrored_captions
from training.config import TrainConfig
from training.data import DataError
from training.optimisation import TrainingDiverged, WeightAverage, parameter_groups
from training.parts import CHECKPOINT, Packed, join, pack, split, unpack
from training.process import configure_process, device_of

log = logging.getLogger("training")

READ_EVERY = 50  # steps between looks at the loss, each of which waits for the device
DECODER_ALONE = 0.15  # share of the time in which the encoder, trained already, is left as it is
FOR_EVALUATION = 0.12  # share of the time that is kept for it
BATCH = 256


# --- pictures, changed on the device -----------------------------------------------------------------


def augmented(pixels: Tensor, size: int, config: AugmentConfig, may_flip: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, S, 3) uint8 -> float (B, size, size, 3) of 0 to 255, each changed in its own way, and which are mirrored.

    As `training.augment`, but all at once and in one interpolation. may_flip: (B,) bool.
    """
    B, device = len(pixels), pixels.device
    x = pixels.permute(0, 3, 1, 2).float()

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, device=device)

    area, ratio = uniform(config.min_scale, 1), uniform(-0.12, 0.12).exp() if config.min_scale < 1 else uniform(1, 1)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    flipped = may_flip & (torch.rand(B, device=device) < 0.5) if config.flip else torch.zeros_like(may_flip)
    theta = torch.zeros(B, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = torch.where(flipped, -width, width), left
    theta[:, 1, 1], theta[:, 1, 2] = height, top
    grid = F.affine_grid(theta, [B, 3, size, size], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if config.jitter > 0:
        brightness, contrast, saturation = (
            uniform(1 - config.jitter, 1 + config.jitter)[:, None, None, None] for _ in range(3)
        )
        mean, grey = x.mean((1, 2, 3), keepdim=True), x.mean(1, keepdim=True)
        x = (mean + (grey + (x - grey) * saturation - mean) * contrast) * brightness
        x = x.clamp(0, 255)
    return x.permute(0, 2, 3, 1), flipped


class Sentences:
    """All pictures' captions as word ids on the device, (P, most, T): start, words, end, padding."""

    def __init__(self, ids: Sequence[Sequence[Sequence[int]]], config: TrainConfig, device: torch.device) -> None:
        most = max(max(map(len, ids)), 1)
        filled = [[mine[i % len(mine)] if mine else [] for i in range(most)] for mine in ids]
        self.words = batching.padded(filled, config.max_words).to(device)
        self.counts = torch.tensor([len(mine) for mine in ids], device=device)

    def drawn(self, rows: Tensor, count: int) -> Tensor:
        """`count` of each picture's captions in random order, some again where it has fewer: (B, count, T)."""
        B, most = len(rows), self.words.shape[1]
        order = torch.rand(B, most, device=rows.device)
        counts = self.counts[rows].clamp(min=1)
        order = order.masked_fill(torch.arange(most, device=rows.device) >= counts[:, None], 2).argsort(1)
        chosen = order.gather(1, torch.arange(count, device=rows.device) % counts[:, None])
        return self.words[rows[:, None], chosen]


# --- training ----------------------------------------------------------------------------------------


def train(folder: Path, out: Path, device: torch.device, minutes: float, batch: int = BATCH) -> dict[str, Any]:
    """Train on the parts in `folder` for so many minutes in all; checkpoint and figures go to `out`."""
    began = time.monotonic()
    packed = unpack(folder, device)
    captioner = load_captioner(folder / CHECKPOINT).to(device)
    captioner.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe, config, size = packed.recipe, packed.recipe.train, captioner.config.preprocess.size
    rows = torch.tensor(packed.rows("train"), device=device)
    if not len(rows):
        raise DataError("there are no training pictures in these parts")
    encode = captioner.vocabulary.encode
    plain = Sentences([[encode(c) for c in p.captions] for p in packed.pictures], config, device)
    turned = [[encode(c) for c in mine] for mine in mirrored_captions(packed.pictures, recipe.augment)]
    mirrored = Sentences(turned, config, device)
    optimizer = torch.optim.AdamW(_groups(captioner, config), betas=(0.9, 0.98), fused=True)
    average = WeightAverage(captioner, config.average or 0.999)
    torch.manual_seed(config.seed)
    loaded = time.monotonic()
    end = began + 60 * minutes * (1 - FOR_EVALUATION)
    log.info("%d pictures on %s after %.0f s", len(packed.pictures), device, loaded - began)

    step, total, seen = 0, torch.zeros((), device=device), 0
    optimisation.training_mode(captioner, 0, config)
    for chosen in _batches(rows, batch):
        done = (time.monotonic() - loaded) / max(end - loaded, 1e-9)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = _factor(done, group["encoder"]) * group["peak"]
        pixels, flipped = augmented(packed.pixels[chosen], size, recipe.augment, mirrored.counts[chosen] > 0)
        words = _either(flipped, mirrored, plain, chosen, config.captions_per_picture)
        # The encoder in bf16 where the device has it; the decoder in float32: its sums over steps want the digits.
        with optimisation.autocast(device, config.precision):
            features = captioner.encoder(captioner.normalise(pixels).contiguous(memory_format=torch.channels_last))
        loss = objectives.likelihood_loss(captioner, captioner.memory(features.float()), words, config.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.clip, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        total += loss.detach()
        step, seen = step + 1, seen + len(chosen)
        if step % READ_EVERY == 0 or step == 1:
            now = float(total) / (READ_EVERY if step > 1 else 1)
            total.zero_()
            log.info("step %d, %.0f %%, loss %.4f, %.1f pictures/s", step, 100 * done, now,
                     seen / (time.monotonic() - loaded))  # fmt: skip
            if not math.isfinite(now):
                raise TrainingDiverged(f"the loss is {now}; lower train.learning_rate or train.clip")
    trained = time.monotonic()

    average.swap()
    figures: dict[str, Any] = {
        "steps": step,
        "epochs": round(seen / len(rows), 2),
        "pictures_per_s": round(seen / (trained - loaded), 1),
        "seconds": {"loading": round(loaded - began, 1), "training": round(trained - loaded, 1)},
    }
    return _leave(captioner, packed, out, figures)


def _leave(captioner: Captioner, packed: Packed, out: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Write checkpoint and figures to `out`: the weights first of all, then what the validation pictures say."""
    save_captioner(captioner, out, figures)
    if val := packed.rows("val"):
        figures |= evaluate(captioner, packed, val, packed.recipe.train).figures()
        del figures["distinct"]
        write_json(out / METRICS, figures)
    log.info("%s", json.dumps(figures))
    split(out)
    return figures


def evaluate(captioner: Captioner, packed: Packed, rows: Sequence[int], config: TrainConfig) -> validation.Evaluation:
    """Free-running validation, of pictures on the device."""
    captioner.eval()
    size, device = captioner.config.preprocess.size, packed.pixels.device
    as_it_is = AugmentConfig()

    def speak(of: list[int], words: Tensor) -> tuple[Stepper, Tensor]:
        index = torch.tensor([rows[i] for i in of], device=device)
        pixels, _ = augmented(
            packed.pixels[index], size, as_it_is, torch.zeros(len(of), dtype=torch.bool, device=device)
        )
        memory = objectives.memory_of(captioner, pixels, 0)
        return TorchStepper(captioner.decoder, memory), objectives.likelihood_loss(captioner, memory, words, 0.0)

    with torch.no_grad():
        return validation.evaluate_with(
            speak, captioner.vocabulary, [packed.pictures[i] for i in rows], device, captioner.config.search, config
        )


def _batches(rows: Tensor, batch: int) -> Iterator[Tensor]:
    """Shuffled rows without an end; each epoch has all, but for what does not fill a batch."""
    batch = min(batch, len(rows))
    while True:
        order = rows[torch.randperm(len(rows), device=rows.device)]
        yield from order[: len(order) // batch * batch].split(batch)


def _either(flipped: Tensor, mirrored: Sentences, plain: Sentences, rows: Tensor, count: int) -> Tensor:
    """Captions (B, count, T) of the pictures as they are, or as their mirror images are."""
    parts = [of.drawn(rows, count) for of in (mirrored, plain)]
    T = max(part.shape[-1] for part in parts)
    there, here = (F.pad(part, (0, T - part.shape[-1]), value=PAD) for part in parts)
    return torch.where(flipped[:, None, None], there, here)


def _factor(done: float, encoder: bool) -> float:
    """The learning rate's, by the share of the time that has gone: a rise, then a cosine down to a twentieth."""
    begin = DECODER_ALONE if encoder else 0.0
    if done < begin:
        return 0.0
    done = (done - begin) / (1 - begin)
    return min(done / 0.05, 1.0) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _groups(captioner: Captioner, config: TrainConfig) -> list[dict[str, Any]]:
    """Those of a run at leisure with every stage trained, and whether they are of the encoder."""
    of_decoder = {id(parameter) for parameter in captioner.decoder.parameters()}
    groups = parameter_groups(captioner, 0, config)
    return [{**group, "encoder": id(group["params"][0]) not in of_decoder} for group in groups]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu-train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("pack", help="here: make parts of caption sets")
    add.add_argument("parts", type=Path)
    add.add_argument("--recipe", required=True)
    add.add_argument("--data", required=True, nargs="+", help="caption sets; PATH[:val=N,seed=S]")
    add.add_argument("--init", type=Path, help="checkpoint to begin with; else an encoder with ImageNet's weights")
    add = commands.add_parser("train", help="there: train on the parts that are there")
    add.add_argument("parts", type=Path)
    add.add_argument("out", type=Path)
    add.add_argument("--minutes", type=float, default=8)
    add.add_argument("--batch", type=int, default=BATCH)
    add.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add = commands.add_parser("join", help="here: a checkpoint of the pieces that came back")
    add.add_argument("pieces", type=Path)
    add.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    configure_process()
    try:
        if options.command == "pack":
            from training.config import find_recipe  # pack alone needs what trains at leisure
            from training.data import read
            from training.initialisation import inherited, initial_captioner

            recipe = find_recipe(options.recipe, inherited(options.init) if options.init else None)
            data = read(*options.data)
            wanted = data.required("train") + data.split("val")
            parts = pack(wanted, recipe, initial_captioner(recipe, data, options.init), options.parts)
            log.info("%d pictures in %d parts in %s", len(wanted), parts, options.parts)
        elif options.command == "train":
            torch.set_float32_matmul_precision("high")
            train(options.parts, options.out, device_of(options.device), options.minutes, options.batch)
        else:
            log.info("checkpoint in %s", join(options.pieces, options.folder))
    except (CaptionModelError, DataError, TrainingDiverged, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
