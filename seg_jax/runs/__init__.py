"""Assembly of a run from its configuration, and its folder."""
