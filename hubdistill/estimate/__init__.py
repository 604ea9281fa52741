"""What a run will need, before anything is loaded: memory of each stage, disk, time and money."""
