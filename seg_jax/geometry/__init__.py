"""Pure arithmetic on polygons, masks, boxes and grids: jax and numpy only."""
