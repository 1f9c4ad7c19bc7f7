"""The umbrella command `stocktide`: command line and demo only. It may import every part, and does so lazily."""
