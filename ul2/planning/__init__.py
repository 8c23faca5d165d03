"""What a run will need, found out before anything is paid for.

The train step is compiled for devices that are not there, by the compiler that will
compile it there; what the compiler says is measured, all else is arithmetic whose
assumptions are stated.
"""
