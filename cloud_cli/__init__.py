"""`stocktide cloud`: the operators' commands, a file for each noun."""
