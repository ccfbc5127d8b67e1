"""Small checkpoints as trainers leave them, for the tests: `python -m tools.make_checkpoints FOLDER`, in its own venv.

Written with Python 3.11.7; the trainers are no dependencies of dgn, so they get an environment of their own:

    uv venv trainers --python 3.11
    uv pip install --python trainers torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 safetensors==0.8.0 \
        lightning==2.6.6 timm==1.0.31 fastai==2.8.12 accelerate==1.15.0 transformers==5.24.0 monai==1.6.1 \
        pytorch-ignite==0.5.5
    trainers/bin/python -m tools.make_checkpoints tests/data/checkpoints

NumPy 1.26 calls its functions by other names than NumPy 2, so it gets one more:

    uv venv numpy1 --python 3.11
    uv pip install --python numpy1 torch==2.15.0 numpy==1.26.4 safetensors==0.8.0
    numpy1/bin/python -m tools.make_checkpoints tests/data/checkpoints --only numpy1

Beside the files lie the weights that each trainer had in memory: `weights-TRAINER.safetensors`, named "FILE/NAME" after
its `state_dict()`. The trainers run in a temporary folder, by relative names, so that no file has the machine's paths.

torchvision's training script is not part of its package: `torchvision_script` writes the dictionary that the script in
its repository writes (references/classification/train.py), with the classes that the script uses.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

NUM_CLASSES = 3
NUMPY = f"numpy{np.__version__.split('.')[0]}"


class TinyNet(nn.Module):
    """A classifier of 3x8x8 pictures. Nobody who reads its pickles has the class."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.fc = nn.Linear(4, NUM_CLASSES)
        self.twin = self.fc  # tied: two names of one layer
        self.register_buffer("mean_3", torch.tensor([0.5, 0.4, 0.3]))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, images_N3HW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images_N3HW - self.mean_3[:, None, None]).mean((2, 3)))


def photos() -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4) % NUM_CLASSES)


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """Two updates, so that running means and the optimiser's state are not what they began with."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        images_N3HW, labels_N = photos()[:]
        nn.functional.cross_entropy(model(images_N3HW), labels_N).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


class Truths:
    """Collects the files' names and the weights that they should hold."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def note(self, file: str, model: nn.Module) -> str:
        """Returns the file's name."""
        for name, tensor in model.state_dict().items():
            self.weights[f"{file}/{name}"] = tensor.detach().clone().contiguous()
        return file


def lightning_checkpoints(truths: Truths) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, hyperparameters: dict[str, object]):
            super().__init__()
            self.save_hyperparameters(hyperparameters)
            self.net = TinyNet()
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(NUM_CLASSES))

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            return self.criterion(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

        def on_save_checkpoint(self, checkpoint: dict[str, dict[str, dict[str, object]]]) -> None:
            for state in checkpoint["callbacks"].values():  # they have absolute paths of this machine
                state |= {key: Path(value).name for key, value in state.items() if isinstance(value, str)}
                state["best_k_models"] = {}

    settings = argparse.Namespace(optimizer="sgd", depth=2)
    for name, hyperparameters in (
        ("lightning", {"rate": 0.01}),
        ("lightning-path", {"rate": 0.01, "photos": Path("photos")}),
        ("lightning-namespace", {"settings": settings}),
    ):
        module = Module(hyperparameters)
        saver = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=".", filename=name)
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, callbacks=[saver], enable_progress_bar=False
        )
        trainer.fit(module, torch.utils.data.DataLoader(photos(), batch_size=2))
        truths.note(f"{name}.ckpt", module.net)


def timm_checkpoint(truths: Truths) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV2

    model = TinyNet()
    average = ModelEmaV2(model, decay=0.5)
    optimizer = trained(model)
    average.update(model)
    args = argparse.Namespace(model="tinynet", lr=0.01, mean=None)
    CheckpointSaver(model, optimizer, args=args, model_ema=average).save_checkpoint(0, metric=50.0)
    os.replace("last.pth.tar", truths.note("timm.pth.tar", model))


def torchvision_script(truths: Truths) -> None:
    model = TinyNet()
    average = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda averaged, new, _: 0.5 * averaged + 0.5 * new, use_buffers=True
    )
    optimizer = trained(model)
    average.update_parameters(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 0,
        "args": argparse.Namespace(model="tinynet", batch_size=32, lr=0.1, output_dir="."),
        "model_ema": average.state_dict(),
    }
    torch.save(checkpoint, truths.note("torchvision-script.pth", model))


def fastai_checkpoints(truths: Truths) -> None:
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    loader = torch.utils.data.DataLoader(photos(), batch_size=2)
    learn = Learner(DataLoaders(loader, loader), TinyNet(), loss_func=nn.CrossEntropyLoss(), path=Path())
    learn.fit(1)
    learn.save("fastai", with_opt=True)
    learn.save("fastai-bare", with_opt=False)
    for name in ("fastai.pth", "fastai-bare.pth"):
        os.replace(f"models/{name}", truths.note(name, learn.model))


