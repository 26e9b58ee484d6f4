"""Power loss, errors and SIGKILL at every I/O call of a scripted workload; tests.faults.run is the command."""
