"""Videos side by side and the pictures of a demo."""
