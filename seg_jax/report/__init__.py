"""What a person looks at: pages, charts, panels, galleries."""
