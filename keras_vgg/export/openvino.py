"""Convert a Keras model to OpenVINO's intermediate representation: model.xml and model.bin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MODEL = "model.xml"


def write_openvino(source: Path, path: Path, properties: Mapping[str, str]) -> None:
    """Convert the SavedModel of `keras_vgg.export.litert.write_source` into a new folder.

    The weights are stored as float16. The runtime computes in what it finds fastest on a processor:
    float32, or bfloat16 where the processor has it. `properties` become the file's rt_info.
    """
    import openvino

    # Not openvino.convert_model, which sends statistics of its use over the network.
    network = openvino.Core().read_model(str(source))
    for key, text in properties.items():
        network.set_rt_info(text, [key])
    path.mkdir()
    openvino.save_model(network, str(path / MODEL), compress_to_fp16=True)
