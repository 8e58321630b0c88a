"""Studies: methods over numbers of shots and seeds on one data set."""
