"""Import torchvision where its wheel and torch's were built for different devices.

PyPI's torchvision wheel is built for CUDA. Beside a CPU-only torch of the same version its compiled
operators do not load, and `import torchvision` then fails with "operator torchvision::nms does not
exist", because it registers fake kernels for two operators that were never defined. We need none of
its compiled operators, only its models and blocks: defining the two schemas first lets it import.
Where torchvision works as it is, nothing is changed.

Use: `from model.torchvision_compat import torchvision`.
"""

import importlib
import importlib.util
import sys
import warnings

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _import_torchvision() -> object:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-imported modules of the failed attempt
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _keep_alive.append(library)  # the definitions live as long as the library object
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*image extension.*")
        return importlib.import_module("torchvision")


_keep_alive: list[torch.library.Library] = []
torchvision = _import_torchvision()
