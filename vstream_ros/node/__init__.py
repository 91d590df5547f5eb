"""ROS 2: topics, services, action, diagnostics. The model is only known through ``vstream_ros.engine``."""
