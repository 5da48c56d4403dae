"""Import a package that needs torchvision, beside a PyTorch for which torchvision is not made."""

import importlib
import sys


def import_beside(name):
    """Return a module that imports torchvision.

    Beside a PyTorch for CPUs, the operators of a wheel for CUDA do not load, and the import asks
    for the names of two, which no test uses.
    """
    import torch

    try:
        return importlib.import_module(name)
    except RuntimeError:
        parents = ("torchvision", name.partition(".")[0])
        for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] in parents]:
            del sys.modules[loaded]
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        module = importlib.import_module(name)
        module.operators = operators  # they go when the library is collected
        return module