def accelerate_checkpoints(truths: Truths) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = TinyNet()
    model.twin = nn.Linear(4, NUM_CLASSES)  # accelerate saves one name of tied weights, not both
    model, _ = accelerator.prepare(model, trained(model))
    accelerator.save_state("state")
    accelerator.save_model(model, "model")
    accelerator.save_model(model, "pickled", safe_serialization=False)
    for source, name in (
        ("state/model.safetensors", "accelerate-state.safetensors"),
        ("model/model.safetensors", "accelerate-model.safetensors"),
        ("pickled/pytorch_model.bin", "accelerate-model.bin"),
    ):
        os.replace(source, truths.note(name, accelerator.unwrap_model(model)))


def transformers_checkpoint(truths: Truths) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config)
    rows = [{"pixel_values": image_3HW, "labels": label} for image_3HW, label in photos()]
    arguments = TrainingArguments(output_dir="trainer", max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model("whole")
    os.replace("whole/model.safetensors", truths.note("transformers.safetensors", model))


def monai_checkpoints(truths: Truths) -> None:
    from ignite.engine import Engine
    from monai.handlers import CheckpointSaver

    model = TinyNet()
    optimizer = trained(model)
    for name, objects in (("monai-bare", {"net": model}), ("monai", {"net": model, "optimizer": optimizer})):
        engine = Engine(lambda *_: None)
        CheckpointSaver(".", objects, save_final=True, final_filename=f"{name}.pt").attach(engine)
        engine.run([0], max_epochs=1)
        truths.note(f"{name}.pt", model)


def torch_checkpoints(truths: Truths) -> None:
    """State dicts as torch's own wrappers leave them, and whole modules."""
    model = TinyNet()
    trained(model)
    compiled = torch.compile(model, backend="eager")
    parallel = nn.DataParallel(model)
    torch.save(compiled.state_dict(), truths.note("compiled.pth", model))
    torch.save(torch.compile(parallel, backend="eager").state_dict(), truths.note("compiled-parallel.pth", model))
    torch.save(compiled, truths.note("module-compiled.pth", model))
    torch.save(model, truths.note("module.pth", model))
    torch.save(parallel, truths.note("module-parallel.pth", model))
    torch.save({"model": model, "epoch": 3}, truths.note("module-wrapped.pth", model))
    old = {"state_dict": model.state_dict(), "args": argparse.Namespace(rate=0.1)}
    torch.save(old, truths.note("before-1.6.pth", model), _use_new_zipfile_serialization=False)


def library_modules(truths: Truths) -> None:
    from timm.models.convnext import ConvNeXt
    from timm.models.vision_transformer import VisionTransformer
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    blocks = [InvertedResidualConfig(8, 3, 16, 8, True, "HS", 2, 1, 1.0)]
    for name, model in (
        ("module-torchvision-mobilenet.pth", MobileNetV3(blocks, last_channel=16, num_classes=NUM_CLASSES)),
        ("module-timm-convnext.pth", ConvNeXt(num_classes=NUM_CLASSES, depths=(1,) * 4, dims=(4,) * 4)),
        (
            "module-timm-vit.pth",
            VisionTransformer(img_size=8, patch_size=4, num_classes=NUM_CLASSES, embed_dim=8, depth=1, num_heads=2),
        ),
    ):
        torch.save(model, truths.note(name, model))


def beside_the_weights(truths: Truths) -> None:
    """What people put beside their weights."""
    model = TinyNet()
    trained(model)
    checkpoint = {
        "epoch": np.int64(3),
        "best": np.float64(0.75),
        "losses_N": np.linspace(1, 0, 5),
        "last_losses": collections.deque([0.5, 0.25], maxlen=2),
        "seen": collections.deque([1]),
        "by_class": collections.defaultdict(list, {"cat": [1, 2]}),
        "saved": datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC),
        "photos": Path("photos"),
        "model_state_dict": model.state_dict(),
    }
    torch.save(checkpoint, truths.note(f"{NUMPY}.pth", model))


WRITERS: dict[str, Callable[[Truths], None]] = {
    "lightning": lightning_checkpoints,
    "timm": timm_checkpoint,
    "torchvision": torchvision_script,
    "fastai": fastai_checkpoints,
    "accelerate": accelerate_checkpoints,
    "transformers": transformers_checkpoint,
    "monai": monai_checkpoints,
    "torch": torch_checkpoints,
    "modules": library_modules,
    NUMPY: beside_the_weights,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=WRITERS, action="append", help="these alone; the other files stay")
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        for name in args.only or WRITERS:
            truths = Truths()
            torch.manual_seed(0)
            WRITERS[name](truths)
            save_file(truths.weights, folder / f"weights-{name}.safetensors")
            for file in {key.split("/")[0] for key in truths.weights}:
                shutil.copyfile(file, folder / file)
        os.chdir(folder)


if __name__ == "__main__":
    main()
