"""`stocktide edge`: the technician's commands, a file for each noun."""
