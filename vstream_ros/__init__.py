"""Answer questions about what a robot's cameras have seen.

The generated interfaces (``vstream_ros.msg``, ``.srv``, ``.action``) live in the install space, these modules
may come from the source tree: extending the path makes them one package, whichever stands first on ``sys.path``.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
"""What the node and the command line load where no model is named."""
