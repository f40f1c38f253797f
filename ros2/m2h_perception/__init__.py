"""A ROS 2 node that runs a bundle with m2h_deploy's runtime. Only the modules of topics and of nodes import rclpy."""
