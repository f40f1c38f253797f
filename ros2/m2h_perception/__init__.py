"""A ROS 2 node on m2h_deploy's runtime. Only `node` imports rclpy; the rest is plain Python."""
