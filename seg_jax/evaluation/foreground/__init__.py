"""Foreground maps (camouflaged, salient objects): measures, protocols, numbers and tables."""
