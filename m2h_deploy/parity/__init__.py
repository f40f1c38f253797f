"""Parity: compare an engine with the reference it was made from, on data, and judge it by gates.

```python
from m2h_deploy.parity import Gates, verify

result = verify("bundle/", "m2h_indoor.pt", "NYUDv2", gates=Gates(miou_drop=1.0))
result.passed
```
"""

from m2h_deploy.parity.chart import draw_errors
from m2h_deploy.parity.executor import Executor, LocalExecutor
from m2h_deploy.parity.gates import Gates
from m2h_deploy.parity.locate import LocateResult, locate, locate_in_bundle
from m2h_deploy.parity.result import VerifyResult, to_json
from m2h_deploy.parity.verify import verify

__all__ = [
    "Executor",
    "Gates",
    "LocalExecutor",
    "LocateResult",
    "VerifyResult",
    "draw_errors",
    "locate",
    "locate_in_bundle",
    "to_json",
    "verify",
]
