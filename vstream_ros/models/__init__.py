"""Model families behind one interface: ``base.VideoModel``. torch and transformers, no ROS."""
