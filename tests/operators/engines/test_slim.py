"""What is put off is not imported; what needs it still gets it; a library that asks for more is imported plainly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]


def done(code: str) -> str:
    """What a fresh Python prints."""
    run = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.slow
def test_an_open_clip_model_loads_without_compiler_transformers_and_timm() -> None:
    """A new version of torchvision or open_clip that imports them in another way fails here: see `slim`."""
    code = (
        "import sys, numpy as np\n"
        "from labelmill.operators.engines.embedding.open_clip import image_encoder, text_encoder\n"
        "from labelmill.pipelines.config.cards import find_card\n"
        "encoder = image_encoder(find_card('clip-random'))\n"
        "encoder.encode([encoder.prepare(np.zeros((40, 50, 3), np.uint8))])\n"
        "text_encoder(find_card('clip-random')).encode(['a car'])\n"
        "print(sorted({'torch._dynamo', 'torch._inductor', 'transformers', 'timm', 'sympy'} & set(sys.modules)))\n"
    )
    assert done(code) == "[]"


@pytest.mark.slow
def test_what_was_put_off_works() -> None:
    code = (
        "import sys\n"
        "from labelmill.operators.engines.slim import import_open_clip\n"
        "import_open_clip()\n"
        "import open_clip, torch, torchvision\n"
        "assert open_clip.timm_model.timm is None\n"
        "from torchvision.ops import roi_align\n"
        "ones, boxes = torch.ones(1, 1, 16, 16), [torch.tensor([[2.0, 2.0, 10.0, 10.0]])]\n"
        "assert roi_align(ones, boxes, 4).eq(1).all()\n"
        "sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu')\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).eq(2).all()\n"
        "import transformers\n"
        "assert transformers.AutoConfig\n"
        "import_open_clip(timm=True)\n"
        "from open_clip.model import _build_vision_tower\n"
        "config = {'timm_model_name': 'resnet10t', 'timm_pool': 'avg', 'timm_proj': 'linear', 'image_size': 32}\n"
        "tower = _build_vision_tower(8, config)\n"
        "print(tuple(tower.eval()(torch.zeros(1, 3, 32, 32)).shape))\n"
    )
    assert done(code) == "(1, 8)"


@pytest.mark.slow
def test_a_library_that_asks_for_more_is_imported_plainly() -> None:
    code = (
        "import sys, types\n"
        "from labelmill.operators.engines import slim\n"
        "class Poor(types.ModuleType):\n"
        "    def __setattr__(self, name, value):\n"
        "        if name != 'is_compile_supported': super().__setattr__(name, value)\n"
        "slim.ModuleType = Poor\n"
        "slim.import_torchvision()\n"
        "import torch\n"
        "from torchvision.ops import nms\n"
        "print('torch._dynamo' in sys.modules, nms(torch.zeros(1, 4), torch.zeros(1), 0.5).tolist())\n"
    )
    assert done(code) == "True [0]"
