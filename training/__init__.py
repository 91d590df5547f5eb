"""Training of vstream-tiny. Not part of what a robot installs."""
