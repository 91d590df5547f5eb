"""The Qwen-VL families."""
