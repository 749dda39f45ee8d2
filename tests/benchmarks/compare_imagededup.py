"""imagededup's side of `tests.benchmarks.compare`: perceptual hashes of pictures, and copies among ready vectors.

Its network would have to be downloaded; a stand-in takes its place, as vectors are given.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from compare_side import Request, serve


def copies(request: Request) -> Any:
    """`PHash`, one process."""
    from imagededup.methods import PHash

    hasher = PHash(verbose=False)

    def work() -> dict[str, list[str]]:
        hashes = hasher.encode_images(request["images"], num_enc_workers=0)
        found: dict[str, list[str]] = hasher.find_duplicates(
            encoding_map=hashes, max_distance_threshold=request["distance"], num_dist_workers=0
        )
        return found

    return work, lambda found: {"pairs": [[one, other] for one, others in found.items() for other in others]}


def hashes(request: Request) -> Any:
    """`PHash`, whose hashes are those given."""
    import numpy as np
    from imagededup.methods import PHash

    named = {str(row): f"{value:016x}" for row, value in enumerate(np.load(request["hashes"]).tolist())}
    hasher = PHash(verbose=False)

    def work() -> list[str]:
        found: list[str] = hasher.find_duplicates_to_remove(
            encoding_map=named, max_distance_threshold=request["distance"], num_dist_workers=0
        )
        return found

    return work, lambda found: {"removed": [int(name) for name in found]}


def vectors(request: Request) -> Any:
    """`CNN`, whose cosines are those of the vectors given."""
    import numpy as np
    import torch
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel

    rows = np.load(request["vectors"])
    named = {str(row): vector for row, vector in enumerate(rows)}
    finder = CNN(verbose=False, model_config=CustomModel(name="none", model=torch.nn.Identity(), transform=str))

    def work() -> list[str]:
        found: list[str] = finder.find_duplicates_to_remove(
            encoding_map=named, min_similarity_threshold=request["threshold"], num_sim_workers=0
        )
        return found

    return work, lambda found: {"removed": [int(name) for name in found]}


if __name__ == "__main__":
    serve({"copies": copies, "hashes": hashes, "vectors": vectors}, f"imagededup {version('imagededup')}")
