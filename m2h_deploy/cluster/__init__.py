"""Process many frames on many workers: Ray Data distributes frames, restarts workers and applies backpressure.

```python
from m2h_deploy.cluster import Cluster, RayExecutor, predict_folder
from m2h_deploy.parity import verify

predict_folder("bundle/", "pictures/", "out/", cluster=Cluster(workers=4))
executor = RayExecutor(Cluster("10.0.0.1:6379", workers=16), work="parity/")
verify("bundle/", "m2h_indoor.pt", "NYUDv2", executor=executor)
```

Needs the extra `ray`. Progress is recorded in files, so a stopped job continues when it is started again. Importing
this package does not import Ray.
"""

from m2h_deploy.cluster.jobs import JobResult
from m2h_deploy.cluster.predict import predict_folder
from m2h_deploy.cluster.session import Cluster
from m2h_deploy.cluster.verify import RayExecutor

__all__ = ["Cluster", "JobResult", "RayExecutor", "predict_folder"]
