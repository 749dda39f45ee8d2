"""CleanVision's side of `tests.benchmarks.compare`: all the issues that it looks for by default, and copies alone."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from compare_side import Request, pairs_of, serve

COPIES = ("exact_duplicates", "near_duplicates")


def scan(request: Request, wanted: tuple[str, ...] | None) -> Any:
    from cleanvision import Imagelab

    lab = Imagelab(data_path=request["images"])

    def work() -> Any:
        lab.find_issues(None if wanted is None else {issue: {} for issue in wanted}, n_jobs=1, verbose=False)
        return lab

    def tell(lab: Any) -> dict[str, Any]:
        sets = [[Path(path).name for path in group] for issue in COPIES for group in lab.info[issue]["sets"]]
        flags = {column[3:-6]: column for column in lab.issues.columns if column.endswith("_issue")}
        issues = {
            issue: [Path(path).name for path in lab.issues.index[lab.issues[column]]]
            for issue, column in flags.items()
            if issue not in COPIES
        }
        return {"pairs": pairs_of(sets), "issues": issues}

    return work, tell


if __name__ == "__main__":
    serve(
        {"copies": lambda request: scan(request, COPIES), "issues": lambda request: scan(request, None)},
        f"cleanvision {version('cleanvision')}",
    )
