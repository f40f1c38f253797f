"""A ROS 2 node that runs a bundle with m2h_deploy's runtime. Only `node` and `pose_topics` import rclpy."""
