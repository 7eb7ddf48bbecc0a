"""Run the first Python example of README on random data, with nothing but torch and the library."""

import re
import sys
from pathlib import Path

import torch

README = Path(__file__).resolve().parents[2] / "README.md"


def main() -> None:
    torch.manual_seed(0)
    loader = [(torch.randn(16, 3, 8, 8), torch.randint(10, (16,))) for _ in range(5)]
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 10)
    )
    source = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert source is not None
    names = {"my_network": network, "loader": loader}
    exec(source[1], names)
    kappa = max(report.kappa for report in names["wc"].layer_reports(names["model"]).values())
    assert kappa <= 1.1 * (1 + 1e-4), kappa
    loaded = {"pandas", "pydantic", "scipy", "study"} & sys.modules.keys()
    assert not loaded, loaded
    print(f"README's example trains; the largest condition number is {kappa:.4f}")


if __name__ == "__main__":
    main()
