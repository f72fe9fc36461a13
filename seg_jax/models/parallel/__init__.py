"""How weights and rows are laid over a mesh of devices, and what devices can do."""
