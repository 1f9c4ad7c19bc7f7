"""What a worker does beside merging, a service for each noun."""
