"""MLX: `mlx_lm.server` on a directory in its own layout."""
