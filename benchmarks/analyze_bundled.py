"""Every analysis on the bundled model: what docs/results.md and docs/findings.md read.

Writes the tables of each analysis as analyze_<name>.csv (alignment also as alignment.png) into benchmarks/results/, and
analyze.json with the versions, and for each analysis its command and commit.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tokenprune.cli.main import main as tokenprune
from tokenprune.evaluate.environment import git_state, package_versions

RESULTS = Path(__file__).parent / "results"
# Per analysis: the words of its command, and files of its folder with their names under results.
ANALYSES: dict[str, tuple[list[str], dict[str, str]]] = {
    "alignment": (
        ["alignment", "--count", "200"],
        {"alignment.csv": "analyze_alignment.csv", "alignment.png": "alignment.png"},
    ),
    "redundancy": (["redundancy", "--count", "100"], {"redundancy.csv": "analyze_redundancy.csv"}),
    "layers": (["redundancy", "--layers"], {"layers.csv": "analyze_layers.csv", "layers.png": "analyze_layers.png"}),
    "diagnostics": (
        ["diagnostics", "--count", "100"],
        {"diagnostics.csv": "analyze_diagnostics.csv", "overlap.csv": "analyze_overlap.csv"},
    ),
    "ablation": (
        ["ablation", "--count", "200"],
        {"ablation.csv": "analyze_ablation.csv", "ablation.png": "analyze_ablation.png"},
    ),
    "spatial": (["spatial", "--count", "200"], {"spatial.csv": "analyze_spatial.csv"}),
    "letterbox": (["spatial", "--letterbox"], {"spatial.csv": "analyze_letterbox.csv"}),
    "damage": (
        ["damage", "--count", "400"],
        {"damage.csv": "analyze_damage.csv", "turns.csv": "analyze_turns.csv", "tests.csv": "analyze_tests.csv"},
    ),
    "gap": (["gap"], {"gap_accuracy.csv": "analyze_gap.csv", "gap_accuracy.png": "analyze_gap.png"}),
    "information": (
        ["information"],
        {"information.csv": "analyze_information.csv", "information.png": "analyze_information.png"},
    ),
}


def main(names: tuple[str, ...] = tuple(ANALYSES)) -> int:
    """Run the analyses and copy their tables."""
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        words, files = ANALYSES[name]
        with tempfile.TemporaryDirectory() as folder:
            if tokenprune(["analyze", *words, "--out", folder]) != 0:
                raise RuntimeError(f"analyze {name} did not finish")
            for source, target in files.items():
                # The folder of a run that can be resumed ends with the hash of its configuration.
                (run,) = Path(folder).iterdir()
                shutil.copy(run / source, RESULTS / target)
    file = RESULTS / "analyze.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    state = git_state()
    done = {name: {"command": ANALYSES[name][0], "commit": state and state["commit"]} for name in names}
    facts = {"analyses": {**known.get("analyses", {}), **done}, "versions": package_versions()}
    file.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:]) or tuple(ANALYSES)))
