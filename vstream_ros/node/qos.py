"""Qualities of service that more than one end of a connection has to know."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""~/memory_image: who subscribes later still gets the latest sheet."""
KEEP_ALL = QoSProfile(history=HistoryPolicy.KEEP_ALL)
"""Services: a request that finds the queue full is sent again by the middleware, and takes no other one's place."""
