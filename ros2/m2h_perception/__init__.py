"""A ROS 2 node that runs a bundle with m2h_deploy's runtime. Only `node` imports rclpy; the rest is plain Python."""
