"""Many frames on many workers: Ray Data moves the frames, restarts what dies and holds back what is too fast.

```python
from m2h_deploy.cluster import Cluster, predict_folder, verify_on

predict_folder("bundle/", "pictures/", "out/", cluster=Cluster(workers=4))
result, job = verify_on(Cluster("10.0.0.1:6379", workers=16), "bundle/", "m2h_indoor.pt", "NYUDv2", work="parity/")
```

Needs the extra `ray`. What counts as done lies in files, so a job that was stopped goes on when it is started again.
Importing this package does not import Ray.
"""

from m2h_deploy.cluster.jobs import JobResult, Progress
from m2h_deploy.cluster.predict import predict_folder
from m2h_deploy.cluster.session import Cluster
from m2h_deploy.cluster.verify import verify_on

__all__ = ["Cluster", "JobResult", "Progress", "predict_folder", "verify_on"]
