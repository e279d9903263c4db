"""What an export leaves is what a server takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rrmsdk.exports import export_onnx
from rrmsdk.runtime.served import Opening, open_served


def test_an_exported_bundle_is_served_with_the_logits_of_its_network(make_bundle: Callable, tmp_path: Path) -> None:
    bundle, model, images = make_bundle(tmp_path)
    exported = export_onnx(bundle, model, images, images)
    served = open_served(exported.path, "1", Opening(threads=1))
    with torch.no_grad():
        wanted = model.eval()(images).numpy()
    np.testing.assert_allclose(served.predict(images.numpy()), wanted, atol=1e-5)
    assert served.labels == ("zero", "one", "two", "three", "four")
